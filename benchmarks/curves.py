"""Draws the evaluations of several tasks during training: a panel for each task, a line for each training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

_IN_A_ROW = 5
"""How many panels fit side by side."""


def draw_curves(rows: list[dict[str, Any]], path: Path, *, panel: str, score: str, label: str) -> None:
    """Draws the rows of a result file that are evaluations during training.

    Args:
        rows: rows with ``method``, ``seed``, ``env_steps``, ``mode``, ``evaluation`` and the two columns below.
        path: the PNG to write.
        panel: the column whose values have a panel each.
        score: the column that is drawn.
        label: what the score is, for the axis.
    """
    rows = [row for row in rows if row["evaluation"] == "training"]
    names = list(dict.fromkeys(row[panel] for row in rows))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    wide = min(len(names), _IN_A_ROW)
    high = -(-len(names) // wide)
    figure, axes = plt.subplots(
        high, wide, figsize=(3.0 * wide, 2.6 * high), sharey=True, squeeze=False, constrained_layout=True
    )
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    labelled: set[str] = set()
    for axis, name in zip(axes.flat, names, strict=False):
        ours = [row for row in rows if row[panel] == name]
        for method, seed, mode in sorted({(row["method"], str(row["seed"]), row["mode"]) for row in ours}):
            points = [row for row in ours if (row["method"], str(row["seed"]), row["mode"]) == (method, seed, mode)]
            text = f"{method}, {mode}"
            axis.plot(
                [float(row["env_steps"]) / 1000 for row in points],
                [float(row[score]) for row in points],
                "-" if mode == "deterministic" else ":",
                color=f"C{methods.index(method)}",
                label=None if text in labelled else text,
            )
            labelled.add(text)
        axis.set_title(name.replace(" + ", "\n"), fontsize=8)
        axis.set_xlabel("primitive steps, thousands", fontsize=8)
        axis.grid(alpha=0.3)
    for line in axes[:, 0]:
        line.set_ylabel(label)
    figure.legend(loc="outside lower center", ncols=min(4, wide), fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)
