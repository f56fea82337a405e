"""The pads: a small task that follows the kitchen's interface, and its scripted demonstrations."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from spirl_ray.envs import make
from spirl_ray.envs.point_pads.env import AGENT_RADIUS, GAIN, LAG, PADS, SPEC, WALLS, PointPadsEnv, generate
from spirl_ray.episodes.validation import check_episode
from spirl_ray.errors import SpirlError

IDLE = np.zeros(2, dtype=np.float32)


def put(env: PointPadsEnv, x: float, y: float) -> tuple[Any, float, bool, bool, dict[str, Any]]:
    """Place the point, and let one idle step notice where it is."""
    env.position = env._sensed = (x, y)
    return env.step(IDLE)


def crosses_a_wall(start: tuple[float, float], end: tuple[float, float]) -> bool:
    points = np.linspace(start, end, 500)
    return any(
        bool(((points > (left, bottom)) & (points < (right, top))).all(axis=1).any())
        for left, bottom, right, top in WALLS
    )


def test_follows_the_gymnasium_interface() -> None:
    check_env(make(SPEC.id).unwrapped, skip_render_check=True)


def test_observation_is_position_velocity_and_lamps_and_no_goal() -> None:
    env = PointPadsEnv(tasks=["east", "west"], position_noise=0.0)
    observation, info = env.reset(seed=0)
    assert {value.dtype for value in observation.values()} == {np.dtype(np.float32)}
    assert list(observation) == ["position", "velocity", "lamps"] == list(SPEC.features)
    np.testing.assert_allclose(observation["position"], env.position, rtol=1e-6)
    assert observation["velocity"].tolist() == [0, 0]
    assert observation["lamps"].tolist() == [0, 0, 0, 0]
    assert info["completed"] == ()
    put(env, *PADS["south"])
    observation, *_ = env.step(np.array([-0.5, 1.0], dtype=np.float32))
    np.testing.assert_allclose(observation["velocity"], [-0.5 * LAG, LAG], rtol=1e-5)
    assert observation["lamps"].tolist() == [0, 0, 1, 0], "the lamp of a pad that is no target lights too"


def test_action_sets_a_position_target_from_the_noisy_position() -> None:
    declared = SPEC.position_target
    assert declared is not None
    assert declared.gain == (GAIN, GAIN)
    env = PointPadsEnv(position_noise=0.05)
    sensed, _ = env.reset(seed=1)
    before = np.array(env.position)
    assert np.abs(sensed["position"] - before).max() > 1e-3
    action = np.array([0.4, -0.7], dtype=np.float32)
    env.step(action)
    target = sensed[declared.feature][list(declared.positions)] + np.array(declared.gain) * action
    np.testing.assert_allclose(env.position, before + LAG * (target - before), atol=1e-6)


def test_sensor_noise_is_uniform_within_its_half_width() -> None:
    env = PointPadsEnv(position_noise=0.02)
    noise = np.array([env.reset(seed=seed)[0]["position"] - env.position for seed in range(300)])
    assert 0.018 < np.abs(noise).max() <= 0.02 * 1.001
    assert abs(noise.mean()) < 0.002


def test_walls_stop_the_point_and_let_it_slide_along() -> None:
    env = PointPadsEnv(position_noise=0.0)
    env.reset(seed=0)
    put(env, 0.4, -0.2)
    for _ in range(20):
        env.step(np.array([-1.0, 0.3], dtype=np.float32))
    right = WALLS[0][2]
    assert env.position[0] >= right + AGENT_RADIUS, "inside the pillar"
    assert env.position[1] > 0.1, "stuck at the pillar"
    for _ in range(60):
        env.step(np.array([1.0, 1.0], dtype=np.float32))
    assert max(map(abs, env.position)) <= 1 - AGENT_RADIUS + 1e-9, "outside the arena"


def test_most_straight_lines_between_pads_are_blocked() -> None:
    free = {frozenset((a, b)) for a in PADS for b in PADS if a < b and not crosses_a_wall(PADS[a], PADS[b])}
    assert free == {frozenset(("north", "west")), frozenset(("east", "south"))}


def test_a_pad_is_rewarded_once_and_all_targets_end_the_episode() -> None:
    env = PointPadsEnv(tasks=["north", "west"], position_noise=0.0)
    env.reset(seed=0)
    assert put(env, *PADS["east"])[1] == 0.0, "not a target"
    _, reward, terminated, _, info = put(env, *PADS["west"])
    assert (reward, terminated, info["completed"]) == (1.0, False, ("west",))
    assert env.step(IDLE)[1] == 0.0
    put(env, 0.6, -0.6)
    assert put(env, *PADS["west"])[1] == 0.0, "a second visit"
    _, reward, terminated, _, info = put(env, *PADS["north"])
    assert (reward, terminated, info["completed"]) == (1.0, True, ("west", "north"))
    assert env.reset()[1]["completed"] == ()


def test_episode_is_truncated_at_120_steps() -> None:
    env = make(SPEC.id)
    env.reset(seed=0)
    ends = [env.step(IDLE)[2:4] for _ in range(120)]
    assert ends[:-1] == [(False, False)] * 119
    assert ends[-1] == (False, True)


def test_reset_depends_on_the_seed_alone() -> None:
    env = PointPadsEnv()
    first, other, again = (env.reset(seed=seed)[0]["position"] for seed in (3, 4, 3))
    np.testing.assert_array_equal(again, first)
    assert (other != first).any()


def test_random_actions_hardly_score() -> None:
    env = make(SPEC.id)
    rng = np.random.default_rng(0)
    scores = []
    for seed in range(50):
        env.reset(seed=seed)
        ended, score = False, 0.0
        while not ended:
            _, reward, terminated, truncated, _ = env.step(rng.uniform(-1, 1, 2).astype(np.float32))
            score += reward
            ended = terminated or truncated
        scores.append(score)
    assert np.mean(scores) < 0.6
    assert max(scores) < 3


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"tasks": ["north", "up"]}, "'up'.*known pads: north, east, south, west"),
        ({"tasks": []}, "one or more different"),
        ({"tasks": ["west", "west"]}, "one or more different"),
        ({"position_noise": -1.0}, "position_noise must be at least 0"),
    ],
)
def test_bad_arguments_are_named(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(SpirlError, match=message):
        make(SPEC.id, **kwargs)


def test_only_frames_can_be_rendered() -> None:
    with pytest.raises(SpirlError, match=r"'rgb_array'.*'human'"):
        PointPadsEnv(render_mode="human")


@pytest.mark.parametrize("action", [np.zeros(3), np.array([0.0, np.inf])])
def test_bad_actions_are_refused(action: np.ndarray) -> None:
    env = PointPadsEnv()
    env.reset(seed=0)
    with pytest.raises(SpirlError, match="two finite numbers"):
        env.step(action)


def test_demonstrations_visit_three_pads_in_every_order() -> None:
    episodes = list(generate(range(200), seed=0))
    visited = [episode.metadata["completed"] for episode in episodes]
    assert np.mean([len(pads) == 3 for pads in visited]) > 0.97
    assert max(map(len, visited)) == 3
    assert len({tuple(pads) for pads in visited if len(pads) == 3}) == 24
    assert not any(episode.terminated for episode in episodes)
    ends = [episode.rewards[-1] for episode in episodes if len(episode.metadata["completed"]) == 3]
    assert min(ends) == 1.0, "an episode ends with its third visit"
    assert len({episode.id for episode in episodes}) == 200


def test_demonstrations_are_records_of_the_environment() -> None:
    (episode,) = generate([11], seed=4, noise=0.2)
    assert check_episode(episode, SPEC.features, SPEC.action_dim) == []
    assert np.abs(episode.actions).max() <= 1
    assert episode.rewards.sum() == len(episode.metadata["completed"]) == episode.observations["lamps"][-1].sum()
    moved = np.diff(episode.observations["position"], axis=0)
    assert np.abs(moved).max() < LAG * GAIN + 0.05, "a jump"


def test_an_episode_depends_on_seed_and_index_alone() -> None:
    alone = next(generate([5], seed=9))
    among_others = list(generate([2, 5], seed=9))[1]
    other_seed = next(generate([5], seed=10))
    assert alone.id == among_others.id
    for name, values in alone.observations.items():
        np.testing.assert_array_equal(values, among_others.observations[name])
    np.testing.assert_array_equal(alone.actions, among_others.actions)
    assert alone.metadata == among_others.metadata
    assert not np.array_equal(other_seed.observations["position"], alone.observations["position"])


def test_all_four_pads_end_an_episode_as_solved() -> None:
    solved = [e for e in generate(range(20), seed=0, pads=4) if len(e.metadata["completed"]) == 4]
    assert len(solved) > 5
    assert all(episode.terminated and not episode.truncated for episode in solved)


@pytest.mark.parametrize(
    ("kwargs", "message"), [({"pads": 5}, "pads must be at most 4"), ({"noise": -0.1}, "noise must be at least 0")]
)
def test_bad_generation_arguments_are_named(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(SpirlError, match=message):
        list(generate([0], seed=0, **kwargs))


def test_frame_shows_pads_path_and_point() -> None:
    env = PointPadsEnv(render_mode="rgb_array", position_noise=0.0)
    env.reset(seed=0)
    before = env.render()
    assert before is not None
    assert (before.dtype, before.shape) == (np.uint8, (256, 256, 3))
    put(env, *PADS["east"])
    for _ in range(3):
        env.step(np.array([0.0, 1.0], dtype=np.float32))
    after = env.render()
    assert after is not None

    def colour(frame: np.ndarray, x: float, y: float) -> tuple[int, ...]:
        return tuple(int(value) for value in frame[round((1 - y) / 2 * 255), round((x + 1) / 2 * 255)])

    pad = (PADS["east"][0] + 0.06, PADS["east"][1])
    assert colour(before, *pad) != colour(after, *pad), "the lamp"
    assert colour(after, *env.position) == (200, 50, 50), "the point"
    assert colour(after, 0.0, 0.0) == (70, 70, 75), "the pillar"
    assert math.isclose(env.position[0], PADS["east"][0], abs_tol=1e-6)
