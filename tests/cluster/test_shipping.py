"""What travels with a job, and that too much is refused before anything does."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from toy import TOY, write_config

import spirl_ray
from spirl_ray.cli import jobs as cli_jobs
from spirl_ray.cluster.shipping import LIMIT_BYTES, check_size, stage
from spirl_ray.config import load_experiment, parse_experiment
from spirl_ray.errors import SpirlError
from spirl_ray.files import layout
from spirl_ray.files.source import source_digest
from spirl_ray.pipeline import provenance
from spirl_ray.pipeline.provenance import commit
from spirl_ray.pipeline.user_code import shipped_files
from spirl_ray.sweeps.sweep_file import load_sweep


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A small package with what must not travel."""
    folder = tmp_path / "package"
    for name in ("__init__.py", "rl/losses.py", "rl/__pycache__/losses.pyc", ".cache/x", "templates/report.j2"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def grow(file: Path, megabytes: int) -> None:
    """A file with a hole, which takes no space."""
    with file.open("wb") as opened:
        opened.truncate(megabytes * 2**20)


def test_code_and_templates_travel_but_no_byte_code_and_nothing_hidden(package: Path, tmp_path: Path) -> None:
    stage(tmp_path / "job", package=package)
    shipped = [str(p.relative_to(tmp_path / "job")) for p in sorted((tmp_path / "job").rglob("*")) if p.is_file()]
    assert shipped == [
        "spirl_ray/COMMIT",
        "spirl_ray/__init__.py",
        "spirl_ray/rl/losses.py",
        "spirl_ray/templates/report.j2",
    ]


def test_the_commit_travels_with_the_code(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage(tmp_path / "job", package=package)
    # There, provenance.py stands in a folder without a repository.
    there = tmp_path / "job" / "spirl_ray" / "experiments" / "provenance.py"
    monkeypatch.setattr(provenance, "__file__", str(there))
    assert provenance.commit.__wrapped__() == commit() != "unknown"


def test_code_without_its_history_is_known_by_its_digest(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As in the folder that `ray job submit --working-dir .` uploads.
    monkeypatch.setattr(provenance, "__file__", str(package / "rl" / "provenance.py"))
    before = provenance.commit.__wrapped__()
    assert before == f"unknown (code {source_digest(package)})"
    (package / "rl" / "losses.py").write_text("other")
    assert provenance.commit.__wrapped__() != before


def test_the_real_package_is_small_and_complete() -> None:
    names = {file.name for file in shipped_files(Path(spirl_ray.__file__).parent)}
    assert {"main.py", "report.html.j2"} <= names
    assert sum(file.stat().st_size for file in shipped_files(Path(spirl_ray.__file__).parent)) < LIMIT_BYTES / 20


def test_too_much_is_refused_with_the_biggest_files_and_nothing_is_copied(package: Path, tmp_path: Path) -> None:
    grow(package / "rl" / "weights.bin", 90)
    grow(package / "demonstrations.npz", 40)
    with pytest.raises(SpirlError) as refused:
        stage(tmp_path / "job", package=package)
    message = str(refused.value)
    assert "130.0 MiB, Ray takes 100 MiB. Nothing was uploaded" in message
    assert message.index("90.0 MiB") < message.index("weights.bin") < message.index("demonstrations.npz")
    assert not (tmp_path / "job").exists()


def test_as_much_as_fits_is_not_refused(package: Path) -> None:
    check_size(shipped_files(package), limit=sum(file.stat().st_size for file in shipped_files(package)))


def test_the_config_that_travels_has_the_overrides_and_no_other_cluster(package: Path, tmp_path: Path) -> None:
    experiment = parse_experiment({**TOY, "output": "/shared/toy", "ray": {"address": "10.0.0.1:6379"}}, "test")
    stage(tmp_path / "job", experiment, package)
    there = load_experiment(tmp_path / "job" / layout.JOB_CONFIG)
    assert there.ray.address is None
    assert there.model_copy(update={"ray": experiment.ray}) == experiment


def test_a_sweep_travels_with_its_base_in_full(package: Path, tmp_path: Path) -> None:
    (tmp_path / "lab_tasks.py").touch()
    write_config(tmp_path, submit={"ship": [str(tmp_path / "lab_tasks.py")]}, ray={"address": "10.0.0.1:6379"})
    file = {"name": "s", "base": "toy.yaml", "changes": {"seeds": [3]}, "samples": 5}
    space = {"train.actor_lr": {"uniform": [1e-4, 1e-3]}}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({**file, "space": space}))
    base, text = cli_jobs._sweep_to_submit(tmp_path / "sweep.yaml", ["output=/shared/s", "samples=7"])
    stage(tmp_path / "job", base, package, text)
    assert (tmp_path / "job" / "lab_tasks.py").is_file()
    there = load_sweep(tmp_path / "job" / layout.JOB_CONFIG)
    assert (there.file.samples, there.base.seeds, there.base.output) == (7, (3,), Path("/shared/s"))
    assert (there.base.ray.address, there.base.submit.ship) == (None, ())
