"""An imported dataset is found again by what its sources hold, also on another machine, and never for other data."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import spirl_ray.pipeline.imports as imports
from spirl_ray.config import parse_experiment
from spirl_ray.episodes.writer import DatasetWriter
from spirl_ray.errors import SpirlError
from spirl_ray.pipeline import experiment
from spirl_ray.pipeline.stages import prepare_data
from spirl_ray.pipeline.workspace import Workspace


def record(file: Path, value: float = 0.0, *, later_s: int = 0) -> None:
    """Writes a recording of one size, whatever the value, which was changed some seconds after the first one."""
    file.parent.mkdir(exist_ok=True)
    np.savez(file, observations=np.full((5, 3), value), actions=np.zeros((4, 2)))
    os.utime(file, (1_700_000_000 + later_s, 1_700_000_000 + later_s))


def machine(folder: Path, name: str, *, storage: bool = True) -> Workspace:
    """The experiment on a machine whose output is new the first time, as a new process has it."""
    raw: dict[str, Any] = {
        "name": "toy",
        "output": str(folder / name),
        "data": {"sources": [{"type": "npz", "path": str(folder / "recorded")}]},
        **({"storage": (folder / "bucket").as_uri()} if storage else {}),
    }
    made = Workspace(parse_experiment(raw, "test"))
    made.reserve()
    return made


def import_data(workspace: Workspace) -> Path:
    """Does what `prepare_data` does, without Ray."""
    out = workspace.dataset
    with workspace.locked(out), DatasetWriter(out, features=workspace.data.features, action_dim=2) as writer:
        for chunk in workspace.data.source.chunks():
            for episode in workspace.data.source.read(chunk):
                writer.add(observations=episode.observations, actions=episode.actions)
    assert not prepare_data(workspace).ran
    return out


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    file = tmp_path / "recorded" / "a.npz"
    record(file)
    return file


def test_another_machine_finds_the_dataset_without_its_recordings(tmp_path: Path, recording: Path) -> None:
    imported = import_data(machine(tmp_path, "one"))
    recording.unlink()
    found = machine(tmp_path, "two")
    assert found.dataset == tmp_path / "two" / "data" / imported.name
    assert not prepare_data(found).ran


def test_a_command_looks_for_the_dataset_after_it_has_been_fetched(
    tmp_path: Path, recording: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = machine(tmp_path, "one")
    import_data(first)
    shutil.rmtree(recording.parent)
    monkeypatch.setattr(experiment, "check_experiments", lambda *_, **__: None)
    monkeypatch.setattr(experiment, "ray_session", lambda *_: contextlib.nullcontext())
    moved = first.experiment.model_copy(update={"output": tmp_path / "two"})
    with experiment.experiment_run(moved) as run:
        assert run.workspace.dataset.exists()


def test_another_machine_finds_the_dataset_of_recordings_that_were_fetched_once_more(
    tmp_path: Path, recording: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    imported = import_data(machine(tmp_path, "one"))
    record(recording, later_s=60)
    found = machine(tmp_path, "two")
    assert found.dataset == tmp_path / "two" / "data" / imported.name
    assert not prepare_data(found).ran
    monkeypatch.setattr(imports, "digest_of_file", lambda file: pytest.fail(f"{file} was read once more"))
    assert machine(tmp_path, "two").dataset == found.dataset


@pytest.mark.parametrize("name", ["one", "two"])
def test_a_recording_of_the_same_size_that_holds_something_else_is_another_dataset(
    tmp_path: Path, recording: Path, name: str
) -> None:
    imported = import_data(machine(tmp_path, "one"))
    size = recording.stat().st_size
    record(recording, 1.0, later_s=60)
    assert recording.stat().st_size == size
    other = machine(tmp_path, name)
    assert other.dataset.name != imported.name
    assert not other.dataset.exists()
    import_data(other)
    record(recording, later_s=120)
    assert machine(tmp_path, name).dataset.name == imported.name
    record(recording, 1.0, later_s=180)
    assert machine(tmp_path, name).dataset == other.dataset


def test_a_recording_that_changes_while_it_is_imported_stands_for_nothing(
    tmp_path: Path, recording: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = machine(tmp_path, "one")
    digest = imports.digest_of_file

    def changed_meanwhile(file: Path) -> str:
        record(recording, 1.0, later_s=60)
        return digest(file)

    with monkeypatch.context() as patch:
        patch.setattr(imports, "digest_of_file", changed_meanwhile)
        imported = import_data(first)
    first.remember_import()
    assert machine(tmp_path, "one").dataset != imported
    record(recording, 1.0, later_s=120)
    assert machine(tmp_path, "one").dataset != imported


def test_contents_are_not_read_where_there_is_no_storage(
    tmp_path: Path, recording: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imports, "digest_of_file", lambda file: pytest.fail(f"{file} was read"))
    imported = import_data(machine(tmp_path, "one", storage=False))
    assert machine(tmp_path, "one", storage=False).dataset == imported
    record(recording, later_s=60)
    assert machine(tmp_path, "one", storage=False).dataset != imported


def test_recordings_that_are_there_and_cannot_be_read_are_an_error(tmp_path: Path, recording: Path) -> None:
    import_data(machine(tmp_path, "one"))
    recording.write_text("these are no demonstrations")
    with pytest.raises(SpirlError, match=r"a\.npz"):
        _ = machine(tmp_path, "two").dataset
