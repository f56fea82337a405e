"""The dataset that tests of stage 1 share."""

from __future__ import annotations

from pathlib import Path

import pytest
from opened import generated
from skills.pads_job import EPISODES, FILES, PADS

from spirl_ray.datasets.importing import import_dataset


@pytest.fixture(scope="session")
def dataset(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "pads"
    import_dataset(generated(PADS, EPISODES), out, environment=PADS, shards=FILES)
    return out
