"""An import leaves a whole, checked dataset or nothing, and the same one however it was computed."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
from made_source import FEATURES, good, load_all, made
from opened import generated, sources
from ray import cloudpickle

from spirl_ray.datasets import importing
from spirl_ray.datasets.importing import import_dataset
from spirl_ray.episodes.dataset import read_card, read_episodes
from spirl_ray.episodes.episode import Episode
from spirl_ray.episodes.validation import validate_dataset
from spirl_ray.errors import SpirlError, user_error_in

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]

PADS = "spirl/PointPads-v0"

# Ray's workers cannot import this file.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


def test_an_import_is_a_valid_dataset_with_all_episodes(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    report = import_dataset(
        made(7),
        tmp_path / "deep" / "out",
        environment="spirl/Test-v0",
        shards=3,
        progress=lambda done, total: seen.append((done, total)),
    )
    out = tmp_path / "deep" / "out"
    assert validate_dataset(out) == []
    assert report.card == read_card(out)
    assert (report.card.episodes, report.card.steps) == (7, sum(good(n).length for n in range(7)))
    assert (report.skipped, report.missing) == ([], 0)
    found = load_all(out)
    assert sorted(found) == [f"e{n:03d}" for n in range(7)]
    for name, values in good(4).observations.items():
        np.testing.assert_array_equal(found["e004"].observations[name], values)
    assert report.card.features == FEATURES
    assert found["e004"].metadata == {"index": 4}
    assert len(seen) == 3
    assert seen[-1] == (7, 7)
    assert sorted(path.name for path in out.parent.iterdir()) == ["out"]


def test_progress_is_told_while_other_files_are_still_being_written(tmp_path: Path) -> None:
    told = tmp_path / "told"

    def second_waits(index: int) -> Episode:
        deadline = time.monotonic() + 60
        while index == 1 and not told.exists():
            if time.monotonic() > deadline:
                raise SpirlError("nobody was told of the first file")
            time.sleep(0.05)
        return good(index)

    import_dataset(
        made(2, second_waits),
        tmp_path / "out",
        environment="spirl/Test-v0",
        shards=2,
        progress=lambda done, total: told.touch(),
    )


def test_episodes_go_round_the_files(tmp_path: Path) -> None:
    import_dataset(made(5), tmp_path / "out", environment="spirl/Test-v0", shards=2)
    assert [episode.id for episode in read_episodes(tmp_path / "out")] == [
        "e000",
        "e002",
        "e004",
        "e001",
        "e003",
    ]


def test_there_are_no_more_files_than_episodes(tmp_path: Path) -> None:
    report = import_dataset(made(2), tmp_path / "out", environment="spirl/Test-v0", shards=8)
    assert list(report.card.files) == ["episodes-00000-of-00002.parquet", "episodes-00001-of-00002.parquet"]


def test_the_number_of_files_does_not_change_the_content(tmp_path: Path) -> None:
    hashes = {
        import_dataset(made(6), tmp_path / str(shards), environment="spirl/Test-v0", shards=shards).card.content_sha256
        for shards in (1, 4)
    }
    assert len(hashes) == 1


def test_one_busy_cpu_changes_no_byte(tmp_path: Path) -> None:
    source = generated(PADS, 4, seed=1)
    both = import_dataset(source, tmp_path / "both", environment=PADS, shards=4).card

    @ray.remote(num_cpus=1)
    class Busy:
        def ready(self) -> None:
            pass

    busy = Busy.remote()
    ray.get(busy.ready.remote())
    one = import_dataset(source, tmp_path / "one", environment=PADS, shards=4).card
    ray.kill(busy)
    assert one == both


def test_importing_the_same_again_keeps_what_is_there(tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = import_dataset(made(3), out, environment="spirl/Test-v0", shards=1)
    before = (out / "card.json").stat().st_mtime_ns
    again = import_dataset(made(3), out, environment="spirl/Test-v0", shards=3)
    assert again.card == first.card
    assert (out / "card.json").stat().st_mtime_ns == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_same_dataset_with_a_damaged_file_is_not_taken_for_good(tmp_path: Path) -> None:
    out = tmp_path / "out"
    import_dataset(made(3), out, environment="spirl/Test-v0", shards=1)
    (file,) = out.glob("*.parquet")
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(SpirlError, match=r"parquet: missing or damaged.*import again"):
        import_dataset(made(3), out, environment="spirl/Test-v0", shards=1)


def test_another_dataset_is_not_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = import_dataset(made(3), out, environment="spirl/Test-v0")
    with pytest.raises(SpirlError, match=r"another dataset \(3 episodes of spirl/Test-v0 from made\)"):
        import_dataset(made(4), out, environment="spirl/Test-v0")
    with pytest.raises(SpirlError, match="another dataset"):
        import_dataset(generated(PADS, 1), out, environment=PADS)
    assert read_card(out) == first.card
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_foreign_folder_or_file_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("1")
    with pytest.raises(SpirlError, match=r"thesis: the folder has no card\.json"):
        import_dataset(made(1), tmp_path / "thesis", environment="spirl/Test-v0")
    with pytest.raises(SpirlError, match="this is a file"):
        import_dataset(made(1), tmp_path / "thesis" / "chapter.txt", environment="spirl/Test-v0")
    with pytest.raises(SpirlError, match=r"chapter\.txt.*(Not a directory|File exists)"):
        import_dataset(made(1), tmp_path / "thesis" / "chapter.txt" / "x", environment="spirl/Test-v0")
    assert [path.name for path in tmp_path.rglob("*")] == ["thesis", "chapter.txt"]


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    import_dataset(made(1), tmp_path / "out", environment="spirl/Test-v0")
    assert validate_dataset(tmp_path / "out") == []


def test_indices_without_an_episode_are_counted(tmp_path: Path) -> None:
    def odd(index: int) -> Episode | None:
        return good(index) if index % 2 else None

    report = import_dataset(made(5, odd), tmp_path / "out", environment="spirl/Test-v0", shards=5)
    assert (report.card.episodes, report.missing, len(report.card.files)) == (2, 3, 2)
    with pytest.raises(SpirlError, match="gave no episode for any of 4 indices"):
        import_dataset(made(4, lambda index: None), tmp_path / "none", environment="spirl/Test-v0")


def test_two_episodes_of_one_id_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SpirlError, match="made: more than one episode has the id 'e000'"):
        import_dataset(made(2, lambda index: good(0)), tmp_path / "out", environment="spirl/Test-v0")
    assert list(tmp_path.iterdir()) == []


def test_a_source_that_fails_in_a_task_says_so_to_the_caller(tmp_path: Path) -> None:
    def unreadable(index: int) -> Episode:
        raise SpirlError("tape 3 is torn")

    with pytest.raises(SpirlError, match=r"^tape 3 is torn$"):
        import_dataset(made(3, unreadable), tmp_path / "out", environment="spirl/Test-v0")
    assert not (tmp_path / "out").exists()


def test_a_bug_in_a_task_is_not_disguised_and_leaves_nothing(tmp_path: Path) -> None:
    def broken(index: int) -> Episode:
        raise ZeroDivisionError("a bug")

    with pytest.raises(Exception, match="a bug") as caught:
        import_dataset(made(1, broken), tmp_path / "out", environment="spirl/Test-v0")
    assert not isinstance(caught.value, SpirlError)
    assert not (tmp_path / "out").exists()


def test_a_spirl_error_is_found_within_what_ray_wraps_around_it() -> None:
    @ray.remote(num_cpus=1)
    def fail() -> None:
        raise SpirlError("the reason")

    with pytest.raises(ray.exceptions.RayTaskError) as caught:
        ray.get(fail.remote())
    assert str(user_error_in(caught.value)) == "the reason"
    assert user_error_in(ValueError("other")) is None


def test_storage_that_fails_in_a_task_is_named_with_the_reason(tmp_path: Path) -> None:
    def full(index: int) -> Episode:
        raise OSError(28, "No space left on device", str(tmp_path / "disk"))

    with pytest.raises(SpirlError, match=r"shard-00000: No space left on device \(.*disk\)"):
        import_dataset(made(1, full), tmp_path / "out", environment="spirl/Test-v0")


def test_only_leftovers_of_dead_imports_are_removed(tmp_path: Path) -> None:
    finished = subprocess.Popen([sys.executable, "-c", ""])
    finished.wait()
    here = socket.gethostname()
    dead, lives, elsewhere = f"{here}-{finished.pid}", f"{here}-{os.getppid()}", f"another-host-{finished.pid}"
    for owner in (dead, lives, elsewhere):
        (tmp_path / f".out.partial-{owner}").mkdir()
    import_dataset(made(1), tmp_path / "out", environment="spirl/Test-v0")
    found = {path.name for path in tmp_path.iterdir()}
    assert found == {"out", f".out.partial-{lives}", f".out.partial-{elsewhere}"}


def test_an_import_that_was_stopped_goes_on_with_what_is_missing(tmp_path: Path) -> None:
    reads = tmp_path / "reads"
    reads.mkdir()

    def noted(index: int) -> Episode:
        (reads / f"{index}-{time.time_ns()}").touch()
        return good(index)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    def read_now() -> set[int]:
        found = {int(path.name.split("-")[0]) for path in reads.iterdir()}
        for path in reads.iterdir():
            path.unlink()
        return found

    folder = tmp_path / "data" / "out"
    with pytest.raises(KeyboardInterrupt):
        import_dataset(made(12, noted), folder, environment="spirl/Test-v0", shards=4, progress=stop)
    assert not folder.exists()
    time.sleep(2.0)  # tasks that had been started may finish their shards
    (partial,) = folder.parent.glob(".out.partial-*")
    whole = {int(path.stem.split("-")[1]) for path in partial.glob("shard-*.json")}
    assert whole
    read_now()
    # What was damaged meanwhile is not trusted.
    damaged = min(whole)
    with (partial / f"shard-{damaged:05d}").open("ab") as file:
        file.write(b"x")
    report = import_dataset(made(12, noted), folder, environment="spirl/Test-v0", shards=4)
    assert read_now() == {index for index in range(12) if index % 4 not in whole - {damaged}}
    other = import_dataset(made(12), tmp_path / "other", environment="spirl/Test-v0", shards=4)
    assert report.card.content_sha256 == other.card.content_sha256
    assert sorted(path.name for path in folder.iterdir()) == sorted(p.name for p in (tmp_path / "other").iterdir())
    assert validate_dataset(folder) == []


def test_no_shards_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SpirlError, match="shards must be ≥ 1, not 0"):
        import_dataset(made(1), tmp_path / "out", environment="spirl/Test-v0", shards=0)


def test_the_human_demonstrations_can_be_imported(tmp_path: Path, minari_root: Path) -> None:
    human = {"type": "minari", "id": "D4RL/kitchen/complete-v2", "root": str(minari_root)}
    report = import_dataset(sources(human, env="spirl/Kitchen-v0"), tmp_path / "human", environment="spirl/Kitchen-v0")
    assert (report.card.episodes, report.card.steps, len(report.card.files)) == (19, 4209, 8)
    assert validate_dataset(tmp_path / "human") == []


def test_a_file_that_is_gone_while_a_shard_is_written_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def gone(shard: Any) -> dict[str, Any]:
        raise FileNotFoundError(2, "No such file or directory", str(tmp_path / "recording.npz"))

    monkeypatch.setattr(importing, "_write_shard", gone)
    with pytest.raises(SpirlError, match=r"recording\.npz: No such file"):
        importing._write_one([SimpleNamespace(file=tmp_path / "shard-0")], 0)  # type: ignore[list-item]
