"""Which checkpoint of stage 1 is resumed from."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from spirl_ray.skills.checkpoints import _newest_checkpoint


def test_the_newest_whole_checkpoint_is_resumed_from_whatever_has_been_noted(tmp_path: Path) -> None:
    assert _newest_checkpoint(tmp_path) is None
    for number, name in enumerate(("checkpoint_z", "checkpoint_b", "checkpoint_a")):
        (tmp_path / name).mkdir()
        torch.save({"update": number}, tmp_path / name / "state.pt")
        os.utime(tmp_path / name / "state.pt", (number, number))  # clocks of nodes differ, those of one storage do not
    assert _newest_checkpoint(tmp_path) == "checkpoint_a"
    newest = tmp_path / "checkpoint_a" / "state.pt"
    newest.write_bytes(newest.read_bytes()[:-200])  # its worker was lost while it wrote
    os.utime(newest, (2, 2))
    assert _newest_checkpoint(tmp_path) == "checkpoint_b"


def test_stage_1_can_be_imported_where_ray_has_its_first_version_and_says_then_what_to_do() -> None:
    environment = {**os.environ, "RAY_TRAIN_V2_ENABLED": "0"}
    subprocess.run([sys.executable, "-c", "import spirl_ray.skills.pretrain"], env=environment, check=True)
