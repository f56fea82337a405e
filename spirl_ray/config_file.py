"""The files of the configuration language: YAML, names of shipped experiments, ``key=value`` overrides, messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from spirl_ray.errors import SpirlError
from spirl_ray.settings import expanded, in_words, key_of, members_of, problems_of
from spirl_ray.yaml_text import dump_yaml, load_value, load_yaml

Model = TypeVar("Model", bound=BaseModel)
SHIPPED = "tune_configs"
_OWN = Path(__file__).parent / SHIPPED
"""The shipped configs: in the source tree a link to its folder ``tune_configs``, in an installed package the files."""
_SHOWN = 200
"""The most characters of an override in a message."""


def read_mapping(path: Path, settings: type[BaseModel]) -> tuple[dict[str, Any], Path]:
    """The settings in a YAML file, not validated yet, and the file.

    Args:
        path: of the file. A bare name that is no file, such as ``maze``, means ``tune_configs/maze.yaml`` in the
            working folder, or else the shipped config of that name.
        settings: the model of the settings in it.

    Raises:
        SpirlError: an unreadable file, YAML that is no mapping, or a key that is given twice.
    """
    path = expanded(path)
    if not path.exists() and len(path.parts) == 1:
        path = next((file for folder in (Path(SHIPPED), _OWN) if (file := folder / f"{path}.yaml").exists()), path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SpirlError(f"Cannot read the config file {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise SpirlError(f"{path} is not valid YAML: {error}") from error
    raw = load_yaml(text, str(path), settings)
    if not isinstance(raw, dict):
        raise SpirlError(f"{path} must hold a mapping of settings, not {type(raw).__name__}.")
    return raw, path


def shipped_configs() -> dict[str, str]:
    """The names of the shipped configs, each with the first sentences of its file."""
    found = {}
    for path in sorted(_OWN.glob("*.yaml")):
        lines = takewhile(lambda line: line.startswith("# "), path.read_text(encoding="utf-8").splitlines())
        prose = [line.removeprefix("# ") for line in lines if not line.startswith("#   ")]
        found[path.stem] = " ".join(prose)
    return found


def split_override(override: str, settings: type[BaseModel]) -> tuple[str, Any]:
    """Key and value of a ``--set``.

    Args:
        override: as ``train.env_steps=50000``.
        settings: the model that holds the key.

    Raises:
        SpirlError: something that is not ``key=value``, or a value that is no YAML.
    """
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not key:
        raise SpirlError(f"--set {override}: write it as key=value, for example train.env_steps=50000.")
    shown = override if len(override) <= _SHOWN else f"{override[: _SHOWN - 1]}…"
    return key, load_value(text, f"--set {shown}", settings, key)


def validated(settings: type[Model], raw: Any, origin: str) -> Model:
    """Makes settings of the values in ``raw``.

    Args:
        settings: the model of the settings.
        raw: the values, not validated yet.
        origin: where they come from, for the message.

    Raises:
        SpirlError: keys that do not exist or values that they cannot have, with a line for each.
    """
    try:
        return settings.model_validate(raw)
    except ValidationError as error:
        raise _readable_problems(error, origin, settings) from error


def _readable_problems(error: ValidationError, origin: str, settings: type[BaseModel]) -> SpirlError:
    """Makes the error about a file of these settings, with a line for each wrong key."""
    lines = []
    for problem in problems_of(error):
        key = key_of(problem)
        if problem["type"] == "extra_forbidden":
            known = _known_keys(problem["loc"][:-1], settings)
            lines.append(f"  {key}: unknown key. Known here: {', '.join(known) or 'none'}")
        elif problem["type"] == "missing":
            lines.append(f"  {key}: is missing")
        else:
            lines.append(f"  {key}: {in_words(problem)}")
    return SpirlError(f"The configuration from {origin} is not valid:\n" + "\n".join(lines))


def to_yaml(settings: BaseModel) -> str:
    """The exact settings as YAML that `load_experiment` reads back."""
    return dump_yaml(settings.model_dump(mode="json"))


def assign(raw: dict[str, Any], dotted: str, value: Any, origin: str, settings: type[BaseModel]) -> None:
    """Sets one key, or several of a group: ``train: {a: 1}`` leaves the other settings of train alone.

    A number is a place in a list, as in ``data.sources.0.episodes``.

    Raises:
        SpirlError: there is no such place, or a single value where a group should be.
    """
    keys = dotted.split(".")
    *parents, last = keys
    group = isinstance(value, Mapping) and _known_keys([*parents, last], settings)
    if group and value:
        for key, inner in value.items():
            assign(raw, f"{dotted}.{key}", inner, origin, settings)
        return
    node: Any = raw
    for parent, following in zip(parents, keys[1:], strict=True):
        if isinstance(node, dict) and node.get(parent) is None:
            node[parent] = {}
        node = node[_index(node, parent, origin) if isinstance(node, list) else parent]
        if not isinstance(node, dict | list):
            raise SpirlError(f"{origin}: {parent} is a single value, it has no key {following}.")
    if isinstance(node, list):
        node[_index(node, last, origin)] = value
    else:
        node[last] = (node.get(last) or {}) if group else value


def assign_for_all(raw: dict[str, Any], dotted: str, value: Any, origin: str, settings: type[BaseModel]) -> None:
    """Sets a key, as `assign`, for every method: ``overrides`` of the same key are dropped.

    It is for what is said last, on the command line or by a sweep, which would have no effect on such a method.
    """
    assign(raw, dotted, value, origin, settings)
    overrides = raw.get("overrides")
    for changes in overrides.values() if isinstance(overrides, dict) else ():
        if isinstance(changes, dict):
            _drop(changes, dotted, value)


def _drop(changes: dict[str, Any], dotted: str, value: Any) -> None:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _drop(changes, f"{dotted}.{key}", inner)
        return
    for name, inner in list(changes.items()):
        if name == dotted or name.startswith(f"{dotted}."):
            del changes[name]
        elif dotted.startswith(f"{name}.") and isinstance(inner, dict):
            _drop(inner, dotted.removeprefix(f"{name}."), value)
            if not inner:  # an empty mapping would set all of them
                del changes[name]


def _index(values: list[Any], text: str, origin: str) -> int:
    if not text.isdecimal() or int(text) >= len(values):
        raise SpirlError(f"{origin}: {text} is no place in this list; its places are 0 to {len(values) - 1}.")
    return int(text)


def _known_keys(location: Sequence[int | str], settings: type[BaseModel]) -> list[str]:
    model: Any = settings
    for part in location:
        field = getattr(model, "model_fields", {}).get(part)
        model = next(iter(members_of(field.annotation)), None) if field is not None else None
    return sorted(getattr(model, "model_fields", {}))
