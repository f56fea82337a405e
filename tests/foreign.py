"""Environments as their authors write them, who have never heard of this package: plain Gymnasium, nothing registered
with us. Each stands for a way in which environments differ."""

from __future__ import annotations

import sys
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

STEPS = 15


class Drift(gymnasium.Env[Any, Any]):
    """A point of four numbers, moved by two motors whose commands are from -1 to 3 and from -5 to 5."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 - gymnasium declares it so
    max_episode_steps = STEPS

    def __init__(self, success_key: str | None = "success", **kwargs: Any) -> None:
        self.render_mode = kwargs.pop("render_mode", None)
        if kwargs:
            raise TypeError(f"Drift takes no {', '.join(kwargs)}")
        self.success_key = success_key
        self.observation_space: spaces.Space[Any] = spaces.Box(-np.inf, np.inf, (4,), np.float64)
        self.action_space: spaces.Space[Any] = spaces.Box(
            np.array([-1.0, -5.0]), np.array([3.0, 5.0]), dtype=np.float64
        )
        self.commands: list[NDArray[np.float64]] = []
        self.state = np.zeros(4)
        self.elapsed = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.state = self.np_random.uniform(-1.0, 1.0, 4)
        self.elapsed = 0
        return self.observed(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        self.commands.append(np.array(action))
        self.state = self.state + 0.01 * np.concatenate([action, -action])
        self.elapsed += 1
        # Success comes and goes: in steps 3 and 4 alone.
        info = {} if self.success_key is None else {self.success_key: self.elapsed in (3, 4)}
        return self.observed(), -0.5, False, self.elapsed >= STEPS, info

    def observed(self) -> Any:
        return self.state.copy()

    def render(self) -> Any:
        return np.full((32, 32, 3), self.elapsed, np.uint8)


class Nested(Drift):
    """Observations in nested dictionaries, with a goal, a number of kinds, a text and a camera with channels first."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(success_key="is_success", **kwargs)
        self.observation_space = spaces.Dict(
            {
                "arm": spaces.Dict({"joints": spaces.Box(-9, 9, (2, 2), np.float32), "grip": spaces.Discrete(3)}),
                "achieved_goal": spaces.Box(-9, 9, (2,), np.float64),
                "desired_goal": spaces.Box(-9, 9, (2,), np.float64),
                "camera": spaces.Box(0, 255, (3, 120, 160), np.uint8),
                "said": spaces.Text(9),
            }
        )

    def observed(self) -> Any:
        return {
            "arm": {"joints": self.state.reshape(2, 2).astype(np.float32), "grip": self.elapsed % 3},
            "achieved_goal": self.state[:2],
            "desired_goal": np.array([0.5, -0.5]),
            "camera": np.full((3, 120, 160), 10 + self.elapsed, np.uint8),
            "said": "hello",
        }


class Boundless(Drift):
    """No range of actions."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.action_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)


class Endless(Drift):
    """No time limit."""

    max_episode_steps = None  # type: ignore[assignment]

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observed, reward, terminated, _, info = super().step(action)
        return observed, reward, terminated, False, info


class Buttons(Drift):
    """Discrete actions."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.action_space = spaces.Discrete(4)


class Broken(Drift):
    """Raises in its first step."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        raise RuntimeError("motor 2 is on fire")


class Unseeded(Drift):
    """Draws from NumPy's global generator."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.state = np.random.uniform(-1.0, 1.0, 4)
        return self.observed(), {}


class Random(Drift):
    """Follows no seed at all."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.state, self.elapsed = np.random.default_rng().uniform(-1.0, 1.0, 4), 0
        return self.observed(), {}


class FloatImages(Drift):
    """Images of numbers from 0 to 1, in observations and in what it renders; and a small matrix, which is none."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.observation_space = spaces.Dict(
            {
                "rgb": spaces.Box(0.0, 1.0, (16, 16, 3), np.float32),
                "grey": spaces.Box(0, 255, (24, 16), np.uint8),
                "pose": spaces.Box(-9, 9, (4, 4), np.float32),
            }
        )

    def observed(self) -> Any:
        return {name: np.zeros(space.shape, space.dtype) for name, space in self.observation_space.items()}  # type: ignore[attr-defined]

    def render(self) -> Any:
        return np.zeros((32, 32, 3))


class Leaver(Drift):
    """Ends the process: in its constructor, in its first step, or where it renders."""

    def __init__(self, where: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.where = where
        if where == "constructor":
            sys.exit("no licence")

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self.where == "step":
            sys.exit(3)
        return super().step(action)

    def render(self) -> Any:
        sys.exit(0)


def make_drift(length: int = STEPS) -> gymnasium.Env[Any, Any]:
    """A function that makes an environment."""
    return gymnasium.wrappers.TimeLimit(Endless(), length)


def not_an_environment() -> str:
    return "hello"


def completed(info: dict[str, Any]) -> list[str]:
    return ["reached"] if info["success"] else []


gymnasium.register("Foreign/Drift-v0", entry_point=Drift, max_episode_steps=STEPS)
