"""HDF5 files of D4RL and robomimic are read as they were meant, and faults are named."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from spirl_ray.datasets.formats.hdf5 import Hdf5Settings, make
from spirl_ray.episodes.recording import Recording, RecordingReader
from spirl_ray.errors import SpirlError


def reader(path: Path | list[Path], **options: Any) -> RecordingReader:
    return make(Hdf5Settings.model_validate({"type": "hdf5", "path": path, **options}), None)


def read_all(source: RecordingReader, *keys: str) -> list[Recording]:
    return [episode for chunk in source.chunks() for episode in source.read(chunk, keys)]


def save(file: Path, arrays: dict[str, Any]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(file, "w") as out:
        for name, array in arrays.items():
            out.create_dataset(name, data=array)
    return file


def flat(rows: int = 7, **changes: Any) -> dict[str, Any]:
    row = np.arange(rows, dtype=np.float32)
    arrays = {
        "observations": np.stack([row, -row], axis=1),
        "actions": row[:, None] + 0.5,
        "rewards": 10 * row,
        "terminals": row == 2,
        "timeouts": row == 5,
        "infos/qpos": np.stack([row, row, row], axis=1),
        "metadata/algorithm": "none",
        "metadata/policy/fc0/weight": np.zeros((3, 2)),
    }
    return {**arrays, **changes}


def demonstration(number: int, steps: int = 4, successors: bool = True) -> dict[str, Any]:
    row = np.arange(steps + 1, dtype=np.float64)
    position, images = 100 * number + row[:, None], (row[:, None, None, None] * np.ones((3, 3, 1))).astype(np.uint8)
    arrays = {
        "obs/position": position[:-1],
        "obs/image": images[:-1],
        "actions": row[:-1, None] * np.ones(2),
        "actions_abs": 5 + row[:-1, None] * np.ones(3),
        "rewards": np.array([0.0] * (steps - 1) + [1.0]),
        "dones": np.array([0] * (steps - 1) + [1]),
        "states": np.zeros((steps, 9)),
    }
    if successors:
        arrays |= {"next_obs/position": position[1:], "next_obs/image": images[1:]}
    return {f"data/demo_{number}/{name}": array for name, array in arrays.items()}


def save_demonstrations(file: Path, numbers: tuple[int, ...] = (0, 1, 2, 10), **options: Any) -> Path:
    arrays: dict[str, Any] = {"mask/train": np.array([b"demo_10", b"demo_2"]), "mask/empty": np.array([], "S6")}
    for number in numbers:
        arrays |= demonstration(number, **options)
    return save(file, arrays)


def test_d4rl_episodes_end_at_either_flag_and_lose_the_last_action(tmp_path: Path) -> None:
    arrays = flat()
    source = reader(save(tmp_path / "door.hdf5", arrays))
    layout = source.layout()
    assert {key: (kind.shape, kind.dtype) for key, kind in layout.observations.items()} == {
        "observation": ((2,), np.float32),
        "infos.qpos": ((3,), np.float32),
    }
    assert (layout.actions, layout.rewards) == (((1,), np.float32), True)
    first, second = read_all(source, "observation", "infos.qpos")
    assert (first.id, second.id) == ("door:00000", "door:00001")
    np.testing.assert_array_equal(second.observations["observation"], arrays["observations"][3:6])
    np.testing.assert_array_equal(second.observations["infos.qpos"], arrays["infos/qpos"][3:6])
    np.testing.assert_array_equal(second.actions, arrays["actions"][3:5])
    np.testing.assert_array_equal(second.rewards, [30, 40 + 50])
    assert [(one.terminated, one.truncated) for one in (first, second)] == [(True, False), (False, True)]


def test_d4rl_next_observations_keep_the_last_action(tmp_path: Path) -> None:
    arrays = flat(next_observations=flat()["observations"] + 100)
    first, second, third = read_all(reader(save(tmp_path / "door.hdf5", arrays)), "observation")
    np.testing.assert_array_equal(second.observations["observation"][:, 0], [3, 4, 5, 105])
    np.testing.assert_array_equal(second.rewards, [30, 40, 50])
    np.testing.assert_array_equal(third.observations["observation"][:, 0], [6, 106])
    assert [(one.terminated, one.truncated) for one in (first, second, third)] == [
        (True, False),
        (False, True),
        (False, True),
    ]


def test_a_demonstration_ends_with_its_last_next_observation(tmp_path: Path) -> None:
    source = reader(save_demonstrations(tmp_path / "demos.hdf5"))
    layout = source.layout()
    assert {key: (kind.shape, kind.dtype) for key, kind in layout.observations.items()} == {
        "position": ((1,), np.float64),
        "image": ((3, 3, 1), np.uint8),
    }
    assert (layout.actions, layout.rewards) == (((2,), np.float64), True)
    episodes = read_all(source, "position", "image")
    assert [one.id for one in episodes] == ["demos:demo_0", "demos:demo_1", "demos:demo_2", "demos:demo_10"]
    last = episodes[-1]
    np.testing.assert_array_equal(last.observations["position"][:, 0], [1000, 1001, 1002, 1003, 1004])
    np.testing.assert_array_equal(last.observations["image"][:, 0, 0, 0], [0, 1, 2, 3, 4])
    np.testing.assert_array_equal(last.actions[:, 0], [0, 1, 2, 3])
    np.testing.assert_array_equal(last.rewards, [0, 0, 0, 1])
    assert (last.terminated, last.truncated) == (True, False)
    assert last.metadata == {"demonstration": "demo_10"}


def test_without_next_observations_the_last_action_is_left_out(tmp_path: Path) -> None:
    source = reader(save_demonstrations(tmp_path / "a.hdf5", (0,), successors=False))
    assert [(len(one.actions), len(one.observations)) for one in read_all(source)] == [(3, 0)]
    (episode,) = read_all(source, "position")
    np.testing.assert_array_equal(episode.observations["position"][:, 0], [0, 1, 2, 3])
    np.testing.assert_array_equal(episode.actions[:, 0], [0, 1, 2])
    np.testing.assert_array_equal(episode.rewards, [0, 0, 1])  # the reward of the action that is left out
    assert (episode.terminated, episode.truncated) == (True, False)


def test_a_filter_reads_the_demonstrations_of_a_mask(tmp_path: Path) -> None:
    file = save_demonstrations(tmp_path / "a.hdf5")
    assert [one.id for one in read_all(reader(file, filter="train"))] == ["a:demo_2", "a:demo_10"]
    with pytest.raises(SpirlError, match=r"a\.hdf5: mask: has no 'valid'; it has: empty, train"):
        reader(file, filter="valid").chunks()
    with pytest.raises(SpirlError, match=r"a\.hdf5: mask/empty names no demonstration"):
        reader(file, filter="empty").layout()
    with pytest.raises(SpirlError, match=r"b\.hdf5: mask/train names demo_10, which"):
        reader(save_demonstrations(tmp_path / "b.hdf5", (0, 2)), filter="train").chunks()
    with pytest.raises(SpirlError, match=r"c\.hdf5: filter is 'train'.*robomimic"):
        reader(save(tmp_path / "c.hdf5", flat()), filter="train").layout()


def test_other_actions_can_be_chosen(tmp_path: Path) -> None:
    source = reader(save_demonstrations(tmp_path / "a.hdf5"), columns={"action": "actions_abs"})
    layout = source.layout()
    assert layout.actions is not None
    assert layout.actions.shape == (3,)
    np.testing.assert_array_equal(read_all(source)[0].actions[:, 2], [5, 6, 7, 8])


def test_a_raw_file_names_the_script_that_makes_observations(tmp_path: Path) -> None:
    arrays = {name: array for name, array in demonstration(0).items() if "obs/" not in name}
    with pytest.raises(SpirlError, match=r"a\.hdf5: data/demo_0 has no group obs.*states.*dataset_states_to_obs\.py"):
        reader(save(tmp_path / "a.hdf5", arrays)).layout()


def test_files_are_one_source_in_any_order_and_picklable(tmp_path: Path) -> None:
    for number in (2, 10):
        save_demonstrations(tmp_path / f"part{number}.h5", (number, number + 1))
    source = reader(tmp_path)
    expected = read_all(source, "position")
    assert [one.id for one in expected] == ["part2:demo_2", "part2:demo_3", "part10:demo_10", "part10:demo_11"]
    copy: RecordingReader = pickle.loads(pickle.dumps(source))  # noqa: S301 (its own)
    for index, one in zip((3, 0, 2, 1), copy.read((3, 0, 2, 1), ["position"]), strict=True):
        assert one.id == expected[index].id
        np.testing.assert_array_equal(one.observations["position"], expected[index].observations["position"])


def test_a_changed_file_or_filter_changes_the_identity(tmp_path: Path) -> None:
    file = save_demonstrations(tmp_path / "a.hdf5")
    before = reader(file).identity()
    assert reader(file).identity() == before
    assert reader(file, filter="train").identity() != before
    save_demonstrations(file, (0, 1, 2))
    assert reader(file).identity() != before


def test_damaged_and_strange_files_are_named(tmp_path: Path) -> None:
    file = save(tmp_path / "a.hdf5", flat())
    for name, content in {"short": file.read_bytes()[:-3000], "empty": b""}.items():
        (tmp_path / f"{name}.hdf5").write_bytes(content)
        with pytest.raises(SpirlError, match=rf"{name}\.hdf5: is no readable HDF5 file"):
            reader(tmp_path / f"{name}.hdf5").layout()
    (tmp_path / "folder").mkdir()
    with pytest.raises(SpirlError, match=r"folder: this folder holds no file.*\.hdf5 or \.h5"):
        reader(tmp_path / "folder").layout()
    with pytest.raises(SpirlError, match=r"nothing\.hdf5: has no 'actions'; it has: nothing"):
        reader(save(tmp_path / "nothing.hdf5", {})).layout()
    with pytest.raises(SpirlError, match=r"b\.hdf5: has no group data"):
        reader(save(tmp_path / "b.hdf5", flat()), layout="robomimic").chunks()


def test_damage_within_a_dataset_names_episode_and_key(tmp_path: Path) -> None:
    file = tmp_path / "a.hdf5"
    with h5py.File(file, "w") as out:
        for name, array in demonstration(0, steps=50).items():
            out.create_dataset(name, data=array, chunks=True, fletcher32=True)
        place = out["data/demo_0/obs/position"].id.get_chunk_info(0).byte_offset
    data = bytearray(file.read_bytes())
    data[place + 3] ^= 1
    file.write_bytes(data)
    with pytest.raises(SpirlError, match=r"a\.hdf5: episode a:demo_0: obs/position: rows 0 to 49 cannot be read"):
        read_all(reader(file), "position")


def test_missing_keys_and_lengths_that_disagree_are_named(tmp_path: Path) -> None:
    file = save_demonstrations(tmp_path / "a.hdf5", (0,))
    with pytest.raises(SpirlError, match=r"a\.hdf5: episode a:demo_0: has no 'eef'; it has: image, position"):
        read_all(reader(file), "eef")
    with pytest.raises(SpirlError, match=r"a\.hdf5: data/demo_0: has no 'act'; it has: actions, actions_abs"):
        reader(file, columns={"action": "act"}).layout()
    arrays = demonstration(0)
    save(file, arrays | {"data/demo_0/next_obs/position": np.zeros((3, 1))})
    with pytest.raises(SpirlError, match=r"a:demo_0: next_obs/position has 3 rows and obs/position has 4"):
        read_all(reader(file), "position")
    save(file, arrays | {"data/demo_0/actions": np.zeros((6, 2))})
    with pytest.raises(SpirlError, match=r"a:demo_0: position has 5 rows and actions has 6"):
        read_all(reader(file), "position")
    with pytest.raises(SpirlError, match=r"b\.hdf5: timeouts has 6 rows and actions has 7"):
        reader(save(tmp_path / "b.hdf5", flat(timeouts=np.zeros(6, bool)))).chunks()


def test_strings_are_refused(tmp_path: Path) -> None:
    names = np.array([b"x"] * 7, dtype=h5py.string_dtype())
    file = save(tmp_path / "a.hdf5", flat(names=names))
    assert set(reader(file).layout().observations) == {"observation", "infos.qpos"}
    with pytest.raises(SpirlError, match=r"a\.hdf5: episode a:00000: names: holds Python objects"):
        read_all(reader(file), "names")
