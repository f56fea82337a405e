"""``trained.json``, which says that a policy has been trained: how long, how well, and which snapshot was published."""

from __future__ import annotations

from pathlib import Path

from spirl_ray.config_train import Publish
from spirl_ray.files import layout
from spirl_ray.files.atomic import read_json, write_json
from spirl_ray.files.untrusted import validate_card
from spirl_ray.pipeline.results import Snapshot
from spirl_ray.settings import Settings


class TrainedRecord(Settings):
    """The contents of ``trained.json``; `TrainingResult` says what the fields mean."""

    env_steps: int
    decisions: int
    updates: int
    wall_clock_s: float
    config_hash: str
    commit: str
    publish: Publish
    published_env_steps: int
    score: str
    best: Snapshot
    last: Snapshot

    @property
    def published(self) -> Snapshot:
        """The snapshot that is published as the policy."""
        return self.best if self.publish == "best" else self.last


def read_trained(policy: Path) -> TrainedRecord | None:
    """Reads the record of a policy's folder; None where no training has ended.

    Raises:
        SpirlError: the file is damaged; the message names it.
    """
    path = policy / layout.TRAINED
    if not path.exists():
        return None
    damaged = f"{path} is not the record of a training (remove it, and spirl train writes it again)"
    return validate_card(read_json(path), TrainedRecord, damaged)


def write_trained(policy: Path, record: TrainedRecord) -> None:
    """Writes the record, which is the last file of a training."""
    write_json(policy / layout.TRAINED, record.model_dump(mode="json"))
