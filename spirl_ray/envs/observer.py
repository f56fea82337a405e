"""What a foreign environment gives in each step, read and checked: observations as features, rewards as numbers."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

from spirl_ray.envs.interface import FeatureReader, flattened, leaf
from spirl_ray.episodes.features import Array
from spirl_ray.errors import SpirlError


class Observer:
    """Reads the observations and rewards of an environment, and names what is wrong in them by the step.

    Args:
        space: observation space of the environment.
        readers: how each feature is read from it.
        limit: number of steps after which an episode ends; an environment may say so in an attribute alone.
        where: name of the environment, for messages.
    """

    def __init__(self, space: spaces.Space[Any], readers: Mapping[str, FeatureReader], limit: int, where: str) -> None:
        self._space, self._readers, self._limit, self._where = space, readers, limit, where
        self._spaces = flattened(space)
        self._images: dict[str, deque[Array]] = {}
        self._steps = 0

    def begin(self, given: Any) -> tuple[dict[str, Array], dict[str, Any]]:
        """Begins an episode with what ``reset`` gave: the features, each [*observed_shape], and the info.

        Raises:
            SpirlError: it is no pair, or the observation is not as the space says.
        """
        self._images.clear()
        self._steps = 0
        raw, info = self._parts(given, "reset", ("observation", "info"))
        return self._features(raw), dict(info)

    def step(self, given: Any) -> tuple[dict[str, Array], float, bool, bool, dict[str, Any]]:
        """Reads what ``step`` gave, in the form in which Gymnasium has it.

        Raises:
            SpirlError: it has not five parts, the observation is not as the space says, or a number is not finite.
        """
        self._steps += 1
        names = ("observation", "reward", "terminated", "truncated", "info")
        raw, reward, terminated, truncated, info = self._parts(given, "step", names)
        over = bool(truncated) or self._steps >= self._limit
        return self._features(raw), self._number(reward), bool(terminated), over, dict(info)

    def _parts(self, given: Any, method: str, names: tuple[str, ...]) -> Any:
        if not isinstance(given, tuple) or len(given) != len(names) or not isinstance(given[-1], Mapping):
            told = f"{len(given)} values" if isinstance(given, tuple) else type(given).__name__
            raise SpirlError(
                f"{self._where}: {method} must return {len(names)} values, {', '.join(names)} (a dict), and gave "
                f"{told}. Environments of the older gym need a wrapper."
            )
        return given

    def _number(self, reward: Any) -> float:
        try:
            value = np.asarray(reward, np.float64)
        except (TypeError, ValueError):
            value = np.zeros(0)
        if value.size != 1 or not np.isfinite(value).all():
            raise SpirlError(f"{self._where}: the reward of step {self._steps} is {reward!r}, not one finite number.")
        return float(value.item())

    def _features(self, raw: Any) -> dict[str, Array]:
        found: dict[str, Array] = {}
        for name, reader in self._readers.items():
            try:
                read = reader.read(self._value(raw, reader.key), 0)
            except SpirlError as error:
                raise SpirlError(f"{self._where}: in the observation {self._when()}, {error}") from error
            if reader.feature.is_image:
                frames = reader.feature.frames
                images = self._images.setdefault(name, deque([read] * frames, frames))
                images.append(read)
                read = np.stack(images)
            elif not np.isfinite(read).all():
                raise SpirlError(
                    f"{self._where}: in the observation {self._when()}, {reader.key!r} holds a number that is not "
                    f"finite in float32: {read.ravel()[~np.isfinite(read.ravel())][0]}"
                )
            found[name] = read
        return found

    def _value(self, raw: Any, key: str) -> Array:
        space = self._spaces[key]
        try:
            value = leaf(raw, self._space, key)
        except (LookupError, TypeError):
            raise SpirlError(f"the key {key!r}, which is in the observation space, is missing") from None
        if isinstance(space, spaces.Box):
            return np.asarray(value)
        if not space.contains(value):
            raise SpirlError(f"{key!r} is {value!r}, which is not in {space}")
        return np.asarray(spaces.flatten(space, value))

    def _when(self) -> str:
        return f"after step {self._steps}" if self._steps else "of reset"


def command_of(action: Array, box: spaces.Box) -> Array:
    """The action of an environment, in its units, shape and type, that is nearest to these numbers."""
    wanted = np.clip(action.reshape(box.shape), box.low, box.high)
    return (np.rint(wanted) if np.issubdtype(box.dtype, np.integer) else wanted).astype(box.dtype)
