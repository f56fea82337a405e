"""The files for ``ray up`` are what Ray's own schema asks for, and start clusters that only token holders use."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

FOLDER = Path(__file__).parents[2] / "cluster" / "ray_up"
FILES = sorted(FOLDER.glob("*.yaml"))


def schema() -> dict[str, Any]:
    """Found without importing Ray, which takes seconds."""
    spec = importlib.util.find_spec("ray")
    assert spec is not None
    assert spec.origin is not None
    return json.loads((Path(spec.origin).parent / "autoscaler" / "ray-schema.json").read_text())


def starts(config: dict[str, Any]) -> list[str]:
    return [c for group in ("head", "worker") for c in config[f"{group}_start_ray_commands"] if "ray start" in c]


def test_there_is_a_file_for_a_cloud_and_one_for_machines_of_ones_own() -> None:
    kinds = {yaml.safe_load(file.read_text())["provider"]["type"] for file in FILES}
    assert kinds == {"aws", "local"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_file_fits_the_schema(file: Path) -> None:
    config = yaml.safe_load(file.read_text())
    jsonschema.validate(config, schema())
    with pytest.raises(jsonschema.ValidationError, match="idle_timeout_hours"):
        jsonschema.validate({**config, "idle_timeout_hours": 1}, schema())


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_node_starts_with_token_authentication_and_a_private_dashboard(file: Path) -> None:
    config = yaml.safe_load(file.read_text())
    assert len(starts(config)) == 2
    for command in starts(config):
        assert "RAY_AUTH_MODE=token" in command
        assert ("--head" in command) == ("--dashboard-host=127.0.0.1" in command)
    assert any(target.endswith(".ray/auth_token") for target in config["file_mounts"])


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_head_offers_the_drivers_resource_and_nobody_is_root(file: Path) -> None:
    config = yaml.safe_load(file.read_text())
    assert "spirl_driver" in file.read_text()
    assert config["auth"]["ssh_user"] != "root"
    assert "--user root" not in " ".join(config.get("docker", {}).get("run_options", []))
