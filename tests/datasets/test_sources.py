"""Episodes come out of scripted experts, folders and joined sources as they went in, and faults are named."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from opened import expert_episodes, generated, sources

import spirl_ray as spirl
from spirl_ray import registry
from spirl_ray.config import DataSettings, InterfaceSettings, Settings
from spirl_ray.datasets.folder import FolderSource
from spirl_ray.datasets.generated import GeneratedSettings, GeneratedSource, make
from spirl_ray.datasets.joined import JoinedSource
from spirl_ray.datasets.opened import open_data
from spirl_ray.datasets.sources import SOURCES, EpisodeSource, SourceKind, register_source
from spirl_ray.envs import environment
from spirl_ray.envs.point_pads import env as point_pads
from spirl_ray.envs.spec import EnvironmentSpec
from spirl_ray.episodes.episode import Episode
from spirl_ray.errors import SpirlError

KITCHEN = "spirl/Kitchen-v0"
PADS = "spirl/PointPads-v0"
EXPERT = "spirl_ray.envs.point_pads.env:generate"


def read_all(source: EpisodeSource) -> list[Episode]:
    return [episode for chunk in source.chunks() for episode in source.read(chunk)]


def write_folder(path: Path, episodes: int = 5, **card: Any) -> Path:
    """A dataset folder with some of the pads' episodes, named e0, e1, …, in two files."""
    spec = point_pads.SPEC
    fields = {"features": spec.features, "action_dim": spec.action_dim, "environment": PADS, "shards": 2}
    with spirl.DatasetWriter(path, **{**fields, **card}) as writer:
        for number, episode in enumerate(expert_episodes(PADS, episodes)):
            writer.add(
                observations=episode.observations, actions=episode.actions, rewards=episode.rewards, id=f"e{number}"
            )
    return path


def test_an_unknown_option_of_the_kitchens_experts_is_refused() -> None:
    with pytest.raises(SpirlError, match=r"options.*no argument 'task'; it takes action_noise, keep_failures, tasks"):
        generated(KITCHEN, 1, options={"task": "kettle"})


def test_a_generated_episode_depends_on_seed_and_index_alone() -> None:
    source = generated(PADS, 4, seed=3).source
    assert source.chunks() == [(0,), (1,), (2,), (3,)]
    (alone,) = source.read((2,))
    _, _, among = source.read((0, 1, 2))
    (other,) = generated(PADS, 4, seed=4).source.read((2,))
    for name, values in alone.observations.items():
        np.testing.assert_array_equal(values, among.observations[name])
    np.testing.assert_array_equal(alone.actions, among.actions)
    assert not np.array_equal(alone.observations["position"][:5], other.observations["position"][:5])


def test_options_reach_the_expert_and_the_card() -> None:
    source = generated(PADS, 1, options={"pads": 1}).source
    (episode,) = source.read((0,))
    assert len(episode.metadata["completed"]) == 1
    assert '"pads": 1' in source.description().source


def test_joined_sources_hold_the_episodes_of_all_in_order(tmp_path: Path) -> None:
    parts = (
        GeneratedSource(PADS, EXPERT, episodes=3),
        FolderSource(str(write_folder(tmp_path / "mine", episodes=2))),
        GeneratedSource(PADS, EXPERT, episodes=2, seed=1),
    )
    joined = JoinedSource(parts)
    chunks = joined.chunks()
    assert [index for chunk in chunks for index in chunk] == list(range(7))
    expected = [episode.id for part in parts for chunk in part.chunks() for episode in part.read(chunk)]
    assert [episode.id for chunk in chunks for episode in joined.read(chunk)] == expected
    # A shard holds indices of several parts, and only some of each.
    assert [episode.id for episode in joined.read((1, 4, 6))] == [expected[1], expected[4], expected[6]]


def test_recordings_of_several_sources_keep_their_ids_apart(tmp_path: Path) -> None:
    first, second = (FolderSource(str(write_folder(tmp_path / str(count), episodes=count))) for count in (2, 3))
    joined = JoinedSource((first, GeneratedSource(PADS, EXPERT, episodes=1), second))
    ids = [episode.id for chunk in joined.chunks() for episode in joined.read(chunk)]
    assert sorted(ids) == ["0-e0", "0-e1", "2-e0", "2-e1", "2-e2", "point-pads-0-000000"]


def test_a_source_that_is_named_twice_is_refused(tmp_path: Path) -> None:
    folder = {"type": "folder", "path": str(write_folder(tmp_path / "mine"))}
    with pytest.raises(SpirlError, match=r"data\.sources\.1 is the same data as data\.sources\.0"):
        sources(folder, folder, env=PADS)


def test_a_joined_source_states_every_licence_and_origin(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "mine", licence="CC BY 4.0", source="tapes", attribution="A. Tester")
    ours = {"type": "generated", "episodes": 2}
    facts = sources(ours, {"type": "folder", "path": str(folder)}, env=PADS).source.description()
    assert facts.licence == "Apache-2.0 + CC BY 4.0"
    assert facts.source.startswith(f"generated:{PADS} episodes=2")
    assert facts.source.endswith(" + tapes")
    assert facts.attribution.endswith(" + A. Tester")


def test_attempts_that_the_expert_gave_up_yield_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    source = generated(PADS, 2).source
    expert = point_pads.generate
    monkeypatch.setattr(point_pads, "generate", lambda indices, seed: iter([None, *expert([1], seed)]))
    assert [episode.id for episode in source.read((0, 1))] == ["point-pads-0-000001"]


def test_an_environment_without_an_expert_says_so() -> None:
    blind = replace(point_pads.SPEC, expert=None)
    for spec, named in ((blind, f"'{PADS}' has no scripted expert"), (None, "there is no environment")):
        with pytest.raises(SpirlError, match=rf"data\.sources: type generated.*{named}"):
            make(GeneratedSettings(), spec)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"episodes": 0}, r"data\.sources\.0 \(generated\)(?s:.*)episodes: .*1"),
        ({"seed": -1}, r"data\.sources\.0 \(generated\)(?s:.*)seed: .*0"),
        ({"options": {"pads": 5}}, "options.*pads must be at most 4"),
        ({"options": {"speed": 2}}, "options.*no argument 'speed'; it takes noise, pads"),
        ({"sped": 1}, r"data\.sources\.0 \(generated\)(?s:.*)sped: unknown key.*episodes, options, seed"),
    ],
)
def test_bad_generation_settings_are_refused_before_any_work(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SpirlError, match=message):
        sources({"type": "generated", **options}, env=PADS)


# --- the table of sources ---


def test_the_data_settings_name_sources(tmp_path: Path) -> None:
    ours = {"type": "generated", "episodes": 7, "seed": 2, "options": {"pads": 2}}
    theirs = {"type": "folder", "path": str(write_folder(tmp_path / "mine"))}
    made = GeneratedSource(PADS, EXPERT, 7, 2, {"pads": 2})
    read = FolderSource(str(tmp_path / "mine"))
    assert sources(ours, theirs, env=PADS).source == JoinedSource((made, read))
    assert sources(theirs, env=PADS).source == read
    assert sources(ours, env=PADS).source == made
    assert [each.attempts for each in (JoinedSource((made, read)), made, read)] == [7, 7, 0]


def test_a_single_source_needs_no_list() -> None:
    data = DataSettings.model_validate({"sources": {"type": "generated", "episodes": 4}})
    opened = open_data(data, InterfaceSettings(), environment(PADS))
    assert opened.source == GeneratedSource(PADS, EXPERT, 4)
    assert (opened.features, opened.action_dim, opened.actions) == (point_pads.FEATURES, 2, None)


def test_an_identity_is_plain_data_of_what_decides_the_episodes_and_not_of_where_they_are(tmp_path: Path) -> None:
    write_folder(tmp_path / "mine")
    write_folder(tmp_path / "other", episodes=4)

    def facts(*entries: dict[str, Any]) -> str:
        return json.dumps(sources(*entries, env=PADS).source.identity().settings, sort_keys=True)

    ours, theirs = {"type": "generated"}, {"type": "folder", "path": str(tmp_path / "mine")}
    both = facts(ours, theirs)
    others = [
        facts(ours),
        facts(theirs),
        facts(theirs, ours),
        facts(ours, {**theirs, "path": str(tmp_path / "other")}),
        facts({**ours, "episodes": 3}, theirs),
        facts({**ours, "seed": 1}, theirs),
        facts({**ours, "options": {"pads": 1}}, theirs),
    ]
    assert len({both, *others}) == len(others) + 1
    (tmp_path / "mine").rename(tmp_path / "moved")
    assert facts(ours, {**theirs, "path": str(tmp_path / "moved")}) == both
    # Renaming a class or a file must not lose anybody's data.
    assert facts({**ours, "episodes": 2}) == '{"generated": {"episodes": 2, "options": {}, "seed": 0}}'


def test_an_unknown_source_lists_the_known_ones() -> None:
    with pytest.raises(SpirlError, match=r"'tape'.*folder, generated"):
        sources({"type": "tape"}, env=PADS)


class CountSettings(Settings):
    count: int


def test_a_source_of_ones_own_gets_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SOURCES, "_entries", dict(SOURCES._entries))

    def one(options: CountSettings, spec: EnvironmentSpec | None) -> EpisodeSource:
        assert spec is not None
        return GeneratedSource(spec.id, EXPERT, options.count)

    register_source("one", CountSettings, one)
    assert sources({"type": "one", "count": 4}, env=PADS).source == GeneratedSource(PADS, EXPERT, 4)
    with pytest.raises(SpirlError, match=r"data\.sources\.0 \(one\)(?s:.*)count: is missing"):
        sources({"type": "one"}, env=PADS)
    with pytest.raises(SpirlError, match="'generated' already"):
        register_source("generated", CountSettings, one)


KIND = SourceKind(GeneratedSettings, make)


def test_an_entry_point_brings_a_source(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("plain", f"{Path(__file__).stem}:KIND", "spirl_ray.sources")
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setattr(SOURCES, "_entries", dict(SOURCES._entries))
    monkeypatch.setattr(SOURCES, "_filled", False)
    monkeypatch.setattr(registry, "entry_points", lambda group: [point] if group == point.group else [])
    assert sources({"type": "plain", "episodes": 4}, env=PADS).source == GeneratedSource(PADS, EXPERT, 4)


def test_a_dataset_folder_is_a_source(tmp_path: Path) -> None:
    opened = sources({"type": "folder", "path": str(write_folder(tmp_path / "mine"))}, env=PADS)
    assert opened.source.chunks() == [(0, 1, 2), (3, 4)]
    assert [episode.id for episode in opened.source.read((0, 2, 3))] == ["e0", "e4", "e1"]
    assert (opened.features, opened.rewards) == (point_pads.FEATURES, True)
    with pytest.raises(SpirlError, match=rf"{tmp_path}/mine holds .*{PADS} with position \[2\].*spirl/Maze-v0 has"):
        sources({"type": "folder", "path": str(tmp_path / "mine")}, env="spirl/Maze-v0")
    with pytest.raises(SpirlError, match=r"data\.sources\.0 \(folder\)(?s:.*)paths: unknown key"):
        sources({"type": "folder", "paths": "x"}, env=PADS)


def test_a_dataset_folder_gets_the_shapes_and_roles_of_the_environment(tmp_path: Path) -> None:
    features: dict[str, Any] = {
        "position": {"shape": (2, 1), "role": "proprioception"},
        "velocity": point_pads.FEATURES["velocity"],
        "lamps": point_pads.FEATURES["lamps"],
        "voltage": {"shape": (1,)},
    }
    with spirl.DatasetWriter(tmp_path / "mine", features=features, action_dim=2) as writer:
        (episode,) = expert_episodes(PADS, 1)
        voltage = np.zeros((len(episode.actions) + 1, 1))
        position = episode.observations["position"][..., None]
        writer.add(
            observations={**episode.observations, "position": position, "voltage": voltage}, actions=episode.actions
        )
    opened = sources({"type": "folder", "path": str(tmp_path / "mine")}, env=PADS)
    assert opened.features == point_pads.FEATURES
    (read,) = read_all(opened.source)
    assert set(read.observations) == set(point_pads.FEATURES)
    for name, values in episode.observations.items():
        np.testing.assert_array_equal(read.observations[name], values)


def test_folders_without_an_environment_must_agree(tmp_path: Path) -> None:
    paths = [write_folder(tmp_path / "one"), tmp_path / "two"]
    with spirl.DatasetWriter(paths[1], features={"position": {"shape": (3,)}}, action_dim=2) as writer:
        writer.add(observations={"position": np.zeros((3, 3))}, actions=np.zeros((2, 2)))
    data = DataSettings.model_validate({"sources": [{"type": "folder", "path": str(path)} for path in paths]})
    with pytest.raises(SpirlError, match=r"two holds .*position \[3\].*What does not fit: position"):
        open_data(data, InterfaceSettings(), None)


def test_a_dataset_folder_with_another_range_of_actions_says_both(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "mine", actions=[(-2, 2), (-1, 1)])
    with pytest.raises(SpirlError, match=r"\[-2, 2\], \[-1, 1\].*2 actions in \[-1, 1\].*interface\.action"):
        sources({"type": "folder", "path": str(folder)}, env=PADS)


def test_a_dataset_folder_without_an_environment_says_itself_what_it_holds(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "mine", environment=None, actions=[(-2, 2), (-1, 1)])
    data = DataSettings.model_validate({"sources": {"type": "folder", "path": str(folder)}})
    opened = open_data(data, InterfaceSettings(), None)
    assert (opened.features, opened.action_dim) == (point_pads.FEATURES, 2)
    assert opened.actions is not None
    assert opened.actions.low == (-2, -1)
    assert len(read_all(opened.source)) == 5
