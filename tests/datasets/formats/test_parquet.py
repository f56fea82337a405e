"""Tables in Parquet, Arrow and Feather files are read with one row a step or an episode, and faults are named."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from spirl_ray.datasets.formats.parquet import ParquetSettings, make
from spirl_ray.episodes.recording import Recording, RecordingReader
from spirl_ray.errors import SpirlError


def reader(path: Path | list[Path], rows: str = "step", **options: Any) -> RecordingReader:
    return make(ParquetSettings.model_validate({"type": "parquet", "path": path, "rows": rows, **options}), None)


def read_all(source: RecordingReader, *keys: str) -> list[Recording]:
    return [episode for chunk in source.chunks() for episode in source.read(chunk, keys)]


def save(file: Path, columns: dict[str, Any] | pa.Table, group: int = 3) -> Path:
    """Writes a table with few rows in a group, so that episodes cross the borders of groups."""
    file.parent.mkdir(parents=True, exist_ok=True)
    table = columns if isinstance(columns, pa.Table) else pa.table(columns)
    if file.suffix == ".feather":
        feather.write_feather(table, file, chunksize=group)
    elif file.suffix == ".arrow":  # the form of Hugging Face's caches
        with pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table, max_chunksize=group)
    else:
        pq.write_table(table, file, row_group_size=group)
    return file


def steps(lengths: tuple[int, ...] = (4, 3, 3), **changes: Any) -> dict[str, Any]:
    rows = np.arange(sum(lengths), dtype=np.float64)
    ends = np.isin(rows, np.cumsum(lengths) - 1)
    columns = {
        "run": np.repeat(np.arange(len(lengths)), lengths),
        "joints": [[row, -row, row / 2] for row in rows],
        "gripper": rows.astype(np.float32) / 8,
        "image": [[[int(row), 1], [2, 3]] for row in rows],
        "note": ["x"] * len(rows),
        "action": [[row + 0.25, row + 0.5] for row in rows],
        "reward": rows * 10,
        "terminated": ends & (rows < 5),
        "truncated": ends & (rows >= 5),
    }
    return {name: values for name, values in {**columns, **changes}.items() if values is not None}


@pytest.mark.parametrize("suffix", ["parquet", "feather", "arrow"])
def test_a_row_is_a_step(tmp_path: Path, suffix: str) -> None:
    source = reader(save(tmp_path / f"a.{suffix}", steps()), episode="run")
    layout = source.layout()
    assert {key: (kind.shape, kind.dtype) for key, kind in layout.observations.items()} == {
        "joints": ((3,), np.float64),
        "gripper": ((1,), np.float32),
        "image": ((2, 2), np.int64),
    }
    assert (layout.actions, layout.rewards) == (((2,), np.float64), True)
    episodes = read_all(source, "joints", "gripper", "image")
    assert [one.id for one in episodes] == ["0", "1", "2"]
    second = episodes[1]
    np.testing.assert_array_equal(second.observations["joints"], [[4, -4, 2], [5, -5, 2.5], [6, -6, 3]])
    np.testing.assert_array_equal(second.observations["gripper"], [[4 / 8], [5 / 8], [6 / 8]])
    np.testing.assert_array_equal(second.observations["image"][:, 0, 0], [4, 5, 6])
    np.testing.assert_array_equal(second.actions, [[4.25, 4.5], [5.25, 5.5]])
    np.testing.assert_array_equal(second.rewards, [40, 50 + 60])
    ends = [(True, False), (False, True), (False, True)]
    assert [(one.terminated, one.truncated) for one in episodes] == ends


def test_the_last_action_may_be_null_where_it_is_left_out(tmp_path: Path) -> None:
    columns = steps((4, 3))
    columns["action"][3] = columns["action"][6] = None
    file = save(tmp_path / "a.parquet", columns)
    assert [len(one.actions) for one in read_all(reader(file, episode="run"), "joints")] == [3, 2]
    for name in ("reward", "terminated"):
        columns[name] = [None if row == 3 else value for row, value in enumerate(columns[name].tolist())]
    (first, _) = read_all(reader(save(file, columns), episode="run"), "joints")
    np.testing.assert_array_equal(first.rewards, [0, 10, 20])
    assert not first.terminated
    columns["action"][1] = None
    with pytest.raises(SpirlError, match=r"a\.parquet: episode 0: action: has no value \(null\) at 1"):
        read_all(reader(save(file, columns), episode="run"), "joints")


@pytest.mark.parametrize("prefix", ["next.", "next_"])
def test_columns_of_next_values_keep_the_last_action(tmp_path: Path, prefix: str) -> None:
    columns = steps()
    columns[f"{prefix}joints"] = [[row[0] + 100, 0, 0] for row in columns["joints"]]
    source = reader(save(tmp_path / "a.parquet", columns), episode="run")
    assert set(source.layout().observations) == {"joints", "gripper", "image"}
    first, second, _ = read_all(source, "joints")
    np.testing.assert_array_equal(second.observations["joints"][:, 0], [4, 5, 6, 106])
    np.testing.assert_array_equal(second.rewards, [40, 50, 60])
    assert [(one.terminated, one.truncated) for one in (first, second)] == [(True, False), (False, True)]
    assert [len(one.actions) for one in read_all(source, "joints", "gripper")] == [3, 2, 2]


def test_interleaved_steps_are_sorted_by_the_column_of_the_steps(tmp_path: Path) -> None:
    columns = steps((4, 3, 3), frame=[0, 1, 2, 3, 0, 1, 2, 0, 1, 2])
    order = [9, 4, 0, 5, 1, 7, 6, 2, 8, 3]
    file = save(tmp_path / "a.parquet", pa.table(columns).take(order))
    episodes = read_all(reader(file, episode="run", step="frame"), "joints")
    assert {one.id: one.observations["joints"][:, 0].tolist() for one in episodes} == {
        "0": [0, 1, 2, 3],
        "1": [4, 5, 6],
        "2": [7, 8, 9],
    }
    assert {one.id: one.actions[:, 0].tolist() for one in episodes}["1"] == [4.25, 5.25]
    with pytest.raises(SpirlError, match=r"a\.parquet: episode 2: its rows are in 3 places.*row 5"):
        reader(file, episode="run").chunks()
    columns["frame"] = [0, 1, 2, 2, 0, 1, 2, 0, 1, 2]
    with pytest.raises(SpirlError, match=r"a\.parquet: episode 0: frame: the value 2 is there twice"):
        read_all(reader(save(file, columns), episode="run", step="frame"))


@pytest.mark.parametrize("names", [["a", "a", "b", "b"], pa.array(["a", "a", "b", "b"]).dictionary_encode()])
def test_names_of_episodes_may_be_text(tmp_path: Path, names: Any) -> None:
    file = save(tmp_path / "a.parquet", {"run": names, "x": [1.0, 2, 3, 4], "action": [[0.0]] * 4})
    assert [one.id for one in read_all(reader(file, episode="run"), "x")] == ["a", "b"]


def test_a_file_can_be_an_episode(tmp_path: Path) -> None:
    for number in (2, 10):
        save(tmp_path / "all" / f"run{number}.parquet", steps((number,), run=None))
    episodes = read_all(reader(tmp_path / "all"), "joints")
    assert [(one.id, len(one.actions)) for one in episodes] == [("run2", 1), ("run10", 9)]


def test_numbers_that_start_again_in_another_file_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "a.parquet", steps((4, 3)))
    save(tmp_path / "b.parquet", steps((3,), run=[1, 1, 1]))
    with pytest.raises(SpirlError, match=r"b\.parquet: episode 1 is also in .*a\.parquet"):
        reader(tmp_path, episode="run").chunks()
    save(tmp_path / "b.parquet", steps((3,), run=[2, 2, 2]))
    assert [one.id for one in read_all(reader(tmp_path, episode="run"))] == ["0", "1", "2"]


def test_columns_can_be_named(tmp_path: Path) -> None:
    columns = steps(action=None, reward=None, terminated=None, truncated=None)
    columns |= {"vx": np.arange(10.0), "vy": -np.arange(10.0), "score": np.ones(10), "done": np.arange(10) == 9}
    columns["next.joints"] = columns["joints"]
    file = save(tmp_path / "a.parquet", columns)
    options: dict[str, Any] = {"columns": {"action": ["vy", "vx"], "reward": "score"}, "terminated": "done"}
    source = reader(file, episode="run", **options)
    assert source.layout().actions == ((2,), np.float64)
    assert set(source.layout().observations) == {"joints", "gripper", "image"}
    *_, last = read_all(source, "joints")
    np.testing.assert_array_equal(last.actions, [[-7, 7], [-8, 8], [-9, 9]])
    np.testing.assert_array_equal(last.rewards, [1, 1, 1])
    assert (last.terminated, last.truncated) == (True, False)


def test_columns_within_structs_and_tensors_are_read(tmp_path: Path) -> None:
    tensor = pa.FixedShapeTensorArray.from_numpy_ndarray(np.arange(24.0).reshape(4, 2, 3))
    robot = [{"arm": {"q": [float(row), 1.0]}, "name": "x"} for row in range(4)]
    table = pa.table({"robot": robot, "map": tensor, "action": [[0.5]] * 4})
    for suffix in ("parquet", "feather"):
        source = reader(save(tmp_path / f"a.{suffix}", table))
        assert {key: kind.shape for key, kind in source.layout().observations.items()} == {
            "robot.arm.q": (2,),
            "map": (2, 3),
        }
        (episode,) = read_all(source, "robot.arm.q", "map")
        np.testing.assert_array_equal(episode.observations["robot.arm.q"][:, 0], [0, 1, 2, 3])
        np.testing.assert_array_equal(episode.observations["map"], np.arange(24.0).reshape(4, 2, 3))


def whole(**changes: Any) -> dict[str, Any]:
    columns = {
        "run": ["first", "second"],
        "joints": [[[0.0, 1], [2, 3], [4, 5]], [[6.0, 7], [8, 9]]],
        "gripper": [[0.0, 1, 2], [3.0, 4]],
        "action": [[[1.0], [2.0]], [[3.0]]],
        "reward": [[10.0, 20], [30.0]],
        "terminated": [[False, True], [False]],
        "length": [2, 1],
    }
    return {**columns, **changes}


def test_a_row_is_an_episode(tmp_path: Path) -> None:
    file = save(tmp_path / "a.parquet", whole(), group=1)
    source = reader(file, "episode", episode="run")
    layout = source.layout()
    assert {key: (kind.shape, kind.dtype) for key, kind in layout.observations.items()} == {
        "joints": ((2,), np.float64),
        "gripper": ((1,), np.float64),
    }
    assert (layout.actions, layout.rewards) == (((1,), np.float64), True)
    first, second = read_all(source, "joints", "gripper")
    assert (first.id, second.id) == ("first", "second")
    np.testing.assert_array_equal(first.observations["joints"], [[0, 1], [2, 3], [4, 5]])
    np.testing.assert_array_equal(second.observations["gripper"], [[3], [4]])
    np.testing.assert_array_equal(first.actions, [[1], [2]])
    np.testing.assert_array_equal(first.rewards, [10, 20])
    assert [(one.terminated, one.truncated) for one in (first, second)] == [(True, False), (False, True)]
    assert [one.id for one in read_all(reader(file, "episode"))] == ["a:00000", "a:00001"]


def test_a_row_with_as_many_observations_as_actions_loses_the_last_action(tmp_path: Path) -> None:
    columns = whole(action=[[[1.0], [2.0], [3.0]], [[3.0], [4.0]]], reward=[[1.0, 2, 3], [4.0, 5]])
    source = reader(save(tmp_path / "a.parquet", columns), "episode")
    assert [(len(one.actions), len(one.observations)) for one in read_all(source)] == [(2, 0), (1, 0)]
    first, second = read_all(source, "joints")
    np.testing.assert_array_equal(first.actions, [[1], [2]])
    np.testing.assert_array_equal(second.rewards, [4 + 5])


def test_any_order_reads_the_same_and_a_reader_can_be_pickled(tmp_path: Path) -> None:
    save(tmp_path / "steps" / "a.parquet", steps((4, 3, 5), run=["a"] * 4 + ["b"] * 3 + ["c"] * 5))
    save(tmp_path / "steps" / "b.feather", steps((4,), run=["d"] * 4))
    save(tmp_path / "episodes" / "a.parquet", whole(), group=1)
    save(tmp_path / "episodes" / "b.arrow", whole(run=["third", "fourth"]))
    for source in (reader(tmp_path / "steps", episode="run"), reader(tmp_path / "episodes", "episode", episode="run")):
        expected = read_all(source, "joints")
        copy: RecordingReader = pickle.loads(pickle.dumps(source))  # noqa: S301 (its own)
        assert len(expected) == 4
        for index, one in zip((3, 1, 0, 2), copy.read((3, 1, 0, 2), ["joints"]), strict=True):
            assert one.id == expected[index].id
            np.testing.assert_array_equal(one.observations["joints"], expected[index].observations["joints"])
            np.testing.assert_array_equal(one.actions, expected[index].actions)


def test_a_changed_file_or_column_changes_the_identity(tmp_path: Path) -> None:
    file = save(tmp_path / "a.parquet", steps())
    before = reader(file, episode="run").identity()
    assert reader(file, episode="run").identity() == before
    assert reader(file).identity() != before
    save(file, steps((4, 6)))
    assert reader(file, episode="run").identity() != before


def test_damaged_and_strange_files_are_named(tmp_path: Path) -> None:
    for suffix in ("parquet", "feather"):
        data = save(tmp_path / f"a.{suffix}", steps()).read_bytes()
        for name, content in {"short": data[:-40], "empty": b"", "text": b"joints,action\n1,2\n"}.items():
            (tmp_path / f"{name}.{suffix}").write_bytes(content)
            with pytest.raises(SpirlError, match=rf"{name}\.{suffix}: is no readable"):
                reader(tmp_path / f"{name}.{suffix}").layout()
    (tmp_path / "folder.parquet").mkdir()
    with pytest.raises(SpirlError, match=r"folder\.parquet: this folder holds no file"):
        reader(tmp_path / "folder.parquet").layout()
    bare = save(tmp_path / "bare.parquet", pa.table(steps()).slice(0, 0))
    with pytest.raises(SpirlError, match=r"bare\.parquet: has no rows"):
        reader(bare).layout()
    with pytest.raises(SpirlError, match=r"bare\.parquet: has no rows"):
        reader(bare, episode="run").chunks()


def test_damage_within_a_column_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table(steps((50,))), file, write_page_checksum=True, compression="zstd", use_dictionary=False)
    column = pq.ParquetFile(file).metadata.row_group(0).column(1)
    assert column.path_in_schema.startswith("joints")
    data = bytearray(file.read_bytes())
    place = column.data_page_offset + column.total_compressed_size // 2
    data[place : place + 8] = bytes(8)
    file.write_bytes(data)
    with pytest.raises(SpirlError, match=r"a\.parquet: episode 0: joints.* cannot be read"):
        read_all(reader(file, episode="run"), "joints")


def test_missing_columns_list_those_that_are_there(tmp_path: Path) -> None:
    file = save(tmp_path / "a.parquet", steps())
    there = "action, gripper, image, joints, note, reward, run, terminated, truncated"
    with pytest.raises(SpirlError, match=rf"a\.parquet: table: has no 'episode'; it has: {there}"):
        reader(file, episode="episode").chunks()
    with pytest.raises(SpirlError, match=r"a\.parquet: table: has no 'eef'; it has: gripper, image, joints"):
        read_all(reader(file, episode="run"), "eef")
    with pytest.raises(SpirlError, match=r"b\.parquet: table: has no 'action'; it has: gripper"):
        reader(save(tmp_path / "b.parquet", steps(action=None))).layout()
    with pytest.raises(SpirlError, match="step is 'frame'"):
        reader(file, "episode", step="frame")


def test_values_that_cannot_be_arrays_are_named(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    ragged = steps()
    ragged["joints"][1] = [1.0, 2.0]
    with pytest.raises(SpirlError, match=r"a\.parquet: episode 0: joints: its lists differ in length: 3 and 2"):
        read_all(reader(save(file, ragged), episode="run"), "joints")
    with pytest.raises(SpirlError, match=r"a\.parquet: action: holds string"):
        reader(save(file, steps(action=["left"] * 10))).layout()
    with pytest.raises(SpirlError, match=r"a\.parquet: table: has no 'note'; it has"):
        read_all(reader(save(file, steps()), episode="run"), "note")
    with pytest.raises(SpirlError, match=r"a\.parquet: run: has no value \(null\) in 1 rows"):
        reader(save(file, steps(run=[0] * 9 + [None])), episode="run").chunks()
    with pytest.raises(SpirlError, match=r"a\.parquet: episode second: gripper has 3 rows and actions has 1"):
        read_all(reader(save(file, whole(gripper=[[0.0, 1, 2], [3.0, 4, 5]])), "episode", episode="run"), "gripper")
    with pytest.raises(SpirlError, match=r"a\.parquet: action: holds double.*list"):
        reader(save(file, whole(action=[1.0, 2.0])), "episode").layout()
