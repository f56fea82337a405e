"""Environments: what is known about each, and one way to make them.

Another package adds an environment by ``register_environment``, or by an entry point of the group
``spirl_ray.environments`` whose name is the environment's id and whose object is an `EnvironmentEntry`::

    # my_package/reach.py
    ENTRY = EnvironmentEntry(SPEC, "my_package.reach:ReachEnv")

    # pyproject.toml
    [project.entry-points."spirl_ray.environments"]
    "mine/Reach-v0" = "my_package.reach:ENTRY"

The modules that simulate are imported when an environment is made, so this import stays light.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec, load_env_creator
from pydantic import ValidationError

from spirl_ray.envs.blocks import env as blocks
from spirl_ray.envs.kitchen import env as kitchen
from spirl_ray.envs.maze import env as maze
from spirl_ray.envs.point_pads import env as point_pads
from spirl_ray.envs.spec import EnvironmentSpec, FloorPlan, PositionTarget
from spirl_ray.episodes.features import Feature
from spirl_ray.errors import SpirlError
from spirl_ray.registry import Registry

__all__ = [
    "EnvironmentEntry",
    "EnvironmentSpec",
    "FloorPlan",
    "PositionTarget",
    "environment",
    "episode_limit",
    "make",
    "observed_features",
    "register_environment",
    "renders",
]

GROUP = "spirl_ray.environments"


class EnvironmentEntry(NamedTuple):
    """An entry of the table of environments: the description of an environment, and what makes it."""

    spec: EnvironmentSpec
    make: str | Callable[..., gymnasium.Env]
    """A class or function that makes the environment, or its name as "module:Class", which is imported when needed."""


ENVIRONMENTS: Registry[EnvironmentEntry] = Registry("environment", group=GROUP)


def register_environment(
    spec: EnvironmentSpec, make: str | Callable[..., gymnasium.Env], *, replace: bool = False
) -> None:
    """Adds an environment to this process, and to Gymnasium's own registry.

    Args:
        spec: description of the environment; its ``id`` is the name in configs, datasets and messages.
        make: class or function that makes the environment from keyword arguments; its observation space is a
            `gymnasium.spaces.Dict` that holds a Box of `Feature.observed_shape` for each of ``spec.features``.
        replace: True to replace an environment that has this id already.

    Raises:
        SpirlError: another environment has the id, or Gymnasium refuses the id.
    """
    entry = ENVIRONMENTS.register(spec.id, EnvironmentEntry(spec, make), replace=replace)
    gymnasium.registry[spec.id] = _gymnasium_spec(entry)


def environment(env_id: str) -> EnvironmentSpec:
    """The description of an environment.

    Raises:
        SpirlError: nobody has registered the id, or the entry point of that name holds something else.
    """
    return _entry(env_id).spec


def make(env_id: str, **kwargs: Any) -> gymnasium.Env:
    """Makes an environment, wrapped in its time limit; ``kwargs`` go to its constructor.

    Raises:
        SpirlError: the id is unknown, the environment does not take an argument, or it refuses a value.
    """
    entry = _entry(env_id)
    parameters, takes_any = _arguments(_creator(entry))
    accepted = parameters | {"max_episode_steps"}
    unknown = sorted(set(kwargs) - accepted)
    if unknown and not takes_any:
        raise SpirlError(
            f"{env_id} takes no argument {', '.join(map(repr, unknown))}; it takes {', '.join(sorted(accepted))}"
        )
    return gymnasium.make(_gymnasium_spec(entry), disable_env_checker=True, **kwargs)


def renders(env_id: str) -> bool:
    """True where an environment can be filmed: it takes ``render_mode``, and rgb_array is not missing from its modes.

    Raises:
        SpirlError: the id is unknown.
    """
    creator = _creator(_entry(env_id))
    parameters, takes_any = _arguments(creator)
    modes = (getattr(creator, "metadata", None) or {}).get("render_modes")
    return ("render_mode" in parameters or takes_any) and (modes is None or "rgb_array" in modes)


def observed_features(env: gymnasium.Env) -> dict[str, Feature]:
    """The features of the observations of a made environment: those of its spec, with the shapes of its own spaces.

    For instance, a set of objects may have more of them than in the data.

    Raises:
        SpirlError: a declared feature is missing from the observation space, or has another rank, dtype or number of
            frames there.
    """
    assert env.spec is not None  # `make` gives one to whatever it makes
    found = env.observation_space
    if not isinstance(found, spaces.Dict):
        raise SpirlError(f"{env.spec.id}: the observation space must be a Dict of features, not {found}")
    return {name: _observed(env.spec.id, name, f, found) for name, f in environment(env.spec.id).features.items()}


def _observed(env_id: str, name: str, feature: Feature, found: spaces.Dict) -> Feature:
    space = found.spaces.get(name)
    if space is None:
        raise SpirlError(
            f"{env_id} has been made without its feature {name!r}; its observations hold {', '.join(found.spaces)}"
        )
    expected = feature.observed_shape
    shape = space.shape if isinstance(space, spaces.Box) else None
    fits = shape is not None and len(shape) == len(expected) and space.dtype == feature.dtype
    if shape is None or not fits or (feature.is_image and shape[0] != feature.frames):
        kind = np.dtype(feature.dtype).name
        raise SpirlError(
            f"{env_id}: the feature {name!r} is declared as {kind} {list(expected)}, but its space is {space}"
        )
    own = shape[1:] if feature.is_image else shape
    try:
        return Feature.model_validate({**feature.model_dump(), "shape": own})
    except ValidationError as error:
        raise SpirlError(f"{env_id}: the space of the feature {name!r}: {error.errors()[0]['msg']}") from error


def episode_limit(env: gymnasium.Env) -> int:
    """The number of primitive steps after which an environment ends its episode; its arguments may change it."""
    assert env.spec is not None
    return env.spec.max_episode_steps or environment(env.spec.id).max_episode_steps


def _creator(entry: EnvironmentEntry) -> Callable[..., gymnasium.Env]:
    found = load_env_creator(entry.make) if isinstance(entry.make, str) else entry.make
    return cast("Callable[..., gymnasium.Env]", found)


def _arguments(creator: Callable[..., gymnasium.Env]) -> tuple[set[str], bool]:
    """The names of what a maker takes, and True where it takes any other name as well."""
    parameters = inspect.signature(creator).parameters
    return set(parameters), any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())


def _entry(env_id: str) -> EnvironmentEntry:
    found: object = ENVIRONMENTS[env_id]
    if not isinstance(found, EnvironmentEntry) or found.spec.id != env_id:
        raise SpirlError(
            f"The entry point {env_id!r} of {GROUP} must be an EnvironmentEntry whose spec has that id, not {found!r}."
        )
    return found


def _gymnasium_spec(entry: EnvironmentEntry) -> EnvSpec:
    """The spec with which Gymnasium makes the environment, its time limit included."""
    try:
        return EnvSpec(entry.spec.id, entry_point=entry.make, max_episode_steps=entry.spec.max_episode_steps)
    except gymnasium.error.Error as error:
        raise SpirlError(f"{entry.spec.id!r} is not an environment id that Gymnasium accepts: {error}") from error


register_environment(blocks.SPEC, "spirl_ray.envs.blocks.env:BlockStackingEnv")
register_environment(kitchen.SPEC, "spirl_ray.envs.kitchen.env:KitchenEnv")
register_environment(maze.SPEC, "spirl_ray.envs.maze.env:MazeEnv")
register_environment(point_pads.SPEC, "spirl_ray.envs.point_pads.env:PointPadsEnv")
