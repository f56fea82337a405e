"""One set of settings on four targets of the kitchen: ``python -m benchmarks.kitchen_targets [--run]``.

``--run`` trains ``tune_configs/kitchen_play.yaml`` for each target, one after another, in one folder, so that they
share demonstrations and skills; it resumes where it was stopped. Without it, what is there so far is collected. Both
write ``benchmarks/results/kitchen_targets.csv`` (every evaluation during training, then the final ones of the published
policies, and what the latents carry), ``kitchen_targets.json`` (configs, versions and hardware, each with the
``config_hash`` of its results) and the figure ``docs/kitchen_targets.png``.
"""

from __future__ import annotations

from benchmarks.collect import collect_tasks, task_parser
from spirl_ray.config import Experiment, load_experiment

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


def main() -> None:
    """Entry point."""
    options = task_parser(__doc__).parse_args()
    tasks = [(" + ".join(target), experiment(target, options.changes)) for target in TARGETS]
    label = "subtasks of 4"
    collect_tasks(NAME, NAME, tasks, COLUMNS, panel="target", score="subtasks", label=label, run=options.run)


if __name__ == "__main__":
    main()
