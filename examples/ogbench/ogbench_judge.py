"""The judge of recorded states: the rewards of OGBench's cube and scene tasks (Park et al. 2025).

The configs name `judge`; see ``ogbench_play.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray
from ogbench_play import CUBE, ENVIRONMENTS, ROBOT, places_of_cubes

from spirl_ray.errors import SpirlError

BUTTON = 4
"""The number of entries of an observation that describe a button."""
DRAWER_SCALE, WINDOW_SCALE = 18.0, 15.0
"""An observation holds the places of drawer and window (m) times these."""
TOLERANCE = 0.04
"""The distance (m) from its target at which a cube, the drawer or the window has arrived."""


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
    distances = np.linalg.norm(places_of_cubes(observations, len(wanted)) - wanted, axis=-1)
    found = [distances <= TOLERANCE]
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
