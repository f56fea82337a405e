"""Files and folders are there in full or not at all, whoever writes them and however that ends."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from spirl_ray.errors import SpirlError
from spirl_ray.files.atomic import (
    FolderExists,
    partial_file,
    partial_folder,
    remove_partial_folders,
    write_atomically,
    write_json,
)

HERE = socket.gethostname()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def fill(file: Path, error: BaseException | type[BaseException] | None = None) -> None:
    """Writes a file and then raises an error, if there is one."""
    file.parent.mkdir(exist_ok=True)
    file.write_text("half")
    if error is not None:
        raise error


@pytest.fixture(scope="module")
def dead() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_file_appears_when_the_block_ends(tmp_path: Path) -> None:
    file = tmp_path / "made" / "video.mp4"
    with partial_file(file) as partial:
        partial.write_bytes(b"new")
        assert not file.exists()
        assert partial.parent == file.parent
        assert partial.name.startswith(".video.mp4.partial-")
    assert file.read_bytes() == b"new"
    assert names(file.parent) == {"video.mp4"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_block_that_raises_leaves_the_file_as_it_was(tmp_path: Path, error: type[BaseException]) -> None:
    file = tmp_path / "table"
    write_atomically(file, "old, ü")
    with pytest.raises(error), partial_file(file) as partial:
        fill(partial, error)
    assert file.read_text(encoding="utf-8") == "old, ü"
    assert names(tmp_path) == {"table"}


def test_a_block_that_writes_no_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SpirlError, match="table"), partial_file(tmp_path / "table"):
        pass
    assert names(tmp_path) == set()


def test_an_error_names_the_file_and_the_other_one_that_failed(tmp_path: Path) -> None:
    said = r"/copy: No such file or directory \(.*/source\)"
    with pytest.raises(SpirlError, match=said), partial_file(tmp_path / "copy") as partial:
        shutil.copyfile(tmp_path / "source", partial)


def test_json_can_refuse_numbers_that_it_does_not_have(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "numbers.json", {"a": float("nan")}, allow_nan=False)
    assert names(tmp_path) == set()


def test_a_folder_appears_when_the_block_ends(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "step"
    with partial_folder(folder) as partial:
        (partial / "a").touch()
        assert not folder.exists()
    assert names(folder) == {"a"}
    assert names(folder.parent) == {"step"}


def test_a_folder_that_is_there_stays(tmp_path: Path) -> None:
    folder = tmp_path / "step"
    fill(folder / "theirs")
    with pytest.raises(FolderExists, match="step"), partial_folder(folder) as partial:
        fill(partial / "mine")
    assert names(folder) == {"theirs"}
    assert names(tmp_path) == {"step"}


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_whose_block_fails_is_removed(tmp_path: Path, resume: bool) -> None:
    with pytest.raises(ValueError, match="bug"), partial_folder(tmp_path / "out", resume=resume) as partial:
        fill(partial / "a", ValueError("bug"))
    assert names(tmp_path) == set()


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_a_folder_whose_block_is_stopped_stays_if_it_can_be_resumed(
    tmp_path: Path, resume: bool, error: type[BaseException]
) -> None:
    with pytest.raises(error), partial_folder(tmp_path / "out", resume=resume) as partial:
        fill(partial / "a", error)
    assert [names(left) for left in tmp_path.iterdir()] == ([{"a"}] if resume else [])
    with partial_folder(tmp_path / "out", resume=resume) as partial:
        assert names(partial) == ({"a"} if resume else set())


@pytest.mark.parametrize("resume", [False, True])
def test_what_the_dead_have_left_is_taken_over_or_removed(tmp_path: Path, dead: int, resume: bool) -> None:
    left = tmp_path / f".out.partial-{HERE}-{dead}"
    others = {f".out.partial-{HERE}-{os.getppid()}", f".out.partial-elsewhere-{dead}", f".out2.partial-{HERE}-{dead}"}
    for folder in {left.name, *others}:
        (tmp_path / folder).mkdir()
    (left / "a").touch()
    with partial_folder(tmp_path / "out", resume=resume) as partial:
        assert names(partial) == ({"a"} if resume else set())
    assert names(tmp_path) == {"out", *others}


def test_who_holds_a_folder_removes_whatever_is_not_complete(tmp_path: Path) -> None:
    (tmp_path / ".step-1.partial-elsewhere-1").mkdir()
    (tmp_path / "step-1").mkdir()
    remove_partial_folders(tmp_path)
    assert names(tmp_path) == {"step-1"}
