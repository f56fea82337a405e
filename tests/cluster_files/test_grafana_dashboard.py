"""The Grafana dashboard plots what the program sets, and all of it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from spirl_ray.cluster.grafana import dashboard
from spirl_ray.metrics import training_metrics
from spirl_ray.pipeline.monitoring import EPISODE_GAUGE, EPISODE_TAGS

FOLDER = Path(__file__).parents[2] / "cluster" / "grafana"
DASHBOARD: dict[str, Any] = json.loads((FOLDER / "spirl-ray.json").read_text())


def plotted() -> list[str]:
    return [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]


def test_the_file_is_what_the_table_of_metrics_makes() -> None:
    assert dashboard() == DASHBOARD, "run: python -m spirl_ray.cluster.grafana > cluster/grafana/spirl-ray.json"


def test_every_series_is_one_that_the_program_sets_and_no_panel_is_forgotten() -> None:
    names = {re.match(r"\w+", expression)[0] for expression in plotted()}  # type: ignore[index]
    metrics = [metric for stage in ("pretrain", "train") for metric in training_metrics(stage) if metric.panel]
    assert names == {f"ray_{EPISODE_GAUGE}", *(f"ray_{metric.gauge}" for metric in metrics)}


def test_series_are_chosen_and_named_by_the_programs_tags() -> None:
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    for expression in plotted():
        labels = dict(re.findall(r'(\w+)=~"\$(\w+)"', expression))
        assert all(label == variable for label, variable in labels.items())
        assert {"run", "trial"} <= set(labels) <= set(EPISODE_TAGS)
        assert set(labels.values()) <= variables
    (repeated,) = [panel for panel in DASHBOARD["panels"] if "repeat" in panel]
    assert repeated["repeat"] in variables


def test_panels_have_a_title_a_meaning_and_a_place_of_their_own() -> None:
    panels = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    assert all(panel["title"] and panel["description"] for panel in panels)
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
    assert len(set(places)) == len(places)


def test_the_data_source_that_is_provisioned_is_the_dashboards_default() -> None:
    sources = yaml.safe_load((FOLDER / "provisioning" / "datasources" / "prometheus.yaml").read_text())["datasources"]
    chosen = next(v for v in DASHBOARD["templating"]["list"] if v["name"] == "datasource")["current"]["value"]
    assert [source["uid"] for source in sources] == [chosen]
