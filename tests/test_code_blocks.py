"""Every block of code on a page is one that a reader can use: configs are read, programs and commands are parsed.

Commands are parsed by the command line's own parser and not run. Samples that can run in seconds run in
`tests/test_pages.py`; of the others, imports are made and names are looked up.
"""

from __future__ import annotations

import ast
import importlib
import itertools
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
import yaml
from ray.scripts.scripts import cli as ray_commands

from spirl_ray.cli.main import _one_option_each, app
from spirl_ray.config import load_experiment, parse_experiment
from spirl_ray.datasets.sources import source_options
from spirl_ray.sweeps.sweep_file import load_sweep

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*.md")])
CURRENT = [page for page in PAGES if page.name != "CHANGELOG.md"]
LANGUAGES = {"yaml", "python", "toml", ""}
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
page = pytest.mark.parametrize("page", CURRENT, ids=lambda page: page.relative_to(ROOT).as_posix())


@dataclass(frozen=True)
class Block:
    """A block of code: its language as the page names it, and its text."""

    language: str
    text: str


def blocks(text: str) -> Iterator[Block]:
    """The fenced and the indented blocks of a page."""
    fence = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
    yield from (Block(*found.groups()) for found in fence.finditer(text))
    for found in re.finditer(r"(?<=\n\n)(?: {4}.*\n|\n(?= {4}))+", fence.sub("", text)):
        yield Block("", re.sub(r"^ {4}", "", found[0], flags=re.MULTILINE))


def blocks_in(page: Path, language: str) -> list[str]:
    return [block.text for block in blocks(page.read_text()) if block.language == language]


# --- languages ---


@page
def test_a_block_is_in_a_language_that_is_checked(page: Path) -> None:
    assert {block.language for block in blocks(page.read_text())} <= LANGUAGES


@page
def test_yaml_is_a_config_or_a_sweep(page: Path, tmp_path: Path) -> None:
    for text in blocks_in(page, "yaml"):
        settings = yaml.safe_load(text)
        if "space" in settings:
            shutil.copy(ROOT / "tune_configs" / settings["base"], tmp_path)
            (tmp_path / "sweep.yaml").write_text(text)
            load_sweep(tmp_path / "sweep.yaml")
            continue
        experiment = parse_experiment({"name": "sample", **settings}, text)
        for place, source in enumerate(experiment.data.sources):
            source_options(source, place)


@page
def test_toml_names_groups_of_entry_points_that_are_read(page: Path) -> None:
    sources = "".join(path.read_text() for path in (ROOT / "spirl_ray").rglob("*.py"))
    for text in blocks_in(page, "toml"):
        for group in tomllib.loads(text)["project"]["entry-points"]:
            assert f'"{group}"' in sources


@page
def test_names_in_python_exist(page: Path) -> None:
    texts = blocks_in(page, "python")
    together = "\n".join(texts)  # later samples of a page use what earlier ones define
    assert undefined_names(together) == ""
    for text in texts:
        assert missing_names(text) == []


def undefined_names(code: str) -> str:
    """What ruff says of names that are used and nowhere defined."""
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--quiet", "--select=F821", "-"]
    return subprocess.run(command, input=code, capture_output=True, text=True).stdout


def missing_names(code: str) -> list[str]:
    """Imported names, and attributes of imported modules and classes, that do not exist."""
    names: dict[str, Any] = {}
    missing = []
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                module = importlib.import_module(alias.name)
                names[alias.asname or alias.name.partition(".")[0]] = module
        elif isinstance(node, ast.ImportFrom) and node.module:
            module = importlib.import_module(node.module)
            for alias in node.names:
                if not hasattr(module, alias.name):
                    missing.append(f"{node.module}.{alias.name}")
                names[alias.asname or alias.name] = getattr(module, alias.name, None)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            holder = names.get(node.value.id)
            if isinstance(holder, ModuleType | type) and not hasattr(holder, node.attr):
                missing.append(f"{node.value.id}.{node.attr}")
    return missing


def test_a_name_that_does_not_exist_is_found() -> None:
    assert "nothing" in undefined_names("print(nothing)")
    assert missing_names("import spirl_ray as spirl\nspirl.fly()") == ["spirl.fly"]
    assert missing_names("from spirl_ray.envs import make, brew") == ["spirl_ray.envs.brew"]


# --- commands ---


def commands(text: str) -> Iterator[list[str]]:
    """The commands on a page, as words: lines of blocks without a language, and code within sentences."""
    lines = [line for block in blocks(text) if not block.language for line in block.text.splitlines()]
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    for line in [*lines, *re.findall(r"`([a-z][^`\n]*)`", prose)]:
        if re.match(r"(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?(?:spirl|python|make|pip|ray|cd) ", line):
            words = [word for word in shlex.split(line, comments=True) if not re.fullmatch(r"[A-Z_]+=\S+", word)]
            yield [words[0].removeprefix(".venv/bin/"), *words[1:]]


@page
def test_a_command_can_be_given(page: Path) -> None:
    folder = ROOT
    for program, *arguments in commands(page.read_text()):
        if program == "cd":
            folder = ROOT / arguments[0]
            assert folder.is_dir()
        else:
            CHECKS[program](arguments, folder)


def check_spirl(arguments: list[str], folder: Path) -> None:
    if len(arguments) == 1 or (arguments[0] in ("data", "env", "jobs") and len(arguments) == 2):
        return  # a sentence that names the command; `test_commands_that_a_page_names_exist` looks it up
    found = parsed(arguments)
    config = found.get("config")
    if config is not None and (folder / config).is_file():
        overrides = found.get("set") or []
        (load_sweep if arguments[0] == "sweep" else load_experiment)(folder / config, overrides)


def parsed(arguments: list[str]) -> dict[str, Any]:
    """The parameters of a command as the command line reads them; nothing is run."""
    command: Any = typer.main.get_group(app)
    context = command.make_context("spirl", _one_option_each(arguments))
    while hasattr(command, "resolve_command"):
        name, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        context = command.make_context(name, rest, parent=context)
    return dict(context.params)


def check_python(arguments: list[str], folder: Path) -> None:
    if arguments[0] == "-m":
        assert find_spec(arguments[1]) is not None
    else:
        assert (folder / arguments[0]).is_file()


def check_make(arguments: list[str], folder: Path) -> None:
    assert set(arguments) <= TARGETS


def check_pip(arguments: list[str], folder: Path) -> None:
    extras = {extra for word in arguments for found in re.findall(r"\[([\w,]+)\]", word) for extra in found.split(",")}
    files = [ROOT / after for option, after in itertools.pairwise(arguments) if option == "-c"]
    assert extras <= set(PROJECT["optional-dependencies"])
    assert all(file.is_file() for file in files)


def check_ray(arguments: list[str], folder: Path) -> None:
    if not any(word.startswith("-") for word in arguments):
        return  # a sentence that names the command
    command: Any = ray_commands
    while hasattr(command, "resolve_command"):
        name, command, arguments = command.resolve_command(command.context_class(command), arguments)
    command.make_context(name, list(arguments))


CHECKS = {"spirl": check_spirl, "python": check_python, "make": check_make, "pip": check_pip, "ray": check_ray}


@pytest.mark.parametrize(
    "line",
    [
        "spirl run tune_configs/maze.yaml --fast",
        "spirl run tune_configs/maze.yaml --set train.env_step=5",
        "spirl data drop data/mine",
        "spirl sweep tune_configs/smoke_sweep.yaml --set sample=2",
        "python examples/nothing.py",
        "make coffee",
        "pip install '.[tea]'",
        "ray start --head --tea=hot",
    ],
)
def test_a_wrong_command_is_found(line: str) -> None:
    ((program, *arguments),) = commands(f"Before.\n\n    {line}\n\nAfter.\n")
    with pytest.raises(BaseException):  # noqa: B017, PT011 - each check fails in a way of its own
        CHECKS[program](arguments, ROOT)
