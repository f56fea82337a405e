"""The house is kept: which way imports go, how large files and folders are, which words shared code does without."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = "spirl_ray"
ROOT = Path(__file__).parents[1] / PACKAGE
MOST_LINES = 400
LARGEST_SHARE = 0.2

STOREYS = (
    {"files"},
    {"episodes"},
    {"envs"},
    {"datasets"},
    {"skills"},
    {"rl"},
    {"policy"},
    {"pipeline"},
    {"sweeps", "reports", "cluster"},
    {"api"},
    {"cli"},
)
"""A room may import the rooms of the storeys below it, and none of its own storey."""
STOREY = {room: number for number, rooms in enumerate(STOREYS) for room in rooms}
EVERYBODYS = {
    "arguments",
    "config",
    "config_environment",
    "config_file",
    "config_submit",
    "config_tracking",
    "config_train",
    "errors",
    "metrics",
    "registry",
    "settings",
    "yaml_text",
}
"""Modules that every room may import and that may import no room."""
EXCEPTIONS = {
    "cluster/jobs.py: cluster imports cli": "a job on a cluster is `python -m spirl_ray.cli` in a process of its own"
}

TOO_LONG: list[str] = []
TOO_LARGE: list[str] = []
"""What is still too long and too large. Both lists are to become empty: an entry that is not needed fails a test."""

FLAGS = {"proposals", "egocentric", "pixels"}
"""Names of what environment-specific flags were called; `residual=` as an argument is the fourth."""
HAVE_FLAGS_WORDS = ("envs/*", "*encoders.py", "*heads.py")
"""Environments, observation encoders and policy heads may use these words, because there they are no flags."""


def _modules(root: Path) -> dict[str, Path]:
    """The modules below a package's folder by their dotted names, the package's own name included."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def _room(module: str) -> str:
    """The room or top-level module that a module belongs to; empty for the package itself."""
    return module.split(".")[1] if "." in module else ""


def _imports(module: str, path: Path, modules: dict[str, Path], *, named: bool) -> Iterator[str]:
    """The modules of the package that a file imports, also inside functions and for type checkers.

    With ``named``, a string that is the name of a module ("package.module" or "package.module:object") counts as well,
    because that is how tables of kinds, ``importlib`` and ``python -m`` import.
    """
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
            above = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            names = [f"{source}.{alias.name}" for alias in node.names]
        elif named and isinstance(node, ast.Constant) and isinstance(node.value, str):
            name = node.value.partition(":")[0]
            names = [name] if name in modules else []
        for name in names:
            while name and name not in modules:
                name = name.rpartition(".")[0]
            if name and name != module:
                yield name


def wrong_arrows(root: Path) -> list[str]:
    """Imports that do not point downwards, as ``file: room imports room``, once for each file.

    The package's own ``__init__`` may import all, because it is the list of public names.
    """
    modules = _modules(root)
    wrong = []
    for module, path in modules.items():
        room = _room(module)
        for target in _imports(module, path, modules, named=True):
            other = _room(target)
            if room in ("", other) or other in ("", *EVERYBODYS):
                continue
            if room in EVERYBODYS or STOREY.get(other, len(STOREYS)) >= STOREY.get(room, -1):
                wrong.append(f"{path.relative_to(root)}: {room} imports {other}")
    return sorted(set(wrong))


def import_cycles(root: Path) -> list[str]:
    """A cycle of modules that import each other, or nothing. The package's own ``__init__`` is left out, as above."""
    modules = _modules(root)
    graph = {
        module: set(_imports(module, path, modules, named=False)) - {root.name}
        for module, path in modules.items()
        if module != root.name
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        cycle = error.args[1][:0:-1]
        first = cycle.index(min(cycle))
        return [" → ".join([*cycle[first:], *cycle[: first + 1]])]
    return []


def _lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def long_files(root: Path) -> list[str]:
    """Files of code or templates with more lines than a reader wants, as ``file: lines``."""
    paths = sorted(path for path in root.rglob("*") if path.suffix in (".py", ".j2"))
    return [f"{path.relative_to(root)}: {_lines(path)}" for path in paths if _lines(path) > MOST_LINES]


def large_folders(root: Path) -> list[str]:
    """Folders that hold too large a part of the package's lines, as ``folder: share``."""
    everything = sum(map(_lines, root.rglob("*.py")))
    folders = sorted(path for path in root.iterdir() if path.is_dir())
    shares = {folder.name: sum(map(_lines, folder.rglob("*.py"))) / everything for folder in folders}
    return [f"{name}: {share:.3f}" for name, share in shares.items() if share > LARGEST_SHARE]


def nondescript_files(root: Path) -> list[str]:
    """Files whose name says nothing."""
    return [
        str(path.relative_to(root))
        for path in sorted(root.rglob("*.py"))
        if path.stem in ("utils", "util", "helpers", "common", "misc") or path.stem.startswith("base_")
    ]


def unknown_rooms(root: Path) -> list[str]:
    """Folders and top-level modules that the plan of the house does not have."""
    rooms = {_room(module) for module in _modules(root)} - {""}
    return sorted(rooms - STOREY.keys() - EVERYBODYS)


def flags(root: Path) -> list[str]:
    """Identifiers of shared code that are named after one environment's needs, as ``file:line: name``."""
    found = []
    for path in sorted(root.rglob("*.py")):
        file = path.relative_to(root).as_posix()
        if not any(fnmatch(file, pattern) for pattern in HAVE_FLAGS_WORDS):
            nodes = ast.walk(ast.parse(path.read_text(), str(path)))
            found += [f"{file}:{node.lineno}: {name}" for node in nodes for name in _flag_names(node)]  # type: ignore[attr-defined]
    return found


def _flag_names(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name) | ast.FunctionDef(name=name) | ast.alias(name=name):
            names = {name}
        case ast.arg(arg=name) | ast.keyword(arg=str(name)):
            names = {name, name.replace("residual", "residual=")}
        case ast.Constant(value=str(name)):  # a key of a dictionary
            names = {name}
        case _:
            names = set()
    yield from sorted(names & {*FLAGS, "residual="})


RULES: dict[str, tuple[Callable[[Path], list[str]], dict[str, str], str]] = {
    "an import upwards": (
        wrong_arrows,
        {"skills/model.py": "def late():\n    from spirl_ray.rl import learner\n", "rl/learner.py": ""},
        "skills/model.py: skills imports rl",
    ),
    "an import for type checkers": (
        wrong_arrows,
        {"files/a.py": "if TYPE_CHECKING:\n    import spirl_ray.cli.main\n", "cli/main.py": ""},
        "files/a.py: files imports cli",
    ),
    "a relative import": (
        wrong_arrows,
        {"rl/a.py": "from ..policy.b import c\n", "policy/b.py": ""},
        "rl/a.py: rl imports policy",
    ),
    "a module's name as a string": (
        wrong_arrows,
        {"envs/a.py": "TABLE = Registry('x', modules=('spirl_ray.rl.b',))\n", "rl/b.py": ""},
        "envs/a.py: envs imports rl",
    ),
    "an object's name as a string": (
        wrong_arrows,
        {"envs/a.py": "MAKE = 'spirl_ray.rl.b:Thing'\n", "rl/b.py": ""},
        "envs/a.py: envs imports rl",
    ),
    "rooms of one storey": (
        wrong_arrows,
        {"sweeps/a.py": "from spirl_ray.reports import b\n", "reports/b.py": ""},
        "sweeps/a.py: sweeps imports reports",
    ),
    "a room that everybody's modules need": (
        wrong_arrows,
        {"config.py": "from spirl_ray.files import a\n", "files/__init__.py": "", "files/a.py": ""},
        "config.py: config imports files",
    ),
    "a cycle": (
        import_cycles,
        {"rl/a.py": "from spirl_ray.rl import b\n", "rl/b.py": "def late():\n    import spirl_ray.rl.a\n"},
        "spirl_ray.rl.a → spirl_ray.rl.b → spirl_ray.rl.a",
    ),
    "a long file": (long_files, {"rl/a.py": "x = 1\n" * 401, "rl/b.py": "x = 1\n" * 400}, "rl/a.py: 401"),
    "a large folder": (
        large_folders,
        {"rl/a/b.py": "x = 1\n" * 21, "envs/a.py": "x = 1\n" * 20, "config.py": "x = 1\n" * 59},
        "rl: 0.210",
    ),
    "a file whose name says nothing": (
        nondescript_files,
        {"rl/utils.py": "", "rl/utilities_of_kitchens.py": ""},
        "rl/utils.py",
    ),
    "a room that is not in the plan": (unknown_rooms, {"things/a.py": "", "rl/a.py": "", "config.py": ""}, "things"),
    "a flag": (flags, {"rl/a.py": "x.proposals\n", "envs/b/c.py": "pixels = 1\n"}, "rl/a.py:1: proposals"),
    "a flag as an argument": (flags, {"rl/a.py": "residual = 1\nf(residual=True)\n"}, "rl/a.py:2: residual="),
}


@pytest.mark.parametrize("rule", RULES)
def test_a_broken_rule_is_found(rule: str, tmp_path: Path) -> None:
    find, files, message = RULES[rule]
    root = tmp_path / PACKAGE
    for name, text in {"__init__.py": "", **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    assert find(root) == [message]


def test_imports_go_one_way() -> None:
    assert wrong_arrows(ROOT) == sorted(EXCEPTIONS)


def test_no_modules_import_each_other() -> None:
    assert import_cycles(ROOT) == []


def test_no_file_is_long() -> None:
    assert [found.partition(":")[0] for found in long_files(ROOT)] == TOO_LONG


def test_no_folder_holds_more_than_a_fifth() -> None:
    assert [found.partition(":")[0] for found in large_folders(ROOT)] == TOO_LARGE


def test_every_file_has_a_name_and_a_room() -> None:
    assert nondescript_files(ROOT) + unknown_rooms(ROOT) == []


def test_shared_code_knows_no_flags_of_one_environment() -> None:
    assert flags(ROOT) == []
