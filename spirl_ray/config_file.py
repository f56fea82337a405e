"""The files of the configuration language: YAML, names of shipped experiments, ``key=value`` overrides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel

from spirl_ray.errors import SpirlError
from spirl_ray.settings import expanded
from spirl_ray.yaml_text import load_value, load_yaml

SHIPPED = "tune_configs"
_SHOWN = 200
"""The most characters of an override in a message."""


def read_mapping(path: Path, settings: type[BaseModel]) -> tuple[dict[str, Any], Path]:
    """The settings in a YAML file, not validated yet, and the file.

    Args:
        path: of the file. A bare name that is no file, such as ``maze``, means ``tune_configs/maze.yaml`` in the
            working folder, or else beside the package in its source tree.
        settings: the model of the settings in it.

    Raises:
        SpirlError: an unreadable file, YAML that is no mapping, or a key that is given twice.
    """
    path = expanded(path)
    if not path.exists() and len(path.parts) == 1:
        folders = (Path(SHIPPED), Path(__file__).parents[1] / SHIPPED)
        path = next((file for folder in folders if (file := folder / f"{path}.yaml").exists()), path)
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
