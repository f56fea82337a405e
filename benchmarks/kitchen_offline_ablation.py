"""What each of the five changes of `spirl_offline` does: ``python -m benchmarks.kitchen_offline_ablation [--run]``.

``--run`` trains ``tune_configs/kitchen_play.yaml`` on a target on which `spirl_cl` swings, as shipped and with one
change taken back at a time, one after another, in one folder; it resumes where it was stopped. ``--only`` chooses some
of them by number. Without ``--run``, what is there so far is collected. Both write
``benchmarks/results/kitchen_offline_ablation.csv`` (every evaluation), ``.json`` (configs, versions and hardware) and
``docs/kitchen_offline_ablation.png``.
"""

from __future__ import annotations

from benchmarks.collect import collect_tasks, task_parser
from benchmarks.kitchen_targets import COLUMNS, TARGETS
from spirl_ray.config import Experiment, load_experiment

NAME = "kitchen_offline_ablation"
BACK: dict[str, tuple[str, ...]] = {
    "as shipped": (),
    "no offline decisions": ("train.offline_fraction=0",),
    "discount 0.99 a decision": ("train.discount=0.99", "train.discount_per=decision"),
    "ten latent dimensions": ("skills.latent_dim=10",),
    "two critics, one update a decision": (
        "train.critics=2",
        "train.critics_in_minimum=null",
        "train.updates_per_decision=1",
    ),
    "no average of the policy": ("train.policy_polyak=1",),
}
BACK["all five taken back"] = tuple(change for changes in BACK.values() for change in changes)


def experiment(back: tuple[str, ...], changes: list[str]) -> Experiment:
    """The experiment in which a change is taken back."""
    tasks = f"env.tasks=[{', '.join(TARGETS[1])}]"
    budget = ("train.env_steps=80000", "evaluate.episodes=50", "evaluate.prior_episodes=0", "evaluate.videos=0")
    return load_experiment("kitchen_play", [f"name={NAME}", f"output=runs/{NAME}", tasks, *budget, *back, *changes])


def main() -> None:
    """Entry point."""
    parser = task_parser(__doc__)
    parser.add_argument("--only", type=int, nargs="+", choices=range(len(BACK)), default=list(range(len(BACK))))
    options = parser.parse_args()
    chosen = [list(BACK)[number] for number in options.only]
    tasks = [(name, experiment(BACK[name], options.changes)) for name in chosen]
    label = "subtasks of 4"
    collect_tasks(NAME, NAME, tasks, COLUMNS, panel="change", score="subtasks", label=label, run=options.run)


if __name__ == "__main__":
    main()
