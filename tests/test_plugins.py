"""A package that somebody else has installed adds one of each kind, and spirl-ray is not touched."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from toy import TOY

from spirl_ray.errors import SpirlError
from spirl_ray.registry import Registry

PLUGIN = Path(__file__).parent / "plugin"
CONFIG: dict[str, Any] = {
    **TOY,
    "name": "plugged",
    "methods": ["plugin_offline"],
    "env": {"id": "plugin/Reach-v0", "kwargs": {"size": 0.8}},
    "data": {"sources": [{"type": "walks", "walks": 8}], "shards": 2},
    "skills": {
        **TOY["skills"],
        "horizon": 4,
        "prior": "bounded",
        "encoders": {"target": {"kind": "waves", "options": {"waves": 3}}},
    },
    "train": {**TOY["train"], "env_steps": 200, "evaluate_every": 200, "policy_head": "timid"},
}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plugin, installed as pip does it, into a folder of its own."""
    folder, source = tmp_path_factory.mktemp("installed"), tmp_path_factory.mktemp("source")
    for file in PLUGIN.rglob("*"):
        if file.is_file() and file.suffix in (".py", ".toml"):
            copy = source / file.relative_to(PLUGIN)
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes(file.read_bytes())
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"),
            *("--no-deps", "--no-build-isolation", "--target", str(folder), str(source)),
        ],
        check=True,
    )
    return folder


def spirl(installed: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    repository = Path(__file__).parents[1]
    environment = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "RAY_TMPDIR")}
    environment["PYTHONPATH"] = os.pathsep.join([str(installed), str(repository)])
    return subprocess.run(
        [sys.executable, "-m", "spirl_ray.cli", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        timeout=500,
    )


@pytest.mark.slow
def test_an_installed_package_adds_one_of_each_kind(installed: Path, tmp_path: Path) -> None:
    config = tmp_path / "plugged.yaml"
    config.write_text(yaml.safe_dump({**CONFIG, "output": str(tmp_path / "out")}))
    done = spirl(installed, "run", str(config))
    assert done.returncode == 0, done.stdout + done.stderr
    [skills] = (tmp_path / "out" / "skills").glob("*/skill.json")
    spec = json.loads(skills.read_text())["spec"]
    assert (spec["decoder"], spec["settings"]["prior"]) == ("linear", "bounded")
    [policy] = (tmp_path / "out" / "policy").glob("*/policy.json")
    card = json.loads(policy.read_text())
    assert (card["method"], card["policy"]["head"], card["environment"]["id"]) == (
        "plugin_offline",
        "timid",
        "plugin/Reach-v0",
    )
    assert card["policy"]["encoders"]["target"]["kind"] == "waves"
    [dataset] = (tmp_path / "out" / "data").glob("*/card.json")
    assert json.loads(dataset.read_text())["source"] == "walks:8"
    [episodes] = (tmp_path / "out" / "evaluation").glob("*/episodes.csv")
    with episodes.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    assert all(0.0 <= float(row["closest"]) < 3.0 for row in rows)
    assert "closest" in (tmp_path / "out" / "report" / "report.html").read_text()


@pytest.mark.slow
def test_a_plugin_that_cannot_be_imported_is_named(installed: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "broken_plugin.py").write_text("import a_module_that_nobody_has\n")
    info = broken / "broken_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[spirl_ray.plugins]\nbroken = broken_plugin\n")
    config = tmp_path / "toy.yaml"
    config.write_text(yaml.safe_dump({**TOY, "output": str(tmp_path / "out")}))
    done = spirl(broken, "run", str(config))
    assert done.returncode == 2
    assert "broken_plugin" in done.stderr
    assert "a_module_that_nobody_has" in done.stderr
    assert not (tmp_path / "out" / "skills").exists()


def test_a_name_is_taken_once_unless_it_is_to_be_replaced() -> None:
    table: Registry[int] = Registry("number")
    table.register("one", 1)
    table.register("one", 1)
    with pytest.raises(SpirlError, match="There is a number 'one' already"):
        table.register("one", 2)
    assert table.register("one", 2, replace=True) == table["one"] == 2
    with pytest.raises(SpirlError, match="unknown number 'two'; known are one"):
        table["two"]
    assert "one" in table
    assert list(table) == ["one"]
