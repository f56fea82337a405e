"""The files of the configuration language: YAML, names of shipped experiments, ``key=value`` overrides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from spirl_ray.errors import SpirlError

SHIPPED = "tune_configs"


def read_mapping(path: Path) -> tuple[dict[str, Any], Path]:
    """The settings in a YAML file, not validated yet, and the file.

    Args:
        path: of the file. A bare name that is no file, such as ``maze``, means ``tune_configs/maze.yaml`` in the
            working folder, or else beside the package in its source tree.

    Raises:
        SpirlError: an unreadable file, or YAML that is no mapping.
    """
    if not path.exists() and len(path.parts) == 1:
        folders = (Path(SHIPPED), Path(__file__).parents[1] / SHIPPED)
        path = next((file for folder in folders if (file := folder / f"{path}.yaml").exists()), path)
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpirlError(f"Cannot read the config file {path}: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SpirlError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(raw, dict):
        raise SpirlError(f"{path} must hold a mapping of settings, not {type(raw).__name__}.")
    return raw, path


def split_override(override: str) -> tuple[str, Any]:
    """Key and value of a ``--set``.

    Raises:
        SpirlError: something that is not ``key=value``, or a value that is no YAML.
    """
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise SpirlError(f"--set {override}: write it as key=value, for example train.env_steps=50000.")
    try:
        return key.strip(), yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SpirlError(f"--set {override}: the value is not valid YAML: {error}") from error
