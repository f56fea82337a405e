"""The skill artifact: ``skills.safetensors`` + ``skill.json`` in one folder, which torch alone can load.

Nothing here is a pickle. The JSON carries what a user needs to trust the tensors: features, skill length,
normalisation, the dataset's hash, the training config, metrics, and the SHA-256 of the tensor file.

People share artifacts, so whatever a folder holds is untrusted: links are not followed, sizes are compared before
memory is taken, and what does not fit is a `SpirlError` (SECURITY.md).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spirl_ray.config import Settings
from spirl_ray.episodes.actions import ActionRange, described
from spirl_ray.episodes.features import Features
from spirl_ray.errors import SpirlError
from spirl_ray.files import layout
from spirl_ray.files.atomic import write_json
from spirl_ray.files.hub import local_artifact
from spirl_ray.files.tensors import build_module, load_tensors, save_tensors
from spirl_ray.files.untrusted import read_artifact_card
from spirl_ray.skills.model import SkillModel
from spirl_ray.skills.spec import SkillSpec

FORMAT_VERSION = 2


class FeatureStatistics(Settings):
    """The mean and standard deviation of a feature in the data, as nested lists of its shape."""

    mean: list[Any]
    std: list[Any]


class SkillCard(Settings):
    """The contents of ``skill.json``."""

    format_version: int
    environment: str | None
    """The id of the environment that the data are from, None for data alone; the skills fit every environment with
    these features and actions."""
    spec: SkillSpec
    dataset_sha256: str
    pretrain: dict[str, Any]
    seed: int
    metrics: dict[str, float]
    normalisation: dict[str, FeatureStatistics]
    sha256: str
    package_version: str


def save_skills(
    folder: Path,
    model: SkillModel,
    *,
    environment: str | None,
    dataset_sha256: str,
    pretrain: dict[str, Any],
    seed: int,
    metrics: dict[str, float],
    package_version: str,
) -> SkillCard:
    """Writes the artifact; the card is written last, so a folder with a card is complete."""
    mean, std = model.statistics.mean, model.statistics.std
    card = SkillCard(
        format_version=FORMAT_VERSION,
        environment=environment,
        spec=model.spec,
        dataset_sha256=dataset_sha256,
        pretrain=pretrain,
        seed=seed,
        metrics=metrics,
        normalisation={
            name: FeatureStatistics(mean=mean[name].tolist(), std=std[name].tolist()) for name in model.statistics.names
        },
        sha256=save_tensors(model, folder / layout.SKILL_TENSORS),
        package_version=package_version,
    )
    write_json(folder / layout.SKILL_CARD, card.model_dump(mode="json"))
    return card


def read_skill_card(folder: Path) -> SkillCard:
    """Reads and checks ``skill.json``.

    Raises:
        SpirlError: the card is missing, damaged, or of another version.
    """
    remedy = "Train the skills again with spirl pretrain"
    return read_artifact_card(folder / layout.SKILL_CARD, SkillCard, FORMAT_VERSION, kind="skill", remedy=remedy)


def load_skills(folder: str | Path) -> SkillModel:
    """Loads a skill model in evaluation mode, with frozen parameters.

    Args:
        folder: folder with ``skills.safetensors`` and ``skill.json``, or ``hf://ORG/NAME``.

    Raises:
        SpirlError: the artifact is missing, damaged, or not a skill artifact.
    """
    with local_artifact(folder, layout.SKILL_FILES) as found:
        card = read_skill_card(found)
        model = build_module(lambda: SkillModel(card.spec), found / layout.SKILL_TENSORS)
        load_tensors(model, found / layout.SKILL_TENSORS, card.sha256)
    return model.eval().requires_grad_(False)


def check_fit(spec: SkillSpec, features: Features, action_dim: int, actions: ActionRange | None, where: str) -> None:
    """Compares the features and actions of skills with those of an environment.

    Args:
        spec: description of the skills.
        features: features of the made environment.
        action_dim: A, the width of the environment's actions.
        actions: range of the environment's actions.
        where: what to call the two in an error, such as "the skills in FOLDER and spirl/Maze-v0".

    Raises:
        SpirlError: a feature is missing or has another shape, or actions have another size or range.
    """
    for name, wanted in spec.observed.items():
        found = features.get(name)
        if found is None:
            raise SpirlError(
                f"{where} do not fit: the skills need the feature {name!r}, the environment has {', '.join(features)}."
            )
        if found.observed_shape != wanted.observed_shape:
            raise SpirlError(
                f"{where} do not fit: the feature {name!r} has the shape {list(found.observed_shape)}, the skills were "
                f"trained with {list(wanted.observed_shape)}."
            )
    if action_dim != spec.action_dim:
        raise SpirlError(
            f"{where} do not fit: actions have {action_dim} dimensions, the skills were trained with {spec.action_dim}."
        )
    if actions != spec.actions:
        raise SpirlError(
            f"{where} do not fit: the environment has {described(actions, action_dim)}, the skills were trained with "
            f"{described(spec.actions, spec.action_dim)}. Set interface.action to the range of the skills."
        )
