"""The skill artifact: ``skills.safetensors`` + ``skill.json`` in one folder. Loads with torch alone.

Nothing here is a pickle. The JSON carries what a user needs to trust the tensors: dimensions, skill length,
normalisation, the dataset's hash, the training config, metrics, and the SHA-256 of the tensor file.

People share artifacts, so whatever a folder holds is untrusted: links are not followed, sizes are compared before
memory is taken, and what does not fit is a `SpirlError` (SECURITY.md).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from torch import nn

from spirl_ray.config import Settings
from spirl_ray.errors import SpirlError
from spirl_ray.skills.model import SkillModel, SkillSpec
from spirl_ray.untrusted import CARD_LIMIT_BYTES, parse_json, plain_file_size, read_plain_file

TENSORS, CARD = "skills.safetensors", "skill.json"
FORMAT_VERSION = 1
_HEADER_ALLOWANCE_BYTES = 2**20
Module = TypeVar("Module", bound=nn.Module)


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


def save_tensors(module: nn.Module, path: Path) -> str:
    """Writes a module's state as safetensors, atomically; returns the file's SHA-256."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    data = safetensors.torch.save(state)
    write_atomically(path, data)
    return hashlib.sha256(data).hexdigest()


def build_module(build: Callable[[], Module], tensors: Path) -> Module:
    """A module whose sizes stand in a card, once its tensor file has been found to be large enough for it.

    Raises:
        SpirlError: when the card describes more than the file holds, or the file is missing.
    """
    try:
        with torch.device("meta"):
            described = sum(tensor.nbytes for tensor in build().state_dict().values())
    except (RuntimeError, OverflowError) as error:
        raise SpirlError(f"The card beside {tensors} describes an impossible model: {error}") from error
    found = plain_file_size(tensors)
    if described > found:
        raise SpirlError(
            f"{tensors} does not hold the tensors that its card describes: they take {described:,} bytes, the file "
            f"has {found:,}."
        )
    return build()


def load_tensors(module: nn.Module, path: Path, sha256: str) -> None:
    """Reads what `save_tensors` wrote into a module of the same shape.

    Raises:
        SpirlError: if the file is missing, is not what its card describes, or does not fit the module.
    """
    needed = sum(tensor.nbytes for tensor in module.state_dict().values())
    data = read_plain_file(path, limit=2 * needed + _HEADER_ALLOWANCE_BYTES)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise SpirlError(
            f"{path} does not match the SHA-256 in its card: the file was changed or damaged. "
            "Copy the artifact again, or train it anew into another folder."
        )
    try:
        module.load_state_dict(safetensors.torch.load(data))
    except (SafetensorError, RuntimeError) as error:
        raise SpirlError(f"{path} does not hold the tensors that its card describes: {error}") from error


def read_card(path: Path) -> dict[str, Any]:
    """The JSON object in the card of an artifact that somebody else may have made.

    Raises:
        SpirlError: naming the file; see `read_plain_file`.
    """
    return parse_json(read_plain_file(path, CARD_LIMIT_BYTES), path)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of our own, or a `SpirlError` that names it."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SpirlError(f"Cannot read {path}: {error.strerror}.") from error
    return parse_json(data, path)


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file in full or not at all.

    Raises:
        SpirlError: with the path and the reason, e.g. no space or no permission.
    """
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise SpirlError(
            f"Cannot write {path}: {error.strerror}. Free space or fix permissions, or choose another `output`."
        ) from error


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON atomically."""
    write_atomically(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


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
