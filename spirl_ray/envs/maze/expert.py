"""The scripted expert of the maze: it follows the shortest path through a random layout."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from spirl_ray.arguments import checked
from spirl_ray.envs.maze import layout as maze_layout
from spirl_ray.envs.maze.env import MazeEnv
from spirl_ray.envs.maze.layout import Cell
from spirl_ray.episodes.episode import Episode

GAIN = 10.0  # action for a distance of one cell
JITTER = 0.2  # cells, way-points are moved by U(0, JITTER) along each axis
SHORTEST_EPISODE, LONGEST_EPISODE = 20, 500  # steps
PUSH_STEPS = (3, 12)


@checked
def generate(
    indices: Iterable[int],
    seed: int,
    *,
    size: maze_layout.Size = 20,
    reach: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1,
    push_rate: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0,
) -> Iterator[Episode | None]:
    """Generates demonstrations of the shortest path between two random cells of a random layout, one for each index.

    Args:
        indices: numbers of the episodes.
        seed: seed of the dataset; an episode depends on (seed, index, options) alone.
        size: side of the layouts in cells.
        reach: distance in cells at which the next way-point is taken; 0.1 in the paper's data.
        push_rate: chance, at each step, that a random force replaces the action for 3 to 12 steps. The recorded
            actions are those of the controller, which thereby shows how to recover (after Laskey et al. 2017, DART).

    Yields:
        Episodes whose metadata hold layout (seed, size, bits), start and goal.

    Raises:
        SpirlError: an option out of range.
    """
    for index in indices:
        rng = np.random.default_rng((seed, index))
        yield _demonstration(rng, f"maze-{seed}-{index:06d}", size, reach, push_rate)


def _demonstration(rng: np.random.Generator, name: str, size: int, reach: float, push_rate: float) -> Episode:
    while True:
        layout_seed = int(rng.integers(2**31))
        walls = maze_layout.layout(layout_seed, size)
        cells = maze_layout.free_cells(walls)
        start, goal = ((int(i), int(j)) for i, j in cells[rng.integers(len(cells), size=2)])
        path = maze_layout.shortest_path(walls, start, goal, rng)
        env = MazeEnv(layout_seed, size, start, goal)
        states, actions = _follow(env, path, rng, reach, push_rate)
        if SHORTEST_EPISODE <= len(actions) <= LONGEST_EPISODE:
            break
    bits = np.packbits(walls).tobytes().hex()
    return Episode(
        id=name,
        observations={"position": states[:, :2].copy(), "velocity": states[:, 2:].copy()},
        actions=actions,
        rewards=np.zeros(len(actions), np.float32),
        terminated=False,
        truncated=True,
        metadata={"layout_seed": layout_seed, "size": size, "layout": bits, "start": start, "goal": goal},
    )


def _follow(
    env: MazeEnv, path: Sequence[Cell], rng: np.random.Generator, reach: float, push_rate: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Follows a path; returns positions and velocities [T+1, 4] and the controller's actions [T, 2].

    If it takes too long, the result has one step more than an episode may have.
    """
    env.reset(seed=int(rng.integers(2**31)))
    state = env._state()
    states = [state]
    actions: list[NDArray[np.float32]] = []
    push: NDArray[np.float32] = np.zeros(2, np.float32)
    push_left = 0
    for cell in path[1:]:
        waypoint = cell + rng.uniform(0.0, JITTER, 2)
        while np.hypot(*(waypoint - state[:2])) > reach and len(actions) <= LONGEST_EPISODE:
            wanted = np.clip(GAIN * (waypoint - state[:2]) - state[2:], -1.0, 1.0).astype(np.float32)
            if push_left == 0 and push_rate and rng.random() < push_rate:
                push_left, push = (
                    int(rng.integers(PUSH_STEPS[0], PUSH_STEPS[1] + 1)),
                    rng.uniform(-1.0, 1.0, 2).astype(np.float32),
                )
            state = env.advance(push if push_left else wanted)
            push_left = max(0, push_left - 1)
            states.append(state)
            actions.append(wanted)
    return np.stack(states), np.reshape(np.array(actions, np.float32), (-1, 2))
