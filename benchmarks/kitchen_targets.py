"""One set of settings on four targets of the kitchen: ``python -m benchmarks.kitchen_targets [--run]``.

``--run`` trains ``tune_configs/kitchen_play.yaml`` for each target, one after another, in one folder, so that they
share demonstrations and skills; it resumes where it was stopped. Without it, what is there so far is collected. Both
write ``benchmarks/results/kitchen_targets.csv`` (every evaluation during training, then the final ones of the published
policies, and what the latents carry), ``kitchen_targets.json`` (the exact config, versions and hardware) and the figure
``docs/kitchen_targets.png``.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from benchmarks.collect import RESULTS, evaluation_rows, with_others, write_origin
from spirl_ray import api
from spirl_ray.config import Experiment, load_experiment
from spirl_ray.files.tables import write_csv

NAME = "kitchen_targets"
TARGETS = (
    ("microwave", "kettle", "bottom burner", "light switch"),  # the paper's
    ("top burner", "slide cabinet", "hinge cabinet", "kettle"),
    ("microwave", "light switch", "slide cabinet", "hinge cabinet"),
    ("hinge cabinet", "kettle", "microwave", "slide cabinet"),  # the one that the experts solve least often
)
COLUMNS = (
    *("env_steps", "mode", "evaluation", "subtasks", "episodes", "wall_clock_s", "config_hash", "commit"),
    *("latent_nats", "error_removed"),
)


def experiment(target: tuple[str, ...], changes: list[str]) -> Experiment:
    """The experiment of a target."""
    tasks = f"env.tasks=[{', '.join(target)}]"
    return load_experiment("kitchen_play", [f"name={NAME}", f"output=runs/{NAME}", tasks, *changes])


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draws the evaluations during training, a panel for each target and a line for each seed and mode."""
    figure, axes = plt.subplots(
        1, len(TARGETS), figsize=(3.0 * len(TARGETS), 2.8), sharey=True, constrained_layout=True
    )
    for axis, target in zip(axes, TARGETS, strict=True):
        name = " + ".join(target)
        ours = [row for row in rows if row["target"] == name and row["evaluation"] == "training"]
        for seed, mode in sorted({(str(row["seed"]), row["mode"]) for row in ours}):
            points = [row for row in ours if (str(row["seed"]), row["mode"]) == (seed, mode)]
            style, colour = ("-", "C0") if mode == "deterministic" else ("--", "C1")
            steps = [float(row["env_steps"]) / 1000 for row in points]
            label = mode if seed == "0" else None
            axis.plot(steps, [float(row["subtasks"]) for row in points], style, color=colour, label=label)
        axis.set_title(name.replace(" + ", "\n"), fontsize=8)
        axis.set_xlabel("primitive steps, thousands")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("subtasks of 4")
    axes[0].legend(fontsize=8, loc="lower right")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="store_true", help="train what is not trained yet")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="changes")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for target in TARGETS:
        chosen = experiment(target, options.changes)
        if options.run:
            api.run(chosen)
        rows += evaluation_rows(chosen, {"target": " + ".join(target)}, COLUMNS)
    path = RESULTS / f"{NAME}.csv"
    rows = with_others(path, rows, ("method", "target", "seed"))
    write_csv(path, rows)
    draw(rows, RESULTS.parents[1] / "docs" / f"{NAME}.png")
    write_origin(NAME, experiment(TARGETS[0], options.changes))
    print(f"wrote {path}: {len(rows)} rows")


if __name__ == "__main__":
    main()
