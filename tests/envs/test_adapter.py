"""Environments that others wrote are used by a few settings, or none."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from foreign import STEPS, Drift, make_drift
from gymnasium import spaces

import spirl_ray.envs as envs
from spirl_ray.config_environment import EnvironmentSettings, InterfaceSettings
from spirl_ray.envs.adapter import describe_adapted
from spirl_ray.envs.inspection import inspect_environment
from spirl_ray.envs.metrics import EpisodeOutcome
from spirl_ray.episodes.actions import ActionRange
from spirl_ray.errors import SpirlError
from spirl_ray.pipeline.stopping import terminate


def settings(
    env_id: str = "foreign:Drift", limit: int | None = None, kwargs: dict[str, Any] | None = None, **interface: Any
) -> EnvironmentSettings:
    return EnvironmentSettings(
        id=env_id,
        kwargs=kwargs or {},
        max_episode_steps=limit,
        interface=InterfaceSettings.model_validate(interface),
    )


def played(env: gymnasium.Env, steps: int = STEPS) -> list[Any]:
    env.reset(seed=0)
    return [env.step(np.zeros(2, np.float32)) for _ in range(steps)]


@pytest.mark.parametrize(
    "env_id", ["foreign:Drift", "foreign:Foreign/Drift-v0", "foreign:make_drift", "Foreign/Drift-v0"]
)
def test_a_class_a_function_and_an_id_name_an_environment(env_id: str) -> None:
    spec = envs.environment(settings(env_id))
    assert spec.features["observation"].shape == (4,)
    assert spec.max_episode_steps == STEPS
    assert spec.actions == ActionRange(low=(-1.0, -5.0), high=(3.0, 5.0))
    env = envs.make(settings(env_id))
    assert env.observation_space.contains(env.reset(seed=0)[0])


def test_actions_are_in_the_environments_own_units() -> None:
    env = envs.make(settings())
    env.reset(seed=0)
    for action in ([-1.0, -1.0], [1.0, 1.0], [0.0, 0.0], [2.0, 0.5]):
        env.step(np.array(action, np.float32))
    own = env.unwrapped
    assert isinstance(own, Drift)
    np.testing.assert_allclose(own.commands, [[-1.0, -5.0], [3.0, 5.0], [1.0, 0.0], [3.0, 2.5]])


def test_another_range_is_used_within_the_environments_own() -> None:
    env = envs.make(settings(action={"low": [0.0, -50.0], "high": [1.0, 50.0]}))
    env.reset(seed=0)
    env.step(np.array([-1.0, 1.0], np.float32))
    own = env.unwrapped
    assert isinstance(own, Drift)
    np.testing.assert_allclose(own.commands, [[0.0, 5.0]])


def test_a_nested_observation_becomes_named_features() -> None:
    spec = envs.environment(settings("foreign:Nested"))
    found = {name: (feature.role, feature.observed_shape) for name, feature in spec.features.items()}
    assert found == {
        "arm_joints": ("proprioception", (4,)),
        "arm_grip": ("proprioception", (3,)),
        "desired_goal": ("goal", (2,)),
        "camera": ("image", (1, 64, 64, 3)),
    }
    env = envs.make(settings("foreign:Nested"))
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    np.testing.assert_array_equal(observation["arm_grip"], [1.0, 0.0, 0.0])
    assert observation["camera"].min() == observation["camera"].max() == 10


def test_settings_choose_and_name_what_is_observed() -> None:
    chosen = settings(
        "foreign:Nested",
        observation="arm.joints",
        goal=["desired_goal"],
        images={"front": {"key": "camera", "size": [30, 40], "frames": 2, "grey": True}},
    )
    features = envs.environment(chosen).features
    assert list(features) == ["arm_joints", "desired_goal", "front"]
    assert features["front"].observed_shape == (2, 30, 40, 1)
    env = envs.make(chosen)
    first, _ = env.reset(seed=0)
    assert first["front"][:, 0, 0, 0].tolist() == [10, 10]
    second = env.step(np.zeros(2, np.float32))[0]
    assert second["front"][:, 0, 0, 0].tolist() == [10, 11]
    assert not envs.environment(settings("foreign:Nested", images={})).features.keys() & {"camera", "front"}


def test_success_is_found_and_remembered() -> None:
    for env_id, kwargs in (
        ("foreign:Drift", {}),
        ("foreign:Nested", {}),
        ("foreign:Drift", {"success_key": "goal_achieved"}),
    ):
        infos = [step[4] for step in played(envs.make(settings(env_id, kwargs=kwargs)))]
        assert [info["success"] for info in infos] == [False, False] + [True] * (STEPS - 2)
        assert [info["success_now"] for info in infos[:5]] == [False, False, True, True, False]


def test_scores_are_success_ever_and_at_the_end() -> None:
    chosen = settings()
    *_, last = played(envs.make(chosen))
    scores = envs.declared_scores(chosen)
    values = scores.of(EpisodeOutcome(-7.5, STEPS, False, True, last[4]))
    assert (values["success"], values["success_at_end"], values["return"]) == (1.0, 0.0, -7.5)
    assert scores.score_in([values]).name == "success"


@pytest.mark.parametrize(
    ("success", "expected"),
    [
        ("info.solved", [False, False, True, True]),
        ("terminated", [False] * 4),
        ("return >= -1", [False] * 4),
    ],
)
def test_settings_say_what_success_is(success: str, expected: list[bool]) -> None:
    env = envs.make(settings(kwargs={"success_key": "solved"}, success=success))
    assert [step[4]["success"] for step in played(env, 4)] == expected


@pytest.mark.parametrize(("limit", "expected"), [(-8.0, True), (-7.0, False)])
def test_a_return_is_judged_at_the_end_of_the_episode(limit: float, expected: bool) -> None:
    steps = played(envs.make(settings(success=f"return >= {limit}")))
    assert [step[4]["success"] for step in steps] == [False] * (STEPS - 1) + [expected]


def test_without_success_the_score_is_the_return() -> None:
    for chosen in (settings(kwargs={"success_key": None}), settings(success="none")):
        *_, last = played(envs.make(chosen))
        assert "success" not in last[4]
        scores = envs.declared_scores(chosen)
        values = scores.of(EpisodeOutcome(-7.5, STEPS, False, True, last[4]))
        assert scores.score_in([values]).name == "return"


@pytest.mark.parametrize(("reward", "expected"), [("success", [0, 0, 1, 1, 0]), ("success - 1", [-1, -1, 0, 0, -1])])
def test_success_can_be_the_reward(reward: str, expected: list[int]) -> None:
    assert [step[1] for step in played(envs.make(settings(reward=reward)), 5)] == expected


def test_a_function_names_completed_subtasks() -> None:
    chosen = settings(completed="foreign:completed")
    *_, last = played(envs.make(chosen))
    scores = envs.declared_scores(chosen)
    values = scores.of(EpisodeOutcome(0.0, STEPS, False, True, last[4]))
    assert last[4]["completed"] == ["reached"]
    assert values["completed"] == 1.0
    assert scores.score_in([values]).name == "completed"


def test_the_time_limit_is_the_settings_or_the_environments_own() -> None:
    for chosen, limit in ((settings(limit=7), 7), (settings("foreign:Endless", limit=9), 9)):
        assert envs.environment(chosen).max_episode_steps == limit
        assert [step[3] for step in played(envs.make(chosen), limit)] == [False] * (limit - 1) + [True]


@pytest.mark.parametrize(
    ("env_id", "seeded"), [("foreign:Drift", True), ("foreign:Unseeded", True), ("foreign:Random", False)]
)
def test_an_inspection_tells_whether_the_seed_is_followed(env_id: str, seeded: bool) -> None:
    found = inspect_environment(settings(env_id), steps=2 * STEPS)
    assert found.seeded is seeded
    assert found.episodes == 2
    assert "2 of 2" in found.success
    assert found.info_keys == ("success",)
    assert found.rewards == (-0.5, -0.5)
    assert found.render_problem is None


def test_images_that_are_not_recognised_are_told_with_what_to_do() -> None:
    found = inspect_environment(settings("foreign:FloatImages"), steps=1)
    assert [text.partition(" ")[0] for text in found.unrecognised] == ["grey", "rgb"]
    assert "interface.images: {grey: grey}" in found.unrecognised[0]
    assert all(part in found.unrecognised[1] for part in ("float32 [16, 16, 3]", "768 numbers", "uint8"))
    assert inspect_environment(settings("foreign:Nested"), steps=1).unrecognised == ()


def test_frames_of_which_no_video_can_be_made_are_told() -> None:
    problem = inspect_environment(settings("foreign:FloatImages"), steps=1).render_problem
    assert problem is not None
    assert all(part in problem for part in ("float64 [32, 32, 3]", "uint8"))


@pytest.mark.parametrize(
    ("where", "told"), [("constructor", "sys.exit('no licence')"), ("step", "sys.exit(3)"), ("render", "sys.exit(0)")]
)
def test_an_environment_cannot_end_the_program(where: str, told: str) -> None:
    chosen = settings("foreign:Leaver", kwargs={"where": where})
    if where == "render":
        assert told in str(envs.render_problem(chosen))
        return
    with pytest.raises(SpirlError) as caught:
        envs.try_out(chosen)
    assert all(part in str(caught.value) for part in (told, "foreign:Leaver", "foreign.py"))


def test_this_program_can_end_while_an_environment_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def noticed(self: Drift, action: Any) -> Any:
        terminate(15, None)

    monkeypatch.setattr(Drift, "step", noticed)
    with pytest.raises(SystemExit) as end:
        envs.try_out(settings())
    assert end.value.code == 143


def test_an_environment_registered_in_a_notebook_needs_no_description() -> None:
    envs.register_environment("mine/Drift-v0", make_drift, replace=True)
    assert envs.environment(settings("mine/Drift-v0", kwargs={"length": 4})).max_episode_steps == 4


def test_a_description_is_made_once() -> None:
    assert envs.environment(settings()) is envs.environment(settings())


@pytest.mark.parametrize(
    ("chosen", "named"),
    [
        (settings("Nowhere-v0"), ["Nowhere-v0", "module:Id", "spirl/Maze-v0"]),
        (settings("nowhere:Thing-v0"), ["nowhere", "submit.ship"]),
        (settings(kwargs={"wheels": 3}), ["wheels", "TypeError", "traceback"]),
        (settings("foreign:not_an_environment"), ["str", "gymnasium.Env"]),
        (settings("foreign:Buttons"), ["Discrete(4)", "Box"]),
        (settings("foreign:Boundless"), ["no range", "interface.action"]),
        (settings("foreign:Endless"), ["time limit", "env.max_episode_steps", "--max-episode-steps"]),
        (settings(imports=["nowhere"]), ["interface.imports", "nowhere"]),
        (settings(observation=["joints"]), ["interface.observation", "joints", "observation"]),
        (settings("foreign:Nested", goal=["aim"]), ["interface.goal", "aim", "desired_goal"]),
        (settings("foreign:Nested", observation=["camera"]), ["interface.images", "camera"]),
        (settings("foreign:Nested", images={"front": "arm.joints"}), ["interface.images.front", "float32"]),
        (settings("foreign:Nested", observation=[], images={}), ["no key", "arm.joints"]),
        (settings(action={"low": [0.0, 0.0, 0.0]}), ["interface.action.low", "3", "2"]),
        (settings(action={"low": 9.0}), ["interface.action", "9"]),
        (settings(position_target={"feature": "arm", "positions": [0, 1], "gain": 1.0}), ["position_target", "arm"]),
        (settings("spirl/PointPads-v0", success="terminated"), ["interface.success", "spirl/PointPads-v0"]),
    ],
)
def test_what_cannot_be_used_is_named_with_what_to_write(chosen: EnvironmentSettings, named: list[str]) -> None:
    with pytest.raises(SpirlError) as caught:
        envs.environment(chosen)
    for name in named:
        assert name in str(caught.value)


@pytest.mark.parametrize(
    ("chosen", "named"),
    [
        (settings("foreign:Broken"), ["motor 2 is on fire", "foreign.py"]),
        (settings(success="maybe"), ["interface.success", "maybe", "info.KEY"]),
        (settings(success="return >= much"), ["interface.success", "much"]),
        (settings(success="none", reward="success"), ["interface.reward", "none"]),
        (settings(completed="foreign:nothing"), ["interface.completed", "foreign:nothing"]),
    ],
)
def test_what_fails_in_the_first_step_is_named(chosen: EnvironmentSettings, named: list[str]) -> None:
    with pytest.raises(SpirlError) as caught:
        envs.try_out(chosen)
    for name in named:
        assert name in str(caught.value)


def test_a_success_that_no_info_has_is_an_error_at_the_end_of_the_episode() -> None:
    with pytest.raises(SpirlError, match=r"(?s)interface\.success.*solved.*success"):
        played(envs.make(settings(success="info.solved")))


def test_a_reward_for_success_needs_something_that_says_it() -> None:
    silent = {"success_key": None}
    assert played(envs.make(settings(kwargs=silent)))
    with pytest.raises(SpirlError, match=r"interface\.success.*interface\.reward asks for.*return >= X"):
        played(envs.make(settings(kwargs=silent, reward="success")))


# --- environments that do not keep what their spaces say ---


class Faulty(Drift):
    """Does something else than its spaces say, in step 3."""

    def __init__(self, fault: str = "", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.fault = fault
        self.observation_space = spaces.Dict({"state": spaces.Box(-9, 9, (4,), np.float64), "mode": spaces.Discrete(2)})

    def observed(self) -> Any:
        state = self.state.copy()
        if self.elapsed == 3 and self.fault == "nan":
            state[2] = np.nan
        if self.elapsed == 3 and self.fault == "shape":
            state = state[:3]
        found = {"state": state, "mode": 7 if self.elapsed == 3 and self.fault == "mode" else 1}
        return {"state": state} if self.elapsed == 3 and self.fault == "key" else found

    def step(self, action: Any) -> Any:
        observed, reward, terminated, truncated, info = super().step(action)
        if self.elapsed == 3 and self.fault == "older":
            return observed, reward, terminated, info
        if self.elapsed == 3 and self.fault == "success":
            info["success"] = "no"
        worth: Any = np.array([reward]) if self.fault == "array" else reward
        return observed, np.nan if self.elapsed == 3 and self.fault == "reward" else worth, terminated, truncated, info


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        ("nan", ["step 3", "state", "nan"]),
        ("shape", ["step 3", "state", "[3]", "4"]),
        ("mode", ["step 3", "mode", "7"]),
        ("key", ["step 3", "mode", "missing"]),
        ("older", ["step", "5 values", "4 values"]),
        ("reward", ["reward", "step 3", "nan"]),
        ("success", ["interface.success", "'no'"]),
    ],
)
def test_a_step_that_is_not_as_the_spaces_say_is_named(fault: str, named: list[str]) -> None:
    env = envs.make(settings(f"{__name__}:Faulty", kwargs={"fault": fault}))
    with pytest.raises(SpirlError) as caught:
        played(env)
    assert all(part in str(caught.value) for part in [*named, "Faulty" if fault != "success" else "info"])
    assert env.unwrapped.elapsed == 3  # type: ignore[attr-defined]


def test_a_reward_in_an_array_of_one_is_a_number() -> None:
    env = envs.make(settings(f"{__name__}:Faulty", kwargs={"fault": "array"}))
    assert [step[1] for step in played(env)] == [-0.5] * STEPS


class Forever(Drift):
    """Says its limit in an attribute, and never ends."""

    def step(self, action: Any) -> Any:
        observed, reward, _, _, info = super().step(action)
        return observed, reward, False, False, info


@pytest.mark.parametrize("limit", [None, 9])
def test_a_limit_that_only_an_attribute_says_ends_episodes(limit: int | None) -> None:
    env = envs.make(settings(f"{__name__}:Forever", limit=limit))
    expected = limit or STEPS
    assert [step[3] for step in played(env, expected)] == [False] * (expected - 1) + [True]


class Whole(Drift):
    """Takes whole numbers."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.action_space = spaces.Box(-3, 3, (2,), np.int32)


def test_whole_numbers_are_rounded() -> None:
    env = envs.make(settings(f"{__name__}:Whole"))
    env.reset(seed=0)
    env.step(np.array([0.6, -0.99], np.float32))
    np.testing.assert_array_equal(env.unwrapped.commands, [[2, -3]])  # type: ignore[attr-defined]


def test_an_action_that_cannot_move_is_named_with_what_to_set() -> None:
    class Stuck(Drift):
        def __init__(self) -> None:
            super().__init__()
            self.action_space = spaces.Box(np.array([-1.0, 0.0]), np.array([1.0, 0.0]), dtype=np.float64)

    with pytest.raises(SpirlError, match=r"interface\.action: the actions of Stuck-v0: entry 1: low is 0"):
        describe_adapted(settings("Stuck-v0"), Stuck)


def test_what_an_environments_own_code_raises_is_told_with_its_name() -> None:
    env = envs.make(settings("foreign:Broken"))
    with pytest.raises(SpirlError, match=r"foreign:Broken .*RuntimeError: motor 2 is on fire \(foreign\.py, line"):
        played(env)
