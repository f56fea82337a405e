"""Environments: what is known about each, and one way to make them.

Any Gymnasium environment can be used by its id (`spirl_ray.envs.adapter`). One that says more of itself than its
spaces do is registered: by ``register_environment``, or by an entry point of the group ``spirl_ray.environments`` whose
name is the environment's id and whose object is an `EnvironmentEntry`, or a class or function that makes it::

    # my_package/reach.py
    ENTRY = EnvironmentEntry(SPEC, "my_package.reach:ReachEnv")

    # pyproject.toml
    [project.entry-points."spirl_ray.environments"]
    "mine/Reach-v0" = "my_package.reach:ENTRY"

The modules that simulate are imported when an environment is made, so this import stays light.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, cast

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec, load_env_creator
from numpy.typing import NDArray
from pydantic import ValidationError

from spirl_ray.arguments import checked_arguments, parameters
from spirl_ray.config_environment import ActionSettings, EnvironmentSettings, InterfaceSettings
from spirl_ray.envs.adapter import MakeRaw, author_error, describe_adapted, import_modules, make_adapted
from spirl_ray.envs.blocks import env as blocks
from spirl_ray.envs.interface import action_range
from spirl_ray.envs.kitchen import env as kitchen
from spirl_ray.envs.maze import env as maze
from spirl_ray.envs.metrics import Scores, undeclared
from spirl_ray.envs.point_pads import env as point_pads
from spirl_ray.envs.spec import EnvironmentSpec, FloorPlan, PositionTarget
from spirl_ray.episodes.features import Feature
from spirl_ray.episodes.recording import KeyLayout
from spirl_ray.errors import SpirlError
from spirl_ray.files.fingerprint import fingerprint
from spirl_ray.registry import Registry, named_function
from spirl_ray.settings import in_words

__all__ = [
    "EnvironmentEntry",
    "EnvironmentSpec",
    "FloorPlan",
    "PositionTarget",
    "constructor_arguments",
    "declared_scores",
    "environment",
    "make",
    "observed_features",
    "register_environment",
    "render_problem",
    "try_out",
]

GROUP = "spirl_ray.environments"
_RENDER_MODE = "render_mode"
"""The argument of a constructor that the program itself passes."""


class EnvironmentEntry(NamedTuple):
    """An entry of the table of environments: the description of an environment, and what makes it."""

    spec: EnvironmentSpec | None
    """None: the environment is described by making it once, as any of Gymnasium's."""
    make: str | Callable[..., gymnasium.Env]
    """A class or function that makes the environment, or its name as "module:Class", which is imported when needed."""


ENVIRONMENTS: Registry[EnvironmentEntry] = Registry("environment", group=GROUP)
_described: dict[str, EnvironmentSpec] = {}
_render_problems: dict[str, str | None] = {}


def register_environment(
    spec: EnvironmentSpec | str, make: str | Callable[..., gymnasium.Env], *, replace: bool = False
) -> None:
    """Adds an environment to this process, and to Gymnasium's own registry.

    Args:
        spec: description of the environment, whose observation space is then a `gymnasium.spaces.Dict` that holds a Box
            of `Feature.observed_shape` for each of ``spec.features``; or its id alone, for any environment.
        make: class or function that makes the environment from keyword arguments.
        replace: True to replace an environment that has this id already.

    Raises:
        SpirlError: another environment has the id, or Gymnasium refuses the id.
    """
    entry = EnvironmentEntry(None, make) if isinstance(spec, str) else EnvironmentEntry(spec, make)
    env_id = spec if isinstance(spec, str) else spec.id
    ENVIRONMENTS.register(env_id, entry, replace=replace)
    limit = None if entry.spec is None else entry.spec.max_episode_steps
    gymnasium.registry[env_id] = _gymnasium_spec(env_id, entry.make, limit)
    for cache in (_described, _render_problems):
        cache.clear()


def environment(env: EnvironmentSettings | str) -> EnvironmentSpec:
    """The description of an environment; one that does not describe itself is made once in each process.

    Args:
        env: settings of the environment, or its id.

    Raises:
        SpirlError: nobody knows the id, the environment cannot be made, or it cannot be used; the message says what to
            write.
    """
    settings = _settings(env)
    spec, create = _registered(settings)
    if spec is not None:
        return _declared(spec, settings)
    key = fingerprint(settings)
    if key not in _described:
        _described[key] = describe_adapted(settings, create)
    return _described[key]


def declared_scores(env: EnvironmentSettings | str) -> Scores:
    """The metrics of an environment's episodes, and the score among them.

    Raises:
        SpirlError: as `environment`, or the environment refuses an argument.
    """
    settings = _settings(env)
    metrics = environment(settings).metrics
    if metrics is None:
        return undeclared()
    return metrics(constructor_arguments(settings))


def constructor_arguments(env: EnvironmentSettings) -> dict[str, Any]:
    """The arguments of an environment's constructor; one that is registered with its features has checked them.

    Raises:
        SpirlError: the environment refuses an argument.
    """
    declared, create = _registered(env)
    return dict(env.kwargs) if declared is None or create is None else _arguments(env, create)


def _declared(spec: EnvironmentSpec, settings: EnvironmentSettings) -> EnvironmentSpec:
    """The description of a registered environment, with the time limit and the range of actions of the settings."""
    own = settings.interface.model_copy(update={"imports": (), "action": ActionSettings()})
    if spec.judge is None and own.judge is not None:
        spec = replace(spec, judge=named_function(own.judge, "interface.judge"))
        own = own.model_copy(update={"judge": None})
    if own != InterfaceSettings():
        changed = [name for name, value in own if value != getattr(InterfaceSettings(), name)]
        raise SpirlError(
            f"interface.{changed[0]}: {settings.id} says this itself, being registered with its features. Leave it out."
        )
    actions = settings.interface.action
    if actions != ActionSettings():
        box = KeyLayout((spec.action_dim,), np.dtype(np.float32))
        spec = replace(spec, actions=action_range(box, *_ends(spec), actions, spec.id))
    limit = settings.max_episode_steps
    return spec if limit is None else replace(spec, max_episode_steps=limit)


def _ends(spec: EnvironmentSpec) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The least and the greatest actions in the environment's own units."""
    ones = np.ones(spec.action_dim)
    return (-ones, ones) if spec.actions is None else (np.array(spec.actions.low), np.array(spec.actions.high))


def make(env: EnvironmentSettings | str, *, render_mode: str | None = None, **kwargs: Any) -> gymnasium.Env:
    """Makes an environment, wrapped in its time limit: observations are features by name, actions are in [-1, 1].

    Args:
        env: settings of the environment, or its id.
        render_mode: render mode, such as ``rgb_array``.
        kwargs: arguments of the constructor, for an id.

    Raises:
        SpirlError: the id is unknown, the environment does not take an argument, or it refuses a value.
    """
    settings = _settings(env, kwargs)
    declared, create = _registered(settings)
    if declared is None or create is None:
        return make_adapted(settings, create, render_mode)
    spec = _declared(declared, settings)
    shown: dict[str, Any] = {} if render_mode is None else {_RENDER_MODE: render_mode}
    made = gymnasium.make(
        _gymnasium_spec(spec.id, create, spec.max_episode_steps),
        disable_env_checker=True,
        **_arguments(settings, create),
        **shown,
    )
    return made if spec.actions is None else _OwnUnits(made, spec)


def try_out(env: EnvironmentSettings | str) -> None:
    """Makes an environment, resets it and takes a step, so that what fails does so before any work.

    Raises:
        SpirlError: as `make`, or the environment raises an exception.
    """
    settings = _settings(env)
    made = make(settings)
    try:
        made.reset(seed=0)
        made.step(np.zeros(made.action_space.shape or (), np.float32))
    except SpirlError:
        raise
    except Exception as error:
        raise author_error(f"env: {settings.id} fails in its first step", error) from error
    finally:
        made.close()


class _OwnUnits(gymnasium.ActionWrapper):
    """An environment that takes actions in [-1, 1] in place of its own units."""

    def __init__(self, env: gymnasium.Env, spec: EnvironmentSpec) -> None:
        super().__init__(env)
        assert isinstance(env.action_space, spaces.Box)
        self._box, self._range = env.action_space, spec.actions
        self.action_space = spaces.Box(-1.0, 1.0, (spec.action_dim,), np.float32)

    def action(self, action: NDArray[np.float32]) -> NDArray[Any]:
        assert self._range is not None
        return np.clip(self._range.restored(action), self._box.low, self._box.high).astype(self._box.dtype)


def render_problem(env: EnvironmentSettings | str) -> str | None:
    """Why an environment cannot be rendered; None where it can. One that does not say so itself renders an image once.

    Raises:
        SpirlError: the id is unknown.
    """
    settings = _settings(env)
    key = fingerprint(settings)
    if key not in _render_problems:
        spec, create = _registered(settings)
        if spec is None or create is None:
            _render_problems[key] = _problem_of_adapted(settings, create)
        else:
            _render_problems[key] = _declared_problem(create)
    return _render_problems[key]


def _declared_problem(creator: Callable[..., gymnasium.Env]) -> str | None:
    known, takes_any = parameters(creator)
    modes = (getattr(creator, "metadata", None) or {}).get("render_modes")
    if _RENDER_MODE not in known and not takes_any:
        return "it takes no render_mode"
    return None if modes is None or "rgb_array" in modes else "rgb_array is not among its render modes"


def _problem_of_adapted(settings: EnvironmentSettings, create: MakeRaw | None) -> str | None:
    try:
        made = make_adapted(settings, create, "rgb_array")
        try:
            made.reset(seed=0)
            image: object = made.render()
        finally:
            made.close()
    except Exception as error:  # whatever somebody else's renderer raises, such as a missing OpenGL
        return f"{type(error).__name__}: {error}".strip()
    return None if isinstance(image, np.ndarray) and image.ndim == 3 else "render() gives no image"


def observed_features(env: gymnasium.Env, spec: EnvironmentSpec) -> dict[str, Feature]:
    """The features of the observations of a made environment: those of its spec, with the shapes of its own spaces.

    For instance, a set of objects may have more of them than in the data.

    Args:
        env: the made environment.
        spec: its description.

    Raises:
        SpirlError: a declared feature is missing from the observation space, or has another rank, dtype or number of
            frames there.
    """
    found = env.observation_space
    if not isinstance(found, spaces.Dict):
        raise SpirlError(f"{spec.id}: the observation space must be a Dict of features, not {found}")
    return {name: _observed(spec.id, name, f, found) for name, f in spec.features.items()}


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
        raise SpirlError(f"{env_id}: the space of the feature {name!r}: {in_words(error.errors()[0])}") from error


def _registered(settings: EnvironmentSettings) -> tuple[EnvironmentSpec | None, MakeRaw | None]:
    """The description of an environment and what makes it, as far as they are registered with us."""
    import_modules(settings.interface)
    entry = _entry(settings)
    return (None, None) if entry is None else (entry.spec, _creator(entry))


def _creator(entry: EnvironmentEntry) -> MakeRaw:
    return cast("MakeRaw", load_env_creator(entry.make) if isinstance(entry.make, str) else entry.make)


def _arguments(settings: EnvironmentSettings, create: MakeRaw) -> dict[str, Any]:
    """The checked arguments of an environment that is registered with its features."""
    return checked_arguments(create, settings.kwargs, f"env.kwargs: {settings.id}", apart=(_RENDER_MODE,))


def _settings(env: EnvironmentSettings | str, kwargs: dict[str, Any] | None = None) -> EnvironmentSettings:
    if isinstance(env, EnvironmentSettings):
        if kwargs:
            raise TypeError(f"the settings of {env.id} hold the arguments of its constructor already")
        return env
    return EnvironmentSettings(id=env, kwargs=kwargs or {})


def _entry(settings: EnvironmentSettings) -> EnvironmentEntry | None:
    """The entry of an id; None where it is not registered with us, so that Gymnasium or an import must know it."""
    if settings.id is None:
        raise SpirlError(
            "env.id is missing: without an environment, there are data alone. Name a Gymnasium id, module:Id, or "
            "package.module:callable."
        )
    if settings.id not in ENVIRONMENTS:
        return None
    found: object = ENVIRONMENTS[settings.id]
    if isinstance(found, EnvironmentEntry):
        if found.spec is None or found.spec.id == settings.id:
            return found
    elif callable(found):
        return EnvironmentEntry(None, cast("Callable[..., gymnasium.Env]", found))
    raise SpirlError(
        f"The entry point {settings.id!r} of {GROUP} must be a class or function that makes the environment, or an "
        f"EnvironmentEntry whose spec has that id, not {found!r}."
    )


def _gymnasium_spec(env_id: str, make: str | MakeRaw, limit: int | None) -> EnvSpec:
    """The spec with which Gymnasium makes the environment, its time limit included."""
    try:
        return EnvSpec(env_id, entry_point=make, max_episode_steps=limit)
    except gymnasium.error.Error as error:
        raise SpirlError(f"{env_id!r} is not an environment id that Gymnasium accepts: {error}") from error


register_environment(blocks.SPEC, "spirl_ray.envs.blocks.env:BlockStackingEnv")
register_environment(kitchen.SPEC, "spirl_ray.envs.kitchen.env:KitchenEnv")
register_environment(maze.SPEC, "spirl_ray.envs.maze.env:MazeEnv")
register_environment(point_pads.SPEC, "spirl_ray.envs.point_pads.env:PointPadsEnv")
