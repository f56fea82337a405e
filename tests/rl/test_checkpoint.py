from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from spirl_ray.errors import SpirlError
from spirl_ray.files import layout
from spirl_ray.rl import checkpoint


def test_state_is_read_back_bit_equal(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    state = {
        "tensor": torch.randn(3, 2),
        "scalar tensor": torch.tensor(0.1),
        "strided": np.arange(12.0).reshape(3, 4).T,
        "flag": torch.tensor(True),
        "empty": np.zeros((0, 3), np.float32),
        3: [1, (2.5, None), {"nested": True}],
        "big": generator.bit_generator.state,
        "number": np.float32(0.1),
    }
    checkpoint.write_state(tmp_path, state)
    found = checkpoint.read_state(tmp_path)
    assert list(found) == list(state)
    for name in ("tensor", "scalar tensor", "flag"):
        assert found[name].shape == state[name].shape
        assert torch.equal(found[name], state[name])
    np.testing.assert_array_equal(found["strided"], state["strided"])
    assert found["empty"].shape == (0, 3)
    assert found[3] == state[3]
    assert found["big"] == state["big"]
    assert found["number"] == float(np.float32(0.1))


def test_unknown_kinds_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="cannot hold"):
        checkpoint.write_state(tmp_path, {"a": tmp_path})


def test_checkpoint_without_its_last_file_is_not_complete(tmp_path: Path) -> None:
    checkpoint.write_state(tmp_path, {"a": torch.zeros(2)})
    assert checkpoint.complete(tmp_path)
    (tmp_path / layout.CHECKPOINT_STATE).unlink()
    assert not checkpoint.complete(tmp_path)


@pytest.mark.parametrize("keep", [0, 10, -4])
def test_damaged_checkpoint_is_named(tmp_path: Path, keep: int) -> None:
    checkpoint.write_state(tmp_path, {"a": torch.zeros(200)})
    file = tmp_path / layout.CHECKPOINT_TENSORS
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(SpirlError, match=f"{tmp_path.name} is damaged"):
        checkpoint.read_state(tmp_path)
