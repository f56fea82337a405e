"""A metric that is added from outside is found in the CSV, the report, the gauges and the sweep, by its name."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from toy import TOY

from spirl_ray.cli.terminal import StageDisplay, _brief
from spirl_ray.config import Experiment, parse_experiment
from spirl_ray.envs.metrics import EpisodeMetric, EpisodeOutcome
from spirl_ray.errors import SpirlError
from spirl_ray.metrics import EPISODE, TRAINING, TrainingMetric, learner_metrics, register_metric, training_metrics
from spirl_ray.pipeline import monitoring
from spirl_ray.pipeline.events import Event
from spirl_ray.pipeline.monitoring import Monitor
from spirl_ray.pipeline.results import EvaluationResult
from spirl_ray.pipeline.rollouts import EpisodeRow, read_episode_rows, write_episodes
from spirl_ray.pipeline.scores import experiment_scores
from spirl_ray.reports.records import ExperimentRecord, TrialRecord
from spirl_ray.reports.report import write_report
from spirl_ray.sweeps.sweep_file import SweepFile, load_sweep


@pytest.fixture
def registered() -> Iterator[None]:
    """Registries as they were, once the test has ended."""
    before = [(registry, dict(registry._entries)) for registry in (EPISODE, TRAINING)]
    yield
    for registry, entries in before:
        registry._entries.clear()
        registry._entries.update(entries)


@pytest.fixture
def gauges(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[tuple[str, ...], float]]:
    """Values of gauges by name, and by the tags that follow run, trial and stage."""
    shown: dict[tuple[str, ...], float] = {}

    class FakeGauge:
        def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
            self.name = name

        def set(self, value: float, tags: dict[str, str]) -> None:
            shown[self.name, *list(tags.values())[3:]] = value

    monkeypatch.setattr(monitoring, "Gauge", FakeGauge)
    monitoring._gauge.cache_clear()
    yield shown
    monitoring._gauge.cache_clear()


SMOOTHNESS = EpisodeMetric(
    name="smoothness",
    meaning="How little the actions change from step to step",
    unit="1 / s",
    more_is_better=True,
    of=lambda outcome: outcome.info["smoothness"],
)


def write_sweep(folder: Path, **changes: Any) -> Path:
    path = folder / "sweep.yaml"
    space = {"train.actor_lr": {"uniform": [1e-4, 1e-3]}}
    path.write_text(yaml.safe_dump({"name": "small", "base": TOY, "space": space, **changes}))
    return path


def experiment(**evaluate: Any) -> Experiment:
    return parse_experiment({**TOY, "evaluate": {**TOY["evaluate"], **evaluate}}, "test")


def test_a_metric_of_episodes_from_outside_is_found_everywhere(
    registered: None, gauges: dict[tuple[str, ...], float], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    register_metric(SMOOTHNESS)
    scores = experiment_scores(experiment(metrics=["smoothness"], score="smoothness"))
    measured = scores.of(EpisodeOutcome(1.0, 9, True, False, {"completed": (), "smoothness": 7.5}))

    episodes, columns = tmp_path / "episodes.csv", ["mode", "episode", "seed", *scores.names]
    write_episodes(episodes, [EpisodeRow("deterministic", 0, 0, measured)])
    assert "smoothness" in episodes.read_text().splitlines()[0].split(",") == columns
    assert read_episode_rows(episodes)[0].metrics["smoothness"] == 7.5

    metrics = tmp_path / "metrics.csv"
    metrics.write_text("env_steps,smoothness\n100,2.5\n200,7.5\n")
    trial = TrialRecord("spirl_cl", 0, "hash", "commit", 200, 1.0, metrics, final_episodes_csv=episodes)
    record = ExperimentRecord("toy", "spirl/PointPads-v0", scores, "", [], {}, {}, trials=[trial])
    files = write_report(tmp_path / "report", record)
    page = files.html.read_text()
    assert "smoothness 7.50 1 / s" in page
    assert "smoothness, training episodes" in page
    assert SMOOTHNESS.meaning in page
    assert json.loads(files.json.read_text())["score"] == "smoothness"
    with files.csv.open() as file:
        assert [row["smoothness"] for row in csv.DictReader(file)] == ["7.5"]

    Monitor("toy", "spirl_cl-s0", "train", scores).show({"smoothness": 2.5}, {"sampled": measured})
    assert gauges["spirl_episode_metric", "smoothness", "training"] == 2.5
    assert gauges["spirl_episode_metric", "smoothness", "sampled"] == 7.5

    base = {**TOY, "evaluate": {**TOY["evaluate"], "metrics": ["smoothness"]}}
    path = write_sweep(tmp_path, metric="sampled_smoothness", base=base)
    assert load_sweep(path).metric is SMOOTHNESS

    where: dict[str, Any] = {"folder": tmp_path, "episodes_csv": episodes, "method": "spirl_cl", "seed": 0, "ran": True}
    result = EvaluationResult(score="smoothness", modes={"sampled": measured}, **where)
    with StageDisplay() as show:
        show(Event(happening="finished", stage="evaluation", result=result))
    assert "smoothness, sampled 7.5" in capsys.readouterr().out


def test_a_metric_that_nobody_registered_is_named_before_anything_runs(registered: None, tmp_path: Path) -> None:
    with pytest.raises(SpirlError, match=r"evaluate\.metrics.*'smoothness'"):
        experiment_scores(experiment(metrics=["smoothness"]))
    with pytest.raises(SpirlError, match=r"evaluate\.score.*'smoothness'"):
        experiment_scores(experiment(score="smoothness"))
    with pytest.raises(SpirlError, match="deterministic_smoothness"):
        load_sweep(write_sweep(tmp_path, metric="deterministic_smoothness"))


def test_a_sweep_over_a_metric_of_which_less_is_better_must_say_so(registered: None, tmp_path: Path) -> None:
    register_metric(EpisodeMetric(name="energy", meaning="x", more_is_better=False, of=lambda outcome: 0.0))
    base = {**TOY, "evaluate": {**TOY["evaluate"], "metrics": ["energy"]}}
    changes = {"metric": "sampled_energy", "base": base}
    with pytest.raises(SpirlError, match="mode: min"):
        load_sweep(write_sweep(tmp_path, **changes))
    assert load_sweep(write_sweep(tmp_path, mode="min", **changes)).file.mode == "min"
    assert SweepFile.model_fields["mode"].default == "max"


def test_a_metric_of_the_learner_from_outside_is_computed_and_shown(
    registered: None, gauges: dict[tuple[str, ...], float], tmp_path: Path
) -> None:
    register_metric(
        TrainingMetric(
            stage="train",
            name="divergence_max",
            meaning="Greatest divergence of the batch",
            unit="nats per decision",
            panel="Greatest divergence",
            brief="greatest divergence",
            of=lambda update: update["divergence"].max(),
        )
    )
    found = learner_metrics(update())
    assert found["divergence_max"] == 4.0
    metrics = tmp_path / "metrics.csv"
    metrics.write_text("env_steps,divergence_max\n100,4.0\n")
    trial = TrialRecord("spirl_cl", 0, "hash", "commit", 100, 1.0, metrics)
    record = ExperimentRecord("toy", "x", experiment_scores(experiment()), "", [], {}, {}, trials=[trial])
    assert "Greatest divergence" in write_report(tmp_path / "report", record).html.read_text()
    Monitor("toy", "spirl_cl-s0", "train").show(found)
    assert gauges["spirl_divergence_max",] == 4.0
    assert _brief(found)["greatest divergence"] == 4.0


def update() -> dict[str, Any]:
    return {
        "critic_loss": torch.tensor(1.5),
        "policy_loss": torch.tensor(-2.0),
        "alpha": torch.tensor(0.25),
        "values": torch.tensor([[1.0, 3.0]]),
        "latent_std": torch.tensor([0.5, 1.5]),
        "divergence": torch.tensor([1.0, 2.0, 4.0]),
        "phase": torch.tensor([0.0, 0.2, 0.99]),
    }


def test_the_learners_metrics_are_those_of_the_update() -> None:
    found = learner_metrics(update())
    assert found == pytest.approx(
        {
            "critic_loss": 1.5,
            "policy_loss": -2.0,
            "alpha": 0.25,
            "q_mean": 2.0,
            "latent_std": 1.0,
            "divergence": 7 / 3,
            "divergence_p50": 2.0,
            "divergence_p90": 3.6,
            "divergence_p99": 3.96,
            "divergence_phase_0": 1.5,
            "divergence_phase_2": 4.0,
        }
    )


def test_decisions_of_the_demonstrations_do_not_count_for_the_divergence() -> None:
    both = update()
    both["divergence"] = torch.cat([both["divergence"], torch.tensor([90.0, 95.0])])
    both["phase"] = torch.cat([both["phase"], torch.tensor([-1.0, -1.0])])
    assert learner_metrics(both) == learner_metrics(update())


def test_every_row_says_what_it_means_and_metrics_of_a_panel_have_one_unit() -> None:
    for stage in ("pretrain", "train"):
        units: dict[str, set[str]] = {}
        for metric in training_metrics(stage):
            assert len(metric.meaning) > 10
            units.setdefault(metric.panel, set()).add(metric.unit)
        assert all(len(found) == 1 for panel, found in units.items() if panel)


def test_alpha_has_one_name_on_pages_and_in_lines() -> None:
    alpha = TRAINING["train.alpha"]
    assert alpha.label == alpha.brief == alpha.panel.lower() == "temperature (alpha)"
