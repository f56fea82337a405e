"""Minari's datasets are read as Minari wrote them, downloaded where they are missing, and faults are named."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import minari
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, Text, Tuple
from minari.data_collector import EpisodeBuffer

from spirl_ray.datasets.formats.minari import MinariReader, MinariSettings, make
from spirl_ray.episodes.recording import Recording, RecordingReader
from spirl_ray.errors import SpirlError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:minari")

HUMAN = "D4RL/kitchen/complete-v2"
MADE = "made/reach-v0"
ACTIONS = Box(-2, np.array([2, 3], np.float32), (2,), np.float32)
PLAIN = Box(-np.inf, np.inf, (3,), np.float64)
NESTED = Dict(
    {
        "robot": Dict({"joints": PLAIN, "grip": Discrete(5)}),
        "camera": Box(0, 255, (40, 32, 3), np.uint8),
        "pair": Tuple((Box(-1, 1, (), np.float32), PLAIN)),
    }
)


def recorded(number: int, steps: int = 4, **changes: Any) -> EpisodeBuffer:
    rows = np.arange(steps + 1.0) + 100 * number
    values: dict[str, Any] = {
        "observations": np.stack([rows, -rows, rows / 2], axis=1),
        "actions": np.stack([rows[:-1], rows[:-1]], axis=1).astype(np.float32) / 1000,
        "rewards": list(np.arange(steps, dtype=float)),
        "terminations": [False] * (steps - 1) + [number == 1],
        "truncations": [False] * (steps - 1) + [number != 1],
        "infos": {"success": rows > 2, "deep": {"qpos": np.stack([rows, rows], axis=1)}},
    }
    return EpisodeBuffer(id=number, **{**values, **changes})


def make_root(root: Path, buffers: list[EpisodeBuffer], observations: Any = PLAIN, **options: Any) -> Path:
    root.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(root))
        minari.create_dataset_from_buffers(
            dataset_id=MADE,
            buffer=buffers,
            observation_space=observations,
            action_space=options.pop("action_space", ACTIONS),
            author={"B. Writer", "A. Tester"},
            algorithm_name="none",
            description="made by a test",
            code_permalink="none",
            author_email="none",
            **options,
        )
    return root


def reader(root: Path | None, dataset: str = MADE) -> RecordingReader:
    return make(MinariSettings.model_validate({"type": "minari", "id": dataset, "root": root}), None)


def read_all(source: RecordingReader, *keys: str) -> list[Recording]:
    return [episode for chunk in source.chunks() for episode in source.read(chunk, keys)]


@pytest.mark.parametrize("data_format", ["hdf5", "arrow", "parquet"])
def test_an_episode_is_as_minari_wrote_it(tmp_path: Path, data_format: str) -> None:
    infos = {"success": [False, False, False, True, True], "qpos": np.arange(10.0).reshape(5, 2)}
    buffers = [recorded(number, infos=infos) for number in range(2)]
    source = reader(make_root(tmp_path / "root", buffers, data_format=data_format))
    layout = source.layout()
    assert {key: (kind.shape, kind.dtype) for key, kind in layout.observations.items()} == {
        "observation": ((3,), np.float64),
        "infos.success": ((1,), np.bool_),
        "infos.qpos": ((2,), np.float64),
    }
    assert (layout.actions, layout.rewards) == (((2,), np.float32), True)
    assert (layout.action_low, layout.action_high) == ((-2, -2), (2, 3))
    first, second = read_all(source, "observation", "infos.success", "infos.qpos")
    assert (first.id, second.id) == ("made/reach-v0:00000", "made/reach-v0:00001")
    np.testing.assert_array_equal(second.observations["observation"], buffers[1].observations)
    np.testing.assert_array_equal(second.observations["infos.success"][:, 0], [0, 0, 0, 1, 1])
    np.testing.assert_array_equal(second.observations["infos.qpos"], infos["qpos"])
    np.testing.assert_array_equal(second.actions, buffers[1].actions)
    np.testing.assert_array_equal(second.rewards, np.arange(4))
    assert [(one.terminated, one.truncated) for one in (first, second)] == [(False, True), (True, False)]
    assert second.metadata == {"minari_episode": 1}


@pytest.mark.parametrize("data_format", ["hdf5", "arrow"])
def test_nested_observations_have_dotted_keys(tmp_path: Path, data_format: str) -> None:
    rows = np.arange(5.0)
    observations = {
        "robot": {"joints": np.stack([rows] * 3, axis=1), "grip": np.arange(5)},
        "camera": np.full((5, 40, 32, 3), 128, np.uint8),
        "pair": (rows.astype(np.float32) / 8, np.stack([rows] * 3, axis=1)),
    }
    spaces = NESTED
    if data_format == "arrow":  # Minari's own Arrow files do not hold single floats
        observations.pop("pair")
        spaces = Dict({name: space for name, space in NESTED.spaces.items() if name != "pair"})
    buffer = recorded(0, observations=observations, infos={})
    source = reader(make_root(tmp_path / "root", [buffer], spaces, data_format=data_format))
    pair = {"pair.0": (1,), "pair.1": (3,)} if data_format == "hdf5" else {}
    assert {key: kind.shape for key, kind in source.layout().observations.items()} == {
        "robot.joints": (3,),
        "robot.grip": (1,),
        "camera": (40, 32, 3),
        **pair,
    }
    (episode,) = read_all(source, *source.layout().observations)
    np.testing.assert_array_equal(episode.observations["robot.joints"][:, 2], rows)
    np.testing.assert_array_equal(episode.observations["robot.grip"], np.arange(5)[:, None])
    np.testing.assert_allclose(episode.observations["camera"], 128, atol=2)  # JPEG
    assert episode.observations["camera"].dtype == np.uint8
    if pair:
        np.testing.assert_array_equal(episode.observations["pair.0"][:, 0], rows / 8)


def test_nested_infos_have_dotted_keys_and_those_of_another_length_are_no_observations(tmp_path: Path) -> None:
    infos = {"deep": {"qpos": np.arange(5.0)}, "step": np.arange(4.0), "name": np.array([b"x"] * 5)}
    source = reader(make_root(tmp_path / "root", [recorded(0, infos=infos)]))
    assert set(source.layout().observations) == {"observation", "infos.deep.qpos"}
    (episode,) = read_all(source, "infos.deep.qpos")
    np.testing.assert_array_equal(episode.observations["infos.deep.qpos"][:, 0], np.arange(5))
    with pytest.raises(
        SpirlError, match=r"root/made/reach-v0: episode 0: infos\.step has 4 rows and observation has 5"
    ):
        read_all(source, "observation", "infos.step")
    with pytest.raises(SpirlError, match=r"episode 0: infos\.name: holds"):
        read_all(source, "infos.name")


@pytest.mark.parametrize("data_format", ["hdf5", "arrow"])
def test_any_order_reads_the_same_and_a_reader_can_be_pickled(tmp_path: Path, data_format: str) -> None:
    buffers = [recorded(number, steps=number + 2, infos={}) for number in range(4)]
    source = reader(make_root(tmp_path / "root", buffers, data_format=data_format))
    expected = read_all(source, "observation")
    copy: RecordingReader = pickle.loads(pickle.dumps(source))  # noqa: S301 (its own)
    for index, one in zip((2, 0, 3, 1), copy.read((2, 0, 3, 1), ["observation"]), strict=True):
        assert one.id == expected[index].id
        np.testing.assert_array_equal(one.observations["observation"], buffers[index].observations)


def test_the_identity_changes_with_the_files_and_not_with_the_root(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root", [recorded(0)])
    before = reader(root).identity()
    root.rename(tmp_path / "moved")
    assert reader(tmp_path / "moved").identity() == before
    shutil.rmtree(tmp_path / "moved")
    make_root(tmp_path / "moved", [recorded(0, steps=5)])
    assert reader(tmp_path / "moved").identity() != before


def test_authors_are_named_where_no_licence_is_known(tmp_path: Path) -> None:
    source = reader(make_root(tmp_path / "root", [recorded(0)]))
    assert (source.origin(), source.licence()) == ("minari:made/reach-v0", "unknown")
    assert source.attribution() == "A. Tester, B. Writer"
    human = MinariReader(HUMAN, tmp_path / "root")
    assert human.licence() == "CC BY 4.0"
    assert "1910.11956" in human.attribution()


def change_metadata(root: Path, **changes: Any) -> None:
    (file,) = root.rglob("data/metadata.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_another_version_of_the_format_names_both(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root", [recorded(0)])
    change_metadata(root, minari_version="7.1.0", data_format="zarr")
    with pytest.raises(
        SpirlError, match=rf"reach-v0/data: was written by Minari 7\.1\.0; Minari {minari.__version__} "
    ):
        reader(root).layout()


def test_actions_that_are_no_box_are_refused(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root", [recorded(0, actions=np.arange(4))], action_space=Discrete(5))
    with pytest.raises(SpirlError, match=r"made/reach-v0: has actions Discrete\(5\)"):
        reader(root).layout()


def test_unbounded_actions_have_no_bounds_and_texts_are_no_observations(tmp_path: Path) -> None:
    observations = {"state": np.zeros((5, 3)), "task": ["reach"] * 5}
    root = make_root(
        tmp_path / "root",
        [recorded(0, observations=observations, infos={})],
        Dict({"state": PLAIN, "task": Text(10)}),
        action_space=Box(-np.inf, 1, (2,), np.float32),
    )
    layout = reader(root).layout()
    assert (layout.action_low, layout.action_high) == (None, (1, 1))
    assert set(layout.observations) == {"state"}
    with pytest.raises(SpirlError, match=r"episode 0: has no 'goal'; it has: state, task"):
        read_all(reader(root), "goal")
    with pytest.raises(SpirlError, match=r"episode 0: task: holds <U5"):
        read_all(reader(root), "task")
    with pytest.raises(SpirlError, match="columns: action"):
        make(MinariSettings(id=MADE, columns={"action": "a"}), None)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root", [recorded(0)])
    (file,) = root.rglob("main_data.hdf5")
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(SpirlError, match=r"root/made/reach-v0: episode 0 cannot be read"):
        read_all(reader(root))
    (file,) = root.rglob("metadata.json")
    file.write_text(file.read_text()[:50])
    with pytest.raises(SpirlError, match=r"root/made/reach-v0/data: not a readable Minari dataset"):
        reader(root).layout()
    file.unlink()
    with pytest.raises(SpirlError, match=r"root/made/reach-v0/data: not a readable Minari dataset"):
        reader(root).identity()


@pytest.mark.parametrize("data_format", ["arrow", "parquet"])
def test_a_damaged_episode_is_named(tmp_path: Path, data_format: str) -> None:
    buffers = [recorded(number, infos={}) for number in range(3)]
    root = make_root(tmp_path / "root", buffers, data_format=data_format)
    (file,) = root.rglob(f"1/*.{data_format}")
    file.write_bytes(file.read_bytes()[:-100])
    source = reader(root)
    assert len(list(source.read((0, 2), ["observation"]))) == 2
    with pytest.raises(SpirlError, match=r"root/made/reach-v0: episode 1 cannot be read"):
        read_all(source)


def test_a_root_without_the_dataset_lists_what_it_has(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root", [recorded(0)])
    with pytest.raises(SpirlError, match=f"holds no Minari dataset '{HUMAN}'; found there: {MADE}"):
        reader(root, HUMAN).chunks()
    with pytest.raises(SpirlError, match="nowhere: no such folder"):
        reader(tmp_path / "nowhere").chunks()
    assert not (tmp_path / "nowhere").exists()


def test_a_missing_dataset_is_downloaded_under_the_root_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "mine"))
    source = reader(None)
    monkeypatch.setenv("MINARI_DATASETS_PATH", "elsewhere")
    roots = []

    def download(dataset: str) -> None:
        roots.append(os.environ["MINARI_DATASETS_PATH"])
        make_root(tmp_path / "made", [recorded(0)])
        (tmp_path / "made" / "made").rename(tmp_path / "mine" / "made")

    monkeypatch.setattr(minari, "download_dataset", download)
    assert source.chunks() == [(0,)]
    assert roots == [str(tmp_path / "mine")]
    assert os.environ["MINARI_DATASETS_PATH"] == "elsewhere"


@pytest.mark.parametrize("fault", [ConnectionError("no route"), ImportError("huggingface_hub is missing")])
def test_a_failed_download_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception) -> None:
    def download(dataset: str) -> None:
        raise fault

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    monkeypatch.setattr(minari, "download_dataset", download)
    with pytest.raises(SpirlError, match=f"{HUMAN}.*{fault}.*copy the dataset from another machine"):
        reader(None, HUMAN).chunks()


def test_the_human_demonstrations_can_be_read(minari_root: Path) -> None:
    source = reader(minari_root, HUMAN)
    layout = source.layout()
    assert layout.observations["observation"].shape == (59,)
    assert layout.observations["desired_goal.light switch"].shape == (2,)
    assert (layout.action_low, layout.action_high) == ((-1,) * 9, (1,) * 9)
    (episode,) = source.read((18,), ["observation", "achieved_goal.kettle"])
    assert len(episode.observations["observation"]) == len(episode.actions) + 1
    assert episode.observations["achieved_goal.kettle"].shape[1:] == (7,)
