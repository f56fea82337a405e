"""What spirl doctor takes for a fault, and what it advises."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from spirl_ray.cli import cluster as cli_cluster
from spirl_ray.cli import main as cli
from spirl_ray.cluster import doctor
from spirl_ray.cluster.doctor import NodeReport, cluster_problems
from spirl_ray.cluster.probe import NodeProbe
from spirl_ray.files.source import source_digest
from spirl_ray.pipeline import nodes

HERE = {"python": "3.11.9", "ray": "2.60.0", "torch": "2.13.0", "spirl-ray": "0.1.0 (abc)"}
FIT: dict[str, Any] = {"versions": HERE, "import": None, "gpu": None, "output": None, "storage": None}


def judged(clock: float = 0.0, **found: Any) -> list[str]:
    report = NodeReport("10.0.0.2", cpus=2, gpus=0, memory_gib=4, clock_offset_s=clock)
    doctor._judge(report, {**FIT, **found}, HERE)
    return report.problems


def test_a_node_like_the_driver_is_fit() -> None:
    assert judged() == []


@pytest.mark.parametrize(
    ("name", "advice"),
    [("python", "same image"), ("ray", "same image"), ("torch", "same image"), ("spirl-ray", "spirl submit")],
)
def test_a_version_that_differs_is_named_with_both(name: str, advice: str) -> None:
    (problem,) = judged(versions={**HERE, name: "other"})
    assert f"{name} is other, the driver has {HERE[name]}" in problem
    assert advice in problem


@pytest.mark.parametrize(("package", "faults"), [("shipped (abc)", 0), ("0.0.9 (abc)", 0), ("shipped (def)", 1)])
def test_the_same_code_is_fit_however_it_got_there(package: str, faults: int) -> None:
    assert len(judged(versions={**HERE, "spirl-ray": package})) == faults


def test_what_does_not_import_and_what_pytorch_does_not_see_is_said() -> None:
    imported: dict[str, Any] = {"import": "spirl_ray.envs: ModuleNotFoundError: mujoco"}
    assert "ModuleNotFoundError: mujoco" in judged(**imported)[0]
    assert "CUDA image" in judged(gpu="Ray counts 1 GPUs, PyTorch sees 0")[0]


@pytest.mark.parametrize(("offset", "faults"), [(0.9, 0), (-0.9, 0), (1.5, 1), (-40.0, 1)])
def test_a_clock_that_is_more_than_a_second_off_is_a_fault(offset: float, faults: int) -> None:
    assert len(judged(clock=offset)) == faults


def test_the_way_of_the_message_is_not_taken_for_a_wrong_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([100.0, 130.0, 200.0, 204.0, 300.0, 320.0])
    answers = iter([129.0, 203.5, 301.0])
    monkeypatch.setattr(doctor.time, "time", lambda: next(times))
    monkeypatch.setattr(doctor.ray, "get", lambda reference, timeout: next(answers))
    actor = SimpleNamespace(clock=SimpleNamespace(remote=lambda: None))
    assert doctor._clock_offset(actor) == 0.0  # 1.5 s ahead, and 2 s may have been the way
    times = iter([100.0, 100.2] * 3)
    answers = iter([105.1] * 3)
    assert doctor._clock_offset(actor) == pytest.approx(5.0)


def test_storage_is_fit_when_both_sides_see_what_the_other_wrote(tmp_path: Path) -> None:
    (tmp_path / "driver").write_text("content")
    assert NodeProbe(0).output_problem(str(tmp_path), "content", "node-1") is None
    report = NodeReport("n", 1, 0, 1)
    doctor._judge_output(report, FIT, tmp_path, "node-1", tmp_path)
    assert (report.output, report.problems) == ("yes", [])


def test_a_folder_of_the_same_name_on_another_disk_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probe = importlib.import_module("spirl_ray.cluster.probe")
    monkeypatch.setattr(probe, "_PATIENCE_S", 0.0)
    assert "does not see what the driver wrote" in str(NodeProbe(0).output_problem(str(tmp_path), "c", "node-1"))
    (tmp_path / "driver").write_text("of another run")
    assert "other bytes" in str(NodeProbe(0).output_problem(str(tmp_path), "c", "node-1"))


def test_a_folder_that_cannot_be_written_is_noticed_with_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "driver").write_text("c")

    def refuse(self: Path, text: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "write_text", refuse)
    assert "Permission denied (as user" in str(NodeProbe(0).output_problem(str(tmp_path), "c", "node-1"))


def test_what_a_node_wrote_and_the_driver_does_not_see_is_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_appears", lambda file: False)
    report = NodeReport("n", 1, 0, 1)
    doctor._judge_output(report, FIT, tmp_path, "node-1", Path("/shared"))
    assert report.output == "NO"
    assert "/shared: writes what the driver does not see. Mount the same storage at this path" in report.problems[0]


def test_a_storage_is_fit_when_it_gives_back_what_was_written_and_keeps_nothing(tmp_path: Path) -> None:
    uri = (tmp_path / "bucket").as_uri()
    assert NodeProbe(0).storage_problem(uri, "node-1") is None
    assert list((tmp_path / "bucket").iterdir()) == []
    report = NodeReport("n", 1, 0, 1)
    doctor._judge_storage(report, FIT, uri)
    assert (report.storage, report.problems) == ("yes", [])


@pytest.mark.parametrize("uri", ["nothing://bucket/x", "file:///proc/none/x"])
def test_a_storage_that_cannot_be_written_is_a_fault_with_its_reason(uri: str) -> None:
    report = NodeReport("n", 1, 0, 1)
    doctor._judge_storage(report, {**FIT, "storage": NodeProbe(0).storage_problem(uri, "node-1")}, uri)
    assert report.storage == "NO"
    assert report.problems[0].startswith(f"{uri}: ")
    assert "credentials" in report.problems[0]


def test_the_digest_changes_with_any_line_of_the_code(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\n")
    first = source_digest(tmp_path)
    (tmp_path / "a.py").write_text("x = 2\n")
    assert source_digest(tmp_path) != first


def test_a_cluster_without_cpus_is_no_use() -> None:
    assert "fewer than 2 CPUs" in cluster_problems([NodeReport("n", 1, 0, 1)])[0]
    assert cluster_problems([NodeReport("n", 0, 0, 1), NodeReport("m", 2, 0, 1)]) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "train.env_steps=1"], "output=FOLDER and storage=URI"),
        (["--set", "output=runs/x"], "output=runs/x"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(cli.app, ["doctor", *arguments])
    assert result.exit_code == 2
    assert message in result.output


def test_the_table_has_a_row_for_every_node(capsys: pytest.CaptureFixture[str]) -> None:
    fit = NodeReport("10.0.0.1 head", 4, 1, 8, HERE, 0.0, "yes", "NO")
    silent = NodeReport("10.0.0.2", 4, 0, 8, problems=["no answer"])
    cli_cluster._print_reports([fit, silent])
    rows = [line for line in capsys.readouterr().out.splitlines() if "10.0.0." in line]
    assert [word in rows[0] for word in ("2.60.0", "0.1.0 (abc)", "8.0 GiB", "yes", "NO", "+0.0 s")] == [True] * 6
    assert "1 problem(s)" in rows[1]


def test_a_config_that_is_a_sweep_is_checked_with_the_packages_that_it_needs(tmp_path: Path) -> None:
    from toy import write_config

    experiment, modules = cli_cluster._experiment_in(write_config(tmp_path))
    assert (experiment.name, modules) == ("toy", [])
    sweep = {"name": "s", "base": "toy.yaml", "search": "optuna", "samples": 2}
    space = {"train.actor_lr": {"choice": [1e-4, 1e-3]}}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({**sweep, "space": space}))
    experiment, modules = cli_cluster._experiment_in(tmp_path / "sweep.yaml")
    assert (experiment.name, modules) == ("toy", ["optuna"])


def test_a_node_without_a_package_is_told_which() -> None:
    assert "no_such_module" in str(nodes._problem(None, ["json", "no_such_module"]))
    assert nodes._problem(None, ["json"]) is None
