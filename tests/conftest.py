"""Fixtures for the whole suite: one local Ray, and the human demonstrations where there are any."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """A Ray of this test session's own, with three CPUs and its files in a folder that goes away with it."""
    import ray

    # Short, because Ray's socket paths must fit in 107 bytes.
    folder = tempfile.mkdtemp(prefix="spirl-", dir="/tmp")
    before = os.environ.get("RAY_TMPDIR")
    os.environ["RAY_TMPDIR"] = folder
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")  # for busy machines
    try:
        ray.init(
            address="local",
            num_cpus=3,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=200 * 1024**2,
            _temp_dir=folder,
        )
        yield
    finally:
        ray.shutdown()
        if before is None:
            del os.environ["RAY_TMPDIR"]
        else:
            os.environ["RAY_TMPDIR"] = before
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def minari_root() -> Path:
    """A Minari root that holds D4RL/kitchen/complete-v2: $SPIRL_TEST_MINARI_ROOT, or beside the checkout."""
    default = Path(__file__).parents[2] / "shared" / "data" / "minari"
    root = Path(os.environ.get("SPIRL_TEST_MINARI_ROOT", default))
    if not (root / "D4RL" / "kitchen" / "complete-v2").is_dir():
        pytest.skip(f"no human demonstrations in {root} (set SPIRL_TEST_MINARI_ROOT)")
    return root
