"""The names of the files of a run stand in files/layout.py alone."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from spirl_ray.files import layout

ROOT = Path(__file__).parents[2] / "spirl_ray"
PLAIN_WORDS = {"data", "demonstrations", "skills", "policy", "evaluation", "prior", "exploration", "report", "sweeps"}
PLAIN_WORDS |= {"videos", "trials", "attempts", "snapshots", "status"}
"""Folders whose names mean other things elsewhere: there, only a path that is joined with one is a name."""
NAMES = {value for name, value in vars(layout).items() if name.isupper() and isinstance(value, str)}
FILES = NAMES - PLAIN_WORDS | {"step-"}
FILE = re.compile(r"(?<![\w.-])(" + "|".join(map(re.escape, sorted(FILES))) + r")(?![\w.-]*\w)")


def _documentation(tree: ast.AST) -> set[int]:
    """The docstrings of a module, and the strings that describe attributes."""
    return {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}


def literal_names(source: str) -> Iterator[str]:
    """The names of a run's files in the strings of a module, and of its folders where a path is joined with them."""
    tree = ast.parse(source)
    documentation = _documentation(tree)
    for node in ast.walk(tree):
        joined = node.right if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) else None
        if isinstance(joined, ast.Constant) and joined.value in PLAIN_WORDS:
            yield str(joined.value)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            yield from FILE.findall(node.value)


def test_the_layout_knows_the_names_of_a_run() -> None:
    assert {"metrics.csv", "trained.json", "card.json", "policy.json", "checkpoints", "tensorboard"} <= FILES
    assert PLAIN_WORDS <= NAMES


def test_no_other_module_names_a_file_of_a_run() -> None:
    found = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in ROOT.rglob("*.py")
        if path != ROOT / "files" / "layout.py"
        for name in literal_names(path.read_text())
    }
    # Minari's own folder within a dataset of Minari's.
    assert found - {"datasets/minari.py: data"} == set()


@pytest.mark.parametrize(
    "line",
    [
        'out / "metrics.csv"',
        'f"{out}/trained.json"',
        'echo("in report.html")',
        'folder / "checkpoints" / name',
        'path.glob("step-*")',
        'folder / "policy"',
    ],
)
def test_the_check_sees_a_name(line: str) -> None:
    assert list(literal_names(line))


@pytest.mark.parametrize(
    "line",
    ['row["policy"]', '"""Reads ``metrics.csv``."""', '"two-step-x"', '"my-metrics.csvs"', '"report.html.j2"'],
)
def test_the_check_lets_other_words_pass(line: str) -> None:
    assert not list(literal_names(line))


def test_folders_of_steps_sort_by_steps(tmp_path: Path) -> None:
    steps = [0, 300, 20_000, 1_000_000_000]
    for number in reversed(steps):
        layout.step_folder(tmp_path, number).mkdir()
    (tmp_path / ".step-000000000001.partial-host-1").mkdir()
    assert [layout.steps_of(folder) for folder in layout.step_folders(tmp_path)] == steps


def test_folders_of_updates_without_a_step_come_after_that_step_and_before_the_next(tmp_path: Path) -> None:
    wanted = [(300, 0), (300, 5_000), (300, 20_000), (301, 0)]
    for steps, updates in reversed(wanted):
        layout.step_folder(tmp_path, steps, updates).mkdir()
    found = layout.step_folders(tmp_path)
    assert found == [layout.step_folder(tmp_path, *one) for one in wanted]
    assert [layout.steps_of(folder) for folder in found] == [300, 300, 300, 301]
