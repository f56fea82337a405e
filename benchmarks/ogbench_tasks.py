"""Methods on OGBench's tasks: ``python -m benchmarks.ogbench_tasks cube_single --tasks 1 2 --methods flow [--run]``.

``--run`` trains `examples/ogbench/NAME.yaml` for each task, one after another, in one folder, so that they share data
and skills; it resumes where it was stopped. Without it, what is there so far is collected. Both write
``benchmarks/results/ogbench.csv`` (every evaluation during training, then the final ones of the published policies),
``ogbench_NAME.json`` (configs, versions and hardware, each with the `config_hash` of its results; their tasks differ in
``reward_task_id`` alone) and the figure ``docs/ogbench.png``.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from benchmarks.collect import collect_tasks, task_parser
from spirl_ray.config import Experiment, load_experiment
from spirl_ray.pipeline.user_code import make_importable

FOLDER = Path(__file__).parents[1] / "examples" / "ogbench"
COLUMNS = (
    *("env_steps", "mode", "evaluation", "success", "episodes", "wall_clock_s", "config_hash", "commit"),
    *("latent_nats", "error_removed", "return"),
)


def experiment(environment: str, task: int, options: argparse.Namespace) -> Experiment:
    """The experiment of a task."""
    chosen = [f"methods=[{','.join(options.methods)}]", f"seeds={options.seeds}", f"env.kwargs.reward_task_id={task}"]
    return load_experiment(FOLDER / f"{environment}.yaml", [*chosen, *options.changes])


def main() -> None:
    """Entry point."""
    parser = task_parser(__doc__)
    parser.add_argument("environment", choices=("cube_single", "cube_double", "scene"))
    parser.add_argument("--tasks", type=int, nargs="+", default=[1, 2, 3, 4, 5], choices=(1, 2, 3, 4, 5))
    parser.add_argument("--methods", nargs="+", default=["spirl_offline"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    os.chdir(FOLDER)  # the configs ship the file beside them
    named = options.environment
    tasks = [(f"{named} {task}", experiment(named, task, options)) for task in options.tasks]
    make_importable(tasks[0][1].submit.ship)
    origin, label = f"ogbench_{named}", "share with success"
    collect_tasks("ogbench", origin, tasks, COLUMNS, panel="task", score="success", label=label, run=options.run)


if __name__ == "__main__":
    main()
