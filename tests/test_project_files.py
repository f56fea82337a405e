"""What the project says of itself is true: metadata, workflow, and the files that its pages name."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import spirl_ray

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
WORKFLOW = ROOT / ".github" / "workflows" / "ci.yml"


def test_the_version_of_the_metadata_is_the_packages_own() -> None:
    assert PROJECT["project"]["dynamic"] == ["version"]
    module, _, name = PROJECT["tool"]["setuptools"]["dynamic"]["version"]["attr"].rpartition(".")
    assert (module, name) == (spirl_ray.__name__, "__version__")
    newest = re.findall(r"^## (\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[0]
    assert spirl_ray.__version__.split(".dev")[0] == newest


def test_data_files_of_the_package_are_there() -> None:
    for pattern in PROJECT["tool"]["setuptools"]["package-data"]["spirl_ray"]:
        assert list((ROOT / "spirl_ray").glob(pattern)), pattern


def test_the_workflow_runs_what_a_contributor_runs() -> None:
    workflow = yaml.safe_load(WORKFLOW.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    (job,) = workflow["jobs"].values()
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    commands = [step["run"] for step in job["steps"] if "run" in step]
    assert commands == ["make check", "make site", "make test"]
    assert {command.split()[1] for command in commands} <= set(targets)
    supported = {line.split(" :: ")[-1] for line in PROJECT["project"]["classifiers"] if "Python :: 3." in line}
    assert set(job["strategy"]["matrix"]["python"]) == supported
    actions = [step["uses"] for step in job["steps"] if "uses" in step]
    assert actions
    assert all(re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", action) for action in actions)


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/architecture.md"])
def test_a_page_names_files_that_exist(page: str) -> None:
    named = re.findall(r"`((?:\w+/)*\w+\.py)`", (ROOT / page).read_text())
    assert named
    missing = [name for name in named if not any((base / name).exists() for base in (ROOT, ROOT / "spirl_ray"))]
    assert missing == []
