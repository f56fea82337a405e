"""Policies as they are during training, each evaluated by Ray tasks while training continues."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray

from spirl_ray.envs.metrics import MODES, Scores
from spirl_ray.files import layout
from spirl_ray.files.atomic import read_json, write_json
from spirl_ray.files.tables import write_csv
from spirl_ray.pipeline.results import Snapshot
from spirl_ray.pipeline.rollouts import RolloutPlan, gather_rollouts, start_rollouts
from spirl_ray.pipeline.scores import experiment_scores
from spirl_ray.pipeline.training_run import TrainingRun
from spirl_ray.policy.policy import read_policy_card, save_policy
from spirl_ray.rl.algorithm import SkillPriorSAC

Row = dict[str, Any]


class SnapshotEvaluations:
    """Policy artifacts taken during training, each evaluated by Ray tasks while training continues.

    A snapshot without a result, for example after a crash, is evaluated when the run is resumed. Those from after
    the restored checkpoint are removed, because the run takes another course from there.

    ``on_evaluation`` gets the snapshots in the order of their steps, whatever the order in which evaluations finish.
    """

    def __init__(self, run: TrainingRun, env_steps: int, on_evaluation: Callable[[Row], None] | None = None) -> None:
        self.run = run
        self.scores = experiment_scores(run.experiment)
        self.on_evaluation = on_evaluation
        self.pending: dict[tuple[int, str], list[ray.ObjectRef]] = {}
        self.newest: dict[str, Row] = {}
        """The newest result of each mode."""
        self._clock: dict[int, float] = {}
        for folder in layout.step_folders(run.out / layout.SNAPSHOTS):
            if layout.steps_of(folder) > env_steps:
                shutil.rmtree(folder, ignore_errors=True)
        self.results = results_so_far(run.out)
        self._told = -1
        """The steps of the newest snapshot that has been passed on."""
        for folder in layout.step_folders(run.out / layout.SNAPSHOTS):
            if (folder / layout.POLICY_CARD).exists():
                self._start(read_policy_card(folder).env_steps)
        self._tell()

    def snapshot(self, algorithm: SkillPriorSAC, env_steps: int) -> None:
        """Saves the policy as it is now and starts its evaluation."""
        run, folder = self.run, snapshot_folder(self.run.out, env_steps)
        if not (folder / layout.POLICY_CARD).exists():
            save_policy(
                folder,
                algorithm.policy_state(),
                run.skills,
                policy=algorithm.config.policy,
                environment=run.experiment.environment,
                method=run.method.name,
                seed=run.seed,
                latent_limit=run.method.latent_limit,
                env_steps=env_steps,
                config_hash=run.config_hash,
            )
        self._clock[env_steps] = algorithm.counters.get("wall_clock_s", 0.0)
        self._start(env_steps)

    def _start(self, env_steps: int) -> None:
        env = self.run.experiment.environment
        for mode in MODES:
            if (env_steps, mode) in self.results or (env_steps, mode) in self.pending:
                continue
            plan = RolloutPlan(
                str(snapshot_folder(self.run.out, env_steps).absolute()),
                env,
                mode,
                seed=1_000_000 + env_steps,
                scores=self.scores,
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
                **self.scores.mean(row.metrics for row in rows),
                "wall_clock_s": round(self._clock.get(env_steps, wall_clock_s), 1),
            }
            write_json(snapshot_folder(self.run.out, env_steps) / layout.snapshot_evaluation(mode), result)
            self.results[key] = result
            self.newest[mode] = result
            write_csv(self.run.out / layout.EVALUATIONS, [self.results[k] for k in sorted(self.results)])
            self._tell()

    def _tell(self) -> None:
        """Passes on the snapshots that have been evaluated in every mode, up to the first that is still evaluated."""
        if self.on_evaluation is None:
            return
        waiting = min((steps for steps, _ in self.pending), default=math.inf)
        for env_steps in _steps(self.results):
            if not self._told < env_steps < waiting:
                continue
            found = [self.results[env_steps, mode] for mode in MODES if (env_steps, mode) in self.results]
            if len(found) == len(MODES):
                self._told = env_steps
                self.on_evaluation(_in_one_row(found, self.scores))


def snapshot_folder(out: Path, env_steps: int) -> Path:
    """The folder of a run's policy as it was after this many steps."""
    return layout.step_folder(out / layout.SNAPSHOTS, env_steps)


def results_so_far(out: Path) -> dict[tuple[int, str], Row]:
    """Results of the evaluations made during training, by env_steps and mode."""
    found = [read_json(file) for file in sorted((out / layout.SNAPSHOTS).glob(f"*/{layout.snapshot_evaluation('*')}"))]
    return {(result["env_steps"], result["mode"]): result for result in found}


def evaluations_so_far(out: Path, scores: Scores) -> list[Row]:
    """The evaluated snapshots of a policy's folder, a row for each, in the order of training."""
    results = results_so_far(out)
    by_steps = [[results[steps, mode] for mode in MODES if (steps, mode) in results] for steps in _steps(results)]
    return [_in_one_row(found, scores) for found in by_steps if len(found) == len(MODES)]


def _steps(results: dict[tuple[int, str], Row]) -> list[int]:
    return sorted({steps for steps, _ in results})


def _in_one_row(results: list[Row], scores: Scores) -> Row:
    row: Row = {name: results[0][name] for name in ("env_steps", "wall_clock_s")}
    for result in results:
        means = scores.with_score({name: result[name] for name in scores.names if name in result})
        row |= {f"{result['mode']}_{name}": value for name, value in means.items()}
    return row


def best_and_last(results: dict[tuple[int, str], Row], scores: Scores) -> dict[str, Snapshot]:
    """Summarizes the best and the last snapshot that were evaluated in every mode.

    The best one has the best mean of the score over both modes, because twice the episodes choose with less luck than
    those of one mode; of equals, it is the later one.

    Returns:
        ``best`` and ``last``; empty where no snapshot has been evaluated.
    """
    score = scores.score_in(results.values())
    found: list[Snapshot] = []
    for steps in _steps(results):
        modes: dict[str, Row] = {mode: results[steps, mode] for mode in MODES if (steps, mode) in results}
        if len(modes) < len(MODES):
            continue
        mean = sum(result.get(score.name, math.nan) for result in modes.values()) / len(modes)
        columns = ("episodes", *scores.names)
        means = {mode: {name: row[name] for name in columns if name in row} for mode, row in modes.items()}
        found.append(Snapshot(env_steps=steps, score=None if math.isnan(mean) else mean, **means))
    if not found:
        return {}
    best = max(found, key=lambda one: (-math.inf if one.score is None else score.sign * one.score, one.env_steps))
    return {"best": best, "last": found[-1]}
