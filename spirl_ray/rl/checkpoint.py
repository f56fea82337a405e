"""The format of checkpoints: safetensors and JSON without pickle, written as a whole or not at all.

``state.json`` holds the structure and every number; tensors and arrays are in ``state.safetensors`` and
are referred to by name. What is read is bit-equal to what was written.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch
from safetensors import SafetensorError

from spirl_ray.errors import SpirlError
from spirl_ray.files import layout
from spirl_ray.files.atomic import read_json, write_atomically, write_json


def _pack(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """Converts to JSON nested dicts, sequences and numbers; arrays are moved to ``arrays`` and named."""
    if isinstance(value, torch.Tensor):
        return {"torch": _pack(value.detach().cpu().numpy(), arrays)["array"]}
    if isinstance(value, np.ndarray):
        name = f"a{len(arrays)}"
        arrays[name] = np.asarray(value, order="C")  # ascontiguousarray would make scalars 1-d
        return {"array": name}
    if isinstance(value, np.generic):
        return _pack(value.item(), arrays)
    if isinstance(value, dict):
        return {"items": [[_pack(k, arrays), _pack(v, arrays)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_pack(item, arrays) for item in value]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a checkpoint cannot hold {type(value).__name__}")


def _unpack(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    if not isinstance(value, dict):
        return value
    [(kind, content)] = value.items()
    if kind == "torch":
        return torch.from_numpy(arrays[content].copy())
    if kind == "array":
        return arrays[content]
    if kind == "items":
        return {_unpack(k, arrays): _unpack(v, arrays) for k, v in content}
    sequence = [_unpack(item, arrays) for item in content]
    return sequence if kind == "list" else tuple(sequence)


def write_state(folder: Path, state: dict[str, Any]) -> None:
    """Writes nested plain values, arrays and tensors; ``state.json`` is written last and completes the folder."""
    arrays: dict[str, np.ndarray] = {}
    packed = _pack(state, arrays)
    write_atomically(folder / layout.CHECKPOINT_TENSORS, safetensors.numpy.save(arrays))
    write_json(folder / layout.CHECKPOINT_STATE, packed)


def read_state(folder: Path) -> dict[str, Any]:
    """Reads what `write_state` wrote.

    Raises:
        SpirlError: a file is missing or damaged; the message names it.
    """
    packed = read_json(folder / layout.CHECKPOINT_STATE)
    try:
        arrays = safetensors.numpy.load((folder / layout.CHECKPOINT_TENSORS).read_bytes())
        return _unpack(packed, arrays)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise SpirlError(
            f"The checkpoint {folder} is damaged ({error}). Delete this folder to resume from the checkpoint before it."
        ) from error


def complete(folder: Path) -> bool:
    """True for a checkpoint that was written to its end."""
    try:
        json.loads((folder / layout.CHECKPOINT_STATE).read_text())
    except (OSError, ValueError):
        return False
    return True


def random_state(_: Any) -> torch.Tensor:
    """Returns the state of PyTorch's random generator in the process of an env runner."""
    return torch.get_rng_state()


class RestoreRandomState:
    """A function that restores the random generator of PyTorch, callable on an env runner, also a remote one."""

    def __init__(self, state: torch.Tensor) -> None:
        self.state = state

    def __call__(self, _: Any) -> None:
        torch.set_rng_state(self.state)
