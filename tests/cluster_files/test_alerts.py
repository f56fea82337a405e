"""The alert rules: what they ask for is exported, and each fires when it should and not otherwise."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from spirl_ray.metrics import training_metrics

FOLDER = Path(__file__).parents[2] / "cluster"
RULES = FOLDER / "prometheus" / "alerts.yml"
(GROUP,) = yaml.safe_load(RULES.read_text())["groups"]
ALERTS: dict[str, dict[str, Any]] = {rule["alert"]: rule for rule in GROUP["rules"]}
PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(
    PROMTOOL is None, reason="no promtool: install the package prometheus of the distribution"
)
LABELS = {"train": {"run": "kitchen", "trial": "spirl_cl-s0", "stage": "train"}}
LABELS["pretrain"] = {**LABELS["train"], "stage": "pretrain"}
LABELS["node"] = {"ip": "10.0.0.7"}


@dataclass(frozen=True)
class Case:
    """What is scraped every ten seconds, in promtool's notation, and whether the alert fires at a minute."""

    alert: str
    name: str
    series: dict[str, str]
    fires: dict[int, bool]
    value: str = ""
    """The value as the annotations show it."""
    source: str = "train"


STEPS, UPDATES, DISK = "ray_spirl_env_steps", "ray_spirl_pretrain_update", "ray_node_disk_utilization_percentage"
ALONE = "ray_spirl_offline_updates"
DIVERGENCE, TARGET = "ray_spirl_divergence", {"ray_spirl_target_divergence": "2x120"}
LOST, MISSING = "ray_spirl_env_runners_lost", "ray_spirl_env_runners_missing"
CASES = (
    Case("SpirlNoProgress", "stage 2 stops", {STEPS: "0+100x18 1800x102"}, {3: False, 13: False, 16: True}),
    Case("SpirlNoProgress", "stage 2 never starts", {STEPS: "0x120"}, {9: False, 11: True}),
    Case("SpirlNoProgress", "a row every 8 minutes", {STEPS: "0x48 1000x48 2000x24"}, {15: False, 19: False}),
    Case("SpirlNoProgress", "updates without a step", {STEPS: "2000x120", ALONE: "0+100x120"}, {13: False, 19: False}),
    Case("SpirlNoProgress", "both stop", {STEPS: "2000x120", ALONE: "9x120"}, {9: False, 11: True}),
    Case("SpirlNoProgress", "stage 2 has ended", {STEPS: "0+100x18 1800x30 _x72"}, {13: False, 19: False}),
    Case("SpirlNoProgress", "stage 1 stops", {UPDATES: "20x120"}, {11: True}, source="pretrain"),
    Case("SpirlNoProgress", "stage 1 works", {UPDATES: "0+20x120"}, {19: False}, source="pretrain"),
    Case("SpirlDivergenceFarAboveTarget", "far above", {**TARGET, DIVERGENCE: "7x120"}, {9: False, 11: True}, "7.0"),
    Case("SpirlDivergenceFarAboveTarget", "above", {**TARGET, DIVERGENCE: "5x120"}, {19: False}),
    Case("SpirlDivergenceFarAboveTarget", "a peak", {**TARGET, DIVERGENCE: "2x20 9x30 2x70"}, {8: False, 19: False}),
    Case("SpirlDivergenceFarAboveTarget", "nothing is kept", {DIVERGENCE: "70x120"}, {19: False}),
    Case(
        "SpirlEnvRunnerLost", "one is missing", {MISSING: "0x30 1x90", LOST: "0x30 1x90"}, {4: False, 6: True, 19: True}
    ),
    Case(
        "SpirlEnvRunnerLost", "one was replaced", {MISSING: "0x120", LOST: "2x30 3x90"}, {4: False, 6: True, 16: False}
    ),
    Case(
        "SpirlOutputDiskNearlyFull", "stage 2", {"ray_spirl_disk_used": "0.85x30 0.95x90"}, {4: False, 7: True}, "95%"
    ),
    Case(
        "SpirlOutputDiskNearlyFull",
        "stage 1",
        {"ray_spirl_pretrain_disk_used": "0.95x90"},
        {2: True},
        "95%",
        "pretrain",
    ),
    Case("SpirlNodeDiskNearlyFull", "a node", {DISK: "85x30 95x90"}, {4: False, 7: True}, "95", "node"),
    Case("SpirlClusterNotSeen", "no head", {}, {4: False, 6: True}, source="nothing"),
    Case("SpirlClusterNotSeen", "a node", {DISK: "40x120"}, {6: False}, source="node"),
)


def test_every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    for fires in (True, False):
        assert {case.alert for case in CASES if fires in case.fires.values()} == set(ALERTS)


def test_alerts_ask_for_what_the_program_sets() -> None:
    gauges = {f"ray_{metric.gauge}" for stage in ("pretrain", "train") for metric in training_metrics(stage)}
    asked = {name for rule in ALERTS.values() for name in re.findall(r"ray_spirl_\w+", rule["expr"])}
    assert len(asked) > 5
    assert asked <= gauges


def test_kubernetes_gets_the_same_groups() -> None:
    rule = yaml.safe_load((FOLDER / "kuberay" / "alerts.yaml").read_text())
    assert (rule["apiVersion"], rule["kind"]) == ("monitoring.coreos.com/v1", "PrometheusRule")
    assert rule["spec"]["groups"] == [GROUP]
    monitor = yaml.safe_load((FOLDER / "kuberay" / "monitoring.yaml").read_text())
    assert rule["metadata"]["labels"] == monitor["metadata"]["labels"]


def promtool(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(PROMTOOL), *map(str, arguments)], capture_output=True, text=True, timeout=120)


@needs_promtool
def test_prometheus_accepts_the_configuration_and_the_rules(tmp_path: Path) -> None:
    for file in (FOLDER / "prometheus").iterdir():
        text = file.read_text().replace("/run/secrets/ray_token", str(tmp_path / "token"))
        (tmp_path / file.name).write_text(text)
    (tmp_path / "token").write_text("secret")
    done = promtool("check", "config", tmp_path / "prometheus.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"SUCCESS: {len(ALERTS)} rules found" in done.stdout
    (tmp_path / "alerts.yml").write_text(RULES.read_text().replace("for: 10m", "for: long"))
    assert promtool("check", "config", tmp_path / "prometheus.yml").returncode != 0


@needs_promtool
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.alert}: {case.name}")
def test_an_alert_fires_when_it_should(case: Case, tmp_path: Path) -> None:
    rule, labels = ALERTS[case.alert], LABELS.get(case.source, {})

    def shown(text: str) -> str:
        text = re.sub(r"\{\{ \$labels\.(\w+) \}\}", lambda found: labels[found[1]], text)
        return re.sub(r"\{\{.*?\}\}", case.value, text)

    tags = ", ".join(f'{name}="{value}"' for name, value in labels.items())
    test = {
        "interval": "10s",
        "input_series": [{"series": f"{name}{{{tags}}}", "values": values} for name, values in case.series.items()],
        "alert_rule_test": [
            {
                "eval_time": f"{minute}m",
                "alertname": case.alert,
                "exp_alerts": [
                    {
                        "exp_labels": {**labels, **rule["labels"]},
                        "exp_annotations": {name: shown(text) for name, text in rule["annotations"].items()},
                    }
                ]
                * fires,
            }
            for minute, fires in case.fires.items()
        ],
    }
    file = tmp_path / "test.yml"
    file.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "10s", "tests": [test]}))
    done = promtool("test", "rules", file)
    assert done.returncode == 0, done.stdout + done.stderr
