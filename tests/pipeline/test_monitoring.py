"""Rows of metrics become gauges with the names and tags that Grafana asks for."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from spirl_ray.config_environment import EnvironmentSettings
from spirl_ray.envs import declared_scores
from spirl_ray.pipeline import monitoring
from spirl_ray.pipeline.monitoring import EPISODE_GAUGE, EPISODE_TAGS, TAGS, Monitor


class FakeGauge:
    """Stands for Ray's: notes what was set under which tags."""

    made: list[str] = []  # noqa: RUF012
    shown: dict[str, tuple[float, dict[str, str]]] = {}  # noqa: RUF012

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
        assert description
        self.tag_keys = tag_keys
        self.name = name
        self.made.append(name)

    def set(self, value: float, tags: dict[str, str]) -> None:
        assert tuple(tags) == self.tag_keys == (EPISODE_TAGS if self.name == EPISODE_GAUGE else TAGS)
        self.shown[" ".join([self.name, *list(tags.values())[len(TAGS) :]])] = (value, tags)


@pytest.fixture
def gauges(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FakeGauge]]:
    monkeypatch.setattr(monitoring, "Gauge", FakeGauge)
    monkeypatch.setattr(FakeGauge, "made", [])
    monkeypatch.setattr(FakeGauge, "shown", {})
    monitoring._gauge.cache_clear()
    yield FakeGauge
    monitoring._gauge.cache_clear()


def test_a_row_is_shown_under_run_trial_and_stage(gauges: type[FakeGauge]) -> None:
    Monitor("kitchen", "spirl_cl-s3", "train").show({"divergence": 2.5, "env_steps": 100, "unknown": 1.0})
    tags = {"run": "kitchen", "trial": "spirl_cl-s3", "stage": "train"}
    assert set(gauges.shown) == {"spirl_divergence", "spirl_env_steps"}
    assert gauges.shown["spirl_divergence"] == (2.5, tags)


def test_what_an_environment_declares_is_shown_by_its_name_for_training_and_evaluation(
    gauges: type[FakeGauge],
) -> None:
    scores = declared_scores(EnvironmentSettings(id="spirl/BlockStacking-v0", kwargs={"n_blocks": 3}))
    row = {"tower_height": 1.5, "height_2": 0.5}
    Monitor("blocks", "spirl-s0", "train", scores).show(row, {"sampled": {"tower_height": 2.0, "episodes": 5}})
    assert {name: value for name, (value, _) in gauges.shown.items()} == {
        "spirl_episode_metric tower_height training": 1.5,
        "spirl_episode_metric height_2 training": 0.5,
        "spirl_episode_metric tower_height sampled": 2.0,
    }


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), "0.5"])
def test_what_is_no_number_leaves_the_gauge_as_it_is(gauges: type[FakeGauge], value: Any) -> None:
    monitor = Monitor("kitchen", "sac-s0", "train")
    monitor.show({"alpha": 0.5})
    monitor.show({"alpha": value})
    assert gauges.shown["spirl_alpha"][0] == 0.5


def test_trials_of_a_process_share_a_gauge(gauges: type[FakeGauge]) -> None:
    for trial in ("spirl-s0", "spirl-s1"):
        Monitor("kitchen", trial, "pretrain").show({"train_loss": 1.0})
    assert "spirl_pretrain_train_loss" in gauges.shown
    assert gauges.made.count("spirl_pretrain_train_loss") == 1


def test_gauges_are_set_again_for_as_long_as_a_stage_is_at_work(
    gauges: type[FakeGauge], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitoring, "_AGAIN_S", 0.01)
    monitor = Monitor("kitchen", "spirl-s0", "train")
    with monitor.at_work({"env_steps": 0, "target_divergence": None}):
        monitor.show({"env_steps": 1000})
        gauges.shown.clear()  # as Ray's endpoint does after a while
        deadline = time.monotonic() + 60
        while not gauges.shown:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert {name: value for name, (value, _) in gauges.shown.items()} == {"spirl_env_steps": 1000.0}
    gauges.shown.clear()
    time.sleep(0.1)
    assert gauges.shown == {}


def test_the_disk_of_the_output_is_shown_with_every_row(gauges: type[FakeGauge], tmp_path: Path) -> None:
    Monitor("kitchen", "spirl-s0", "pretrain", folder=tmp_path).show({"update": 10})
    assert 0.0 < gauges.shown["spirl_pretrain_disk_used"][0] <= 1.0
    gauges.shown.clear()
    Monitor("kitchen", "spirl-s0", "pretrain", folder=tmp_path / "gone").show({"update": 20})
    assert set(gauges.shown) == {"spirl_pretrain_update"}
