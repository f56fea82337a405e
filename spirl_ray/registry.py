"""Registries: one table for each kind of thing, to which code outside the package can add entries.

A table is filled by the package's own modules, by ``register_…`` calls, and by the entry points of installed packages.
Entry points reach every process of a cluster on which the package is installed; what a notebook registers reaches
the processes that run the same registration.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Generic, TypeVar

from spirl_ray.errors import SpirlError

Entry = TypeVar("Entry")
PLUGINS = "spirl_ray.plugins"
"""The group of entry points that are imported once, before any table is read. A module calls ``register_…`` while it is
imported; a function is called once and does the same."""
TRUSTED_CODECS = "SPIRL_TRUSTED_CODECS"
"""The environment variable with the classes that the card of skills may have imported, see
`spirl_ray.skills.own_codec`; commas are between them."""
_loaded_plugins: set[str] = set()


class Registry(Generic[Entry]):
    """The entries of one kind, by name.

    Args:
        kind: name of the kind in messages, such as ``skill prior``.
        modules: modules of this package that add its own entries when they are imported.
        group: entry points whose objects are entries themselves, by their name; None where there is no such group.
    """

    def __init__(self, kind: str, *, modules: tuple[str, ...] = (), group: str | None = None) -> None:
        self.kind = kind
        self._modules = modules
        self._group = group
        self._entries: dict[str, Entry] = {}
        self._filled = False

    def register(self, name: str, entry: Entry, *, replace: bool = False) -> Entry:
        """Adds an entry.

        Args:
            name: its name in configs, cards and messages.
            entry: what the kind's interface asks for.
            replace: True to replace an entry that has this name already.

        Returns:
            The entry, so that the call also serves as the last line of a module.

        Raises:
            SpirlError: another entry has the name.
        """
        known = self._entries.get(name)
        if known is not None and known != entry and not replace:
            raise SpirlError(f"There is a {self.kind} {name!r} already; choose another name, or pass replace=True.")
        self._entries[name] = entry
        return entry

    def __getitem__(self, name: str | None) -> Entry:
        """The entry with this name.

        Raises:
            SpirlError: there is no such entry; the message lists the known ones.
        """
        self._fill()
        if name not in self._entries:
            raise SpirlError(f"unknown {self.kind} {name!r}; known are {', '.join(sorted(self._entries))}")
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        self._fill()
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        self._fill()
        return iter(dict(self._entries))

    def _fill(self) -> None:
        if self._filled:
            return
        self._filled = True
        for module in self._modules:
            importlib.import_module(module)
        load_plugins()
        for point in entry_points(group=self._group) if self._group is not None else ():
            if point.name not in self._entries:
                self._entries[point.name] = _load(point, self.kind)  # type: ignore[assignment]


def load_plugins() -> None:
    """Imports the plugins of installed packages; a later call does nothing.

    Raises:
        SpirlError: an entry point cannot be imported; the message names it.
    """
    for point in entry_points(group=PLUGINS):
        if point.value not in _loaded_plugins:
            _loaded_plugins.add(point.value)
            plugin = _load(point, "plugin")
            if callable(plugin):
                plugin()


def _load(point: object, kind: str) -> object:
    try:
        return point.load()  # type: ignore[attr-defined]
    except Exception as error:  # whatever somebody else's module raises while it is imported
        raise SpirlError(
            f"The {kind} {getattr(point, 'name', '?')!r} of an installed package cannot be imported from "
            f"{getattr(point, 'value', '?')}: {type(error).__name__}: {error}. Repair or uninstall that package."
        ) from error


def named_object(name: str, setting: str) -> Any:
    """Finds the object that a setting names as ``package.module:name``.

    Raises:
        SpirlError: it cannot be imported.
    """
    try:
        return pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise SpirlError(
            f"{setting}: {name} cannot be imported here: {error}. Write it as package.module:name, and name the folder "
            "of your own code in submit.ship."
        ) from error


def named_function(name: str | None, setting: str) -> Callable[..., Any] | None:
    """The function that a setting names; None where it names none.

    Raises:
        SpirlError: it cannot be imported, or is no function.
    """
    if name is None:
        return None
    found = named_object(name, setting)
    if not callable(found):
        raise SpirlError(f"{setting}: {name} is not a function.")
    return found


def source_of(name: str | None) -> str | None:
    """The text of the file with the object that a setting names, by which a change is noticed; None where there is no
    such file."""
    if name is None:
        return None
    try:
        spec = importlib.util.find_spec(name.partition(":")[0])
        return None if spec is None or spec.origin is None else Path(spec.origin).read_text()
    except (OSError, ValueError, ImportError):
        return None
