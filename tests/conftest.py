"""Fixtures for the whole suite: one local Ray, and the human demonstrations where there are any."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from toy_skills import save_toy_skills, toy_model

from spirl_ray.pipeline import stopping

POINT_PADS = "spirl/PointPads-v0"
HORIZON, LATENT_DIM = 4, 3
torch.set_num_threads(1)
# A shell ignores Ctrl-C for what it has put into its background. Commands and Ray's workers would inherit this, and
# then take no notice of an interruption or a cancellation.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Ray's workers and subprocesses find what stands beside this file, too: `toy_environments` and what it registers.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))


@pytest.fixture(autouse=True)
def not_stopping(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test may call the handler of SIGTERM; the tests after it are not of a process that is to end."""
    monkeypatch.setattr(stopping, "_received", [])


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """The local Ray instance of this test session, with three CPUs, and its files in a folder that is removed with
    it."""
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


@pytest.fixture
def make_skills(tmp_path: Path) -> Callable[..., Path]:
    """Writes an untrained skill artifact, for the point pads if not asked otherwise: ``make_skills(decoder=...)``."""
    import spirl_ray.envs as envs

    def make(decoder: str = "closed_loop", prior: str = "gaussian", environment: str = POINT_PADS) -> Path:
        spec = envs.environment(environment)
        model = toy_model(
            decoder,
            spec.features,
            spec.action_dim,
            horizon=HORIZON,
            latent_dim=LATENT_DIM,
            decoder_layers=1,
            prior=prior,
        )
        return save_toy_skills(tmp_path / f"skills-{decoder}-{prior}", model, environment)

    return make
