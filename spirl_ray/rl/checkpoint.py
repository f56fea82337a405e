"""Checkpoints of a training run: safetensors and JSON, no pickle, written in full or not at all.

``state.json`` holds the structure and every number; tensors and arrays stand in ``state.safetensors`` and
are referred to by name. Restoring is bit-equal: networks, target networks, alpha, optimisers, replay buffer,
random generators and counters.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.numpy
import torch
from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from ray.rllib.utils.metrics import WEIGHTS_SEQ_NO
from safetensors import SafetensorError

from spirl_ray.errors import SpirlError
from spirl_ray.skills.artifact import read_json, write_atomically, write_json

if TYPE_CHECKING:
    from spirl_ray.rl.algorithm import SkillPriorSAC

STATE, ARRAYS = "state.json", "state.safetensors"
_POLICY_PREFIX = "policy."
_RL_MODULE = f"{COMPONENT_LEARNER}/{COMPONENT_RL_MODULE}"


def _pack(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """JSON for nested dicts, sequences and numbers; arrays are moved to ``arrays`` and named."""
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
    """Writes nested plain values, arrays and tensors; ``state.json`` comes last and completes the folder."""
    arrays: dict[str, np.ndarray] = {}
    packed = _pack(state, arrays)
    write_atomically(folder / ARRAYS, safetensors.numpy.save(arrays))
    write_json(folder / STATE, packed)


def read_state(folder: Path) -> dict[str, Any]:
    """Reads what `write_state` wrote.

    Raises:
        SpirlError: naming the file that is missing or damaged.
    """
    packed = read_json(folder / STATE)
    try:
        arrays = safetensors.numpy.load((folder / ARRAYS).read_bytes())
        return _unpack(packed, arrays)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise SpirlError(
            f"The checkpoint {folder} is damaged ({error}). Delete this folder to go on from the one before it."
        ) from error


def save(algorithm: SkillPriorSAC, folder: str) -> None:
    """Writes the whole state of a training run."""
    write_state(
        Path(folder),
        {
            "learner": algorithm.learner_group.get_state()[COMPONENT_LEARNER],
            "learner_rng": _results(algorithm.learner_group.foreach_learner(_get_rng))[0],
            "learner_cuda_rng": _results(algorithm.learner_group.foreach_learner(_get_cuda_rng))[0],
            "runner_rng": algorithm.env_runner_group.foreach_env_runner(_get_rng),
            "replay": algorithm.replay.state(),
            "counters": dict(algorithm.counters),
            "owed_updates": algorithm._owed_updates,
            "recent": list(algorithm.recent),
            "iteration": algorithm.iteration,
        },
    )


def load(algorithm: SkillPriorSAC, folder: str) -> None:
    """Restores what `save` wrote into an algorithm of the same config. Running episodes start anew."""
    state = read_state(Path(folder))
    learners, runners = algorithm.learner_group, algorithm.env_runner_group
    # Learners and env runners take only weights with a higher number than their own.
    live = learners.get_state(components=_RL_MODULE, inference_only=True)[COMPONENT_LEARNER]
    newest = 1 + max(live[WEIGHTS_SEQ_NO], state["learner"][WEIGHTS_SEQ_NO])
    learners.set_state({COMPONENT_LEARNER: {**state["learner"], WEIGHTS_SEQ_NO: newest}})
    runners.sync_weights(from_worker_or_learner_group=learners, inference_only=True)
    algorithm.replay.restore(state["replay"])
    algorithm.counters.update(state["counters"])
    algorithm._owed_updates = state["owed_updates"]
    algorithm._returns.clear()
    algorithm.recent.clear()
    algorithm.recent.extend(state["recent"])
    algorithm._iteration = state["iteration"]
    for index, rng in zip(runners.healthy_env_runner_ids() or [None], state["runner_rng"], strict=False):
        runners.foreach_env_runner(_RestoreRng(rng), remote_worker_ids=None if index is None else [index])
    learners.foreach_learner(_RestoreRng(state["learner_rng"], state.get("learner_cuda_rng")))


def policy_state(learner_group: Any) -> dict[str, torch.Tensor]:
    """State dict of the policy network, from the (first) learner."""
    state = learner_group.get_state(components=[f"{_RL_MODULE}/{DEFAULT_MODULE_ID}"], inference_only=True)
    module = state[COMPONENT_LEARNER][COMPONENT_RL_MODULE][DEFAULT_MODULE_ID]
    return {
        name.removeprefix(_POLICY_PREFIX): torch.as_tensor(value)
        for name, value in module.items()
        if name.startswith(_POLICY_PREFIX)
    }


def complete(folder: Path) -> bool:
    """True for a checkpoint that was written to its end."""
    try:
        json.loads((folder / STATE).read_text())
    except (OSError, ValueError):
        return False
    return True


def _get_rng(_: Any) -> torch.Tensor:
    return torch.get_rng_state()


def _get_cuda_rng(_: Any) -> torch.Tensor | None:
    return torch.cuda.get_rng_state() if torch.cuda.is_available() else None


class _RestoreRng:
    """Callable on a learner or env runner; travels to remote ones."""

    def __init__(self, state: torch.Tensor, cuda: torch.Tensor | None = None) -> None:
        self.state, self.cuda = state, cuda

    def __call__(self, _: Any) -> None:
        torch.set_rng_state(self.state)
        if self.cuda is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(self.cuda)


def _results(results: Any) -> list[Any]:
    return [getattr(r, "get", lambda r=r: r)() for r in results]
