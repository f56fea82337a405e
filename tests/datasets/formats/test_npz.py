"""npz files of OGBench, D4RL and of single episodes are read row by row, and faults are named."""

from __future__ import annotations

import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spirl_ray.datasets.formats.npz import NpzSettings, make
from spirl_ray.episodes.recording import Recording, RecordingReader
from spirl_ray.errors import SpirlError


def reader(path: Path | list[Path], **options: Any) -> RecordingReader:
    return make(NpzSettings.model_validate({"type": "npz", "path": path, **options}), None)


def read_all(source: RecordingReader, *keys: str) -> list[Recording]:
    return [episode for chunk in source.chunks() for episode in source.read(chunk, keys)]


def flat(lengths: tuple[int, ...] = (4, 3), **changes: Any) -> dict[str, np.ndarray]:
    """Rows whose first number is the row's own, so that a shifted row is found."""
    rows = sum(lengths)
    terminals = np.zeros(rows, np.float32)
    terminals[np.cumsum(lengths) - 1] = 1
    row = np.arange(rows, dtype=np.float32)
    arrays = {
        "observations": np.stack([row, -row, 2 * row], axis=1),
        "actions": np.stack([row + 0.25, row + 0.5], axis=1),
        "terminals": terminals,
    }
    return {**arrays, **{name: array for name, array in changes.items() if array is not None}}


def without(arrays: dict[str, np.ndarray], *names: str) -> dict[str, np.ndarray]:
    return {name: array for name, array in arrays.items() if name not in names}


def save(file: Path, arrays: dict[str, np.ndarray], compressed: bool = True) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    (np.savez_compressed if compressed else np.savez)(file, **arrays)  # type: ignore[arg-type]
    return file


@pytest.mark.parametrize("compressed", [True, False])
def test_the_last_action_of_an_ogbench_episode_has_no_successor(tmp_path: Path, compressed: bool) -> None:
    arrays = flat(qpos=np.arange(14.0).reshape(7, 2), button=np.arange(7))
    source = reader(save(tmp_path / "play.npz", arrays, compressed))
    layout = source.layout()
    assert {key: (kind.shape, kind.dtype) for key, kind in layout.observations.items()} == {
        "observation": ((3,), np.float32),
        "qpos": ((2,), np.float64),
        "button": ((1,), np.int64),
    }
    assert (layout.actions, layout.rewards) == (((2,), np.float32), False)
    first, second = read_all(source, "observation", "qpos", "button")
    assert (first.id, second.id) == ("play:00000", "play:00001")
    np.testing.assert_array_equal(second.observations["observation"], arrays["observations"][4:7])
    np.testing.assert_array_equal(second.observations["qpos"], arrays["qpos"][4:7])
    np.testing.assert_array_equal(second.observations["button"], [[4], [5], [6]])
    np.testing.assert_array_equal(first.actions, arrays["actions"][:3])
    np.testing.assert_array_equal(second.actions, arrays["actions"][4:6])
    assert second.rewards is None
    assert (second.terminated, second.truncated) == (False, True)
    assert second.metadata == {"file": "play", "rows": [4, 6]}


def test_a_d4rl_episode_ends_at_either_flag(tmp_path: Path) -> None:
    timeouts = np.zeros(7, bool)
    timeouts[1] = True
    arrays = flat(timeouts=timeouts, rewards=np.arange(7.0))
    arrays["infos/qpos"] = np.arange(7.0)
    source = reader(save(tmp_path / "d4rl.npz", arrays))
    assert source.layout().rewards
    episodes = read_all(source, "observation", "infos.qpos")
    np.testing.assert_array_equal([len(episode.actions) for episode in episodes], [1, 1, 2])
    np.testing.assert_array_equal(episodes[1].observations["infos.qpos"], [[2], [3]])
    np.testing.assert_array_equal(episodes[2].rewards, [4, 5 + 6])
    assert [one.rewards is not None and one.rewards.tolist() for one in read_all(source)] == [[0 + 1], [2 + 3], [4, 11]]
    assert [one.terminated for one in episodes] == [False, True, True]


def test_next_observations_keep_the_last_action_and_how_it_ended(tmp_path: Path) -> None:
    timeouts = np.zeros(7, bool)
    timeouts[6] = True
    arrays = flat(timeouts=timeouts, rewards=np.arange(7.0), qpos=np.arange(7.0))
    arrays["terminals"][6] = 0
    arrays["next_observations"] = arrays["observations"] + 100
    source = reader(save(tmp_path / "d4rl.npz", arrays))
    assert set(source.layout().observations) == {"observation", "qpos"}
    first, second = read_all(source, "observation")
    np.testing.assert_array_equal(first.observations["observation"][:, 0], [0, 1, 2, 3, 103])
    np.testing.assert_array_equal(second.observations["observation"][:, 0], [4, 5, 6, 106])
    np.testing.assert_array_equal(second.actions, arrays["actions"][4:])
    np.testing.assert_array_equal(second.rewards, [4, 5, 6])
    assert [(one.terminated, one.truncated) for one in (first, second)] == [(True, False), (False, True)]
    # qpos has no successors.
    assert [len(one.actions) for one in read_all(source, "observation", "qpos")] == [3, 2]


def test_rows_after_the_last_flag_are_an_episode_and_a_single_row_is_none(tmp_path: Path) -> None:
    arrays = flat((4, 1, 2))
    arrays["terminals"][-1] = 0
    source = reader(save(tmp_path / "a.npz", arrays))
    assert [episode.observations["observation"][:, 0].tolist() for episode in read_all(source, "observation")] == [
        [0, 1, 2, 3],
        [5, 6],
    ]
    assert [len(episode.actions) for episode in read_all(source)] == [3, 1]


def test_files_of_a_folder_and_of_a_list_are_one_source(tmp_path: Path) -> None:
    for number in (1, 2, 10):
        save(tmp_path / "all" / f"part{number}.npz", flat(qpos=np.full(7, number)))
    save(tmp_path / "all" / ".hidden" / "part.npz", flat())
    source = reader(tmp_path / "all")
    assert source.chunks() == [(0,), (1,), (2,), (3,), (4,), (5,)]
    assert [one.id for one in read_all(source)][::2] == ["part1:00000", "part2:00000", "part10:00000"]
    assert [one.observations["qpos"][0, 0] for one in read_all(source, "qpos")] == [1, 1, 2, 2, 10, 10]
    other = save(tmp_path / "other" / "part1.npz", flat())
    both = reader([tmp_path / "all", other])
    assert len({one.id for one in read_all(both)}) == 8
    assert both.origin() == f"npz:{tmp_path}/all, {other}"
    with pytest.raises(SpirlError, match=r"part1\.npz.*twice"):
        reader([other, tmp_path / "other"]).chunks()


def test_any_order_reads_the_same_and_a_reader_can_be_pickled(tmp_path: Path) -> None:
    for number in (1, 2):
        save(tmp_path / f"{number}.npz", flat((3, 4, 2)))
    source = reader(tmp_path)
    expected = {one.id: one for one in read_all(source, "observation")}
    copy: RecordingReader = pickle.loads(pickle.dumps(source))  # noqa: S301 (its own)
    order = (4, 1, 5, 0, 2, 3)
    shuffled = list(copy.read(order, ["observation"]))
    assert [one.id for one in shuffled] == [list(expected)[index] for index in order]
    for one in shuffled:
        np.testing.assert_array_equal(one.observations["observation"], expected[one.id].observations["observation"])
        np.testing.assert_array_equal(one.actions, expected[one.id].actions)


def test_actions_and_rewards_can_have_other_names(tmp_path: Path) -> None:
    arrays = flat(score=np.arange(7.0), grip=np.arange(7.0))
    source = reader(save(tmp_path / "a.npz", arrays), columns={"action": ["actions", "grip"], "reward": "score"})
    assert source.layout().actions == ((3,), np.float64)
    assert set(source.layout().observations) == {"observation"}
    (_, second) = read_all(source)
    np.testing.assert_array_equal(second.actions, np.c_[arrays["actions"], arrays["grip"]][4:6])
    np.testing.assert_array_equal(second.rewards, [4, 5])


@pytest.mark.parametrize("rows", [5, 4])
def test_a_file_can_be_one_episode(tmp_path: Path, rows: int) -> None:
    arrays = {
        "observations": np.arange(10.0).reshape(5, 2)[:rows],
        "image": np.arange(5 * 12, dtype=np.uint8).reshape(5, 2, 2, 3)[:rows],
        "actions": np.arange(8.0).reshape(4, 2),
        "rewards": np.arange(4.0),
        "terminated": np.array([False, False, False, True]),
        "length": np.array(4),
    }
    save(tmp_path / "demo_2.npz", arrays)
    save(tmp_path / "demo_10.npz", without({**arrays, "truncated": np.array(True)}, "terminated"))
    source = reader(tmp_path)
    assert {key: kind.shape for key, kind in source.layout().observations.items()} == {
        "observation": (2,),
        "image": (2, 2, 3),
    }
    first, second = read_all(source, "observation", "image")
    assert (first.id, second.id) == ("demo_2", "demo_10")
    steps = 4 if rows == 5 else 3
    np.testing.assert_array_equal(first.observations["observation"], arrays["observations"])
    np.testing.assert_array_equal(first.observations["image"], arrays["image"])
    np.testing.assert_array_equal(first.actions, arrays["actions"][:steps])
    np.testing.assert_array_equal(first.rewards, [0, 1, 2, 3] if rows == 5 else [0, 1, 2 + 3])
    assert [(len(one.actions), len(one.observations)) for one in read_all(source)] == [(steps, 0)] * 2
    assert (first.terminated, first.truncated) == (True, False)
    assert (second.terminated, second.truncated) == (False, True)


@pytest.mark.parametrize("compressed", [True, False])
def test_a_large_member_is_not_unpacked_as_a_whole(tmp_path: Path, compressed: bool) -> None:
    rows = 300_000  # of 200 bytes: 60 MB
    terminals = np.zeros(rows, bool)
    terminals[999::1000] = True
    observations = np.zeros((rows, 50), np.float32)
    observations[-1] = 7
    file = save(tmp_path / "large.npz", flat((rows,), observations=observations, terminals=terminals), compressed)
    del observations
    source = reader(file)
    tracemalloc.start()
    try:
        (last,) = source.read(source.chunks()[-1], ["observation"])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(last.observations["observation"][-2:, 0], [0, 7])
    assert peak < 10e6


def test_a_changed_file_changes_the_identity_and_a_moved_one_does_not(tmp_path: Path) -> None:
    save(tmp_path / "one" / "a.npz", flat())
    before = reader(tmp_path / "one").identity()
    (tmp_path / "one").rename(tmp_path / "two")
    assert reader(tmp_path / "two").identity() == before
    assert reader(tmp_path / "two", layout="ogbench").identity() != before
    assert reader(tmp_path / "two", columns={"action": "observations"}).identity() != before
    save(tmp_path / "two" / "a.npz", flat((4, 4)))
    assert reader(tmp_path / "two").identity() != before


def test_a_path_that_holds_nothing_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpirlError, match=r"nowhere\.npz: no such file"):
        reader(tmp_path / "nowhere.npz").layout()
    (tmp_path / "empty.npz").mkdir()
    with pytest.raises(SpirlError, match=r"empty\.npz: this folder.*\.npz"):
        reader(tmp_path / "empty.npz").chunks()
    with pytest.raises(SpirlError, match="path is empty"):
        reader([])


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    file = save(tmp_path / "a.npz", flat(observations=rng.normal(size=(7, 500))))
    data = file.read_bytes()
    for name, content in {"short": data[:-200], "empty": b"", "pickle": pickle.dumps({"observations": 1})}.items():
        bad = tmp_path / f"{name}.npz"
        bad.write_bytes(content)
        with pytest.raises(SpirlError, match=rf"{name}\.npz: is no readable npz file"):
            reader(bad).layout()
    bad.write_bytes(data[:2000] + bytes(8000) + data[10000:])
    with pytest.raises(SpirlError, match=r"pickle\.npz: episode pickle:0000[01]: observations: rows . to . cannot"):
        read_all(reader(bad), "observation")


def test_a_header_that_promises_more_than_there_is_is_refused(tmp_path: Path) -> None:
    file = save(tmp_path / "a.npz", flat(), compressed=False)
    file.write_bytes(file.read_bytes().replace(b"(7, 3)", b"(9, 3)"))
    with pytest.raises(SpirlError, match=r"a\.npz: observations: "):
        reader(file).layout()


def test_objects_are_refused_and_never_unpickled(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "exploded",))

    bomb = np.array([Bomb()] * 7, dtype=object)
    for name in ("observations", "actions", "terminals"):
        with pytest.raises(SpirlError, match=rf"a\.npz: {name}: holds Python objects"):
            reader(save(tmp_path / "a.npz", {**flat(), name: bomb})).layout()
    beside = reader(save(tmp_path / "b.npz", flat(infos=bomb, names=np.array(["x"] * 7))))
    assert set(beside.layout().observations) == {"observation"}
    with pytest.raises(SpirlError, match=r"b\.npz: episode b:00000: infos: holds Python objects"):
        read_all(beside, "infos")
    with pytest.raises(SpirlError, match="names: holds <U1"):
        read_all(beside, "names")
    assert not (tmp_path / "exploded").exists()


def test_a_missing_key_lists_those_that_are_there(tmp_path: Path) -> None:
    file = save(tmp_path / "a.npz", flat(qpos=np.zeros(7)))
    with pytest.raises(SpirlError, match=r"a\.npz: episode a:00000: has no 'pos'; it has: observation, qpos"):
        read_all(reader(file), "pos")
    with pytest.raises(SpirlError, match=r"a\.npz: has no 'action'; it has: actions, observations, qpos, terminals"):
        reader(file, columns={"action": "action"}).layout()
    with pytest.raises(SpirlError, match=r"b\.npz: has no 'terminals'; it has: actions, observations"):
        reader(save(tmp_path / "b.npz", without(flat(), "terminals")), layout="ogbench").chunks()
    with pytest.raises(SpirlError, match=r"c\.npz: has no 'observations'; it has: actions, terminals"):
        reader(save(tmp_path / "c.npz", without(flat(), "observations"))).chunks()
    save(tmp_path / "episodes" / "1.npz", without(flat(), "terminals"))
    save(tmp_path / "episodes" / "2.npz", {"states": np.zeros((7, 3)), "actions": np.zeros((7, 2))})
    with pytest.raises(SpirlError, match=r"2\.npz: episode 2: has no 'observation'; it has: states"):
        read_all(reader(tmp_path / "episodes"), "observation")


def test_lengths_that_disagree_are_named(tmp_path: Path) -> None:
    file = save(tmp_path / "a.npz", flat(observations=np.zeros((6, 3)), qpos=np.zeros(8)))
    with pytest.raises(SpirlError, match=r"a\.npz: observations has 6 rows and actions has 7"):
        reader(file).chunks()
    save(file, flat(qpos=np.zeros(8)))
    assert set(reader(file).layout().observations) == {"observation"}
    with pytest.raises(SpirlError, match=r"a\.npz: episode a:00000: qpos has 8 rows in the file and actions has 7"):
        read_all(reader(file), "qpos")
    with pytest.raises(SpirlError, match=r"a\.npz: actions has no rows"):
        reader(save(file, {name: array[:0] for name, array in flat().items()})).chunks()
    episode = {"observations": np.zeros((7, 3)), "qpos": np.zeros((6, 3)), "actions": np.zeros((6, 2))}
    with pytest.raises(SpirlError, match=r"b\.npz: episode b: qpos has 6 rows and observation has 7"):
        read_all(reader(save(tmp_path / "b.npz", episode)), "observation", "qpos")
    with pytest.raises(SpirlError, match=r"b\.npz: episode b: observation has 7 rows and actions has 9; 10"):
        read_all(reader(save(tmp_path / "b.npz", {**episode, "actions": np.zeros((9, 2))})), "observation")
    with pytest.raises(SpirlError, match=r"b\.npz: episode b: rewards has 7 values and actions has 6"):
        read_all(reader(save(tmp_path / "b.npz", {**episode, "rewards": np.zeros(7)})), "observation")


def test_columns_first_arrays_say_how_to_save_them(tmp_path: Path) -> None:
    file = save(tmp_path / "a.npz", flat(observations=np.asfortranarray(np.ones((7, 3)))))
    with pytest.raises(SpirlError, match=r"a\.npz: episode a:00000: observations: .*ascontiguousarray"):
        read_all(reader(file), "observation")
