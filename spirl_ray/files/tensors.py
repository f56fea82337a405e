"""Tensors as safetensors files: written atomically, read with the care that a stranger's files need."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from spirl_ray.errors import SpirlError
from spirl_ray.files.atomic import write_atomically
from spirl_ray.files.untrusted import plain_file_size, read_plain_file

_HEADER_ALLOWANCE_BYTES = 2**20
Module = TypeVar("Module", bound=nn.Module)


def save_tensors(module: nn.Module, path: Path) -> str:
    """Writes a module's state as safetensors, atomically; returns the file's SHA-256."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    data = safetensors.torch.save(state)
    write_atomically(path, data)
    return hashlib.sha256(data).hexdigest()


def build_module(build: Callable[[], Module], tensors: Path) -> Module:
    """Builds a module whose sizes are in a card, once its tensor file has been found to be large enough for it.

    Raises:
        SpirlError: the card describes more than the file holds, or the file is missing.
    """
    try:
        with torch.device("meta"):
            described = sum(tensor.nbytes for tensor in build().state_dict().values())
    except (RuntimeError, OverflowError, TypeError) as error:
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
        SpirlError: the file is missing, is not what its card describes, or does not fit the module.
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


def read_tensors(path: Path, limit: int = 2**30) -> dict[str, torch.Tensor]:
    """Reads the tensors of a safetensors file that somebody else may have made.

    Args:
        path: a plain file.
        limit: the most bytes that it may have.

    Raises:
        SpirlError: the file is missing, too large, or not a safetensors file.
    """
    try:
        return safetensors.torch.load(read_plain_file(path, limit))
    except SafetensorError as error:
        raise SpirlError(f"{path} is not a safetensors file: {error}") from error
