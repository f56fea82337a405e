"""A node that does not see the shared storage is named, wherever that is noticed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from spirl_ray.episodes.dataset import read_card
from spirl_ray.errors import SpirlError
from spirl_ray.files import shared
from spirl_ray.files.untrusted import read_plain_file


@pytest.fixture
def on_a_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is a worker of Ray on a node without the shared storage."""
    monkeypatch.setattr(shared, "node", lambda: "10.0.0.7")
    monkeypatch.setattr(shared, "_PATIENCE_S", 0.0)


@pytest.mark.usefixtures("on_a_node")
@pytest.mark.parametrize("read", [lambda path: read_plain_file(path / "policy.json", 100), read_card])
def test_a_missing_mount_is_named_with_its_node_and_not_taken_for_an_incomplete_artifact(
    tmp_path: Path, read: Any
) -> None:
    with pytest.raises(SpirlError, match=r"10\.0\.0\.7 does not see .*Mount the same storage") as caught:
        read(tmp_path / "shared" / "out" / "policy")
    assert f"there is no {tmp_path / 'shared'}." in str(caught.value)


@pytest.mark.usefixtures("on_a_node")
def test_what_is_there_is_seen(tmp_path: Path) -> None:
    shared.require_seen(tmp_path)
    (tmp_path / "link").symlink_to("/nowhere")  # readers refuse it themselves
    shared.require_seen(tmp_path / "link")


def test_what_is_missing_is_no_matter_of_nodes_elsewhere(tmp_path: Path) -> None:
    shared.require_seen(tmp_path / "shared")
    with pytest.raises(SpirlError, match="incomplete"):
        read_plain_file(tmp_path / "policy.json", 100)


def test_storage_that_fails_is_named_also_where_the_error_has_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "node", lambda: "10.0.0.7")
    text = str(shared.storage_problem(OSError(28, "No space left on device"), Path("/shared/out")))
    assert "On the node 10.0.0.7, /shared/out: No space left on device. Free space" in text
