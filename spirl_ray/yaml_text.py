"""YAML as settings are written in it. It differs from YAML 1.1, which PyYAML reads, where that misreads what is meant.

- ``1e-2`` is a number, ``010`` is ten, ``1:30`` and ``2024-01-31`` are text.
- A key that is given twice is an error; YAML 1.1 drops the first one without a word.
- Where a setting is text, a value is the text that was written, also ``no``, ``1e5`` and ``2024``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel

from spirl_ray.errors import SpirlError
from spirl_ray.settings import is_list, members_of

_PREFIX = "tag:yaml.org,2002:"
_STR, _NULL, _INT, _FLOAT, _MERGE = (f"{_PREFIX}{name}" for name in ("str", "null", "int", "float", "merge"))
_OURS = (
    (_INT, re.compile(r"[-+]?(0o[0-7_]+|0x[0-9a-fA-F_]+|0b[01_]+|[0-9][0-9_]*)"), "-+0123456789"),
    (
        _FLOAT,
        re.compile(
            r"[-+]?(\.[0-9][0-9_]*|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?"
            r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
        ),
        "-+.0123456789",
    ),
)
_NOT_YAML = (yaml.YAMLError, ValueError, RecursionError)
"""What reading raises; the last two for a number of 5000 digits and for a thousand brackets."""
_REPLACED = {_INT, _FLOAT, f"{_PREFIX}timestamp"}


class _Loader(yaml.SafeLoader):
    """A safe loader with the numbers of YAML 1.2."""


class _Dumper(yaml.SafeDumper):
    """A safe dumper that puts into quotes what `_Loader` or a reader of YAML 1.1 would take for a number or date."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _REPLACED]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _pattern, _first in _OURS:
    _whole = re.compile(rf"(?:{_pattern.pattern})$")
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_tag, _whole, list(_first))


def _integer(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node)).replace("_", "")
    base = {"0x": 16, "0o": 8, "0b": 2}.get(text.lstrip("+-")[:2].lower(), 10)
    return int(text, base)


_Loader.add_constructor(_INT, _integer)


def dump_yaml(values: Any) -> str:
    """Plain values as YAML that `load_yaml` reads back."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def load_yaml(text: str, origin: str, settings: type[BaseModel] | None = None) -> Any:
    """Reads YAML.

    Args:
        text: the YAML.
        origin: the file, or whatever else messages name.
        settings: the model that the values are for, which says which of them are text.

    Raises:
        SpirlError: text that is no YAML, or a key that is given twice.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return None if node is None else _construct(loader, node, origin, settings)
    except _NOT_YAML as error:
        raise SpirlError(f"{origin} is not valid YAML: {error}") from error


def load_value(text: str, origin: str, settings: type[BaseModel], key: str) -> Any:
    """Reads the value of one setting, as it stands after ``--set key=``.

    A value on one line has no comments, so `` #`` belongs to it. Quotes around all of it are YAML's.

    Args:
        text: the value.
        origin: what messages name.
        settings: the model that holds the setting.
        key: the setting, with dots.

    Raises:
        SpirlError: text that is no YAML, or a key that is given twice.
    """
    text = text.strip()
    kind = _setting(settings, key.split("."))
    try:
        loader = _Loader(text)
        if _is_whole_text(loader, text, kind):
            return text
        node = loader.get_single_node()
        if node is None:
            return text or None
        if isinstance(node, yaml.ScalarNode) and node.style is None:
            node.value, node.tag = text, loader.resolve(yaml.ScalarNode, text, (True, False))
        return _construct(loader, node, origin, kind)
    except _NOT_YAML as error:
        raise SpirlError(f"{origin}: the value is not valid YAML: {error}") from error


def _is_whole_text(loader: _Loader, text: str, kind: Any) -> bool:
    """True for a value that is text as it stands: no null, no quotes around it, and no list or group in brackets."""
    members = members_of(kind)
    if not _is_text(kind) or (len(text) > 1 and text[0] in "'\"" and text[-1] == text[0]):
        return False
    if loader.resolve(yaml.ScalarNode, text, (True, False)) == _NULL:
        return text == "~" and Path in members
    listed = text.startswith("[") and any(is_list(member) for member in members)
    return not (listed or (text.startswith("{") and _has_names(kind)))


def _construct(loader: _Loader, node: yaml.Node, origin: str, kind: Any) -> Any:
    _take_text(node, kind, set())
    twice = dict.fromkeys(_repeated(loader, node, (), set()))
    if twice:
        raise SpirlError(f"{origin}: {' '.join(twice)}")
    return loader.construct_document(node)


# --- keys that are given twice ---


def _repeated(loader: _Loader, node: yaml.Node, path: tuple[str, ...], seen: set[int]) -> Iterator[str]:
    """A sentence for every key that is given twice, also once as ``a.b: 1`` and once as ``a: {b: 1}``."""
    if id(node) in seen:  # an alias
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            yield from _repeated(loader, item, (*path, str(number)), seen)
    if not isinstance(node, yaml.MappingNode):
        return
    lines: dict[Any, int] = {}
    for key, value in node.value:
        name = _name(loader, key)
        if name in lines:
            yield _twice((*path, str(name)), lines[name], key)
        lines[name] = _line(key)
        yield from _repeated(loader, value, (*path, str(name)), seen)
    leaves: dict[tuple[str, ...], int] = {}
    dotted = {str(name).partition(".")[0] for name in lines if isinstance(name, str) and "." in name}
    for key, value in node.value:
        if str(key.value).partition(".")[0] not in dotted:
            continue
        for leaf, at in _leaves(key, value):
            if leaf in leaves:
                yield _twice((*path, *leaf), leaves[leaf], at)
            leaves[leaf] = _line(at)


def _leaves(key: yaml.Node, value: yaml.Node) -> Iterator[tuple[tuple[str, ...], yaml.Node]]:
    """The keys below a key that hold values, with their dots taken apart."""
    own = tuple(str(key.value).split("."))
    if not isinstance(value, yaml.MappingNode) or not value.value:
        yield own, key
        return
    for inner, below in value.value:
        for leaf, at in _leaves(inner, below) if isinstance(inner, yaml.ScalarNode) else ():
            yield (*own, *leaf), at


def _name(loader: _Loader, key: yaml.Node) -> Any:
    """A key as a mapping of Python compares it."""
    if not isinstance(key, yaml.ScalarNode):
        return id(key)
    return key.value if key.tag == _MERGE else loader.construct_object(key)


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _twice(path: tuple[str, ...], first: int, key: yaml.Node) -> str:
    last = _line(key)
    lines = f", in line {first} and in line {last}" if last != first else ""
    return f"{'.'.join(path)} is given twice{lines}; the first would be lost. Make one of the two."


# --- which settings are text ---


def _take_text(node: yaml.Node, kind: Any, seen: set[int]) -> None:
    """Makes text of all scalars that stand where a setting is text, and of the names of settings."""
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.ScalarNode):
        null = node.tag == _NULL and _may_be_none(kind)
        if node.style is None and _is_text(kind) and not null:
            node.tag = _STR
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _take_text(item, _item(kind), seen)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag == _MERGE:
                for merged in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                    _take_text(merged, kind, seen)
                continue
            if isinstance(key, yaml.ScalarNode):
                if key.style is None and _has_names(kind):
                    key.tag = _STR
                _take_text(value, _below(kind, key.value), seen)


def _setting(kind: Any, keys: list[str]) -> Any:
    """The type of a setting that is named by its keys, from the outermost; None for what is not declared."""
    for key in keys:
        kind = _below(kind, key)
    return kind


def _below(kind: Any, key: str) -> Any:
    """The type of what a group or mapping holds under a key; None where it is not declared."""
    for member in members_of(kind):
        if _is_group(member):
            field = member.model_fields.get(key)
            return None if field is None else field.annotation
        if get_origin(member) is dict:
            return get_args(member)[1]
    return None


def _item(kind: Any) -> Any:
    """The type of the items of a list."""
    return next((get_args(member)[0] for member in members_of(kind) if is_list(member)), None)


def _is_group(member: Any) -> bool:
    return isinstance(member, type) and issubclass(member, BaseModel)


def _has_names(kind: Any) -> bool:
    return any(_is_group(member) or get_origin(member) is dict for member in members_of(kind))


def _may_be_none(kind: Any) -> bool:
    return type(None) in get_args(kind) or any(_may_be_none(part) for part in get_args(kind)[:1])


def _is_text(kind: Any) -> bool:
    """True where a single value can be nothing but text: text, a path, one of several words, or a list of such."""
    members = [member for member in members_of(kind) if get_origin(member) is not dict and not _is_group(member)]
    return bool(members) and all(
        member in (str, Path)
        or (get_origin(member) is Literal and all(isinstance(word, str) for word in get_args(member)))
        or (is_list(member) and _is_text(get_args(member)[0]))
        for member in members
    )
