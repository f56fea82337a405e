"""The compose file by the compose specification, and what its containers may not do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from compose_spec import PyCompose

FOLDER = Path(__file__).parents[2] / "cluster"
TEXT = (FOLDER / "compose.yaml").read_text()


def validate(text: str) -> None:
    # YAML's merge keys are resolved by the parser, as compose itself does it.
    PyCompose.from_json(json.dumps(yaml.safe_load(text))).validate()


@pytest.fixture
def services() -> dict[str, Any]:
    return yaml.safe_load(TEXT)["services"]


def test_the_file_fits_the_specification() -> None:
    validate(TEXT)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("    hostname: head", "    hostnam: head"),
        ("restart: unless-stopped", "restart: sometimes"),
        ("secrets: [grafana_password]", "secrets: [another]"),
        ("interval: 10s", "interval: often"),
    ],
)
def test_what_does_not_fit_is_noticed(right: str, wrong: str) -> None:
    assert right in TEXT
    with pytest.raises(Exception, match=wrong.split()[-1].strip("[]:") if "hostnam" not in wrong else "hostnam"):
        validate(TEXT.replace(right, wrong))


def test_head_workers_and_monitoring_are_there(services: dict[str, Any]) -> None:
    assert set(services) == {"head", "worker", "prometheus", "grafana"}
    assert services["worker"]["deploy"]["replicas"] == 2
    assert services["worker"]["depends_on"] == {"head": {"condition": "service_healthy"}}


def test_nobody_is_root_and_no_port_is_open_beyond_this_machine(services: dict[str, Any]) -> None:
    for service in services.values():
        assert service["user"] == "1000:1000"
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def test_nodes_ask_for_the_token_and_share_a_folder(services: dict[str, Any]) -> None:
    for name in ("head", "worker"):
        assert services[name]["environment"]["RAY_AUTH_MODE"] == "token"
        assert services[name]["environment"]["RAY_AUTH_TOKEN_PATH"] == "/run/secrets/ray_token"
        assert "ray_token" in services[name]["secrets"]
        assert "shared:/shared" in services[name]["volumes"]


def test_secrets_are_files_that_git_ignores() -> None:
    ignored = (FOLDER.parent / ".gitignore").read_text().splitlines()
    for secret in yaml.safe_load(TEXT)["secrets"].values():
        assert secret["file"].startswith("./secrets/")
    assert "/cluster/secrets/" in ignored


def test_prometheus_finds_the_nodes_with_the_token() -> None:
    (job,) = yaml.safe_load((FOLDER / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    (discovery,) = job["http_sd_configs"]
    assert discovery["url"] == "http://head:8265/api/prometheus/sd"
    assert discovery["authorization"] == {"type": "Bearer", "credentials_file": "/run/secrets/ray_token"}


def test_prometheus_gets_its_rules_beside_its_configuration(services: dict[str, Any]) -> None:
    mounted = {volume.split(":")[1]: volume.split(":")[0] for volume in services["prometheus"]["volumes"]}
    for rules in yaml.safe_load((FOLDER / "prometheus" / "prometheus.yml").read_text())["rule_files"]:
        assert mounted[f"/etc/prometheus/{rules}"] == f"./prometheus/{rules}"


def test_files_that_are_mounted_are_there(services: dict[str, Any]) -> None:
    for service in services.values():
        for volume in service.get("volumes", []):
            if volume.startswith("./"):
                assert (FOLDER / volume.split(":")[0]).exists(), volume
