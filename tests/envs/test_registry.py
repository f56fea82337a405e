"""Environments of other people are made and described like the package's own, and their faults are named."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import spirl_ray.envs as envs
from spirl_ray import registry
from spirl_ray.config import EnvironmentSettings, InterfaceSettings
from spirl_ray.envs.recorded import recorded_images
from spirl_ray.envs.spec import EnvironmentSpec, PositionTarget, observation_space
from spirl_ray.episodes.dataset import read_card
from spirl_ray.episodes.features import Feature, ObjectSet
from spirl_ray.episodes.writer import DatasetWriter
from spirl_ray.errors import SpirlError

FEATURES = {
    "arm": Feature(shape=(3,), role="proprioception"),
    "things": Feature(shape=(2, 3), objects=ObjectSet(agent="arm", up=2, size=0.1)),
    "camera": Feature(shape=(4, 6, 3), role="image", frames=2),
}


class Still(gymnasium.Env[dict[str, Any], Any]):
    """Nothing ever happens in it."""

    def __init__(self, things: int = 2, **changes: spaces.Space[Any] | None) -> None:
        declared = dict(observation_space({**FEATURES, "things": Feature(shape=(things, 3))}).spaces)
        declared.update({name: space for name, space in changes.items() if space is not None})
        self.observation_space = spaces.Dict({n: s for n, s in declared.items() if n not in changes or changes[n]})
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return {name: np.zeros(s.shape, s.dtype) for name, s in self.observation_space.spaces.items()}, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.reset()[0], 0.0, False, False, {}


def make_still() -> Still:
    return Still()


def spec(env_id: str = "test/Still-v0", **changes: Any) -> EnvironmentSpec:
    facts: dict[str, Any] = dict(id=env_id, features=FEATURES, action_dim=1, max_episode_steps=7)
    return EnvironmentSpec(**(facts | changes))


@pytest.fixture(autouse=True)
def _leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(envs.ENVIRONMENTS, "_entries", dict(envs.ENVIRONMENTS._entries))
    before = dict(gymnasium.registry)
    yield
    gymnasium.registry.clear()
    gymnasium.registry.update(before)


def test_a_registered_environment_is_made_with_its_time_limit_and_described() -> None:
    own = spec()
    envs.register_environment(own, Still)
    env = envs.make("test/Still-v0", things=5)
    assert envs.environment("test/Still-v0") is own
    assert envs.observed_features(env, own) == {
        **FEATURES,
        "things": FEATURES["things"].model_copy(update={"shape": (5, 3)}),
    }
    env.reset(seed=0)
    assert [env.step(np.zeros(1))[3] for _ in range(7)] == [False] * 6 + [True]
    assert gymnasium.make("test/Still-v0").spec is not None, "Gymnasium knows it, too"


def test_a_second_environment_of_the_same_id_must_say_that_it_replaces_the_first() -> None:
    envs.register_environment(spec(), Still)
    with pytest.raises(SpirlError, match="'test/Still-v0' already"):
        envs.register_environment(spec(), Still)
    envs.register_environment(spec(max_episode_steps=3), Still, replace=True)
    assert envs.environment("test/Still-v0").max_episode_steps == 3
    env = envs.make("test/Still-v0")
    env.reset(seed=0)
    assert [env.step(np.zeros(1))[3] for _ in range(3)] == [False] * 2 + [True]


def test_the_settings_time_limit_counts_in_place_of_the_environments_own() -> None:
    envs.register_environment(spec(), Still)
    settings = EnvironmentSettings(id="test/Still-v0", max_episode_steps=2)
    assert envs.environment(settings).max_episode_steps == 2
    env = envs.make(settings)
    env.reset(seed=0)
    assert [env.step(np.zeros(1))[3] for _ in range(2)] == [False, True]
    assert envs.environment("test/Still-v0").max_episode_steps == 7


def test_an_environment_that_describes_itself_is_not_read_otherwise() -> None:
    envs.register_environment(spec(), Still)
    with pytest.raises(SpirlError, match=r"interface\.observation: test/Still-v0 .*Leave it out"):
        envs.environment(EnvironmentSettings(id="test/Still-v0", interface=InterfaceSettings(observation=("arm",))))


def test_an_unknown_environment_lists_the_known_ones() -> None:
    with pytest.raises(SpirlError, match=r"'spirl/Garden-v0'.*spirl/Kitchen-v0, spirl/Maze-v0"):
        envs.environment("spirl/Garden-v0")


def test_an_unknown_argument_is_named_with_the_known_ones() -> None:
    def plain(things: int = 2) -> Still:
        return Still(things)

    envs.register_environment(spec(), plain)
    with pytest.raises(SpirlError, match=r"test/Still-v0 takes no argument 'thing'.*things"):
        envs.make("test/Still-v0", thing=3)


ENTRY = envs.EnvironmentEntry(spec("plugin/Still-v0"), Still)


@pytest.fixture
def entry_point(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    def install(name: str, value: str) -> None:
        point = EntryPoint(name, value, envs.GROUP)
        monkeypatch.setattr(envs.ENVIRONMENTS, "_filled", False)
        monkeypatch.setattr(registry, "entry_points", lambda group: [point] if group == envs.GROUP else [])
        monkeypatch.syspath_prepend(str(Path(__file__).parent))

    return install


def test_an_entry_point_brings_an_environment(entry_point: Callable[[str, str], None]) -> None:
    entry_point("plugin/Still-v0", f"{Path(__file__).stem}:ENTRY")
    env = envs.make("plugin/Still-v0", things=3)
    described = envs.environment("plugin/Still-v0")
    assert envs.observed_features(env, described)["things"].shape == (3, 3)
    assert described.max_episode_steps == 7


def test_a_function_as_an_entry_point_draws_no_recorded_episodes(
    entry_point: Callable[[str, str], None], tmp_path: Path
) -> None:
    entry_point("plugin/Plain-v0", f"{Path(__file__).stem}:make_still")
    features = {"arm": FEATURES["arm"]}
    with DatasetWriter(tmp_path / "d", features=features, action_dim=1, environment="plugin/Plain-v0") as writer:
        writer.add(observations={"arm": np.zeros((3, 3))}, actions=np.zeros((2, 1)))
    assert recorded_images(read_card(tmp_path / "d")) is None


@pytest.mark.parametrize(("name", "value"), [("plugin/Other-v0", "ENTRY"), ("plugin/Still-v0", "FEATURES")])
def test_an_entry_point_of_something_else_is_named(
    entry_point: Callable[[str, str], None], name: str, value: str
) -> None:
    entry_point(name, f"{Path(__file__).stem}:{value}")
    with pytest.raises(SpirlError, match=f"{name}.*EnvironmentEntry"):
        envs.environment(name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arm": None}, r"'arm'.*camera, things"),
        ({"arm": spaces.Box(-1, 1, (3, 1), np.float32)}, r"'arm' is declared as float32 \[3\].*\(3, 1\)"),
        ({"arm": spaces.Box(-1, 1, (3,), np.float64)}, r"'arm' is declared as float32 \[3\].*float64"),
        ({"arm": spaces.Discrete(3)}, r"'arm' is declared as float32 \[3\].*Discrete"),
        ({"camera": spaces.Box(0, 1, (2, 4, 6, 3), np.float32)}, r"'camera' is declared as uint8 \[2, 4, 6, 3\]"),
        ({"camera": spaces.Box(0, 255, (1, 4, 6, 3), np.uint8)}, r"'camera' is declared as uint8 \[2, 4, 6, 3\]"),
        ({"camera": spaces.Box(0, 255, (2, 4, 6, 2), np.uint8)}, r"'camera'.*1 or 3 channels"),
    ],
)
def test_spaces_that_differ_from_what_is_declared_are_named(changes: dict[str, Any], message: str) -> None:
    envs.register_environment(spec(), Still)
    with pytest.raises(SpirlError, match=f"test/Still-v0.*{message}"):
        envs.observed_features(envs.make("test/Still-v0", **changes), spec())


def test_an_environment_without_named_observations_is_told_so() -> None:
    class Flat(Still):
        def __init__(self) -> None:
            super().__init__()
            self.observation_space = spaces.Box(-1, 1, (3,), np.float32)  # type: ignore[assignment]

    envs.register_environment(spec(), Flat)
    with pytest.raises(SpirlError, match=r"test/Still-v0.*must be a Dict"):
        envs.observed_features(envs.make("test/Still-v0"), spec())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": {"a b": Feature(shape=(1,))}}, "features: a b"),
        ({"features": {"camera": FEATURES["camera"].model_copy(update={"stored": False})}}, "'camera'.*renderer"),
        ({"renderers": {"arm": lambda metadata: None}}, "'arm' must be either"),
        ({"renderers": {"leg": lambda metadata: None}}, "renderers: there is no feature 'leg'"),
        ({"features": {"things": FEATURES["things"]}}, "objects.agent of things: 'arm'"),
        ({"position_target": PositionTarget("leg", (0,), (1.0,))}, "position_target.feature: 'leg'"),
        ({"position_target": PositionTarget("arm", (3,), (1.0,))}, "position_target.feature: 'arm'.*4 or more"),
        ({"position_target": PositionTarget("arm", (0, 1), (1.0, 1.0))}, "position_target: .*each of 1 actions"),
        ({"position_target": PositionTarget("arm", (0,), (1.0,), ("camera",))}, "objects: 'camera'"),
    ],
)
def test_a_spec_that_contradicts_itself_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpirlError, match=f"'test/Still-v0': .*{message}"):
        spec(**changes)


def test_a_spec_can_be_varied() -> None:
    assert dataclasses.replace(spec(), max_episode_steps=9).max_episode_steps == 9


def test_videos_are_recorded_where_the_environment_can_render() -> None:
    envs.register_environment(spec("mine/Dark-v0"), lambda things=2: Still())
    envs.register_environment(spec("mine/Bright-v0"), lambda render_mode=None: Still())
    assert envs.render_problem("mine/Dark-v0") is not None
    assert envs.render_problem("mine/Bright-v0") is None
    assert envs.render_problem("spirl/PointPads-v0") is None
