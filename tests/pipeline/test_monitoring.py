"""Rows of metrics become gauges with the names and tags that Grafana asks for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from spirl_ray.pipeline import monitoring
from spirl_ray.pipeline.monitoring import GAUGES, TAGS, Monitor
from spirl_ray.rl.learner import LOGGED


class FakeGauge:
    """Stands for Ray's: notes what was set under which tags."""

    made: list[str] = []  # noqa: RUF012
    shown: dict[str, tuple[float, dict[str, str]]] = {}  # noqa: RUF012

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
        assert description
        assert tag_keys == TAGS
        self.name = name
        self.made.append(name)

    def set(self, value: float, tags: dict[str, str]) -> None:
        self.shown[self.name] = (value, tags)


@pytest.fixture
def gauges(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FakeGauge]]:
    monkeypatch.setattr(monitoring, "Gauge", FakeGauge)
    monkeypatch.setattr(FakeGauge, "made", [])
    monkeypatch.setattr(FakeGauge, "shown", {})
    monitoring._gauge.cache_clear()
    yield FakeGauge
    monitoring._gauge.cache_clear()


def test_a_row_is_shown_under_run_trial_and_stage(gauges: type[FakeGauge]) -> None:
    Monitor("kitchen", "spirl_cl-s3", "train").show({"divergence": 2.5, "env_steps": 100, "subtask/kettle": 1.0})
    tags = {"run": "kitchen", "trial": "spirl_cl-s3", "stage": "train"}
    assert gauges.shown == {"spirl_divergence": (2.5, tags), "spirl_env_steps": (100.0, tags)}


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), "0.5"])
def test_what_is_no_number_leaves_the_gauge_as_it_is(gauges: type[FakeGauge], value: Any) -> None:
    monitor = Monitor("kitchen", "sac-s0", "train")
    monitor.show({"alpha": 0.5})
    monitor.show({"alpha": value})
    assert gauges.shown["spirl_alpha"][0] == 0.5


def test_trials_of_a_process_share_a_gauge(gauges: type[FakeGauge]) -> None:
    for trial in ("spirl-s0", "spirl-s1"):
        Monitor("kitchen", trial, "pretrain").show({"train_loss": 1.0})
    assert gauges.made == ["spirl_pretrain_loss"]


def test_columns_of_the_learner_are_called_as_the_learner_calls_them() -> None:
    of_the_learner = {"divergence", "divergence_p90", "alpha", "critic_loss", "policy_loss"}
    assert of_the_learner <= set(GAUGES["train"]) & set(LOGGED)
