"""Writes the committed result files of an experiment from its folder.

    python -m benchmarks.collect tune_configs/kitchen_human.yaml --set output=runs/kitchen_human \
        --variant pretrain.augmentation.kind=none

makes ``benchmarks/results/<name>.csv`` (every evaluation point of every trial), ``<name>_prior.csv`` (the bare
priors, one row for each seed and mode, with those of every ``--variant`` of the config beside them and named) and
``<name>.json`` (exact config, versions, hardware). ``--add`` keeps the rows of methods that the given config does not
have, for trials with another budget: ``--add --set 'methods=[ssp]' --set 'seeds=[0]' --set train.env_steps=20000``.
Where the target has one subtask, the share of episodes that complete it is called ``success``; elsewhere the number of
those completed has the environment's name for it, such as ``tower_height``. An exploration gives
``<name>_exploration.csv`` and ``<name>_exploration.png``.
"""

from __future__ import annotations

import argparse
import csv
import io
from pathlib import Path
from typing import Any

from spirl_ray.config import Experiment, load_experiment
from spirl_ray.envs import environment
from spirl_ray.files.atomic import write_atomically, write_json
from spirl_ray.files.tables import write_csv
from spirl_ray.pipeline.provenance import hardware, versions
from spirl_ray.pipeline.workspace import Workspace
from spirl_ray.reports.gather import gather
from spirl_ray.reports.tables import load_trials, prior_scores, results_csv

RESULTS = Path(__file__).parent / "results"


def prior_rows(experiment: Experiment) -> list[dict[str, Any]]:
    """One row for each bare prior of the experiment that has been rolled out."""
    record = gather(Workspace(experiment), "")
    return [
        {
            "skills": score.record.skill_label,
            "augmentation": score.record.augmentation,
            "seed": score.record.seed,
            "mode": score.record.mode,
            "subtasks": round(score.mean, 4),
            "episodes": score.episodes,
        }
        for score in prior_scores(record.priors)
    ]


def with_others(path: Path, rows: list[dict[str, Any]], keys: tuple[str, ...]) -> list[dict[str, Any]]:
    """The rows of a file that differ from all new ones in some key, then the new ones."""
    if not path.exists():
        return rows
    new = {tuple(str(row.get(key, "")) for key in keys) for row in rows}
    with path.open(newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if tuple(row.get(key, "") for key in keys) not in new] + rows


def named(experiment: Experiment, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with ``subtasks`` under the name that the literature has for it in this environment."""
    facts = environment(experiment.env.id)
    name = "success" if len(facts.target(experiment.env.kwargs)) == 1 else facts.score
    shifted = [{**row, "subtasks": float(row["subtasks"]) + facts.score_before} for row in rows]
    return [{name if key == "subtasks" else key: value for key, value in row.items()} for row in shifted]


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--variant", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--add", action="store_true")
    options = parser.parse_args()
    experiment = load_experiment(options.config, options.set)
    name = experiment.name
    text = results_csv(load_trials(gather(Workspace(experiment), "").trials))
    trials: list[dict[str, Any]] = list(csv.DictReader(io.StringIO(text)))
    priors = prior_rows(experiment)
    for variant in options.variant:
        rows = prior_rows(load_experiment(options.config, [*options.set, variant]))
        priors += [{**row, "variant": variant} for row in rows]
    trials, priors = named(experiment, trials), named(experiment, priors)
    exploration = gather(Workspace(experiment), "").exploration
    if exploration is not None:
        write_csv(RESULTS / f"{name}_exploration.csv", exploration.rows)
        write_atomically(RESULTS / f"{name}_exploration.png", exploration.figure.read_bytes())
    if options.add:
        trials = with_others(RESULTS / f"{name}.csv", trials, ("method", "seed"))
        priors = with_others(
            RESULTS / f"{name}_prior.csv", priors, ("skills", "augmentation", "seed", "mode", "variant")
        )
    write_csv(RESULTS / f"{name}.csv", trials)
    if priors:
        write_csv(RESULTS / f"{name}_prior.csv", priors)
    if not options.add:
        write_json(
            RESULTS / f"{name}.json",
            {
                "config": experiment.model_dump(mode="json", exclude={"output": True, "data": {"minari_root"}}),
                "versions": versions(),
                "hardware": hardware(),
            },
        )
    print(f"wrote {RESULTS / name}*")


if __name__ == "__main__":
    main()
