"""What is built can be used without the source tree: the files in it, its metadata, and commands in an empty folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
from pathlib import Path

import pytest

from spirl_ray import __version__

ROOT = Path(__file__).parents[1]
NOT_SOURCES = shutil.ignore_patterns(".*", "runs", "data", "build", "dist", "*.egg-info", "__pycache__")
pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the sdist, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("built")
    shutil.copytree(ROOT, folder / "tree", symlinks=True, ignore=NOT_SOURCES)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", folder / "tree", cwd=folder)
    return folder / "dist"


def test_the_metadata_are_complete(built: Path) -> None:
    files = sorted(built.iterdir())
    assert [file.name for file in files] == [
        f"spirl_ray-{__version__}-py3-none-any.whl",
        f"spirl_ray-{__version__}.tar.gz",
    ]
    assert "WARNING" not in run(sys.executable, "-m", "twine", "check", "--strict", *files, cwd=built)
    with tarfile.open(files[1]) as archive:
        assert any(name.endswith("tune_configs/quickstart.yaml") for name in archive.getnames())


def test_commands_work_in_an_empty_folder(built: Path, tmp_path: Path) -> None:
    environment, empty = tmp_path / "environment", tmp_path / "empty"
    venv.create(environment)
    empty.mkdir()
    python = environment / "bin" / "python"
    (wheel,) = built.glob("*.whl")
    pip = (sys.executable, "-m", "pip", "--python", python)
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=empty)
    # What the package needs comes from the environment of the tests; the package itself does not.
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    assert run(python, "-c", "import spirl_ray; print(spirl_ray.__file__)", cwd=empty).startswith(str(environment))

    spirl = environment / "bin" / "spirl"
    assert __version__ in run(spirl, "--version", cwd=empty)
    shipped = run(spirl, "configs", cwd=empty)
    assert all(path.stem in shipped for path in (ROOT / "tune_configs").glob("*.yaml"))
    run(spirl, "init", "mine", cwd=empty)
    assert (empty / "mine.yaml").is_file()
    few = "data.sources=[{type: generated, episodes: 2}]"
    assert "episodes 2" in run(
        spirl, "data", "generate", "quickstart", "--set", few, "--set", "data.shards=1", cwd=empty
    )
    assert (empty / "runs" / "quickstart" / "data").is_dir()
