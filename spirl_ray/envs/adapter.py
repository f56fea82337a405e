"""Any Gymnasium environment with continuous actions: found by its name, described by looking at it, and wrapped."""

from __future__ import annotations

import importlib
import math
import pkgutil
import random
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from spirl_ray.config_environment import EnvironmentSettings, InterfaceSettings
from spirl_ray.envs.exits import exits_are_errors
from spirl_ray.envs.interface import (
    action_range,
    choose_features,
    key_layouts,
    position_target,
)
from spirl_ray.envs.metrics import Scores, adapted_scores
from spirl_ray.envs.observer import Observer, command_of
from spirl_ray.envs.offscreen import choose_backend
from spirl_ray.envs.spec import EnvironmentSpec, observation_space
from spirl_ray.envs.success import SuccessDetector
from spirl_ray.episodes.features import Array
from spirl_ray.episodes.recording import KeyLayout
from spirl_ray.errors import SpirlError
from spirl_ray.registry import named_function

_LIMITS = ("_max_episode_steps", "max_episode_steps")
"""Where wrappers and environments keep their time limit."""
MakeRaw = Callable[..., gymnasium.Env]
"""A function from keyword arguments, ``render_mode`` among them if images are wanted, to an environment."""


def describe_adapted(settings: EnvironmentSettings, create: MakeRaw | None = None) -> EnvironmentSpec:
    """Describes an environment by making it once.

    Args:
        settings: how it is made and read.
        create: what makes it; None looks for ``settings.id``.

    Raises:
        SpirlError: it cannot be made, or its observations or actions cannot be used; the message says what to write.
    """
    made = make_raw(settings, create)
    try:
        return _described(settings, made)
    finally:
        made.close()


def make_adapted(
    settings: EnvironmentSettings, create: MakeRaw | None = None, render_mode: str | None = None
) -> gymnasium.Env:
    """Makes an environment whose observations are features, and whose actions are in [-1, 1].

    Raises:
        SpirlError: as `describe_adapted`.
    """
    made = make_raw(settings, create, render_mode)
    return AdaptedEnv(made, settings)


def make_raw(
    settings: EnvironmentSettings, create: MakeRaw | None = None, render_mode: str | None = None
) -> gymnasium.Env:
    """Makes the environment as its author wrote it.

    Raises:
        SpirlError: nobody knows the id, its module cannot be imported, or its constructor fails.
    """
    choose_backend()
    import_modules(settings.interface)
    create = create or _creator(settings)
    shown = {} if render_mode is None else {"render_mode": render_mode}
    try:
        with exits_are_errors():
            made = create(**settings.kwargs, **shown)
    except Exception as error:
        raise _constructor_failed(settings, error) from error
    if not isinstance(made, gymnasium.Env):
        raise SpirlError(f"env.id: {settings.id} made {type(made).__name__}, which is not a gymnasium.Env.")
    return made


def import_modules(interface: InterfaceSettings) -> None:
    """Imports the modules that register environments with Gymnasium.

    Raises:
        SpirlError: a module cannot be imported in this process; the message names it.
    """
    for module in interface.imports:
        try:
            with exits_are_errors():
                importlib.import_module(module)
        except Exception as error:
            raise SpirlError(
                f"interface.imports: {module!r} cannot be imported here: {type(error).__name__}: {error}. Install it, "
                "or name the folder of your own code in submit.ship."
            ) from error


def _creator(settings: EnvironmentSettings) -> MakeRaw:
    """Finds what makes the environment: ``module:callable``, or an id of Gymnasium."""
    name = settings.id or ""
    module, colon, attribute = name.rpartition(":")
    if colon:
        try:
            with exits_are_errors():
                importlib.import_module(module)
        except Exception as error:
            raise SpirlError(
                f"env.id: {name}: the module {module!r} cannot be imported: {type(error).__name__}: {error}. Install "
                "its package, or name the folder of your own code in submit.ship: [./folder]."
            ) from error
        try:
            found = pkgutil.resolve_name(f"{module}:{attribute}")
        except (AttributeError, ValueError, ImportError):
            found = None
        if callable(found):
            return found
    limit = {} if settings.max_episode_steps is None else {"max_episode_steps": settings.max_episode_steps}
    return partial(gymnasium.make, attribute if colon else name, disable_env_checker=True, **limit)


def _constructor_failed(settings: EnvironmentSettings, error: Exception) -> SpirlError:
    if isinstance(error, gymnasium.error.UnregisteredEnv):
        return SpirlError(
            f"env.id: nobody has registered the environment {settings.id!r} ({error}). Name the module that registers "
            "it, as module:Id or in interface.imports, or a callable as package.module:callable. Our own are "
            "spirl/Kitchen-v0, spirl/Maze-v0, spirl/BlockStacking-v0 and spirl/PointPads-v0."
        )
    arguments = ", ".join(f"{name}={value!r}" for name, value in settings.kwargs.items())
    return author_error(f"env: {settings.id} cannot be made with ({arguments})", error)


def author_error(what: str, error: Exception) -> SpirlError:
    """The error about code that somebody else wrote: its last line, and a file with the whole traceback."""
    with tempfile.NamedTemporaryFile("w", prefix="spirl-traceback-", suffix=".txt", delete=False) as file:
        file.write("".join(traceback.format_exception(error)))
    last = traceback.extract_tb(error.__traceback__)[-1]
    return SpirlError(
        f"{what}: {type(error).__name__}: {error} ({Path(last.filename).name}, line {last.lineno}; the whole traceback "
        f"is in {file.name}). Correct env.kwargs, or the code of the environment."
    )


def _described(settings: EnvironmentSettings, made: gymnasium.Env) -> EnvironmentSpec:
    where = str(settings.id)
    readers = choose_features(key_layouts(made.observation_space), settings.interface, where)
    features = {name: reader.feature for name, reader in readers.items()}
    box = made.action_space
    if not isinstance(box, spaces.Box):
        raise SpirlError(
            f"{where}: its actions are {box}; skills are sequences of continuous actions, so a Box is needed. Wrap the "
            "environment, and name the wrapper as package.module:callable."
        )
    layout = KeyLayout(box.shape, np.dtype(box.dtype))
    actions = action_range(layout, box.low, box.high, settings.interface.action, where)
    action_dim = math.prod(box.shape)
    scores = adapted_scores(subtasks=settings.interface.completed is not None)
    return EnvironmentSpec(
        id=where,
        features=features,
        action_dim=action_dim,
        actions=actions,
        max_episode_steps=_time_limit(settings, made),
        metrics=partial(_always, scores),
        position_target=position_target(settings.interface, features, action_dim),
        keys={name: reader.key for name, reader in readers.items()},
        judge=named_function(settings.interface.judge, "interface.judge"),
    )


def _always(scores: Scores, kwargs: Mapping[str, Any]) -> Scores:
    return scores


def _time_limit(settings: EnvironmentSettings, made: gymnasium.Env) -> int:
    own = None if made.spec is None else made.spec.max_episode_steps
    candidates = (
        settings.max_episode_steps,
        own,
        *(made.get_wrapper_attr(name) for name in _LIMITS if made.has_wrapper_attr(name)),
    )
    for limit in candidates:
        if isinstance(limit, int) and limit > 0:
            return limit
    raise SpirlError(
        f"{settings.id} has no time limit, so an episode might never end. Set env.max_episode_steps, such as 1000 "
        "(spirl init: --max-episode-steps 1000)."
    )


class AdaptedEnv(gymnasium.Wrapper[dict[str, Array], NDArray[np.float32], Any, Any]):
    """An environment whose observations are features by name, and whose actions are in [-1, 1].

    ``info["success"]`` is True from the first step with success on, ``info["success_now"]`` in steps with success;
    both are missing where nothing says success.

    Args:
        env: environment as its author wrote it.
        settings: how it is read.

    Raises:
        SpirlError: its spaces do not fit the settings.
    """

    def __init__(self, env: gymnasium.Env, settings: EnvironmentSettings) -> None:
        super().__init__(env)
        described = _described(settings, env)
        readers = choose_features(key_layouts(env.observation_space), settings.interface, str(settings.id))
        self._where = str(settings.id)
        self._observer = Observer(env.observation_space, readers, described.max_episode_steps, self._where)
        assert isinstance(env.action_space, spaces.Box)
        self._box, self._actions = env.action_space, described.actions
        self.observation_space = observation_space(described.features)
        self.action_space = spaces.Box(-1.0, 1.0, (described.action_dim,), np.float32)
        self._success = SuccessDetector(settings.interface, str(settings.id))
        self._reward = settings.interface.reward
        self._completed = named_function(settings.interface.completed, "interface.completed")
        self._return, self._succeeded = 0.0, False
        self.info_keys: dict[str, None] = {}
        """The keys that the infos of the environment have had so far."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Array], dict[str, Any]]:
        if seed is not None:
            # Some environments draw from the global generators.
            np.random.seed(seed % 2**32)
            random.seed(seed)
        with self._blamed():
            given = self.env.reset(seed=seed, options=options)
        observation, info = self._observer.begin(given)
        self._return, self._succeeded = 0.0, False
        self._success.begin()
        return observation, self._told(info, None, judged=False)

    def step(self, action: NDArray[np.float32]) -> tuple[dict[str, Array], float, bool, bool, dict[str, Any]]:
        wanted = np.asarray(action, np.float64)
        if self._actions is not None:
            wanted = self._actions.restored(wanted)
        command = command_of(wanted, self._box)
        with self._blamed():
            given = self.env.step(command)
        observation, reward, terminated, truncated, info = self._observer.step(given)
        self._return += reward
        now = self._success(info, terminated, self._return, ended=terminated or truncated)
        self._succeeded |= bool(now)
        if self._reward != "env":
            reward = float(bool(now)) - (1.0 if self._reward == "success - 1" else 0.0)
        return observation, reward, terminated, truncated, self._told(info, now)

    def render(self) -> Any:
        """Renders the environment; as ``rgb_array`` it gives uint8 [height, width, 3], of which videos are made.

        Raises:
            SpirlError: it is of another type or shape.
        """
        with self._blamed():
            image: Any = self.env.render()
        if self.render_mode == "rgb_array" and not _is_frame(image):
            told = f"{image.dtype} {list(image.shape)}" if isinstance(image, np.ndarray) else type(image).__name__
            raise SpirlError(f"render() of {self._where} gives {told}; a frame of a video is uint8 [height, width, 3].")
        return image

    @contextmanager
    def _blamed(self) -> Iterator[None]:
        """Names the environment in whatever its own code raises, wherever it runs."""
        try:
            with exits_are_errors():
                yield
        except SpirlError:
            raise
        except Exception as error:
            raise author_error(f"env: {self._where} fails while it runs", error) from error

    def _told(self, info: dict[str, Any], now: bool | None, *, judged: bool = True) -> dict[str, Any]:
        self.info_keys |= dict.fromkeys(map(str, info))
        for key in ("success", "is_success"):
            info.pop(key, None)
        if now is not None:
            info |= {"success": self._succeeded, "success_now": now}
        if self._completed is not None and judged:  # the info of a reset may lack what the function reads
            with self._blamed():
                info["completed"] = [str(name) for name in self._completed(info)]
        return info


def _is_frame(image: Any) -> bool:
    return isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
