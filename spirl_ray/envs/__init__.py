"""Environments of the project: one flat interface, registered with gymnasium when this package is imported.

The modules that simulate are imported when an environment is made, so this import stays light.
"""

from __future__ import annotations

import inspect
from typing import Any

import gymnasium
from gymnasium.envs.registration import load_env_creator

from spirl_ray.envs.blocks import env as blocks
from spirl_ray.envs.kitchen import env as kitchen
from spirl_ray.envs.maze import env as maze
from spirl_ray.envs.point_pads import env as point_pads
from spirl_ray.envs.spec import EnvironmentSpec, FloorPlan, PositionTarget, ViewSpec
from spirl_ray.errors import SpirlError

__all__ = [
    "EnvironmentSpec",
    "FloorPlan",
    "PositionTarget",
    "ViewSpec",
    "environment",
    "episode_limit",
    "make",
    "observation_dim",
    "state_dim",
]

_ENTRY_POINTS = {
    blocks.SPEC: "spirl_ray.envs.blocks.env:BlockStackingEnv",
    kitchen.SPEC: "spirl_ray.envs.kitchen.env:KitchenEnv",
    maze.SPEC: "spirl_ray.envs.maze.env:MazeEnv",
    point_pads.SPEC: "spirl_ray.envs.point_pads.env:PointPadsEnv",
}
_SPECS = {spec.id: spec for spec in _ENTRY_POINTS}

for _spec, _entry_point in _ENTRY_POINTS.items():
    if _spec.id not in gymnasium.registry:
        gymnasium.register(_spec.id, entry_point=_entry_point, max_episode_steps=_spec.max_episode_steps)


def environment(env_id: str) -> EnvironmentSpec:
    """The facts about an environment id; raises `SpirlError` for an id that the project does not ship."""
    if env_id not in _SPECS:
        raise SpirlError(f"unknown environment {env_id!r}; known environments: {', '.join(sorted(_SPECS))}")
    return _SPECS[env_id]


def make(env_id: str, **kwargs: Any) -> gymnasium.Env:
    """The environment, wrapped in its time limit; ``kwargs`` go to its constructor.

    Raises:
        SpirlError: unknown id, an argument that the environment does not take, or a value that it refuses.
    """
    entry_point = _ENTRY_POINTS[environment(env_id)]
    accepted = set(inspect.signature(load_env_creator(entry_point)).parameters) | {"max_episode_steps"}
    unknown = sorted(set(kwargs) - accepted)
    if unknown:
        raise SpirlError(
            f"{env_id} takes no argument {', '.join(map(repr, unknown))}; it takes {', '.join(sorted(accepted))}"
        )
    return gymnasium.make(env_id, disable_env_checker=True, **kwargs)


def episode_limit(env: gymnasium.Env) -> int:
    """Primitive steps after which a made environment ends its episode; its constructor's arguments can change it."""
    assert env.spec is not None  # `make` gives one to whatever it makes
    return env.spec.max_episode_steps or environment(env.spec.id).max_episode_steps


def observation_dim(env: gymnasium.Env) -> int:
    """O: leading entries of a made environment's observations that networks may see, state and pixels.

    Raises:
        SpirlError: the environment has been made without the frames that its facts promise.
    """
    assert env.spec is not None
    facts = environment(env.spec.id)
    if facts.view is None:
        return facts.state_dim
    assert env.observation_space.shape is not None
    size = env.observation_space.shape[0]
    if size <= facts.view.pixels:
        raise SpirlError(f"{facts.id} has been made without its camera, but its frames are needed here")
    return size


def state_dim(env: gymnasium.Env) -> int:
    """S of a made environment; its constructor's arguments can change it where there is a view."""
    assert env.spec is not None
    view = environment(env.spec.id).view
    return observation_dim(env) - (view.pixels if view is not None else 0)
