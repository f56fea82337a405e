"""A storage holds what a folder held, at any moment; another folder resumes from it; nothing is overwritten."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
from processes import start
from pyarrow import fs
from toy import TOY, write_config

from spirl_ray.config import parse_experiment
from spirl_ray.errors import SpirlError
from spirl_ray.files.mirror import OWNER, Storage
from spirl_ray.pipeline.workspace import Workspace

MARK = "experiment.json"


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def marked(folder: Path) -> Path:
    (folder / "policy" / "a").mkdir(parents=True)
    (folder / MARK).write_text("{}")
    (folder / "policy" / "a" / "weights").write_bytes(b"weights")
    (folder / "policy" / "a" / "card.json").write_text("[1]")
    return folder


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return (tmp_path / "bucket" / "x").as_uri()


def test_a_new_folder_starts_from_the_storage_and_the_old_one_is_told(tmp_path: Path, uri: str) -> None:
    first = Storage(marked(tmp_path / "one"), uri)
    first.attach(MARK)
    first.copy(first.folder)
    second = Storage(tmp_path / "two", uri)
    second.attach(MARK)
    assert contents(tmp_path / "two") == contents(tmp_path / "one") == contents(tmp_path / "bucket" / "x")
    (first.folder / "policy" / "a" / "weights").write_bytes(b"other")
    with pytest.raises(SpirlError, match="has been taken by another run"):
        first.copy(first.folder)
    with pytest.raises(SpirlError, match=r"is not what .* is a copy of"):
        Storage(first.folder, uri).attach(MARK)
    assert (tmp_path / "bucket" / "x" / "policy" / "a" / "weights").read_bytes() == b"weights"
    Storage(second.folder, uri).attach(MARK)  # once more from the owner


def test_only_changes_are_copied_and_what_is_gone_goes(tmp_path: Path, uri: str) -> None:
    storage = Storage(marked(tmp_path / "one"), uri)
    storage.copy(storage.folder)
    there = tmp_path / "bucket" / "x"
    before = (there / "policy/a/weights").stat().st_ino
    for name in ("step-1", "step-2"):
        (storage.folder / "policy/a/checkpoints" / name).mkdir(parents=True)
        (storage.folder / "policy/a/checkpoints" / name / "state.json").write_text("{}")
        storage.copy(storage.folder / "policy/a")
    shutil.rmtree(storage.folder / "policy/a/checkpoints/step-1")
    again = Storage(storage.folder, uri)  # as another process
    again.copy(storage.folder / "policy/a")
    assert contents(there) == contents(storage.folder)
    assert (there / "policy/a/weights").stat().st_ino == before


def test_partial_files_locks_and_links_stay_at_home(tmp_path: Path, uri: str) -> None:
    folder = marked(tmp_path / "one")
    (folder / ".policy.lock").touch()
    (folder / "policy" / ".step.partial-1").mkdir()
    (folder / "policy" / ".step.partial-1" / "state.json").write_text("{}")
    (tmp_path / "secret").write_text("secret")
    (folder / "policy" / "link").symlink_to(tmp_path / "secret")
    Storage(folder, uri).copy(folder)
    names = {path.relative_to(tmp_path / "bucket/x").as_posix() for path in (tmp_path / "bucket/x").rglob("*")}
    assert names == {OWNER, MARK, "policy", "policy/a", "policy/a/weights", "policy/a/card.json"}


def test_what_completes_a_result_is_copied_last_as_it_was_first(
    tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(marked(tmp_path / "one"), uri)
    sent: list[str] = []
    send, write = Storage._send, Storage._write

    def slow_send(self: Storage, name: str) -> None:
        send(self, name)
        sent.append(name)
        (storage.folder / "policy/a/card.json").write_text("[2]")  # would complete files that were not copied

    def note(self: Storage, name: str, content: bytes) -> None:
        write(self, name, content)
        sent.append(name)

    monkeypatch.setattr(Storage, "_send", slow_send)
    monkeypatch.setattr(Storage, "_write", note)
    storage.copy(storage.folder / "policy")
    assert sent == [OWNER, "policy/a/weights", "policy/a/card.json"]
    assert (tmp_path / "bucket/x/policy/a/card.json").read_text() == "[1]"
    storage.copy(storage.folder / "policy")
    assert (tmp_path / "bucket/x/policy/a/card.json").read_text() == "[2]"


def test_a_file_that_goes_while_all_are_copied_leaves_the_old_cards(
    tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(marked(tmp_path / "one"), uri)
    storage.copy(storage.folder)
    (storage.folder / "policy/a/card.json").write_text("[2]")
    (storage.folder / "policy/a/more").write_text("more")
    stamps = Storage._files

    def then_gone(self: Storage, target: Path) -> list[str]:
        found = list(stamps(self, target))
        (storage.folder / "policy/a/more").unlink(missing_ok=True)
        return found

    monkeypatch.setattr(Storage, "_files", then_gone)
    storage.copy(storage.folder)
    assert (tmp_path / "bucket/x/policy/a/card.json").read_text() == "[1]"
    storage.copy(storage.folder)
    assert (tmp_path / "bucket/x/policy/a/card.json").read_text() == "[2]"


def test_it_is_copied_while_the_work_goes_on(tmp_path: Path, uri: str) -> None:
    storage = Storage(marked(tmp_path / "one"), uri, copy_every_s=0.01)
    there = tmp_path / "bucket/x/policy/a/progress"

    def work() -> None:
        (storage.folder / "policy/a/progress").write_text("half")
        deadline = time.monotonic() + 60.0
        while not (there.exists() and there.read_text() == "half"):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        (storage.folder / "policy/a/progress").write_text("more than half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), storage.mirrored(storage.folder / "policy/a"):
        work()
    assert there.read_text() == "more than half"
    assert all(thread.name != "storage" for thread in threading.enumerate())


def test_names_that_lead_out_of_the_folder_are_refused(
    tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Storage(marked(tmp_path / "one"), uri)
    first.copy(first.folder)
    evil = Storage(tmp_path / "two", uri)
    honest = fs.LocalFileSystem()

    class Bucket:
        """An object store may have any name."""

        type_name = "s3"

        def get_file_info(self, what: object) -> object:
            found = honest.get_file_info(what)
            if isinstance(what, fs.FileSelector):
                found.append(fs.FileInfo(f"{evil._root}/a/../../escaped", fs.FileType.File, size=1))
            return found

    monkeypatch.setattr(evil, "_remote", Bucket())
    with pytest.raises(SpirlError, match=r"holds 'a/../../escaped'"):
        evil.attach(MARK)
    assert not (tmp_path / "escaped").exists()
    assert not (tmp_path / "two" / MARK).exists()


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("s3:/bucket", "s3://bucket/folder"),
        ("/shared/folder", r"'/shared/folder'.*file:///folder"),
    ],
)
def test_a_storage_is_a_uri(uri: str, message: str) -> None:
    with pytest.raises(SpirlError, match=f"storage: .*{message}"):
        parse_experiment({"name": "x", "storage": uri}, "test")


def test_unknown_kinds_and_overlaps_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SpirlError, match=r"storage: nothing://x cannot be opened"):
        Storage(tmp_path / "one", "nothing://x")
    with pytest.raises(SpirlError, match="overlaps with the output"):
        Storage(tmp_path / "one", (tmp_path / "one" / "copy").as_uri())


def test_a_storage_that_fails_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    storage = Storage(marked(tmp_path / "one"), (tmp_path / "file" / "x").as_uri())
    with pytest.raises(SpirlError, match=r"storage: file:.*cannot be written"):
        storage.copy(storage.folder)


def test_an_experiment_does_not_fill_a_folder_of_others(tmp_path: Path, uri: str) -> None:
    Workspace(parse_experiment({**TOY, "output": str(tmp_path / "one"), "storage": uri}, "test")).reserve()
    assert json.loads((tmp_path / "bucket/x" / MARK).read_text())["name"] == "toy"
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "thesis.txt").write_text("mine")
    with pytest.raises(SpirlError, match="is no experiment folder"):
        Workspace(parse_experiment({**TOY, "output": str(tmp_path / "two"), "storage": uri}, "test")).reserve()
    assert [path.name for path in (tmp_path / "two").iterdir()] == ["thesis.txt"]
    other = {**TOY, "name": "other", "output": str(tmp_path / "three"), "storage": uri}
    with pytest.raises(SpirlError, match="belongs to the experiment 'toy'"):
        Workspace(parse_experiment(other, "test")).reserve()


@pytest.mark.slow
def test_a_run_goes_on_in_another_folder(tmp_path: Path, uri: str) -> None:
    """The machine is lost in the middle of training; the same config on another one ends what it began."""
    config = write_config(tmp_path, storage=uri, train__env_steps=4000)
    run = start("run", config, "--set", f"output={tmp_path / 'one'}")
    checkpoints = (tmp_path / "one").glob
    try:
        deadline = time.monotonic() + 1200.0
        while not list(checkpoints("policy/*/checkpoints/step-*")) and time.monotonic() < deadline:
            assert run.poll() is None
            time.sleep(0.1)
        run.send_signal(signal.SIGTERM)
        run.wait(timeout=120.0)
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
    assert run.stdout is not None
    assert run.returncode == 143, run.stdout.read()[-3000:]
    [policy] = (tmp_path / "bucket/x/policy").glob("spirl_cl-*")
    assert list(policy.glob("checkpoints/step-*/state.json"))
    shutil.rmtree(tmp_path / "one")
    second = start("run", config, "--set", f"output={tmp_path / 'two'}")
    output, _ = second.communicate(timeout=600.0)
    assert second.returncode == 0, output
    assert "there already  Skills for spirl_cl" in output
    processes = json.loads((policy / "provenance.json").read_text())["processes"]
    assert [entry["from_env_steps"] > 0 for entry in processes] == [False, True]
    assert json.loads((policy / "trained.json").read_text())["env_steps"] >= 4000
    assert (tmp_path / "bucket/x/report/report.html").exists()
