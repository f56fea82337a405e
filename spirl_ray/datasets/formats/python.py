"""The format ``python``: episodes that a function of the user's own gives."""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import json
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from spirl_ray.datasets.formats.arrays import assemble, leaves, missing, numbers, per_row
from spirl_ray.datasets.sources import RecordingSettings, register_source
from spirl_ray.envs.spec import EnvironmentSpec
from spirl_ray.episodes.recording import KeyLayout, Recording, RecordingLayout, RecordingReader, Values
from spirl_ray.episodes.validation import file_digest
from spirl_ray.errors import SpirlError

_NEEDED = ("observations", "actions")
_PARTS = (*_NEEDED, "rewards", "terminated", "truncated", "id", "metadata")


class PythonSettings(RecordingSettings):
    """The options of an entry ``{type: python, call: "package.module:function"}``."""

    type: Literal["python"] = "python"
    call: str
    """The function, as ``package.module:function``. Every process of the cluster must be able to import the module."""
    episodes: int | None = Field(default=None, ge=1)
    """The number of episodes. With it, the function is called as ``function(indices, **options)`` by many workers and
    yields one episode for each index. None: ``function(**options)`` yields all episodes, and one worker reads them."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Arguments for the function."""

    @field_validator("call")
    @classmethod
    def _names_a_function(cls, call: str) -> str:
        module, _, function = call.partition(":")
        if not all(part.isidentifier() for part in (*module.split("."), *function.split("."))):
            raise ValueError(f"{call!r} is no package.module:function")
        return call

    @field_validator("options")
    @classmethod
    def _is_plain(cls, options: dict[str, Any]) -> dict[str, Any]:
        try:
            json.dumps(options)
        except (TypeError, ValueError) as error:
            raise ValueError(f"options must be plain data, as in JSON: {error}") from error
        return options


@dataclass(frozen=True)
class PythonReader:
    """The reader of the episodes that a function gives.

    The function yields a mapping for each episode, or an object with attributes of these names: ``observations`` (an
    array or a nested mapping of arrays [T+1, …]) and ``actions`` [T, …]; where there are any, ``rewards`` [T],
    ``terminated`` and ``truncated`` (flags, or one for each step), ``id`` (text) and ``metadata`` (JSON-able). With T
    observations, the last action is left out, and its reward is added to the one before.
    """

    call: str
    episodes: int | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def layout(self) -> RecordingLayout:
        """Calls the function for the first episode, because nothing else says what it gives."""
        with self._given((0,)) as items:
            observations, parts = self._parts(next(items), 0)
        where = f"{self.origin()}: episode 0"
        actions = numbers(parts["actions"], f"{where}: actions")
        return RecordingLayout(
            {key: _layout(numbers(values, f"{where}: {key}")) for key, values in observations.items()},
            _layout(actions),
            rewards=parts.get("rewards") is not None,
        )

    @cached_property
    def _count(self) -> int:
        if self.episodes is not None:
            return self.episodes
        with self._errors():
            return sum(1 for _ in self._iterate())

    def chunks(self) -> list[tuple[int, ...]]:
        """Each episode by itself, if their number is known; else all in one, for which the function is called once to
        count them."""
        if self.episodes is None:
            return [tuple(range(self._count))] if self._count else []
        return [(index,) for index in range(self.episodes)]

    def read(self, chunk: Sequence[int], keys: Sequence[str]) -> Iterator[Recording]:
        """Reads episodes; see `RecordingReader.read`.

        Raises:
            SpirlError: the function raised something, or gave something else than an episode for each index.
        """
        with self._given(chunk) as items:
            for index, item in zip(chunk, items, strict=True):
                observations, parts = self._parts(item, index)
                name = str(parts.get("id", f"{index:05d}"))
                where = f"{self.origin()}: episode {name}"
                for key in keys:
                    if key not in observations:
                        raise missing(where, key, observations)
                metadata = parts.get("metadata") or {}
                if not isinstance(metadata, Mapping):
                    raise SpirlError(f"{where}: metadata is {type(metadata).__name__}; expected a mapping.")
                yield assemble(
                    where,
                    name,
                    observations,
                    parts["actions"],
                    parts.get("rewards"),
                    parts.get("terminated"),
                    parts.get("truncated"),
                    metadata,
                    keys,
                )

    def origin(self) -> str:
        return f"python:{self.call}"

    def licence(self) -> str:
        return "unknown"

    def attribution(self) -> str:
        return "unknown"

    def identity(self) -> dict[str, Any]:
        """The call, its options, and the hash of the module's file. It does not know which other modules and which data
        the function reads; an option of the function's own, such as a version, can say that these have changed."""
        module = self.call.partition(":")[0]
        with self._errors():
            spec = importlib.util.find_spec(module)
        file = None if spec is None else spec.origin
        if file is None or not Path(file).is_file():
            raise SpirlError(f"{self.origin()}: {self._not_importable(module)}")
        return {"call": self.call, "episodes": self.episodes, "options": self.options, "sha256": file_digest(file)}

    @staticmethod
    def _not_importable(module: str) -> str:
        return (
            f"the module {module} cannot be found. It must be installed, or its folder be on PYTHONPATH, on every node."
        )

    def _function(self) -> Callable[..., Any]:
        module, _, name = self.call.partition(":")
        try:
            found: Any = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name and (module == error.name or module.startswith(f"{error.name}.")):
                raise SpirlError(f"{self.origin()}: {self._not_importable(module)}") from error
            raise
        for part in name.split("."):
            if not hasattr(found, part):
                there = (other for other in vars(found) if not other.startswith("_"))
                raise missing(f"{self.origin()}: {getattr(found, '__file__', module)}", part, there)
            found = getattr(found, part)
        if not callable(found):
            raise SpirlError(f"{self.origin()}: is {type(found).__name__}, no function.")
        return found

    def _iterate(self, *arguments: tuple[int, ...]) -> Iterator[Any]:
        found = self._function()(*arguments, **self.options)
        if not hasattr(found, "__iter__"):
            raise SpirlError(f"{self.origin()}: returned {type(found).__name__}; expected episodes to iterate over.")
        return iter(found)

    @contextmanager
    def _given(self, chunk: Sequence[int]) -> Iterator[Iterator[Any]]:
        """What the function yields for these indices, exactly one item for each."""
        items = self._items(chunk)
        try:
            yield items
        finally:
            items.close()

    def _items(self, chunk: Sequence[int]) -> Any:
        if self.episodes is None:
            yield from self._picked(chunk)
            return
        with self._errors():
            items = self._iterate(tuple(chunk))
        end = object()
        for number in itertools.count():
            with self._errors():
                item = next(items, end)
            if (item is end) != (number == len(chunk)):
                count = "more" if number == len(chunk) else str(number)
                raise SpirlError(f"{self.origin()}: gave {count} episodes for {len(chunk)} indices.")
            if item is end:
                return
            yield item

    def _picked(self, chunk: Sequence[int]) -> Iterator[Any]:
        """The episodes of these indices, of all those that the function yields."""
        items: Iterator[Any] = iter(())
        position = -1
        for number, index in enumerate(chunk):
            with self._errors():
                if not number or index <= position:
                    items, position = self._iterate(), -1
                item, none = None, object()
                while position < index:
                    item, position = next(items, none), position + 1
                    if item is none:
                        raise SpirlError(f"{self.origin()}: gave {position} episodes; index {index} was asked for.")
            yield item

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Makes one message of whatever the user's code raises."""
        try:
            yield
        except SpirlError:
            raise
        except Exception as error:
            raise SpirlError(f"{self.origin()}: raised {type(error).__name__}: {error}{self._place(error)}.") from error

    def _place(self, error: Exception) -> str:
        """The last line of the user's own file that an error has passed, else the last one outside this file."""
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
        file = getattr(sys.modules.get(self.call.partition(":")[0]), "__file__", None)
        own = [frame for frame in frames if frame.filename == file] or frames
        return f" ({own[-1].filename}, line {own[-1].lineno}, in {own[-1].name}: {own[-1].line})" if own else ""

    def _parts(self, item: Any, index: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """The observations by key, and all parts by name, of what the function yielded."""
        where = f"{self.origin()}: episode {index}"
        if isinstance(item, Mapping):
            parts = dict(item)
            if unknown := [str(name) for name in parts if name not in _PARTS]:
                raise SpirlError(f"{where}: has {', '.join(unknown)}; an episode has: {', '.join(_PARTS)}.")
        else:
            parts = {name: getattr(item, name) for name in _PARTS if hasattr(item, name)}
            if not parts:
                raise SpirlError(f"{where}: is {type(item).__name__}; expected a mapping with {', '.join(_PARTS)}.")
        for name in _NEEDED:
            if parts.get(name) is None:
                raise missing(where, name, map(str, parts))
        observations = parts["observations"]
        nested = observations if isinstance(observations, Mapping) else {"observation": observations}
        return dict(leaves(nested)), parts


def _layout(values: Values) -> KeyLayout:
    return per_row(KeyLayout(values.shape, values.dtype))


def make(settings: PythonSettings, spec: EnvironmentSpec | None) -> RecordingReader:
    """Makes the reader of an entry of type ``python``.

    Raises:
        SpirlError: actions or rewards are renamed, which the function can do itself.
    """
    settings.refuse_renamed(f"python:{settings.call}", "is what the function gives; it has one name")
    return PythonReader(settings.call, settings.episodes, settings.options)


register_source("python", PythonSettings, make)
