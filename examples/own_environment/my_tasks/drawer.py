"""A hand in a plane pulls a drawer open, as far as the goal says: an environment, its recordings and its subtasks.

Nothing here imports spirl_ray. `drawer.yaml` names what is used: the class, the function `episodes`, and the function
`completed`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

HANDLE = np.array([0.6, 0.0])
"""The place of the handle (m) while the drawer is closed; the drawer opens towards smaller x."""
REACH, STEP, TOLERANCE = 0.06, 0.05, 0.04
SIZE = 48


class Drawer(gymnasium.Env[dict[str, NDArray[Any]], NDArray[np.float32]]):
    """A hand [x, y] (m) that moves up to 5 cm a step along each axis, and a gripper that holds the handle where it is
    near.

    Args:
        camera: True adds an image to the observation.
        render_mode: ``rgb_array`` or None.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012

    def __init__(self, camera: bool = False, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self._camera = camera
        box = gymnasium.spaces.Box
        parts: dict[str, gymnasium.Space[Any]] = {
            "hand": box(-1.0, 1.0, (3,), np.float32),  # x, y (m), and 1 where it holds the handle
            "opening": box(0.0, 0.6, (1,), np.float32),  # of the drawer (m)
            "wanted": box(0.0, 0.6, (1,), np.float32),
        }
        if camera:
            parts["pixels"] = box(0, 255, (SIZE, SIZE, 3), np.uint8)
        self.observation_space = gymnasium.spaces.Dict(parts)
        # Metres for the hand, and a gripper that closes above 0.5: not [-1, 1].
        self.action_space = box(np.array([-STEP, -STEP, 0.0], np.float32), np.array([STEP, STEP, 1.0], np.float32))
        self.hand, self.opening, self.wanted = np.zeros(2), 0.0, 0.3
        self.holds = self.grasped = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        super().reset(seed=seed)
        self.hand = self.np_random.uniform([-0.6, -0.5], [0.2, 0.5])
        self.opening, self.holds, self.grasped = 0.0, False, False
        self.wanted = self.np_random.uniform(0.2, 0.5)
        return self._observation(), self._info()

    def step(self, action: NDArray[np.float32]) -> tuple[dict[str, NDArray[Any]], float, bool, bool, dict[str, Any]]:
        near = bool(np.linalg.norm(self.hand - self._handle()) < REACH)
        self.holds = near and float(action[2]) > 0.5
        self.grasped |= self.holds
        moved = np.clip(self.hand + np.clip(action[:2], -STEP, STEP), -1.0, 1.0)
        if self.holds:
            self.opening = float(np.clip(HANDLE[0] - moved[0], 0.0, 0.6))
            moved = self._handle()
        self.hand = moved
        info = self._info()
        return self._observation(), float(info["opened"]), info["opened"], False, info

    def render(self) -> NDArray[np.uint8]:  # type: ignore[override]
        """Draws hand, handle and goal, uint8 [48, 48, 3]."""
        image = np.full((SIZE, SIZE, 3), 255, np.uint8)
        for place, colour in (
            (HANDLE - [self.wanted, 0.0], (0, 160, 0)),
            (self._handle(), (0, 0, 0)),
            (self.hand, (200, 0, 0)),
        ):
            row, column = ((1.0 - place[1]) * SIZE / 2, (1.0 + place[0]) * SIZE / 2)
            top, left = int(np.clip(row - 2, 0, SIZE - 4)), int(np.clip(column - 2, 0, SIZE - 4))
            image[top : top + 4, left : left + 4] = colour
        return image

    def _handle(self) -> NDArray[np.float64]:
        return HANDLE - [self.opening, 0.0]

    def _observation(self) -> dict[str, NDArray[Any]]:
        found: dict[str, NDArray[Any]] = {
            "hand": np.array([*self.hand, self.holds], np.float32),
            "opening": np.array([self.opening], np.float32),
            "wanted": np.array([self.wanted], np.float32),
        }
        return {**found, "pixels": self.render()} if self._camera else found

    def _info(self) -> dict[str, Any]:
        return {"grasped": self.grasped, "opened": bool(abs(self.opening - self.wanted) < TOLERANCE)}


def completed(info: Mapping[str, Any]) -> list[str]:
    """The names of the subtasks that have been completed so far, for ``interface.completed``."""
    return [name for name, done in (("grasp", info["grasped"]), ("open", info["opened"])) if done]


def episodes(indices: Sequence[int], camera: bool = False) -> Iterator[dict[str, Any]]:
    """Gives the recordings with these indices, for an entry of type ``python`` in ``data.sources``.

    They are made here; a function of yours would load them. The hand goes to the handle, holds it, and pulls it to a
    random place, which is not the goal of a task.
    """
    env = Drawer(camera)
    for index in indices:
        rng = np.random.default_rng(index)
        observation, _ = env.reset(seed=int(index))
        aim, observations, actions = rng.uniform(0.1, 0.5), [observation], []
        for _ in range(60):
            far = np.linalg.norm(env.hand - env._handle()) > REACH / 2
            target = env._handle() if far and not env.holds else HANDLE - [aim, 0.0]
            move = np.clip(0.5 * (target - env.hand) + rng.normal(0.0, 0.004, 2), -STEP, STEP)
            action = np.array([*move, float(rng.uniform(0.6, 1.0) if not far else rng.uniform(0.0, 0.4))], np.float32)
            observation, *_ = env.step(action)
            observations.append(observation)
            actions.append(action)
        yield {
            "observations": {key: np.stack([each[key] for each in observations]) for key in observations[0]},
            "actions": np.stack(actions),
        }
