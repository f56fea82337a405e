"""Play of the oracles of OGBench's cube and scene environments (Park et al. 2025).

    pip install -e '.[ogbench]' -c constraints.txt
    cd examples/ogbench
    spirl data import cube_single.yaml                     # 1,000 episodes, resumable; or cube_double.yaml, scene.yaml
    spirl run cube_single.yaml --set env.kwargs.reward_task_id=3

The configs name `episodes`. The judge of recorded states is in ``ogbench_judge.py``, because data are imported again
when the file of their function changes. OGBench's own files, such as ``cube-single-play-v0.npz``, hold the same kind of
play, and ``{type: npz, path: …}`` reads them in its place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray
from ogbench.manipspace.oracles.plan.button_plan import ButtonPlanOracle
from ogbench.manipspace.oracles.plan.cube_plan import CubePlanOracle
from ogbench.manipspace.oracles.plan.drawer_plan import DrawerPlanOracle
from ogbench.manipspace.oracles.plan.window_plan import WindowPlanOracle

ORACLES = {
    "cube": CubePlanOracle,
    "button": ButtonPlanOracle,
    "drawer": DrawerPlanOracle,
    "window": WindowPlanOracle,
}
ENVIRONMENTS = {28: "cube-single-v0", 37: "cube-double-v0", 40: "scene-v0"}
"""The environments by the width of their observations."""
ROBOT, CUBE = 19, 9
"""The number of entries of an observation that describe the robot, and each cube."""
CENTRE, SCALE = np.array([0.425, 0.0, 0.0]), 10.0
"""How an observation holds the places of cubes: (place - CENTRE) * SCALE."""
MOST_STACKED = 0.25
"""The largest share of moves that put a cube onto another one; each episode has its own, as in OGBench's data."""
BOUNDS = np.array([[0.05, -0.55, -0.18], [0.8, 0.55, 0.55]])
"""Where a cube can be (m). Outside, the simulation has become unstable."""
OUT_OF_SIGHT, BEHIND, IN_DRAWER = 0.29, -0.3, (0.06, 0.08)
"""In the scene, a cube is out of sight at y (m) above the first, and below the second unless its height is that of the
drawer. OGBench leaves out such episodes."""


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
    places = places_of_cubes(recorded, 2 if environment == "cube-double-v0" else 1)
    if not (np.isfinite(recorded).all() and (places > BOUNDS[0]).all() and (places < BOUNDS[1]).all()):
        return False
    if environment != "scene-v0":
        return True
    side, height = places[..., 1], places[..., 2]
    in_drawer = (height >= IN_DRAWER[0]) & (height <= IN_DRAWER[1])
    return not bool(((side >= OUT_OF_SIGHT) | ((side <= BEHIND) & ~in_drawer)).any())


def places_of_cubes(observations: NDArray[np.floating[Any]], count: int) -> NDArray[np.floating[Any]]:
    """The places of the cubes (m), [N, count, 3]."""
    each = observations[:, ROBOT : ROBOT + CUBE * count].reshape(-1, count, CUBE)
    return each[..., :3] / SCALE + CENTRE
