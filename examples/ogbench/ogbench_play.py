"""OGBench's cube and scene environments (Park et al. 2025): play of their oracles, and the judge of recorded states.

    pip install -e '.[ogbench]' -c constraints.txt
    cd examples/ogbench
    spirl data import cube_single.yaml                     # 1,000 episodes, resumable; or cube_double.yaml, scene.yaml
    spirl run cube_single.yaml --set env.kwargs.reward_task_id=3

The configs name the two functions `episodes` and `judge`. OGBench's own files, such as ``cube-single-play-v0.npz``,
hold the same kind of play, and ``{type: npz, path: …}`` reads them in its place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray
from ogbench.manipspace.oracles.plan.button_plan import ButtonPlanOracle
from ogbench.manipspace.oracles.plan.cube_plan import CubePlanOracle
from ogbench.manipspace.oracles.plan.drawer_plan import DrawerPlanOracle
from ogbench.manipspace.oracles.plan.window_plan import WindowPlanOracle

from spirl_ray.errors import SpirlError

ORACLES = {
    "cube": CubePlanOracle,
    "button": ButtonPlanOracle,
    "drawer": DrawerPlanOracle,
    "window": WindowPlanOracle,
}
ENVIRONMENTS = {28: "cube-single-v0", 37: "cube-double-v0", 40: "scene-v0"}
"""The environments by the width of their observations."""
ROBOT, CUBE, BUTTON = 19, 9, 4
"""The number of entries of an observation that describe the robot, each cube, and each button."""
CENTRE, SCALE, DRAWER_SCALE, WINDOW_SCALE = np.array([0.425, 0.0, 0.0]), 10.0, 18.0, 15.0
"""How an observation holds places: (place - CENTRE) * SCALE, and the drawer's and the window's (m) times theirs."""
TOLERANCE = 0.04
"""The distance (m) from its target at which a cube, the drawer or the window has arrived."""
MOST_STACKED = 0.25
"""The largest share of moves that put a cube onto another one; each episode has its own, as in OGBench's data."""
BOUNDS = np.array([[0.05, -0.55, -0.18], [0.8, 0.55, 0.55]])
"""Where a cube can be (m). Outside, the simulation has become unstable."""
OUT_OF_SIGHT, BEHIND, IN_DRAWER = 0.29, -0.3, (0.06, 0.08)
"""In the scene, a cube is out of sight at y (m) above the first, and below the second unless its height is that of the
drawer. OGBench leaves out such episodes."""


# --- play ---


def episodes(
    indices: Sequence[int], environment: str, rows: int = 1001, noise: float = 0.1
) -> Iterator[dict[str, NDArray[np.float32]]]:
    """Lets the oracles move one thing after another, each to a random place.

    Args:
        indices: the episodes to make; an index is the seed of an episode.
        environment: ``cube-single-v0``, ``cube-double-v0`` or ``scene-v0``.
        rows: the number of observations in an episode, 1001 in OGBench's own data.
        noise: the deviation of the noise on the oracles' plans, 0.1 in OGBench's own data.

    Yields:
        ``observations`` [rows, …] and ``actions`` [rows - 1, 5] in [-1, 1], float32.
    """
    env = gymnasium.make(environment, terminate_at_goal=False, mode="data_collection", max_episode_steps=rows)
    oracles = {name: oracle(env=env, noise=noise) for name, oracle in ORACLES.items()}
    for index in indices:
        found, attempt = None, 0
        while found is None:
            found = _play(env, oracles, rows, seed=1000 * int(index) + attempt)
            attempt += 1
        yield found
    env.close()


def _play(
    env: gymnasium.Env[Any, Any], oracles: Mapping[str, Any], rows: int, seed: int
) -> dict[str, NDArray[np.float32]] | None:
    """One episode; None where the simulation becomes unstable, or a cube of the scene gets out of sight."""
    np.random.seed(seed)  # the environment and the oracles draw from the global generator
    stacks = np.random.uniform(0.0, MOST_STACKED)
    observation, info = env.reset(seed=seed)
    oracle = oracles[info["privileged/target_task"]]
    oracle.reset(observation, info)
    observations, actions = [observation], []
    for _ in range(rows - 1):
        action = np.clip(oracle.select_action(observation, info), -1.0, 1.0)
        observation, _, _, _, info = env.step(action)
        observations.append(observation)
        actions.append(action)
        if oracle.done:
            observation, info = env.unwrapped.set_new_target(p_stack=stacks)  # type: ignore[attr-defined]
            oracle = oracles[info["privileged/target_task"]]
            oracle.reset(observation, info)
    recorded = np.asarray(observations, np.float32)
    if not _is_sound(recorded):
        return None
    return {"observations": recorded, "actions": np.asarray(actions, np.float32)}


def _is_sound(recorded: NDArray[np.float32]) -> bool:
    """False where the simulation has become unstable, or a cube of the scene has got out of sight."""
    environment = ENVIRONMENTS[recorded.shape[1]]
    places = _cubes(recorded, 2 if environment == "cube-double-v0" else 1)
    if not (np.isfinite(recorded).all() and (places > BOUNDS[0]).all() and (places < BOUNDS[1]).all()):
        return False
    if environment != "scene-v0":
        return True
    side, height = places[..., 1], places[..., 2]
    in_drawer = (height >= IN_DRAWER[0]) & (height <= IN_DRAWER[1])
    return not bool(((side >= OUT_OF_SIGHT) | ((side <= BEHIND) & ~in_drawer)).any())


# --- judgement ---


def judge(arguments: Mapping[str, Any], episode: Any) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """The rewards and ends that a task's environment gives to the steps of a recorded episode.

    A step earns minus the number of things that are not in their place *before* it, and ends the task where that is 0.

    Args:
        arguments: ``env.kwargs`` with ``reward_task_id``, 1 to 5.
        episode: the recorded episode.
    """
    [observations] = episode.observations.values()
    done = successes(np.asarray(observations)[:-1], arguments.get("reward_task_id"))
    return (done.sum(-1) - done.shape[-1]).astype(np.float32), np.asarray(done.all(-1))


def successes(observations: NDArray[np.floating[Any]], task: int | None) -> NDArray[np.bool_]:
    """Whether each cube, button, the drawer and the window are as a task wants them, [N, number of things]."""
    goals = _goals(ENVIRONMENTS[observations.shape[1]])
    if task is None or not 1 <= task <= len(goals):
        raise SpirlError(f"env.kwargs.reward_task_id is {task!r}; the tasks are 1 to {len(goals)}.")
    goal = goals[task - 1]
    wanted = goal["block_xyzs"]
    cubes = _cubes(observations, len(wanted))
    found = [np.linalg.norm(cubes - wanted, axis=-1) <= TOLERANCE]
    if "button_states" in goal:
        first = ROBOT + CUBE * len(wanted)
        for number, state in enumerate(goal["button_states"]):
            found.append(observations[:, [first + BUTTON * number + 1]] == state)
        drawer, window = first + BUTTON * len(goal["button_states"]) + np.array([0, 2])
        found.append(np.abs(observations[:, [drawer]] / DRAWER_SCALE - goal["drawer_pos"]) <= TOLERANCE)
        found.append(np.abs(observations[:, [window]] / WINDOW_SCALE - goal["window_pos"]) <= TOLERANCE)
    return np.concatenate(found, axis=-1)


@lru_cache
def _goals(environment: str) -> list[dict[str, Any]]:
    """The goals of an environment's five tasks."""
    env = gymnasium.make(environment)
    goals = [task.get("goal") or {"block_xyzs": task["goal_xyzs"]} for task in env.unwrapped.task_infos]  # type: ignore[attr-defined]
    env.close()
    return goals


def _cubes(observations: NDArray[np.floating[Any]], count: int) -> NDArray[np.floating[Any]]:
    """The places of the cubes (m), [N, count, 3]."""
    each = observations[:, ROBOT : ROBOT + CUBE * count].reshape(-1, count, CUBE)
    return each[..., :3] / SCALE + CENTRE
