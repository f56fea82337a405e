"""What trackers get of an experiment: all of it once, also across restarts, and without holding up the training."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from workspaces import workspace

from spirl_ray.config import load_experiment
from spirl_ray.config_tracking import TrackingSettings
from spirl_ray.errors import SpirlError
from spirl_ray.files.tables import write_csv
from spirl_ray.pipeline import tracking
from spirl_ray.pipeline.checks import check_experiments
from spirl_ray.pipeline.events import Event
from spirl_ray.pipeline.results import EvaluationResult, ReportResult, SkillsResult, Snapshot, TrainingResult
from spirl_ray.pipeline.trackers import Described, Point
from spirl_ray.pipeline.tracking import Tracking
from spirl_ray.pipeline.workspace import Workspace
from spirl_ray.sweeps.trackers import callbacks, needed_modules

TRIAL: dict[str, Any] = {"method": "spirl_cl", "seed": 0}


class Tracker:
    """A tracker in memory, which can be down, and writes down what each run has got."""

    def __init__(self) -> None:
        self.down = False
        self.got: dict[str, list[Any]] = {}
        self.ended: list[tuple[str, bool]] = []

    def open(self, name: str, settings: Any, run: Described, known: str | None) -> _Run:
        if self.down:
            raise ConnectionError("connection refused\nand more lines")
        return _Run(self, known or f"{name}-{len(self.got)}")


class _Run:
    address = "http://tracker/1"

    def __init__(self, tracker: Tracker, name: str) -> None:
        self.id, self._tracker = name, tracker
        self._got = tracker.got.setdefault(name, [])

    def log(self, points: Sequence[Point]) -> None:
        self._got += [(point.step, dict(point.values)) for point in points]

    def attach(self, file: Path, name: str) -> None:
        self._got.append((name, file.read_text()))

    def close(self, *, ended: bool) -> None:
        self._tracker.ended.append((self.id, ended))


@pytest.fixture
def tracker(monkeypatch: pytest.MonkeyPatch) -> Tracker:
    made = Tracker()
    monkeypatch.setattr(tracking, "open_run", made.open)
    return made


@pytest.fixture
def place(tmp_path: Path) -> Workspace:
    """The toy experiment with MLflow, whose policy has two rows of metrics and one evaluated snapshot."""
    return tracked_by(tmp_path, {"mlflow": {"tracking_uri": "http://127.0.0.1:1"}})


def tracked_by(folder: Path, settings: dict[str, Any]) -> Workspace:
    experiment = workspace(folder).experiment
    made = Workspace(experiment.model_copy(update={"tracking": TrackingSettings.model_validate(settings)}))
    measure(made, 100, 200)
    evaluation = {"env_steps": 100, "mode": "sampled", "episodes": 3, "return": 1.5, "wall_clock_s": 9.0}
    write_csv(made.trial(**TRIAL).policy / "evaluations.csv", [evaluation])
    return made


def measure(place: Workspace, *steps: int) -> None:
    write_csv(place.trial(**TRIAL).policy / "metrics.csv", [{"env_steps": n, "alpha": n / 2, "q": ""} for n in steps])


def told(place: Workspace, *events: Event) -> list[tuple[str, bool]]:
    """What a command says of its trackers that has these events."""
    said: list[tuple[str, bool]] = []
    with Tracking(place, lambda text, warning: said.append((text, warning))) as listener:
        for event in events:
            listener(event)
    return said


PROGRESS = Event(happening="progress", stage="training", done=200.0, total=400.0, **TRIAL)


def trained(place: Workspace) -> Event:
    snapshot = Snapshot(env_steps=200, score=1.0, deterministic={}, sampled={})
    result = TrainingResult(
        folder=place.trial(**TRIAL).policy,
        ran=True,
        **TRIAL,
        env_steps=200,
        decisions=20,
        updates=20,
        wall_clock_s=1.0,
        commit="abc",
        score="return",
        publish="best",
        best=snapshot,
        last=snapshot,
    )
    return Event(happening="finished", stage="training", result=result, **TRIAL)


def evaluated(folder: Path) -> Event:
    folder.mkdir(exist_ok=True)
    (folder / "sampled.mp4").write_text("video")
    result = EvaluationResult(
        folder=folder,
        ran=True,
        **TRIAL,
        score="return",
        modes={"sampled": {"return": 2.5}},
        episodes_csv=folder / "episodes.csv",
        videos={"sampled": folder / "sampled.mp4"},
    )
    return Event(happening="finished", stage="evaluation", result=result, **TRIAL)


def reported(folder: Path) -> Event:
    (folder / "page.html").write_text("page")
    page = ReportResult(folder=folder, ran=True, html=folder / "page.html", csv=folder / "c", json=folder / "j")
    return Event(happening="finished", stage="report", result=page)


def test_a_tracker_gets_metrics_evaluations_videos_and_the_report(
    place: Workspace, tracker: Tracker, tmp_path: Path
) -> None:
    evaluating = Event(happening="progress", stage="evaluation", done=1.0, total=2.0, **TRIAL)
    said = told(place, PROGRESS, trained(place), evaluating, evaluated(tmp_path / "final"), reported(tmp_path))
    assert tracker.got == {
        "mlflow-0": [
            (100, {"alpha": 50.0}),
            (200, {"alpha": 100.0}),
            (100, {"sampled_episodes": 3.0, "sampled_return": 1.5}),
            (200, {"final_sampled_return": 2.5}),
            ("videos/final/sampled.mp4", "video"),
            ("report.html", "page"),
        ]
    }
    assert said == [("mlflow tracks toy spirl_cl-s0: http://tracker/1", False)]
    assert tracker.ended == [("mlflow-0", True)]


def test_a_resumed_run_continues_its_tracked_run_and_sends_nothing_twice(
    place: Workspace, tracker: Tracker, tmp_path: Path
) -> None:
    final = evaluated(tmp_path / "final")
    told(place, PROGRESS, final)
    before = len(tracker.got["mlflow-0"])
    told(place, PROGRESS, final)
    assert len(tracker.got["mlflow-0"]) == before
    measure(place, 100, 200, 300)
    (tmp_path / "final" / "sampled.mp4").write_text("another video")
    told(place, PROGRESS, final)
    assert list(tracker.got) == ["mlflow-0"]
    assert tracker.got["mlflow-0"][before:] == [
        (300, {"alpha": 150.0}),
        ("videos/final/sampled.mp4", "another video"),
    ]


def test_rows_without_a_new_step_are_sent_once_each(place: Workspace, tracker: Tracker) -> None:
    for steps in ((100, 200), (100, 200, 200, 200), (100, 200, 200, 200), (100, 200, 200, 200, 200, 300)):
        measure(place, *steps)
        told(place, PROGRESS)
    sent = [step for step, values in tracker.got["mlflow-0"] if "alpha" in values]
    assert sent == [100, 200, 200, 200, 200, 300]


def test_another_server_gets_a_run_of_its_own(place: Workspace, tracker: Tracker, tmp_path: Path) -> None:
    told(place, PROGRESS)
    told(tracked_by(tmp_path, {"mlflow": {"experiment_name": "elsewhere"}}), PROGRESS)
    assert tracker.got["mlflow-0"] == tracker.got["mlflow-1"]


def test_a_tracker_that_is_down_is_one_warning_and_gets_all_later(place: Workspace, tracker: Tracker) -> None:
    tracker.down = True
    [(text, warning)] = told(place, PROGRESS, PROGRESS)
    assert warning
    assert text.startswith("mlflow cannot track toy spirl_cl-s0: connection refused")
    tracker.down = False
    told(place, PROGRESS)
    assert [entry[0] for entry in tracker.got["mlflow-0"]] == [100, 200, 100]


def test_a_tracker_that_hangs_holds_up_nothing_but_the_end(place: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "open_run", lambda *_: time.sleep(60.0))
    monkeypatch.setattr(tracking, "_PATIENCE_S", 0.2)
    [(text, warning)] = told(place, PROGRESS)
    assert warning
    assert "mlflow has not taken everything" in text


def test_what_another_process_tracks_is_left_to_it(
    place: Workspace, tracker: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "_EVERY_S", 0.01)
    with Tracking(place, lambda *_: None) as first:
        first(PROGRESS)
        while not tracker.got:
            time.sleep(0.01)
        measure(place, 100, 200, 300)
        assert told(place, PROGRESS) == []
    assert tracker.ended == [("mlflow-0", False)]


def test_stage_1_is_a_tracked_run_with_updates_as_steps(place: Workspace, tracker: Tracker) -> None:
    skills = place.trial(**TRIAL).skills
    write_csv(skills / "metrics.csv", [{"update": 10, "train_loss": 0.5}])
    result = SkillsResult(folder=skills, ran=True, **TRIAL, metrics={})
    told(place, Event(happening="finished", stage="skills", result=result, **TRIAL))
    assert tracker.got == {"mlflow-0": [(10, {"train_loss": 0.5})]}
    assert tracker.ended == [("mlflow-0", True)]


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_package_that_is_not_installed_is_refused_before_any_work(
    name: str, place: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    asked = place.experiment.model_copy(update={"tracking": TrackingSettings.model_validate({name: {}})})
    with pytest.raises(SpirlError, match=rf"tracking.{name} needs the package {name}.*spirl-ray\[{name}\]"):
        check_experiments([asked], make=False)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"wandb": {"api_key": "secret"}}, "WANDB_API_KEY"),
        ({"mlflow": {"tracking_token": "secret"}}, "MLFLOW_TRACKING_TOKEN"),
        ({"mlflow": {"tracking_uri": "https://me:secret@host"}}, "MLFLOW_TRACKING_PASSWORD"),
        ({"mlflow": {"uri": "http://host"}}, "tracking_uri"),
    ],
)
def test_secrets_do_not_belong_in_a_file(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(SpirlError, match=said) as refused:
        load_experiment({"name": "toy", "tracking": settings})
    assert "secret" not in str(refused.value)


# --- the clients themselves ---


@pytest.mark.slow
@pytest.mark.skipif(find_spec("wandb") is None, reason="no W&B: pip install 'spirl-ray[wandb]'")
def test_weights_and_biases_writes_offline_runs_with_one_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    place = tracked_by(tmp_path, {"wandb": {"mode": "offline"}})
    assert [warning for _, warning in told(place, PROGRESS)] == [False]
    measure(place, 100, 200, 300)
    events = [PROGRESS, evaluated(tmp_path / "final"), reported(tmp_path)]
    assert [warning for _, warning in told(place, *events)] == [False]
    run = json.loads((place.trial(**TRIAL).policy / "tracked-wandb.json").read_text())["run"]
    # Two runs that begin in the same second have folders "…-ID" and "…-ID-1".
    files = sorted((place.folder / "wandb").glob(f"offline-run-*/run-{run}.wandb"))
    assert len(files) == 2
    written = b"".join(path.read_bytes() for path in files)
    assert all(word in written for word in (b"sampled_return", b"final_sampled_return", b"train.actor_lr"))


@pytest.mark.skipif(find_spec("wandb") is None, reason="no W&B: pip install 'spirl-ray[wandb]'")
def test_weights_and_biases_without_a_key_is_a_warning_and_no_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    [(text, warning)] = told(tracked_by(tmp_path, {"wandb": {"project": "p"}}), PROGRESS)
    assert warning
    assert "WANDB_API_KEY" in text


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The address of an MLflow server on this machine."""
    if find_spec("mlflow") is None or find_spec("flask") is None:
        pytest.skip("no MLflow server: pip install mlflow (the package needs only its client, mlflow-skinny)")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    store = ["--backend-store-uri", f"sqlite:///{tmp_path}/mlflow.db", "--artifacts-destination", f"{tmp_path}/files"]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    log = (tmp_path / "server.log").open("w")
    process = subprocess.Popen(
        [*command, *store], stdout=log, stderr=log, cwd=tmp_path, env={**os.environ, "PYTHONPATH": ""}, process_group=0
    )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{address}/health").close()
                break
            except OSError:
                assert process.poll() is None, (tmp_path / "server.log").read_text()
                time.sleep(0.5)
        yield address
    finally:
        os.killpg(process.pid, 15)
        process.wait()


@pytest.mark.slow
def test_mlflow_gets_one_run_of_two_processes(tmp_path: Path, server: str) -> None:
    from mlflow import MlflowClient

    place = tracked_by(tmp_path, {"mlflow": {"tracking_uri": server, "tags": {"team": "arms"}}})
    [(text, _)] = told(place, PROGRESS)
    measure(place, 100, 200, 300)
    [(again, _)] = told(place, PROGRESS, evaluated(tmp_path / "final"))
    assert text == again
    client = MlflowClient(server)
    [run] = client.search_runs([client.get_experiment_by_name("toy").experiment_id])
    assert run.info.run_id in text
    assert run.data.tags["team"] == "arms"
    assert run.data.params["train.env_steps"] == "400"
    assert [point.step for point in client.get_metric_history(run.info.run_id, "alpha")] == [100, 200, 300]
    assert run.data.metrics["final_sampled_return"] == 2.5
    assert [file.path for file in client.list_artifacts(run.info.run_id, "videos/final")] == [
        "videos/final/sampled.mp4"
    ]


def test_a_sweep_uses_the_same_settings_with_callbacks_of_tune(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    from sweep_files import RATES, sweep

    chosen = sweep(tmp_path, RATES, "tracking.wandb={project: p, mode: offline}")
    assert needed_modules(chosen) == ["wandb"]
    [callback] = callbacks(chosen)
    assert (callback.project, callback.group, callback.kwargs["mode"]) == ("p", chosen.file.name, "offline")
