"""The LeRobot datasets that several tests read."""

from __future__ import annotations

from pathlib import Path

import pytest
from datasets.formats.lerobot_folders import Folder, copy


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Folder]:
    root = tmp_path_factory.mktemp("lerobot")
    return {version: Folder(root / version, version).write() for version in ("v2.1", "v3.0")}


@pytest.fixture(params=["v2.1", "v3.0"])
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def folder(written: dict[str, Folder], version: str, tmp_path: Path) -> Folder:
    """A copy that a test may damage."""
    return copy(written[version], tmp_path)
