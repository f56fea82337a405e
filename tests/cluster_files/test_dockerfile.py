"""The Dockerfile, read as text: there is no schema for it, and no engine where the tests run."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from spirl_ray.sweeps.sweep_file import load_sweep
from spirl_ray.sweeps.trackers import needed_modules

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


def test_the_cpu_image_takes_torch_alone_from_an_index_without_cuda() -> None:
    commands = stages()["cpu-environment"]
    assert "ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu" in commands
    [of_torch] = [line for line in commands if "index-url" in line]
    assert "--no-deps" in of_torch
    assert re.search(r" torch -c ", of_torch)
    assert not any("index-url" in line for line in stages()["cuda-environment"])


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_the_image_has_what_the_shipped_sweeps_need(target: str) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    sweeps = [file for file in (ROOT / "tune_configs").glob("*.yaml") if "space:" in file.read_text()]
    needed = {module for file in sweeps for module in needed_modules(load_sweep(file))}
    assert needed == {"optuna"}
    assert any(text.startswith("optuna") for text in extras["sweep"])
    assert any(line.startswith("RUN pip install") and "[sweep]" in line for line in stages()[f"{target}-environment"])


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
