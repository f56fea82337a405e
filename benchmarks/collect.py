"""Writes the committed result files of an experiment from its folder.

    python -m benchmarks.collect tune_configs/kitchen_human.yaml --set output=runs/kitchen_human \
        --variant pretrain.augmentation.kind=none

makes three files in ``benchmarks/results/``: ``<name>.csv`` has every evaluation point of every trial;
``<name>_prior.csv`` has the bare priors, one row for each seed and mode, and beside them those of every ``--variant``
of the config; ``<name>.json`` has the exact config, versions and hardware. An exploration also gives
``<name>_exploration.csv`` and ``<name>_exploration.png``. Metrics have the names that the environment declares.

``--add`` keeps the rows of methods and seeds that the given config does not have, and their config in the JSON file, so
that trials with another budget can be added:
``--add --set 'methods=[ssp]' --set 'seeds=[0]' --set train.env_steps=20000``.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.curves import draw_curves
from spirl_ray import api
from spirl_ray.config import Experiment, load_experiment
from spirl_ray.files.atomic import read_json, write_atomically, write_json
from spirl_ray.files.tables import read_csv, write_csv
from spirl_ray.pipeline.provenance import hardware, versions
from spirl_ray.pipeline.workspace import Workspace
from spirl_ray.reports.gather import gather
from spirl_ray.reports.tables import chosen_score, load_trials, prior_scores, result_rows

RESULTS = Path(__file__).parent / "results"


def prior_rows(experiment: Experiment) -> list[dict[str, Any]]:
    """One row for each bare prior of the experiment that has been rolled out."""
    record = gather(Workspace(experiment), "")
    score = chosen_score(record, [])
    return [
        {
            "skills": prior.record.skill_label,
            "augmentation": prior.record.augmentation,
            "seed": prior.record.seed,
            "mode": prior.record.mode,
            score.name: round(prior.mean, 4),
            "episodes": prior.episodes,
        }
        for prior in prior_scores(record.priors, record.scores, score)
    ]


def evaluation_rows(experiment: Experiment, fixed: dict[str, Any], columns: tuple[str, ...]) -> list[dict[str, Any]]:
    """A row for each evaluation of an experiment's policies, as far as they are there: method, what is the same in all
    rows, seed, and some columns of `results.csv`."""
    record = gather(Workspace(experiment), "")
    rows = result_rows(load_trials(record.trials, record.scores), record.scores, record.deciding)
    return [
        {"method": row["method"], **fixed, "seed": row["seed"], **{name: row.get(name, "") for name in columns}}
        for row in rows
    ]


def with_others(path: Path, rows: list[dict[str, Any]], keys: tuple[str, ...]) -> list[dict[str, Any]]:
    """The rows of a file that differ from all new ones in some key, then the new ones."""
    new = {tuple(str(row.get(key, "")) for key in keys) for row in rows}
    found = [row.cells for row in read_csv(path)]
    return [row for row in found if tuple(row.get(key, "") for key in keys) not in new] + rows


def shared_settings(experiment: Experiment) -> dict[str, Any]:
    """The settings of an experiment without the folders of the machine on which it ran."""
    places: Any = {"output": True, "data": {"sources": {"__all__": {"root", "path"}}}}
    return experiment.model_dump(mode="json", exclude=places)


def write_origin(name: str, experiment: Experiment) -> None:
    """Writes ``NAME.json``: the exact config of results, versions and hardware."""
    write_json(RESULTS / f"{name}.json", _origin(experiment))


def _origin(experiment: Experiment) -> dict[str, Any]:
    return {"config": shared_settings(experiment), "versions": versions(), "hardware": hardware()}


def add_origin(name: str, experiment: Experiment, rows: list[dict[str, Any]], everything: list[dict[str, Any]]) -> None:
    """Adds the config of some results to ``NAME.json``, which lists configs with the trainings that they were for.

    Args:
        name: the name of the file, without its ending.
        experiment: the experiment of the new results.
        rows: the new results.
        everything: all results that are kept; configs of others are removed.
    """
    hashes, present = ({row["config_hash"] for row in some} for some in (rows, everything))
    path = RESULTS / f"{name}.json"
    before = read_json(path) if path.exists() else {"configs": []}
    configs = before.get("configs", [{"config_hashes": present, **before}])  # or that of a single call
    entries = [{**one, "config_hashes": sorted((set(one["config_hashes"]) & present) - hashes)} for one in configs]
    kept = [one for one in entries if one["config_hashes"]]
    write_json(path, {"configs": [*kept, {"config_hashes": sorted(hashes), **_origin(experiment)}]})


def task_parser(description: str | None) -> argparse.ArgumentParser:
    """The options of a benchmark that ends with `collect_tasks`: ``--run`` and ``--set KEY=VALUE``, as ``changes``."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="store_true", help="train what is not trained yet")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="changes")
    return parser


def collect_tasks(
    csv: str,
    origin: str,
    tasks: list[tuple[str, Experiment]],
    columns: tuple[str, ...],
    *,
    panel: str,
    score: str,
    label: str,
    run: bool,
) -> None:
    """Writes the results of several experiments, as far as they are there, their configs and their figure.

    Args:
        csv: the name of the CSV file and of the figure in ``docs/``, without their endings.
        origin: the name of the JSON file with the configs, without its ending.
        tasks: the name and the experiment of each task.
        columns: the columns of `results.csv` to keep.
        panel: the column with the name of the task; the figure has a panel for each.
        score: the column that is drawn.
        label: the label of its axis.
        run: True to train first what is not trained yet, one after another.
    """
    if run:
        for _, one in tasks:
            api.run(one)
    found = [evaluation_rows(one, {panel: name}, columns) for name, one in tasks]
    rows = [row for some in found for row in some]
    path = RESULTS / f"{csv}.csv"
    everything = with_others(path, rows, ("method", panel, "seed"))
    write_csv(path, everything)
    draw_curves(everything, RESULTS.parents[1] / "docs" / f"{csv}.png", panel=panel, score=score, label=label)
    for (_, one), some in zip(tasks, found, strict=True):
        if some:
            add_origin(origin, one, some, everything)
    print(f"wrote {path}: {len(rows)} rows")


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
    record = gather(Workspace(experiment), "")
    trials = new = result_rows(load_trials(record.trials, record.scores), record.scores, record.deciding)
    priors = prior_rows(experiment)
    for variant in options.variant:
        rows = prior_rows(load_experiment(options.config, [*options.set, variant]))
        priors += [{**row, "variant": variant} for row in rows]
    exploration = record.exploration
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
    if options.add:
        add_origin(name, experiment, new, trials)
    else:
        write_origin(name, experiment)
    print(f"wrote {RESULTS / name}*")


if __name__ == "__main__":
    main()
