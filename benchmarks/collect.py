"""Writes the committed result files of an experiment from its folder.

    python -m benchmarks.collect tune_configs/kitchen_human.yaml --set output=runs/kitchen_human \
        --set 'methods=[spirl_cl,spirl]' --set 'seeds=[0,1,2]' --variant pretrain.augmentation.kind=none

makes ``benchmarks/results/<name>.csv`` (every evaluation point of every trial), ``<name>_prior.csv`` (the bare
priors, one row for each seed and mode, with those of every ``--variant`` of the config beside them) and ``<name>.json``
(exact config, versions, hardware).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from spirl_ray.config import Experiment, load_experiment
from spirl_ray.experiments.gather import gather
from spirl_ray.experiments.provenance import hardware, versions
from spirl_ray.experiments.report_tables import load_trials, prior_scores, results_csv
from spirl_ray.experiments.rollouts import write_csv
from spirl_ray.experiments.workspace import Workspace
from spirl_ray.skills.artifact import write_atomically, write_json

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


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--variant", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    experiment = load_experiment(options.config, options.set)
    name = experiment.name
    trials = load_trials(gather(Workspace(experiment), "").trials)
    write_atomically(RESULTS / f"{name}.csv", results_csv(trials).encode())
    rows = prior_rows(experiment)
    for variant in options.variant:
        rows += prior_rows(load_experiment(options.config, [*options.set, variant]))
    if rows:
        write_csv(RESULTS / f"{name}_prior.csv", rows)
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
