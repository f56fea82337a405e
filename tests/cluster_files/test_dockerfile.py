"""The Dockerfile, read as text: there is no schema for it, and no engine where the tests run."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINES = (ROOT / "docker" / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
INSTRUCTIONS = [line for line in LINES if re.match(r"[A-Z]+ ", line)]


def stages() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    name = ""
    for line in INSTRUCTIONS:
        if match := re.fullmatch(r"FROM (\S+) AS (\S+)", line):
            name = match[2]
            found[name] = list(found.get(match[1], []))  # what a stage starts from
        elif name:
            found[name].append(line)
    return found


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_the_image_runs_as_a_user_with_the_token_on(target: str) -> None:
    *_, user = [line for line in stages()[target] if line.startswith("USER ")]
    assert user == "USER 1000:1000"
    assert any("RAY_AUTH_MODE=token" in line for line in stages()[target])


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_the_image_carries_its_sbom(target: str) -> None:
    assert any(line.startswith(f"COPY --from={target}-sbom /sbom.json") for line in stages()[target])
    assert any("cyclonedx-py environment" in line for line in stages()[f"{target}-sbom"])


def test_every_installation_is_pinned() -> None:
    for line in INSTRUCTIONS:
        for command in re.split(r"&&|RUN", line):
            if " install " in command and "pip" in command:
                assert "-c /tmp/constraints.txt" in command or re.search(r"==\$\{\w+\}", command), command


def test_what_is_copied_is_there_and_not_ignored() -> None:
    kept = {
        line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")
    }
    for line in INSTRUCTIONS:
        if line.startswith("COPY ") and "--from" not in line:
            *sources, _ = [word for word in line.split()[1:] if not word.startswith("--")]
            for source in sources:
                assert (ROOT / source).exists(), source
                assert source in kept, source


def test_the_image_has_a_python_that_the_package_supports() -> None:
    (version,) = re.findall(r"^ARG PYTHON=(\d+\.\d+)", "\n".join(LINES), re.MULTILINE)
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert wanted == ">=3.11,<3.13"
    assert version in ("3.11", "3.12")
