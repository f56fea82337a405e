"""What all groups of settings have in common: their base class, the types of paths and seeds, and the words for what is
wrong with a value."""

from __future__ import annotations

import os
import re
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

SEEDS = 2**32
"""The number of seeds: NumPy's generators take 32 bits, so a larger one fails or repeats another."""
MANY = 10**9
"""The largest count of steps, updates or files; beyond it a number is a typing error."""
_SHOWN = 100
"""The most characters of a wrong value in a message."""


class Settings(BaseModel):
    """A group of settings: immutable, unknown keys refused, numbers finite. Where a list is meant, a single value is a
    list of one."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, protected_namespaces=(), allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _as_meant(cls, raw: Any) -> Any:
        if not isinstance(raw, Mapping):
            return raw
        meant = dict(raw)
        for name, field in cls.model_fields.items():
            if name in meant:
                meant[name] = _meant(meant[name], field.annotation)
        return meant


def _meant(value: Any, annotation: Any) -> Any:
    """A value as its setting needs it: in a list if a list is meant; a truth value is no number."""
    members = members_of(annotation)
    listed = [member for member in members if is_list(member)]
    if listed and len(members) == 1 and value is not None and not isinstance(value, list | tuple | set | frozenset):
        value = [value]
    if listed and isinstance(value, list | tuple):
        item = get_args(listed[0])[0]
        return [_meant(one, item) for one in value]
    # Python counts True as 1, which nobody means by it; as text it is refused with its place.
    if isinstance(value, bool) and members and all(member in (int, float) for member in members):
        return str(value).lower()
    return value


def members_of(annotation: Any) -> list[Any]:
    """The types that a setting can have, without None and without the bounds of `Annotated`."""
    if get_origin(annotation) is Annotated:
        return members_of(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [member for part in get_args(annotation) for member in members_of(part)]
    return [] if annotation in (None, types.NoneType) else [annotation]


def is_list(annotation: Any) -> bool:
    """True for a list of any length, as ``tuple[int, ...]``."""
    arguments = get_args(annotation)
    return get_origin(annotation) is list or (get_origin(annotation) is tuple and arguments[-1:] == (Ellipsis,))


# --- paths and seeds ---


def expanded(path: str | Path) -> Path:
    """The path with a leading ``~`` replaced by the home folder; every other character is taken as it is.

    Raises:
        ValueError: there is no home folder, or the text cannot be a path.
    """
    text = str(path)
    if not text:
        raise ValueError("the path is empty")
    if "\0" in text:
        raise ValueError("a path cannot hold the character NUL")
    if text == "~" or text.startswith("~/"):
        home = os.path.expanduser("~")
        if home == "~":
            raise ValueError("~ means the home folder, and there is none: set HOME, or write the whole path")
        return Path(home + text[1:])
    return Path(text)


def _path(value: Any) -> Any:
    return expanded(value) if isinstance(value, str | Path) else value


SettingPath = Annotated[Path, BeforeValidator(_path)]
"""The path of a file or folder, in which ``~`` is the home folder."""


def _no_uri(value: Any) -> Any:
    if isinstance(value, str) and "://" in value:
        raise ValueError(
            "this is a URI, and work is done in a folder that every node sees. Name that one, and add "
            f"storage: {value} to have a copy there, from which another machine can resume"
        )
    return value


def _uri(value: str) -> str:
    if "://" not in value:
        raise ValueError(f"{value!r} is not a URI such as s3://bucket/folder; for a folder it is file:///folder")
    return value


OutputPath = Annotated[SettingPath, BeforeValidator(_no_uri)]
StorageUri = Annotated[str, AfterValidator(_uri)]
Seed = Annotated[int, Field(ge=0, lt=SEEDS)]


def check_last_seed(first: int, count: int, key: str) -> None:
    """Raises `ValueError` if the last of ``count`` successive seeds is too large; ``key`` is the count's setting."""
    if first + count > SEEDS:
        raise ValueError(
            f"seed {first} and the {count - 1} seeds after it go beyond {SEEDS - 1}, the largest one; "
            f"lower seed or {key}"
        )


def distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """The values, or `ValueError` if one occurs twice."""
    if len(set(values)) < len(values):
        raise ValueError("the same value occurs twice; one run must not count as two")
    return values


# --- what is wrong, in words ---

_A_NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$"
Name = Annotated[str, Field(pattern=_A_NAME)]
"""A name that is also the name of a folder."""
_WHOLE, _NUMBER, _LIST = "must be a whole number", "must be a number", "must be a list such as [1, 2]"
_GROUP, _TRUTH = "must be a group of settings", "must be true or false"
_WORDS = {
    "bool_parsing": _TRUTH,
    "bool_type": _TRUTH,
    "dict_type": "must be a mapping such as {name: value}",
    "finite_number": "must be a finite number, not NaN or infinite",
    "extra_forbidden": "is unknown",
    "float_parsing": _NUMBER,
    "float_type": _NUMBER,
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "int_from_float": _WHOLE,
    "int_parsing": _WHOLE,
    "int_parsing_size": "is too large",
    "int_type": _WHOLE,
    "invalid_key": "the name of a setting must be text",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
    "list_type": _LIST,
    "literal_error": "must be {expected}",
    "mapping_type": "must be a mapping such as {name: value}",
    "missing": "is missing",
    "model_attributes_type": _GROUP,
    "model_type": _GROUP,
    "none_required": "must be null",
    "path_type": "must be the path of a file or folder",
    "string_pattern_mismatch": "must match {pattern}",
    "string_too_long": "must have at most {max_length} characters",
    "string_too_short": "must have at least {min_length} characters",
    "string_type": "must be text",
    "string_unicode": "holds bytes that are no text in UTF-8",
    "too_long": "may have {max_length} values, not {actual_length}",
    "too_short": "needs {min_length} value(s) or more, not {actual_length}",
    "tuple_type": _LIST,
}
"""The words for each type of error that settings can have, with the values in its context."""
_KIND_IN_KEY = re.compile(
    r"(str|int|float|bool|none|path|nullable)|(str|int|float|bool|dict|list|tuple|literal)\[.*|function-.*|constrained-.*|lax-or-.*|json-or-.*|is-instance\[.*"
)
"""The parts of a place that pydantic adds where a setting may have one of several types."""


def problems_of(error: ValidationError) -> list[ErrorDetails]:
    """What is wrong, without the lists that are said to be too short because an item of theirs is wrong."""
    problems = error.errors()
    places = [problem["loc"] for problem in problems]
    return [
        problem
        for problem in problems
        if problem["type"] != "too_short"
        or not any(place[:-1] == problem["loc"] for place in places if place != problem["loc"])
    ]


def key_of(problem: ErrorDetails) -> str:
    """The key of a wrong setting, with dots; ``together`` for what is wrong with a group as a whole."""
    parts = [str(part) for part in problem["loc"]]
    return ".".join(parts[:1] + [part for part in parts[1:] if not _KIND_IN_KEY.fullmatch(part)]) or "together"


def in_words(problem: ErrorDetails) -> str:
    """What is wrong with a setting, as the end of a sentence about it, with the value that was found."""
    kind, context = problem["type"], problem.get("ctx", {})
    if kind in ("value_error", "assertion_error"):
        words = str(context.get("error", problem["msg"]))
    elif kind == "string_pattern_mismatch" and context["pattern"] == _A_NAME:
        words = "must begin with a letter, a digit or _, and hold only these and . and -"
    elif kind in _WORDS:
        words = re.sub(r"\{(\w+)\}", lambda found: str(context.get(found[1], found[0])), _WORDS[kind])
    else:
        words = problem["msg"]
    value = problem["input"]
    if kind == "missing" or isinstance(value, Mapping | BaseModel):
        return words
    text = repr(value)
    if len(text) > _SHOWN:
        text = f"{text[: _SHOWN - 1]}…"
    hint = ""
    if kind in ("int_parsing", "float_parsing") and isinstance(value, str) and "," in value:
        hint = f"; a list is written [{value}]"
    return f"{words} (found {text}{hint})"
