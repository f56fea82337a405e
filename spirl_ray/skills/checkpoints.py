"""Checkpoints of stage 1, which Ray Train keeps: written by one worker, read by all."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import Any

import ray.train
import torch
from pyarrow.fs import LocalFileSystem
from ray.train import Checkpoint

from spirl_ray.files.attempts import Attempt
from spirl_ray.files.shared import require_seen
from spirl_ray.skills.model import SkillModel

RUN = "ray_train"
"""The folder of Ray Train in that of the skills."""
_STATE = "state.pt"


def resume(model: SkillModel, optimizer: torch.optim.Optimizer, folder: Path) -> tuple[int, dict[str, float]]:
    """Restores the newest checkpoint, in every worker the same.

    Args:
        model: gets the parameters.
        optimizer: gets its state.
        folder: the folder of the skills.

    Returns:
        The updates that were done, and the metrics then; 0 and nothing where there is no checkpoint.
    """
    # Here, because where the first version of Ray Train is imported it raises, and `pretrain` says what to do.
    from ray.train.collective import broadcast_from_rank_zero

    folder = folder / RUN
    newest = _newest_checkpoint(folder) if ray.train.get_context().get_world_rank() == 0 else None
    name = broadcast_from_rank_zero(newest)
    if name is None:
        return 0, {}
    require_seen(folder / name)
    state = read_checkpoint(Checkpoint(str(folder / name), LocalFileSystem()))
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["update"]), dict(state["metrics"])


def _newest_checkpoint(folder: Path) -> str | None:
    """The name of the newest checkpoint that is whole; None if there is none.

    Ray Train notes a checkpoint a second or so after it has been written, and would resume from one before where a
    worker is lost meanwhile.
    """
    files = sorted(folder.glob(f"checkpoint_*/{_STATE}"), key=lambda file: file.stat().st_mtime_ns, reverse=True)
    for file in files:
        with contextlib.suppress(Exception):  # one of a worker that was lost while it wrote
            read_checkpoint(Checkpoint(str(file.parent), LocalFileSystem()))
            return file.parent.name
    return None


def read_checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    """The state in a checkpoint, on the CPU: ``model``, ``optimizer``, ``update`` and ``metrics``."""
    with checkpoint.as_directory() as folder:
        # On the CPU first: the driver may have no GPU.
        return torch.load(Path(folder) / _STATE, weights_only=True, map_location="cpu")


def report(
    model: SkillModel,
    optimizer: torch.optim.Optimizer,
    update: int,
    metrics: dict[str, float],
    attempt: Attempt | None,
) -> None:
    """Reports metrics, a barrier for all workers; rank 0, which has the attempt, adds the checkpoint."""
    if attempt is None:
        ray.train.report(metrics)
        return
    attempt.check()
    with tempfile.TemporaryDirectory() as folder:
        state = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "update": update,
            "metrics": metrics,
        }
        torch.save(state, Path(folder) / _STATE)
        ray.train.report(metrics, checkpoint=Checkpoint(folder, LocalFileSystem()))
