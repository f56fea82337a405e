"""The maze: physics, task, observations as a camera sees them, demonstrations that any number of workers repeat."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import spirl_ray.envs as envs
from spirl_ray.envs.maze import env as maze
from spirl_ray.envs.maze import expert
from spirl_ray.envs.maze.layout import VIEW_SIZE, distances, free_cells, layout
from spirl_ray.errors import SpirlError

RIGHT, STILL = np.array([1.0, 0.0], np.float32), np.zeros(2, np.float32)


def made(**kwargs: object) -> maze.MazeEnv:
    env = envs.make("spirl/Maze-v0", **kwargs).unwrapped
    assert isinstance(env, maze.MazeEnv)
    return env


def test_it_passes_gymnasiums_checker() -> None:
    check_env(made(render_mode="rgb_array"), skip_render_check=False)


def test_the_default_is_the_papers_target() -> None:
    env = made()
    assert env.walls.shape == (42, 42)
    assert distances(env.walls, maze.TARGET_GOAL)[maze.TARGET_START] == 34
    assert envs.make("spirl/Maze-v0").spec.max_episode_steps == 2000
    observation, info = env.reset(seed=0)
    assert np.abs(observation["position"] - maze.TARGET_START).max() <= maze.START_SPREAD
    assert info["completed"] == ()


def test_an_episode_follows_from_its_seed() -> None:
    def episode(seed: int) -> np.ndarray:
        env = made(start=None, goal=None)
        rng = np.random.default_rng(0)
        seen = [env.reset(seed=seed)[0], *(env.step(rng.uniform(-1, 1, 2))[0] for _ in range(20))]
        return np.stack([np.concatenate([np.ravel(value) for value in each.values()]) for each in seen])

    np.testing.assert_array_equal(episode(3), episode(3))
    assert (episode(3)[0] != episode(4)[0]).any()


def test_speed_is_held_to_five_cells_a_second_along_each_axis() -> None:
    env = made(size=40, layout_seed=0, start=None)
    for seed in range(5):
        env.reset(seed=seed)
        speeds = [np.abs(env.step(np.ones(2, np.float32))[0]["velocity"]).max() for _ in range(40)]
        # Clipped before a step, a velocity gains at most one step's force.
        assert max(speeds) < maze.MAX_SPEED + 0.3


def test_walls_stop_the_agent_everywhere() -> None:
    """Random forces for long: the agent is never inside a wall cell."""
    walls = layout(4, 12)
    env = made(layout_seed=4, size=12, start=None, goal=None)
    rng = np.random.default_rng(0)
    for seed in range(8):
        env.reset(seed=seed)
        force = np.zeros(2)
        for step in range(400):
            if step % 25 == 0:
                force = rng.choice([-1.0, 1.0], 2)
            x, y = env.step(force)[0]["position"]
            assert not walls[round(float(x)), round(float(y))]


def test_merged_geometry_blocks_exactly_the_wall_cells() -> None:
    import mujoco

    walls = layout(4, 12)
    env = made(layout_seed=4, size=12, start=None, goal=None)
    for cell in np.ndindex(walls.shape):
        env.data.qpos[:], env.data.qvel[:] = cell, 0.0
        mujoco.mj_forward(env.model, env.data)
        touching = any(contact.dist < 0 for contact in env.data.contact[: env.data.ncon])
        assert touching == walls[cell], cell


def test_reward_is_one_for_each_step_near_the_goal_and_nothing_ends() -> None:
    env = made(start=(13, 24), goal=(16, 24), goal_radius=1.0)
    env.reset(seed=0)
    rewards, completed = [], []
    for _ in range(100):
        observation, reward, terminated, truncated, info = env.step(RIGHT)
        near = np.hypot(*(observation["position"] - (16, 24))) < 1.0
        assert reward == float(near)
        assert not terminated
        assert not truncated
        rewards.append(reward)
        completed.append(info["completed"])
    assert 0 < sum(rewards) < 100
    first = rewards.index(1.0)
    assert set(completed[:first]) == {()}
    assert set(completed[first:]) == {("goal",)}


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"start": (0, 5)}, "start (0, 5) is outside the layout"),
        ({"goal": (41, 5)}, "goal (41, 5) is outside"),
        ({"goal": (3.5, 5)}, "goal.0 must be a whole number"),
        ({"start": "ab"}, "start must be a list"),
        ({"start": 5}, "start must be a list"),
        ({"goal_radius": 0.0}, "goal_radius"),
        ({"render_mode": "human"}, "render_mode"),
        ({"size": 3}, "at least 6"),
    ],
)
def test_impossible_tasks_are_refused(kwargs: dict[str, object], message: str) -> None:
    with pytest.raises(SpirlError) as caught:
        maze.MazeEnv(**kwargs)  # type: ignore[arg-type]
    assert message in str(caught.value)


def test_a_goal_in_a_wall_is_refused_and_the_nearest_free_cell_named() -> None:
    walls = layout(7, 20)
    cell = tuple(int(c) for c in np.argwhere(walls[1:-1, 1:-1])[0] + 1)
    with pytest.raises(SpirlError, match="inside a wall of layout 7; the nearest free cell is") as caught:
        made(layout_seed=7, size=20, start=None, goal=cell)
    near = tuple(int(part) for part in str(caught.value).rpartition("(")[2].strip(")").split(","))
    assert not walls[near]
    assert abs(near[0] - cell[0]) + abs(near[1] - cell[1]) == 1


def test_a_goal_that_walls_cut_off_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    walls = layout(7, 20).copy()
    walls[1:4, 1:4] = True
    walls[2, 2] = False
    monkeypatch.setattr(maze.maze_layout, "layout", lambda seed, size: walls)
    start = tuple(int(c) for c in free_cells(walls)[-1])
    with pytest.raises(SpirlError, match="cannot be reached"):
        made(layout_seed=7, size=20, start=start, goal=(2, 2))


def test_observations_hold_the_views_of_the_step_before_and_of_now() -> None:
    env = made()
    first = now = env.reset(seed=0)[0]["view"]
    assert (now.dtype, now.shape) == (np.uint8, (2, VIEW_SIZE, VIEW_SIZE, 1))
    np.testing.assert_array_equal(now[0], now[1])
    for _ in range(5):
        before, now = now, env.step(RIGHT)[0]["view"]
        np.testing.assert_array_equal(now[0], before[1])
    assert (first[1] != now[1]).any()


def test_views_are_rendered_from_recorded_positions_as_the_environment_shows_them() -> None:
    episodes = [episode for episode in expert.generate(range(2), 0, size=8) if episode is not None]
    render = maze.SPEC.renderers["view"]([episode.metadata for episode in episodes])
    for number, episode in enumerate(episodes):
        facts, positions = episode.metadata, episode.observations["position"]
        env = made(layout_seed=facts["layout_seed"], size=facts["size"], start=facts["start"], goal=facts["goal"])
        env.reset(seed=0)
        env.data.qpos[:] = positions[7]
        seen = env._observe(env._state())["view"][1]
        rendered = render(np.full(len(positions), number), episode.observations)
        np.testing.assert_array_equal(rendered[7], seen)


_CAMERA = """
import numpy as np, mujoco, spirl_ray.envs as envs
renderer, worst = None, 0.0
for seed in range(4):
    env = envs.make("spirl/Maze-v0", layout_seed=seed, start=None, goal=None).unwrapped
    renderer = mujoco.Renderer(env.model, 256, 256)
    for episode in range(5):
        view = env.reset(seed=episode)[0]["view"][1, ..., 0]
        mujoco.mj_forward(env.model, env.data)
        renderer.update_scene(env.data, camera="above")
        image = renderer.render().astype(float)
        red = image[..., 0] - image[..., 1] > 40  # the agent, which our views leave out
        grey = np.where(red, 255.0, image.mean(-1))
        picture = 255.0 * (grey > 127).reshape(32, 8, 32, 8).mean((1, 3))
        worst = max(worst, np.abs(picture - view).mean() / 255.0)
    renderer.close()
print(worst)
"""


def test_views_are_what_a_mujoco_camera_sees() -> None:
    """Mean difference below 5 %: the camera also sees the sides of the walls, 4 % of their distance wide."""
    import mujoco  # noqa: F401

    outcomes = []
    for backend in ("egl", "osmesa"):
        run = subprocess.run(
            [sys.executable, "-c", _CAMERA], capture_output=True, text=True, env={**os.environ, "MUJOCO_GL": backend}
        )
        if run.returncode == 0:
            assert float(run.stdout.split()[-1]) < 0.05
            return
        outcomes.append(run.stderr[-300:])
    pytest.skip(f"no headless OpenGL: {outcomes}")


def test_a_picture_shows_path_start_and_goal() -> None:
    env = made(render_mode="rgb_array", start=(13, 24))
    env.reset(seed=0)
    before = env.render()
    for _ in range(60):
        env.step(RIGHT)
    after = env.render()
    assert before is not None
    assert after is not None
    assert before.shape == (512, 512, 3)
    blue = (after[..., 2] > after[..., 0].astype(int) + 60).sum()
    assert blue > (before[..., 2] > before[..., 0].astype(int) + 60).sum() + 20


# --- demonstrations ---


def test_demonstrations_depend_on_seed_and_index_alone() -> None:
    together = list(expert.generate(range(4), 5, push_rate=0.02))
    alone = next(expert.generate([2], 5, push_rate=0.02))
    assert together[2] is not None
    assert alone is not None
    for name, values in alone.observations.items():
        np.testing.assert_array_equal(together[2].observations[name], values)
    np.testing.assert_array_equal(together[2].actions, alone.actions)
    assert together[2].metadata == alone.metadata
    other = next(expert.generate([2], 6))
    assert other is not None
    assert (other.observations["position"][0] != alone.observations["position"][0]).any()


@pytest.mark.parametrize("push_rate", [0.0, 0.02])
def test_demonstrations_reach_their_goal_through_free_cells(push_rate: float) -> None:
    for episode in expert.generate(range(6), 0, reach=0.5, push_rate=push_rate):
        assert episode is not None
        walls = maze.stored_layout(episode.metadata)
        assert (walls == layout(episode.metadata["layout_seed"], episode.metadata["size"])).all()
        cells = np.rint(episode.observations["position"]).astype(int)
        assert not walls[cells[:, 0], cells[:, 1]].any()
        assert np.hypot(*(episode.observations["position"][-1] - episode.metadata["goal"])) < 0.5 + 2 * expert.JITTER
        assert expert.SHORTEST_EPISODE <= episode.length <= expert.LONGEST_EPISODE
        assert np.abs(episode.actions).max() <= 1.0


def test_recorded_actions_replay_without_pushes_and_are_the_controllers_with_them() -> None:
    for push_rate in (0.0, 0.05):
        (episode,) = expert.generate([1], 0, push_rate=push_rate)
        assert episode is not None
        facts = episode.metadata
        env = made(layout_seed=facts["layout_seed"], size=facts["size"], start=facts["start"], goal=facts["goal"])
        env.reset(seed=0)
        states = np.concatenate([episode.observations["position"], episode.observations["velocity"]], axis=1)
        env.data.qpos[:], env.data.qvel[:] = np.split(states[0], 2)
        replayed = np.stack([env.advance(action) for action in episode.actions])
        error = np.abs(replayed - states[1:]).max()
        assert error < 1e-2 if push_rate == 0.0 else error > 0.1


@pytest.mark.parametrize("options", [{"reach": 0.0}, {"reach": 2.0}, {"push_rate": 1.0}, {"push_rate": -0.1}])
def test_options_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(SpirlError, match=next(iter(options))):
        next(expert.generate([0], 0, **options))


def test_metadata_without_a_layout_are_refused() -> None:
    with pytest.raises(SpirlError, match="must hold its layout"):
        maze.stored_layout({"layout_seed": 3})
