"""Policies as they are while training goes on, each evaluated by Ray tasks meanwhile."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray

from spirl_ray.files.atomic import read_json, write_json
from spirl_ray.files.tables import write_csv
from spirl_ray.pipeline.rollouts import (
    Mode,
    RolloutPlan,
    gather_rollouts,
    mean_return,
    mean_subtasks,
    start_rollouts,
)
from spirl_ray.pipeline.training_run import TrainingRun
from spirl_ray.policy.policy import CARD as POLICY_CARD
from spirl_ray.policy.policy import read_policy_card, save_policy
from spirl_ray.rl.algorithm import SkillPriorSAC

_MODES: tuple[Mode, ...] = ("deterministic", "sampled")
Row = dict[str, Any]


class SnapshotEvaluations:
    """Policy artifacts taken during training, each evaluated by Ray tasks while training goes on.

    A snapshot without a result, for example after a crash, is evaluated when the run goes on. Those from after
    the restored checkpoint are removed: the run takes another course from there.
    """

    def __init__(self, run: TrainingRun, env_steps: int, on_evaluation: Callable[[Row], None] | None = None) -> None:
        self.run = run
        self.on_evaluation = on_evaluation
        self.results: dict[tuple[int, str], Row] = {}
        self.pending: dict[tuple[int, str], list[ray.ObjectRef]] = {}
        self.newest: Row = {}
        self._clock: dict[int, float] = {}
        for folder in sorted((run.out / "snapshots").glob("step-*")):
            if int(folder.name.split("-")[1]) > env_steps:
                shutil.rmtree(folder, ignore_errors=True)
        for file in sorted((run.out / "snapshots").glob("*/evaluation-*.json")):
            result = read_json(file)
            self.results[(result["env_steps"], result["mode"])] = result
        for env_steps in sorted({steps for steps, _ in self.results}):
            self._tell(env_steps)
        for card in sorted((run.out / "snapshots").glob(f"*/{POLICY_CARD}")):
            self._start(read_policy_card(card.parent).env_steps)

    def folder(self, env_steps: int) -> Path:
        return self.run.out / "snapshots" / f"step-{env_steps:012d}"

    def snapshot(self, algorithm: SkillPriorSAC, env_steps: int) -> None:
        run = self.run
        if not (self.folder(env_steps) / POLICY_CARD).exists():
            save_policy(
                self.folder(env_steps),
                algorithm.policy_state(),
                run.skills,
                policy=algorithm.config.policy,
                environment=run.experiment.env.id,
                env_kwargs=run.experiment.env.kwargs,
                method=run.method.name,
                seed=run.seed,
                latent_limit=run.method.latent_limit,
                env_steps=env_steps,
                config_hash=run.config_hash,
            )
        self._clock[env_steps] = algorithm.counters.get("wall_clock_s", 0.0)
        self._start(env_steps)

    def _start(self, env_steps: int) -> None:
        env = self.run.experiment.env
        for mode in _MODES:
            if (env_steps, mode) in self.results or (env_steps, mode) in self.pending:
                continue
            plan = RolloutPlan(
                str(self.folder(env_steps).absolute()), env.id, env.kwargs, mode, seed=1_000_000 + env_steps
            )
            episodes = self.run.experiment.train.evaluate_episodes
            self.pending[(env_steps, mode)] = start_rollouts(plan, range(episodes))

    def collect(self, wall_clock_s: float, *, wait: bool = False) -> None:
        """Takes in finished evaluations; ``wait`` takes in all of them."""
        for key in list(self.pending):
            references = self.pending[key]
            if not wait and ray.wait(references, num_returns=len(references), timeout=0)[1]:
                continue
            rows = gather_rollouts(references)
            del self.pending[key]
            env_steps, mode = key
            result = {
                "env_steps": env_steps,
                "mode": mode,
                "episodes": len(rows),
                "subtasks": mean_subtasks(rows),
                "episode_return": mean_return(rows),
                "wall_clock_s": round(self._clock.get(env_steps, wall_clock_s), 1),
            }
            write_json(self.folder(env_steps) / f"evaluation-{mode}.json", result)
            self.results[key] = result
            self.newest[f"evaluation_{mode}"] = result["subtasks"]
            write_csv(self.run.out / "evaluations.csv", [self.results[k] for k in sorted(self.results)])
            self._tell(env_steps)

    def _tell(self, env_steps: int) -> None:
        """Passes a snapshot on once it has been evaluated in every mode."""
        found = [self.results[env_steps, mode] for mode in _MODES if (env_steps, mode) in self.results]
        if self.on_evaluation is not None and len(found) == len(_MODES):
            self.on_evaluation(_in_one_row(found))

    def at(self, env_steps: int) -> dict[str, float]:
        """Mean subtasks of a snapshot, by mode."""
        return {mode: float(self.results[env_steps, mode]["subtasks"]) for mode in _MODES}

    def best(self) -> int | None:
        """Steps of the snapshot with the best deterministic evaluation, the later one of equals."""
        scores = [(r["episode_return"], steps) for (steps, mode), r in self.results.items() if mode == _MODES[0]]
        return max(scores)[1] if scores else None


def evaluations_so_far(out: Path) -> list[Row]:
    """The evaluated snapshots of a policy's folder, a row for each, in the order of training."""
    found: dict[int, list[Row]] = {}
    for file in sorted((out / "snapshots").glob("*/evaluation-*.json")):
        result = read_json(file)
        found.setdefault(result["env_steps"], []).append(result)
    return [_in_one_row(results) for _, results in sorted(found.items()) if len(results) == len(_MODES)]


def _in_one_row(results: list[Row]) -> Row:
    row: Row = {name: results[0][name] for name in ("env_steps", "wall_clock_s")}
    for result in results:
        row[f"{result['mode']}_subtasks"] = result["subtasks"]
        row[f"{result['mode']}_return"] = result["episode_return"]
    return row
