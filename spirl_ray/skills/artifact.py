"""The skill artifact: ``skills.safetensors`` + ``skill.json`` in one folder. Loads with torch alone.

Nothing here is a pickle. The JSON carries what a user needs to trust the tensors: dimensions, skill length,
normalisation, the dataset's hash, the training config, metrics, and the SHA-256 of the tensor file.

People share artifacts, so whatever a folder holds is untrusted: links are not followed, sizes are compared before
memory is taken, and what does not fit is a `SpirlError` (SECURITY.md).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from spirl_ray.config import Settings
from spirl_ray.errors import SpirlError
from spirl_ray.files.atomic import write_json
from spirl_ray.files.tensors import build_module, load_tensors, save_tensors
from spirl_ray.files.untrusted import read_card
from spirl_ray.skills.model import SkillModel, SkillSpec

TENSORS, CARD = "skills.safetensors", "skill.json"
FORMAT_VERSION = 1


class SkillCard(Settings):
    """Contents of ``skill.json``."""

    format_version: int
    environment: str
    spec: SkillSpec
    dataset_sha256: str
    pretrain: dict[str, Any]
    seed: int
    metrics: dict[str, float]
    state_mean: list[float]
    state_std: list[float]
    sha256: str
    package_version: str


def save_skills(
    folder: Path,
    model: SkillModel,
    *,
    environment: str,
    dataset_sha256: str,
    pretrain: dict[str, Any],
    seed: int,
    metrics: dict[str, float],
    package_version: str,
) -> SkillCard:
    """Writes the artifact; the card comes last, so a folder with a card is complete."""
    card = SkillCard(
        format_version=FORMAT_VERSION,
        environment=environment,
        spec=model.spec,
        dataset_sha256=dataset_sha256,
        pretrain=pretrain,
        seed=seed,
        metrics=metrics,
        state_mean=model.state_mean.tolist(),
        state_std=model.state_std.tolist(),
        sha256=save_tensors(model, folder / TENSORS),
        package_version=package_version,
    )
    write_json(folder / CARD, card.model_dump(mode="json"))
    return card


def read_skill_card(folder: Path) -> SkillCard:
    """Reads and checks ``skill.json``."""
    raw = read_card(folder / CARD)
    if raw.get("format_version") != FORMAT_VERSION:
        raise SpirlError(
            f"{folder / CARD} has format version {raw.get('format_version')!r}; this program reads {FORMAT_VERSION}."
        )
    try:
        return SkillCard.model_validate(raw)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise SpirlError(f"{folder / CARD} is not a skill card: {faults}") from error


def load_skills(folder: Path, environment: str | None = None) -> SkillModel:
    """Loads a skill model in evaluation mode, with frozen parameters.

    Args:
        folder: holds ``skills.safetensors`` and ``skill.json``.
        environment: when given, the artifact must have been trained for this environment id.

    Raises:
        SpirlError: for a missing, damaged or foreign artifact.
    """
    card = read_skill_card(folder)
    if environment is not None and card.environment != environment:
        raise SpirlError(
            f"The skills in {folder} were trained for {card.environment}, this experiment uses {environment}. "
            "Point to skills of the same environment, or pretrain new ones."
        )
    model = build_module(lambda: SkillModel(card.spec), folder / TENSORS)
    load_tensors(model, folder / TENSORS, card.sha256)
    return model.eval().requires_grad_(False)
