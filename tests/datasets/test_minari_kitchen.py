"""Recordings of Minari become episodes of the kitchen, and faults are named."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import gymnasium
import minari
import numpy as np
import pytest
from minari.data_collector import EpisodeBuffer
from opened import sources

from spirl_ray.datasets.opened import OpenedData
from spirl_ray.envs.kitchen.env import INITIAL_POSITIONS
from spirl_ray.envs.kitchen.env import SPEC as KITCHEN_SPEC
from spirl_ray.episodes.episode import Episode
from spirl_ray.episodes.validation import check_episode
from spirl_ray.errors import SpirlError

KITCHEN, PADS = "spirl/Kitchen-v0", "spirl/PointPads-v0"
HUMAN, MADE = "D4RL/kitchen/complete-v2", "made/kitchen-v0"

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:minari")


def recorded(number: int, length: int = 6, width: int = 59) -> EpisodeBuffer:
    rng = np.random.default_rng(number)
    return EpisodeBuffer(
        id=number,
        observations=list(rng.normal(size=(length + 1, width))),
        actions=list(rng.uniform(-1, 1, (length, 9))),
        rewards=list(np.arange(length, dtype=float)),
        terminations=[False] * length,
        truncations=[False] * (length - 1) + [True],
        infos={},
    )


def make_root(root: Path, buffers: list[EpisodeBuffer], width: int = 59) -> Path:
    root.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(root))
        minari.create_dataset_from_buffers(
            dataset_id=MADE,
            buffer=buffers,
            observation_space=gymnasium.spaces.Box(-np.inf, np.inf, (width,), np.float64),
            action_space=gymnasium.spaces.Box(-np.inf, np.inf, (9,), np.float64),
            author="A. Tester",
            algorithm_name="none",
            description="made by a test",
            code_permalink="none",
            author_email="none",
        )
    return root


def opened(root: Path, dataset: str = MADE, env: str = KITCHEN, **options: Any) -> OpenedData:
    return sources({"type": "minari", "id": dataset, "root": str(root), **options}, env=env)


def read_all(data: OpenedData) -> list[Episode]:
    return [episode for chunk in data.source.chunks() for episode in data.source.read(chunk)]


def test_an_episode_keeps_its_observations_actions_and_end(tmp_path: Path) -> None:
    buffers = [recorded(n, length=4 + n) for n in range(2)]
    expected = [np.array(buffer.observations) for buffer in buffers]
    data = opened(make_root(tmp_path / "root", buffers))
    first, second = read_all(data)
    assert (first.id, second.id) == ("made/kitchen-v0:00000", "made/kitchen-v0:00001")
    np.testing.assert_allclose(np.asarray(second.observations["robot"], np.float64), expected[1][:, :9], rtol=1e-6)
    np.testing.assert_allclose(np.asarray(second.observations["objects"], np.float64), expected[1][:, 18:39], rtol=1e-6)
    np.testing.assert_allclose(second.actions, np.array(buffers[1].actions), rtol=1e-6)
    np.testing.assert_array_equal(second.rewards, np.arange(5, dtype=np.float32))
    assert (second.terminated, second.truncated) == (False, True)
    assert check_episode(second, KITCHEN_SPEC.features, 9) == []
    assert (data.features, data.rewards) == (KITCHEN_SPEC.features, True)


def test_the_end_of_the_task_counts_where_a_time_limit_ends_the_episode_as_well(tmp_path: Path) -> None:
    buffer = recorded(0)
    buffer.terminations[-1] = True
    (episode,) = read_all(opened(make_root(tmp_path / "root", [buffer])))
    assert (episode.terminated, episode.truncated) == (True, False)


def test_joined_chunks_read_the_same_as_single_ones(tmp_path: Path) -> None:
    data = opened(make_root(tmp_path / "root", [recorded(n) for n in range(3)]))
    source = pickle.loads(pickle.dumps(data.source))  # noqa: S301 (its own)
    joined = list(source.read(tuple(index for chunk in source.chunks() for index in chunk)))
    for one, other in zip(joined, read_all(data), strict=True):
        np.testing.assert_array_equal(one.observations["objects"], other.observations["objects"])


def test_an_action_out_of_range_is_left_for_validation_to_find(tmp_path: Path) -> None:
    buffer = recorded(0)
    buffer.actions[2][5] = 1.25
    (episode,) = read_all(opened(make_root(tmp_path / "root", [buffer])))
    assert check_episode(episode, KITCHEN_SPEC.features, 9) == [
        ("actions", "row 2, column 5 is 1.25, outside [-1, 1] (1 such values)")
    ]


def test_a_value_too_large_for_float32_is_left_for_validation_to_find(tmp_path: Path) -> None:
    buffer = recorded(0)
    buffer.observations[1][20] = 1e300
    (episode,) = read_all(opened(make_root(tmp_path / "root", [buffer])))
    assert check_episode(episode, KITCHEN_SPEC.features, 9) == [("objects", "row 1, column 2 is inf (1 such values)")]


def test_an_unknown_dataset_states_its_author_and_no_licence(tmp_path: Path) -> None:
    description = opened(make_root(tmp_path / "root", [recorded(0)])).source.description()
    assert description.source == "minari:made/kitchen-v0"
    assert description.licence.startswith("unknown")
    assert "A. Tester" in description.attribution


def test_a_root_that_is_not_there_is_named_and_not_made(tmp_path: Path) -> None:
    with pytest.raises(SpirlError, match="nowhere: no such folder"):
        opened(tmp_path / "nowhere", HUMAN)
    assert not (tmp_path / "nowhere").exists()


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root", [recorded(0)])
    (file,) = root.rglob("main_data.hdf5")
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(SpirlError, match=f"root/{MADE}"):
        opened(root)


def test_observations_of_another_environment_are_refused(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root", [recorded(0, width=4)], width=4)
    with pytest.raises(SpirlError, match=r"minari:made/kitchen-v0: episode 'made/kitchen-v0:00000'.*59"):
        read_all(opened(root))


def test_an_environment_with_other_actions_is_refused(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root", [recorded(0)])
    with pytest.raises(SpirlError, match=r"data\.sources\.0 \(minari\).*actions have 9 entries.*PointPads-v0 have 2"):
        opened(root, env=PADS)


def test_the_human_demonstrations_are_complete_and_good(minari_root: Path) -> None:
    data = opened(minari_root, HUMAN)
    episodes = read_all(data)
    assert len(episodes) == 19
    assert sum(episode.length for episode in episodes) == 4209
    assert [check_episode(episode, KITCHEN_SPEC.features, 9) for episode in episodes] == [[]] * 19
    assert data.source.description().licence == "CC BY 4.0"
    assert "Gupta" in data.source.description().attribution


def test_the_human_demonstrations_tell_the_order_of_their_subtasks(minari_root: Path) -> None:
    order = ["microwave", "kettle", "light switch", "slide cabinet"]
    assert [episode.metadata["completed"] for episode in read_all(opened(minari_root, HUMAN))] == [order] * 19


def test_episodes_of_a_kitchen_that_stays_as_it_is_complete_nothing(tmp_path: Path) -> None:
    buffer = recorded(0)
    for observation in buffer.observations:
        observation[18:39] = INITIAL_POSITIONS[9:]
    (episode,) = read_all(opened(make_root(tmp_path / "root", [buffer])))
    assert episode.metadata == {"minari_episode": 0, "completed": []}


def test_recorded_and_generated_episodes_are_one_dataset(tmp_path: Path) -> None:
    human = {"type": "minari", "id": MADE, "root": str(make_root(tmp_path / "root", [recorded(0), recorded(1)]))}
    joined = sources({"type": "generated", "episodes": 7}, human, env=KITCHEN).source
    assert (len(joined.chunks()), joined.attempts) == (9, 7)
    assert [episode.id for episode in joined.read((7, 8))] == ["made/kitchen-v0:00000", "made/kitchen-v0:00001"]
    assert joined.description().source.endswith(" + minari:made/kitchen-v0")
