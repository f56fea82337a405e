"""The record of a finished training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from spirl_ray.errors import SpirlError
from spirl_ray.pipeline.trained import TrainedRecord, read_trained, write_trained

MEANS = {"episodes": 10, "return": 0.0, "success": 0.25}
WRITTEN: dict[str, Any] = {
    **{"env_steps": 400, "decisions": 40, "updates": 7, "wall_clock_s": 1.5, "config_hash": "hash", "commit": "abc"},
    **{"publish": "best", "published_env_steps": 200, "score": "success"},
    "best": {"env_steps": 200, "score": 0.25, "deterministic": MEANS, "sampled": MEANS},
    "last": {"env_steps": 400, "score": None, "deterministic": {"episodes": 10}, "sampled": {"episodes": 10}},
}


def test_a_record_is_written_as_it_was_read(tmp_path: Path) -> None:
    assert read_trained(tmp_path) is None
    text = json.dumps(WRITTEN, indent=2) + "\n"
    (tmp_path / "trained.json").write_text(text)
    record = read_trained(tmp_path)
    assert record is not None
    assert (record.published.env_steps, record.published.modes["sampled"]["success"]) == (200, 0.25)
    write_trained(tmp_path, record)
    assert (tmp_path / "trained.json").read_text() == text  # whole numbers stay whole, and keys in their order
    assert TrainedRecord.model_validate({**WRITTEN, "publish": "last"}).published.score is None


@pytest.mark.parametrize(
    ("damage", "told"),
    [({"best": None}, "best"), ({"steps": 3}, "steps"), ({"last": {"env_steps": 4}}, "last.sampled")],
)
def test_a_damaged_record_is_named_with_what_is_wrong(tmp_path: Path, damage: dict[str, Any], told: str) -> None:
    (tmp_path / "trained.json").write_text(json.dumps({**WRITTEN, **damage}))
    with pytest.raises(SpirlError, match=rf"trained\.json .*{told}"):
        read_trained(tmp_path)
