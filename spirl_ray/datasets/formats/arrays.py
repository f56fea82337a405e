"""Arrays of recordings: their checks, and the one place where an episode is put together from them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from spirl_ray.episodes.recording import NUMBERS, KeyLayout, Recording, Values
from spirl_ray.errors import SpirlError


@contextmanager
def errors_at(where: str, file: Path) -> Iterator[None]:
    """Lets an error that begins with the file's path begin with ``where``, which also names the episode."""
    try:
        yield
    except SpirlError as error:
        raise SpirlError(f"{where}: {str(error).removeprefix(f'{file}: ')}") from error


def numbers(values: Any, where: str) -> Values:
    """Makes an array of numbers; ``where`` begins the message of the error, if they are something else."""
    try:
        array = np.asarray(values)
    except (ValueError, TypeError) as error:
        raise SpirlError(f"{where}: is no array of numbers: {error}.") from error
    refuse_objects(array.dtype, where)
    return array


def refuse_objects(dtype: np.dtype[Any], where: str) -> None:
    """Raises `SpirlError` where a dtype is not one of numbers."""
    if dtype.hasobject:
        raise SpirlError(
            f"{where}: holds Python objects instead of numbers. They are not read, because pickles can run code; "
            "write an array of one shape and a numeric dtype."
        )
    if dtype.kind not in NUMBERS:
        raise SpirlError(f"{where}: holds {dtype}; expected numbers.")


def per_row(layout: KeyLayout) -> KeyLayout:
    """The layout of one row of an array [rows, *shape]; one number a row is a vector of 1."""
    return KeyLayout(tuple(layout.shape[1:]) or (1,), layout.dtype)


def vectors(values: Values) -> Values:
    """Returns [rows, *shape] as it is, and [rows] as [rows, 1]."""
    return values[:, None] if values.ndim == 1 else values


def joined_layout(parts: Sequence[KeyLayout]) -> KeyLayout:
    """The layout of several keys joined to one vector; of a single key, its own."""
    if len(parts) == 1:
        return parts[0]
    width = sum(math.prod(part.shape) for part in parts)
    return KeyLayout((width,), np.result_type(*(part.dtype for part in parts)))


def joined(parts: Sequence[Values]) -> Values:
    """Joins arrays [rows, …] to one of vectors [rows, width]; a single array keeps its shape."""
    parts = [vectors(part) for part in parts]
    if len(parts) == 1:
        return parts[0]
    return np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1)


def as_names(name: str | Iterable[str] | None, default: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The names of keys in a setting that takes one name or several."""
    if name is None:
        return default
    return (name,) if isinstance(name, str) else tuple(name)


def missing(where: str, name: str, there: Iterable[str]) -> SpirlError:
    """The error for a key that is not there; it lists those that are."""
    return SpirlError(f"{where}: has no {name!r}; it has: {', '.join(sorted(there)) or 'nothing'}.")


def leaves(nested: Any, before: str = "", groups: tuple[type, ...] = (Mapping,)) -> Iterator[tuple[str, Any]]:
    """The values within nested groups, with keys joined by dots.

    Args:
        nested: a group.
        before: what all keys begin with.
        groups: the types of groups, which are mappings or sequences; the keys of the latter are numbers.
    """
    for name, values in nested.items() if isinstance(nested, Mapping) else enumerate(nested):
        if isinstance(values, groups):
            yield from leaves(values, f"{before}{name}.", groups)
        else:
            yield f"{before}{name}", values


def keys_to_read(keys: Sequence[str], layouts: Mapping[str, KeyLayout]) -> Sequence[str]:
    """These keys; where there are none, the one of the fewest values a row, because the observations say how long an
    episode is."""
    return keys or sorted(layouts, key=lambda key: math.prod(layouts[key].shape[1:]))[:1]


def last_flag(flags: Any) -> bool:
    """The last value of a flag for each step, or the flag itself; False where there is none."""
    if flags is None:
        return False
    return bool(np.any(np.asarray(flags).reshape(-1)[-1:] != 0))


def without_last_action(actions: Values, rewards: Values | None) -> tuple[Values, Values | None]:
    """Leaves the last action out, because no observation follows it.

    Its reward, often the only one of a success, is added to that of the action before, so an episode keeps its return.

    Args:
        actions: the actions [T, *shape].
        rewards: the rewards [T], if there are any.
    """
    if rewards is None or len(rewards) < 2:
        return actions[:-1], None if rewards is None else rewards[:-1]
    kept = rewards[:-1].astype(np.result_type(rewards.dtype, np.float32))
    kept[-1] += rewards[-1]
    return actions[:-1], kept


def assemble(
    where: str,
    identifier: str,
    observations: Mapping[str, Values],
    actions: Values,
    rewards: Values | None = None,
    terminated: Any = None,
    truncated: Any = None,
    metadata: Mapping[str, Any] | None = None,
    keys: Sequence[str] | None = None,
) -> Recording:
    """Makes a recording of the arrays of one episode.

    If there is one observation for each action, nobody knows what followed the last action, so it is left out
    (`without_last_action`). How the episode ended is kept.

    Args:
        where: the file and the episode, the beginning of an error's message.
        identifier: the name of the episode.
        observations: arrays [T+1, *shape], or all of them [T, *shape]; an array [rows] becomes [rows, 1].
        actions: the actions [T, *shape].
        rewards: the rewards, [T] or [T, 1].
        terminated: a flag, or one for each step, of which the last counts.
        truncated: the same; if there is none, an episode that did not terminate is truncated.
        metadata: JSON-able information.
        keys: the keys of the observations to keep; None keeps all. All of them say how long the episode is.

    Raises:
        SpirlError: the lengths disagree, or an array does not hold numbers.
    """
    observations = {key: numbers(values, f"{where}: {key}") for key, values in observations.items()}
    actions = numbers(actions, f"{where}: actions")
    for key, values in (*observations.items(), ("actions", actions)):
        if not values.ndim:
            raise SpirlError(f"{where}: {key}: is a single value; expected a row for each step.")
    steps = len(actions)
    for key, values in observations.items():
        if len(values) not in (steps, steps + 1):
            raise SpirlError(
                f"{where}: {key} has {len(values)} rows and actions has {steps}; {steps + 1} rows were expected (or "
                f"{steps}, without an observation after the last action)."
            )
    lengths = {key: len(values) for key, values in observations.items()}
    if len(set(lengths.values())) > 1:
        short, long = min(lengths, key=lambda key: lengths[key]), max(lengths, key=lambda key: lengths[key])
        raise SpirlError(f"{where}: {short} has {lengths[short]} rows and {long} has {lengths[long]}.")
    if rewards is not None:
        rewards = numbers(rewards, f"{where}: rewards")
        if rewards.size != steps or not rewards.ndim:
            raise SpirlError(f"{where}: rewards has {rewards.size} values and actions has {steps} rows.")
        rewards = rewards.reshape(steps)
    ended, cut = last_flag(terminated), last_flag(truncated)
    actions = vectors(actions)
    if steps and steps in lengths.values():
        actions, rewards = without_last_action(actions, rewards)
    return Recording(
        id=identifier,
        observations={key: vectors(observations[key]) for key in (observations if keys is None else keys)},
        actions=actions,
        rewards=rewards,
        terminated=ended,
        truncated=cut or not ended,
        metadata=dict(metadata or {}),
    )
