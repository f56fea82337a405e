"""The Grafana dashboard, which is made from the table of metrics.

    python -m spirl_ray.cluster.grafana > cluster/grafana/spirl-ray.json

makes the file that the compose and KubeRay files provision. A test compares the two.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from spirl_ray.metrics import Stage, TrainingMetric, training_metrics
from spirl_ray.pipeline.monitoring import EPISODE_GAUGE

Json = dict[str, Any]
_WIDTH, _HEIGHT, _ACROSS = 8, 8, 3
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_CHOSEN = 'run=~"$run", trial=~"$trial"'
_STAGES: tuple[tuple[Stage, str], ...] = (("train", "Stage 2: the policy"), ("pretrain", "Stage 1: the skills"))


def dashboard() -> Json:
    """Makes the dashboard: a panel for each metric that an environment declares, then those of the table by stage."""
    return {
        "uid": "spirl-ray",
        "title": "spirl-ray",
        "tags": ["spirl-ray", "ray"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "refresh": "10s",
        "timezone": "browser",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": _variables()},
        "annotations": {"list": []},
        "panels": [{"id": number, **panel} for number, panel in enumerate(_panels(), start=1)],
    }


def _variables() -> list[Json]:
    source = {
        "name": "datasource",
        "label": "Data source",
        "type": "datasource",
        "query": "prometheus",
        "current": {"text": "Prometheus", "value": "prometheus"},
    }
    names = '__name__=~"ray_spirl_.*"'
    queries = {
        "run": f"label_values({{{names}}}, run)",
        "trial": f'label_values({{{names}, run=~"$run"}}, trial)',
        "metric": f'label_values(ray_{EPISODE_GAUGE}{{run=~"$run"}}, metric)',
    }
    return [source, *(_variable(name, query) for name, query in queries.items())]


def _variable(name: str, query: str) -> Json:
    return {
        "name": name,
        "label": name.capitalize(),
        "type": "query",
        "datasource": _SOURCE,
        "query": query,
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "current": {"text": "All", "value": "$__all"},
        "sort": 1,
    }


def _panels() -> Iterator[Json]:
    yield _row("Episodes: what the environment declares", 0)
    line = (f'ray_{EPISODE_GAUGE}{{{_CHOSEN}, metric=~"$metric"}}', "{{run}} {{trial}} {{episodes}}")
    meaning = "Mean over the last 50 training episodes, and the newest evaluation of each kind of policy."
    # Grafana makes a copy of it for each metric, and moves the panels below.
    yield {
        **_panel("$metric", meaning, "short", [line], 0, 1),
        "repeat": "metric",
        "repeatDirection": "h",
        "maxPerRow": _ACROSS,
    }
    top = 1 + _HEIGHT
    for stage, title in _STAGES:
        yield _row(title, top)
        groups: dict[str, list[TrainingMetric]] = {}
        for metric in training_metrics(stage):
            if metric.panel:
                groups.setdefault(metric.panel, []).append(metric)
        for place, (panel, metrics) in enumerate(groups.items()):
            down, across = divmod(place, _ACROSS)
            lines = [(f"ray_{m.gauge}{{{_CHOSEN}}}", _legend(m, len(metrics))) for m in metrics]
            unit = "s" if metrics[0].unit == "s" else "short"
            meaning = " ".join(f"{m.meaning}{f' [{m.unit}]' * bool(m.unit)}." for m in metrics)
            yield _panel(panel, meaning, unit, lines, _WIDTH * across, top + 1 + _HEIGHT * down)
        top += 1 + _HEIGHT * -(-len(groups) // _ACROSS)


def _legend(metric: TrainingMetric, lines: int) -> str:
    return "{{run}} {{trial}}" + (f" {metric.label}" if lines > 1 else "")


def _row(title: str, y: int) -> Json:
    place = {"x": 0, "y": y, "w": _WIDTH * _ACROSS, "h": 1}
    return {"type": "row", "title": title, "collapsed": False, "gridPos": place, "panels": []}


def _panel(title: str, description: str, unit: str, lines: list[tuple[str, str]], x: int, y: int) -> Json:
    custom = {"lineWidth": 2, "fillOpacity": 0, "showPoints": "never", "spanNulls": True}
    return {
        "type": "timeseries",
        "title": title,
        "description": description,
        "datasource": _SOURCE,
        "gridPos": {"x": x, "y": y, "w": _WIDTH, "h": _HEIGHT},
        "fieldConfig": {"defaults": {"unit": unit, "custom": custom}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [
            {"refId": chr(ord("A") + index), "datasource": _SOURCE, "expr": expression, "legendFormat": legend}
            for index, (expression, legend) in enumerate(lines)
        ],
    }


def main() -> None:
    """Prints the dashboard."""
    print(json.dumps(dashboard(), indent=1))


if __name__ == "__main__":
    main()
