"""How somebody else's observations and actions become features and actions in [-1, 1].

The rules are the same for a made environment, whose spaces say what its observations hold, and for recordings without
an environment, whose files say it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from PIL import Image
from pydantic import ValidationError

from spirl_ray.config_environment import ActionSettings, ImageSettings, InterfaceSettings
from spirl_ray.envs.spec import PositionTarget
from spirl_ray.episodes.actions import ActionRange
from spirl_ray.episodes.features import Array, Feature, Role
from spirl_ray.episodes.recording import KeyLayout
from spirl_ray.errors import SpirlError
from spirl_ray.settings import in_words

ONLY = "observation"
"""The key of an observation that is a single array."""
_KEPT_SIDE, _DEFAULT_SIDE = 96, 64
"""The largest side (pixels) of images that keep their size, and the side that larger ones get."""
_GOAL, _ACHIEVED = "desired_goal", "achieved_goal"
_LEAST_SIDE = 16
"""Arrays of numbers with two sides of at least this length are taken for images that are not recognised."""


@dataclass(frozen=True)
class FeatureReader:
    """One feature, and the key of the observation from which it is read."""

    key: str
    feature: Feature

    def read(self, values: npt.NDArray[Any], leading: int) -> Array:
        """Reads the feature [..., *feature.shape] from values of its key.

        Args:
            values: values [..., *shape of the key].
            leading: number of axes in front of a value: 0 for an observation, 1 for a recording.

        Raises:
            SpirlError: the values have another size or type.
        """
        values = np.asarray(values)
        if self.feature.is_image:
            return self._images(values, leading)
        if values.ndim < leading or _size(values.shape[leading:]) != self.feature.size:
            raise SpirlError(
                f"{self.key!r} has the shape {list(values.shape[leading:])}, which are not the {self.feature.size} "
                "numbers of the feature"
            )
        with np.errstate(over="ignore"):  # validation reports what becomes infinite
            return values.reshape(*values.shape[:leading], *self.feature.shape).astype(np.float32)

    def _images(self, values: npt.NDArray[Any], leading: int) -> Array:
        if values.dtype != np.uint8 or values.ndim - leading not in (2, 3):
            raise SpirlError(
                f"{self.key!r} is {values.dtype} {list(values.shape[leading:])}; images are uint8, from 0 to 255"
            )
        height, width, channels = self.feature.shape
        values = _channels_last(values, repr(self.key), leading)
        if channels == 1 and values.shape[-1] == 3:
            grey = values.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
            values = np.rint(grey).astype(np.uint8)[..., None]
        elif channels == 3 and values.shape[-1] == 1:
            values = np.repeat(values, 3, axis=-1)
        if values.shape[-3:-1] == (height, width):
            return values
        flat = values.reshape(-1, *values.shape[-3:])
        resized = np.empty((len(flat), height, width, channels), np.uint8)
        for row, image in enumerate(flat):
            shown = Image.fromarray(image if channels == 3 else image[..., 0])
            resized[row] = np.asarray(shown.resize((width, height), Image.Resampling.BOX)).reshape(height, width, -1)
        return resized.reshape(*values.shape[:-3], height, width, channels)


def feature_name(key: str) -> str:
    """The name of a feature for a key: letters, digits and underscores, which begin with a letter."""
    name = re.sub(r"[^A-Za-z0-9_]+", "_", key).strip("_")[:64]
    return name if name[:1].isalpha() else f"key_{name}"


def choose_features(keys: Mapping[str, KeyLayout], settings: InterfaceSettings, where: str) -> dict[str, FeatureReader]:
    """Chooses the features of an observation: what the settings name, or else everything that fits.

    Args:
        keys: layout of every key of the observations.
        settings: choice of keys.
        where: whose observations these are, for messages.

    Returns:
        The feature and its key by the feature's name.

    Raises:
        SpirlError: a key is missing, is no image or no vector, or nothing is left.
    """
    images = settings.images
    if images is None:
        images = {feature_name(key): ImageSettings(key=key) for key, found in keys.items() if _is_image(found)}
    named = {image.key for image in images.values()}
    goals = settings.goal if settings.goal is not None else tuple(key for key in keys if _within(key, _GOAL))
    observed = settings.observation
    if observed is None:
        # What has been achieved is in the rest of the observation as well.
        achieved = [key for key in keys if _within(key, _ACHIEVED)] if any(_within(key, _GOAL) for key in keys) else []
        left_out = {*goals, *named, *achieved}
        observed = tuple(key for key, found in keys.items() if key not in left_out and not _is_image(found))
    role: Role = "proprioception" if images else "state"
    found: dict[str, FeatureReader] = {}
    for setting, names, kind in (("observation", observed, role), ("goal", goals, "goal")):
        for key in names:
            layout = _layout(keys, key, f"interface.{setting}", where)
            if len(layout.shape) == 3 and layout.dtype == np.uint8:
                raise SpirlError(
                    f"interface.{setting}: {key!r} of {where} is an image; write interface.images: "
                    f"{{{feature_name(key)}: {key}}}."
                )
            _add(found, feature_name(key), key, _feature(key, where, shape=(_size(layout.shape),), role=kind))
    for name, image in images.items():
        layout = _layout(keys, image.key, f"interface.images.{name}", where)
        shape = _image_shape(layout, image, f"interface.images.{name}: {image.key!r} of {where}")
        _add(found, name, image.key, _feature(image.key, where, shape=shape, role="image", frames=image.frames))
    if not any(reader.feature.role != "goal" for reader in found.values()):
        raise SpirlError(f"{where}: no key is left that could be observed; there are {', '.join(keys) or 'none'}.")
    return found


def _within(key: str, group: str) -> bool:
    return key == group or key.startswith(f"{group}.")


def _add(found: dict[str, FeatureReader], name: str, key: str, feature: Feature) -> None:
    if name in found:
        raise SpirlError(
            f"interface: {key!r} and {found[name].key!r} would both be the feature {name!r}; leave one out."
        )
    found[name] = FeatureReader(key, feature)


def _feature(key: str, where: str, **fields: Any) -> Feature:
    try:
        return Feature(**fields)
    except ValidationError as error:
        raise SpirlError(f"{where}: {key!r} cannot be a feature: {in_words(error.errors()[0])}") from error


def _layout(keys: Mapping[str, KeyLayout], key: str, setting: str, where: str) -> KeyLayout:
    if key not in keys:
        raise SpirlError(f"{setting}: {where} has no key {key!r}; it has {', '.join(keys) or 'none'}.")
    return keys[key]


def _size(shape: Sequence[int]) -> int:
    return int(np.prod(shape, dtype=np.int64))


def _is_image(layout: KeyLayout) -> bool:
    return layout.dtype == np.uint8 and len(layout.shape) == 3 and min(layout.shape[0], layout.shape[2]) <= 3


def unrecognised_images(keys: Mapping[str, KeyLayout], features: Mapping[str, Feature]) -> tuple[str, ...]:
    """The keys that look like images and are read as vectors of numbers, each with what to do, in words.

    Args:
        keys: layout of every key of the observations.
        features: the features by the key from which they are read.
    """
    found = []
    for key, feature in features.items():
        layout = keys[key]
        sides = sorted(layout.shape)[-2:]
        if feature.is_image or len(layout.shape) < 2 or min(sides) < _LEAST_SIDE:
            continue
        if layout.dtype == np.uint8 and len(layout.shape) == 2:
            advice = f"Name it in interface.images: {{{feature_name(key)}: {key}}}"
        else:
            advice = "If it is an image, let a wrapper give it as uint8 with 1 or 3 channels"
        found.append(
            f"{key} is {layout.dtype} {list(layout.shape)}, and is read as {feature.size:,} numbers. {advice}."
        )
    return tuple(found)


def _image_shape(layout: KeyLayout, image: ImageSettings, where: str) -> tuple[int, int, int]:
    if layout.dtype != np.uint8 or len(layout.shape) not in (2, 3):
        raise SpirlError(
            f"{where} is {layout.dtype} {list(layout.shape)}; an image is uint8 [height, width], [height, width, "
            "channels] or [channels, height, width]."
        )
    height, width, channels = _channels_last(np.empty((0, *layout.shape), np.uint8), where, 1).shape[1:]
    if isinstance(image.size, int):
        height = width = image.size
    elif image.size is not None:
        height, width = image.size
    elif max(height, width) > _KEPT_SIDE:
        height = width = _DEFAULT_SIDE
    return height, width, 1 if image.grey else channels


def _channels_last(values: npt.NDArray[Any], where: str, leading: int) -> npt.NDArray[Any]:
    if values.ndim - leading == 2:
        return values[..., None]
    if values.shape[-1] in (1, 3):
        return values
    if values.shape[leading] in (1, 3):
        return np.moveaxis(values, leading, -1)
    raise SpirlError(f"{where} has the shape {list(values.shape[leading:])}; an image has 1 or 3 channels")


def action_range(box: KeyLayout, low: Any, high: Any, settings: ActionSettings, where: str) -> ActionRange | None:
    """The range of actions: the settings', else the given one.

    Args:
        box: layout of an action.
        low, high: the environment's own range, arrays or None.
        settings: range that is used in place of it.
        where: whose actions these are, for messages.

    Raises:
        SpirlError: a range of another size, without an end, or upside down.
    """
    entries = _size(box.shape)
    ends = []
    for name, given, own in (("low", settings.low, low), ("high", settings.high, high)):
        if given is not None:
            if len(given) not in (1, entries):
                raise SpirlError(
                    f"interface.action.{name} has {len(given)} entries; the actions of {where} have {entries}. Give "
                    "one for all entries, or one for each."
                )
            ends.append(list(given) * (entries if len(given) == 1 else 1))
            continue
        values = np.full(entries, np.nan) if own is None else np.asarray(own, np.float64).ravel()
        if not np.isfinite(values).all():
            raise SpirlError(
                f"the actions of {where} have no range: entry {int(np.argmin(np.isfinite(values)))} has no {name} end. "
                "Set interface.action: {low: …, high: …} to a range that makes sense, one value or one for each entry."
            )
        ends.append(values.tolist())
    try:
        return ActionRange.around(*ends)
    except ValidationError as error:
        raise SpirlError(
            f"interface.action: the actions of {where}: {in_words(error.errors()[0])}. Set interface.action to a range "
            "that makes sense; what an environment gets stays within its own."
        ) from error


def position_target(
    settings: InterfaceSettings, features: Mapping[str, Feature], action_dim: int
) -> PositionTarget | None:
    """The position target that the settings declare.

    Raises:
        SpirlError: it does not fit the features or the actions.
    """
    declared = settings.position_target
    if declared is None:
        return None
    gain = declared.gain * (action_dim if len(declared.gain) == 1 else 1)
    if declared.feature not in features:
        raise SpirlError(
            f"interface.position_target.feature: {declared.feature!r} is not a feature; there are "
            f"{', '.join(features)}."
        )
    return PositionTarget(declared.feature, declared.positions, gain, declared.objects)


def flattened(space: spaces.Space[Any], prefix: str = "") -> dict[str, spaces.Space[Any]]:
    """The leaves of nested Dict and Tuple spaces by key, joined by dots; a single space has the key ``observation``."""
    if not isinstance(space, spaces.Dict | spaces.Tuple):
        return {prefix or ONLY: space}
    before = f"{prefix}." if prefix else ""
    return {key: leaf for name, _, sub in _inner(space) for key, leaf in flattened(sub, f"{before}{name}").items()}


def leaf(observation: Any, space: spaces.Space[Any], key: str) -> Any:
    """The value of a key in an observation of this space."""
    if not isinstance(space, spaces.Dict | spaces.Tuple):
        return observation
    for name, place, sub in _inner(space):
        if key == name or key.startswith(f"{name}."):
            return leaf(observation[place], sub, key[len(name) + 1 :])
    raise KeyError(key)


def _inner(space: spaces.Dict | spaces.Tuple) -> list[tuple[str, Any, spaces.Space[Any]]]:
    """The spaces within another: the part of the key, the place of the value in an observation, and the space."""
    pairs = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
    return [(str(place), place, sub) for place, sub in pairs]


def key_layouts(space: spaces.Space[Any]) -> dict[str, KeyLayout]:
    """The layout of each key of an observation space; keys that are no numbers (texts, graphs) are left out."""
    found = {}
    for key, sub in flattened(space).items():
        if isinstance(sub, spaces.Box):
            found[key] = KeyLayout(sub.shape, np.dtype(sub.dtype))
        elif isinstance(sub, spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
            found[key] = KeyLayout((spaces.flatdim(sub),), np.dtype(np.float32))
    return found
