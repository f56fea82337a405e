"""Any Gymnasium environment with continuous actions: found by its name, described by looking at it, and wrapped."""

from __future__ import annotations

import importlib
import math
import pkgutil
import random
import re
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
from spirl_ray.episodes.features import Array
from spirl_ray.episodes.recording import NUMBERS, KeyLayout
from spirl_ray.errors import SpirlError

SUCCESS_KEYS = ("success", "is_success", "goal_achieved")
"""The keys of info in which environments say success, in the order in which they are looked for."""
_LIMITS = ("_max_episode_steps", "max_episode_steps")
"""Where wrappers and environments keep their time limit."""
_RETURN = re.compile(r"return\s*(>=|>|<=|<)\s*([-+0-9.eE]+)")
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">=": lambda a, b: a >= b,
    ">": lambda a, b: a > b,
    "<=": lambda a, b: a <= b,
    "<": lambda a, b: a < b,
}
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
        f"{settings.id} has no time limit, so an episode might never end. Set env.max_episode_steps, such as 1000."
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
        self._judge = SuccessJudge(settings.interface, str(settings.id))
        self._reward = settings.interface.reward
        self._completed = _function(settings.interface.completed, "interface.completed")
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
        self._judge.begin()
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
        now = self._judge(info, terminated, self._return, ended=terminated or truncated)
        self._succeeded |= bool(now)
        if self._reward != "env":
            reward = float(bool(now)) - (1.0 if self._reward == "success - 1" else 0.0)
        return observation, reward, terminated, truncated, self._told(info, now)

    @contextmanager
    def _blamed(self) -> Iterator[None]:
        """Names the environment in whatever its own code raises, wherever it runs."""
        try:
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
            info["completed"] = [str(name) for name in self._completed(info)]
        return info


class SuccessJudge:
    """What says success in a step, after `InterfaceSettings.success`.

    Args:
        settings: interface whose ``success`` is read.
        where: whose interface it is, for messages.

    Raises:
        SpirlError: ``success`` cannot be read, or a reward asks for a success that nothing says.
    """

    def __init__(self, settings: InterfaceSettings, where: str) -> None:
        self.text = settings.success
        self.where = where
        self._compare: Callable[[float], bool] | None = None
        self._key: str | None = None
        self._keys = SUCCESS_KEYS
        self._missed = False
        text = (self.text or "").strip()
        if text in ("", "terminated", "none"):
            pass
        elif text.startswith("info.") and len(text) > len("info."):
            self._key = text.removeprefix("info.")
        elif (found := _RETURN.fullmatch(text)) is not None:
            operator, limit = found.groups()
            try:
                self._compare = partial(
                    lambda compare, bound, value: compare(value, bound), _COMPARE[operator], float(limit)
                )
            except ValueError as error:
                raise SpirlError(f"interface.success: {self.text}: {limit} is not a number.") from error
        else:
            raise SpirlError(
                f"interface.success: {self.text!r} cannot be read; write info.KEY, terminated, return >= X, or none."
            )
        if settings.reward != "env" and text == "none":
            raise SpirlError(f"interface.reward: {settings.reward} needs a success; interface.success is none.")

    def begin(self) -> None:
        """Begins an episode."""
        self._missed = True

    def __call__(self, info: Mapping[str, Any], terminated: bool, episode_return: float, *, ended: bool) -> bool | None:
        """True or False for a step; None where nothing says it.

        Raises:
            SpirlError: no info of the whole episode had the key that the settings name.
        """
        if self.text is not None and self._key is None:
            if self._compare is not None:
                return ended and self._compare(episode_return)
            return terminated if self.text.strip() == "terminated" else None
        keys = self._keys if self._key is None else (self._key,)
        for key in keys:
            if (value := _looked_up(info, key)) is not None:
                self._missed = False
                if np.asarray(value).dtype.kind not in NUMBERS:
                    raise SpirlError(
                        f"interface.success: info of {self.where} has {value!r} for {key!r}, which is neither true "
                        "nor false."
                    )
                return bool(np.any(value))
        if ended and self._missed and self._key is not None:
            raise SpirlError(
                f"interface.success: no info of an episode of {self.where} had the key {self._key!r}; the last one has "
                f"{', '.join(map(str, info)) or 'none'}. Name one of them, or write terminated, return >= X, or none."
            )
        return None if self._key is None else False


def _looked_up(info: Any, key: str) -> Any:
    if not isinstance(info, Mapping):
        return None
    if key in info:
        return info[key]
    first, dot, rest = key.partition(".")
    return _looked_up(info.get(first), rest) if dot else None


def _function(name: str | None, setting: str) -> Callable[[Mapping[str, Any]], Any] | None:
    if name is None:
        return None
    try:
        found = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise SpirlError(
            f"{setting}: {name} cannot be imported: {error}. Write it as package.module:function."
        ) from error
    if not callable(found):
        raise SpirlError(f"{setting}: {name} is not a function.")
    return found
