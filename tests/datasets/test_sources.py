"""Episodes come out of Minari and of scripted experts as they went in, and faults are named."""

from __future__ import annotations

import json
import os
import pickle
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import gymnasium
import minari
import numpy as np
import pytest
from minari.data_collector import EpisodeBuffer

import spirl_ray as spirl
from spirl_ray import registry
from spirl_ray.config import DataSettings
from spirl_ray.datasets.generated import GeneratedSource
from spirl_ray.datasets.joined import JoinedSource
from spirl_ray.datasets.minari import MinariSource
from spirl_ray.datasets.sources import SOURCES, EpisodeSource, episode_source, register_source
from spirl_ray.envs.kitchen.env import INITIAL_POSITIONS
from spirl_ray.envs.kitchen.env import SPEC as KITCHEN_SPEC
from spirl_ray.envs.point_pads import env as point_pads
from spirl_ray.episodes.episode import Episode
from spirl_ray.episodes.validation import check_episode
from spirl_ray.errors import SpirlError

KITCHEN = "spirl/Kitchen-v0"
PADS = "spirl/PointPads-v0"
HUMAN = "D4RL/kitchen/complete-v2"
MADE = "made/kitchen-v0"


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


def read_all(source: Any) -> list[Episode]:
    return [episode for chunk in source.chunks() for episode in source.read(chunk)]


def test_a_minari_episode_keeps_its_observations_actions_and_end(tmp_path: Path) -> None:
    buffers = [recorded(n, length=4 + n) for n in range(2)]
    expected = [np.array(buffer.observations) for buffer in buffers]
    source = MinariSource(MADE, make_root(tmp_path / "root", buffers), KITCHEN)
    first, second = read_all(source)
    assert (first.id, second.id) == ("made/kitchen-v0:00000", "made/kitchen-v0:00001")
    np.testing.assert_allclose(second.observations["robot"], expected[1][:, :9], rtol=1e-6)
    np.testing.assert_allclose(second.observations["objects"], expected[1][:, 18:39], rtol=1e-6)
    np.testing.assert_allclose(second.actions, np.array(buffers[1].actions), rtol=1e-6)
    np.testing.assert_array_equal(second.rewards, np.arange(5, dtype=np.float32))
    assert (second.terminated, second.truncated) == (False, True)
    assert check_episode(second, KITCHEN_SPEC.features, 9) == []


def test_joined_chunks_read_the_same_as_single_ones(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root", [recorded(n) for n in range(3)])
    source = pickle.loads(pickle.dumps(MinariSource(MADE, root, KITCHEN)))  # noqa: S301 (its own)
    joined = list(source.read(tuple(index for chunk in source.chunks() for index in chunk)))
    for one, other in zip(joined, read_all(source), strict=True):
        np.testing.assert_array_equal(one.observations["objects"], other.observations["objects"])


def test_an_action_out_of_range_is_left_for_validation_to_find(tmp_path: Path) -> None:
    buffer = recorded(0)
    buffer.actions[2][5] = 1.25
    (episode,) = read_all(MinariSource(MADE, make_root(tmp_path / "root", [buffer]), KITCHEN))
    assert check_episode(episode, KITCHEN_SPEC.features, 9) == [
        ("actions", "row 2, column 5 is 1.25, outside [-1, 1] (1 such values)")
    ]


def test_a_value_too_large_for_float32_is_left_for_validation_to_find(tmp_path: Path) -> None:
    buffer = recorded(0)
    buffer.observations[1][20] = 1e300
    (episode,) = read_all(MinariSource(MADE, make_root(tmp_path / "root", [buffer]), KITCHEN))
    assert check_episode(episode, KITCHEN_SPEC.features, 9) == [("objects", "row 1, column 2 is inf (1 such values)")]


def test_an_unknown_dataset_states_its_author_and_no_licence(tmp_path: Path) -> None:
    description = MinariSource(MADE, make_root(tmp_path / "root", [recorded(0)]), KITCHEN).description()
    assert description.source == "minari:made/kitchen-v0"
    assert description.licence.startswith("unknown")
    assert "A. Tester" in description.attribution


def test_a_root_that_is_not_there_is_named_and_not_made(tmp_path: Path) -> None:
    root = tmp_path / "nowhere"
    with pytest.raises(SpirlError, match="nowhere: no such folder"):
        MinariSource(HUMAN, root, KITCHEN).chunks()
    assert not root.exists()


def test_a_root_without_the_dataset_lists_what_it_has(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root", [recorded(0)])
    with pytest.raises(SpirlError, match=f"holds no Minari dataset '{HUMAN}'; found there: {MADE}"):
        MinariSource(HUMAN, root, KITCHEN).chunks()


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root", [recorded(0)])
    (file,) = root.rglob("main_data.hdf5")
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(SpirlError, match=f"root/{MADE}"):
        read_all(MinariSource(MADE, root, KITCHEN))


def test_observations_of_another_environment_are_refused(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root", [recorded(0, width=4)], width=4)
    with pytest.raises(SpirlError, match=r"root/made/kitchen-v0: episode 0.*59"):
        read_all(MinariSource(MADE, root, KITCHEN))


def test_an_environment_without_minari_data_is_refused() -> None:
    with pytest.raises(SpirlError, match=r"PointPads.*no mapping from Minari"):
        MinariSource(HUMAN, None, PADS)


def test_a_missing_dataset_is_downloaded_under_the_root_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "mine"))
    source = MinariSource(MADE, None, KITCHEN)
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
        MinariSource(HUMAN, None, KITCHEN).chunks()


def test_the_human_demonstrations_are_complete_and_good(minari_root: Path) -> None:
    source = MinariSource(HUMAN, minari_root, KITCHEN)
    episodes = read_all(source)
    assert len(episodes) == 19
    assert sum(episode.length for episode in episodes) == 4209
    assert [check_episode(episode, KITCHEN_SPEC.features, 9) for episode in episodes] == [[]] * 19
    assert source.description().licence == "CC BY 4.0"
    assert "Gupta" in source.description().attribution


def test_the_human_demonstrations_tell_the_order_of_their_subtasks(minari_root: Path) -> None:
    episodes = read_all(MinariSource(HUMAN, minari_root, KITCHEN))
    order = ["microwave", "kettle", "light switch", "slide cabinet"]
    assert [episode.metadata["completed"] for episode in episodes] == [order] * 19


def test_minari_episodes_of_a_kitchen_that_stays_as_it_is_complete_nothing(tmp_path: Path) -> None:
    buffer = recorded(0)
    for observation in buffer.observations:
        observation[18:39] = INITIAL_POSITIONS[9:]
    (episode,) = read_all(MinariSource(MADE, make_root(tmp_path / "root", [buffer]), KITCHEN))
    assert episode.metadata == {"minari_episode": 0, "completed": []}


def test_an_unknown_option_of_the_kitchens_experts_is_refused() -> None:
    with pytest.raises(SpirlError, match=r"unknown option 'task'; known: tasks, action_noise, keep_failures"):
        GeneratedSource(KITCHEN, episodes=1, kwargs={"task": "kettle"})


def test_a_generated_episode_depends_on_seed_and_index_alone() -> None:
    source = GeneratedSource(PADS, episodes=4, seed=3)
    assert source.chunks() == [(0,), (1,), (2,), (3,)]
    (alone,) = source.read((2,))
    _, _, among = source.read((0, 1, 2))
    (other,) = GeneratedSource(PADS, episodes=4, seed=4).read((2,))
    for name, values in alone.observations.items():
        np.testing.assert_array_equal(values, among.observations[name])
    np.testing.assert_array_equal(alone.actions, among.actions)
    assert not np.array_equal(alone.observations["position"][:5], other.observations["position"][:5])


def test_options_reach_the_expert_and_the_card() -> None:
    source = GeneratedSource(PADS, episodes=1, kwargs={"pads": 1})
    (episode,) = source.read((0,))
    assert len(episode.metadata["completed"]) == 1
    assert '"pads": 1' in source.description().source


def test_joined_sources_hold_the_episodes_of_all_in_order(tmp_path: Path) -> None:
    parts = (
        GeneratedSource(PADS, episodes=3),
        MinariSource(MADE, make_root(tmp_path / "root", [recorded(0), recorded(1)]), KITCHEN),
        GeneratedSource(PADS, episodes=2, seed=1),
    )
    joined = JoinedSource(parts)
    chunks = joined.chunks()
    assert [index for chunk in chunks for index in chunk] == list(range(7))
    expected = [episode.id for part in parts for chunk in part.chunks() for episode in part.read(chunk)]
    assert [episode.id for chunk in chunks for episode in joined.read(chunk)] == expected
    # A shard holds indices of several parts, and only some of each.
    assert [episode.id for episode in joined.read((1, 4, 6))] == [expected[1], expected[4], expected[6]]


def test_a_joined_source_states_every_licence_and_origin(tmp_path: Path) -> None:
    human = MinariSource(HUMAN, tmp_path, KITCHEN)
    facts = JoinedSource((GeneratedSource(KITCHEN, episodes=2), human)).description()
    assert facts.licence == "Apache-2.0 + CC BY 4.0"
    assert facts.source.startswith("generated:spirl/Kitchen-v0 episodes=2")
    assert facts.source.endswith(f"minari:{HUMAN}")


def test_attempts_that_the_expert_gave_up_yield_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    source = GeneratedSource(PADS, episodes=2)
    expert = point_pads.generate
    monkeypatch.setattr(point_pads, "generate", lambda indices, seed: iter([None, *expert([1], seed)]))
    assert [episode.id for episode in source.read((0, 1))] == ["point-pads-0-000001"]


def test_an_environment_without_an_expert_says_so() -> None:
    with pytest.raises(SpirlError, match=f"'{PADS}' has no scripted expert"):
        _ = replace(point_pads.SPEC, expert=None).generate


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"environment": "spirl/Nothing-v0", "episodes": 1}, "unknown environment 'spirl/Nothing-v0'"),
        ({"environment": PADS, "episodes": 0}, "episodes must be ≥ 1, not 0"),
        (
            {"environment": PADS, "episodes": 1, "kwargs": {"speed": 2}},
            "unknown option 'speed'; known: .*pads",
        ),
    ],
)
def test_bad_generation_settings_are_refused_before_any_work(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(SpirlError, match=message):
        GeneratedSource(**arguments)


# --- the table of sources ---


def test_the_data_settings_name_a_source(tmp_path: Path) -> None:
    settings = DataSettings(
        source="both", dataset=HUMAN, minari_root=tmp_path, episodes=7, seed=2, generate={"keep_failures": True}
    )
    generated = GeneratedSource(KITCHEN, 7, 2, {"keep_failures": True})
    recorded = MinariSource(HUMAN, tmp_path, KITCHEN)
    assert episode_source(settings, KITCHEN) == JoinedSource((generated, recorded))
    assert episode_source(settings.model_copy(update={"source": "minari"}), KITCHEN) == recorded
    assert episode_source(settings.model_copy(update={"source": "generated"}), KITCHEN) == generated
    assert [each.attempts for each in (JoinedSource((generated, recorded)), generated, recorded)] == [7, 7, 0]


def test_an_identity_is_plain_data_of_what_decides_the_episodes_and_not_of_where_they_are(tmp_path: Path) -> None:
    def facts(**changes: Any) -> str:
        settings = DataSettings(**{"source": "both", "dataset": HUMAN, "minari_root": tmp_path, **changes})
        return json.dumps(episode_source(settings, KITCHEN).identity().settings, sort_keys=True)

    assert facts() == facts(minari_root=None) == facts(shards=3)
    changes: list[dict[str, Any]] = [
        {"source": "generated"},
        {"source": "minari"},
        {"dataset": "D4RL/kitchen/mixed-v2"},
        {"episodes": 3},
        {"seed": 1},
        {"generate": {"keep_failures": True}},
    ]
    assert len({facts(**change) for change in changes} | {facts()}) == len(changes) + 1
    # Renaming a class or a file must not lose anybody's data.
    assert facts(source="generated", episodes=2) == '{"generated": {"episodes": 2, "options": {}, "seed": 0}}'
    assert facts(source="minari") == f'{{"minari": "{HUMAN}"}}'


def test_an_unknown_source_lists_the_known_ones() -> None:
    with pytest.raises(SpirlError, match=r"'tape'.*both, folder, generated, minari"):
        episode_source(DataSettings(source="tape"), PADS)


@pytest.mark.parametrize("source", ["generated", "minari", "both"])
def test_options_that_a_source_does_not_have_are_refused(source: str) -> None:
    with pytest.raises(SpirlError, match=rf"data\.options: speed.*'{source}'"):
        episode_source(DataSettings(source=source, dataset=HUMAN, options={"speed": 1}), KITCHEN)


def test_a_source_of_ones_own_gets_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SOURCES, "_entries", dict(SOURCES._entries))

    def one(data: DataSettings, env_id: str) -> EpisodeSource:
        return GeneratedSource(env_id, data.options["count"])

    register_source("one", one)
    assert episode_source(DataSettings(source="one", options={"count": 4}), PADS) == GeneratedSource(PADS, 4)
    with pytest.raises(SpirlError, match="'generated' already"):
        register_source("generated", one)


def test_an_entry_point_brings_a_source(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("plain", "spirl_ray.datasets.generated:make", "spirl_ray.sources")
    monkeypatch.setattr(SOURCES, "_entries", dict(SOURCES._entries))
    monkeypatch.setattr(SOURCES, "_filled", False)
    monkeypatch.setattr(registry, "entry_points", lambda group: [point] if group == point.group else [])
    assert episode_source(DataSettings(source="plain", episodes=4), PADS) == GeneratedSource(PADS, 4)


def test_a_dataset_folder_is_a_source(tmp_path: Path) -> None:
    spec = point_pads.SPEC
    with spirl.DatasetWriter(
        tmp_path / "mine", features=spec.features, action_dim=spec.action_dim, environment=PADS, shards=2
    ) as writer:
        for number in range(5):
            episode = next(iter(spec.generate([number], 0)))
            writer.add(
                observations=episode.observations, actions=episode.actions, rewards=episode.rewards, id=f"e{number}"
            )
    source = episode_source(DataSettings(source="folder", options={"path": str(tmp_path / "mine")}), PADS)
    assert source.chunks() == [(0, 1, 2), (3, 4)]
    assert [episode.id for episode in source.read((0, 2, 3))] == ["e0", "e4", "e1"]
    before = source.identity()
    (tmp_path / "mine").rename(tmp_path / "moved")
    moved = episode_source(DataSettings(source="folder", options={"path": str(tmp_path / "moved")}), PADS)
    assert moved.identity().settings == before.settings
    with pytest.raises(SpirlError, match=r"(?s)path.*spirl/Maze-v0"):
        episode_source(DataSettings(source="folder", options={"path": str(tmp_path / "moved")}), "spirl/Maze-v0")
    with pytest.raises(SpirlError, match=r"data\.options\.path"):
        episode_source(DataSettings(source="folder", options={"paths": "x"}), PADS)
