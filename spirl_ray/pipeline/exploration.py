"""Exploration without a policy: the paper's exploration figure, and the coverage.

Four explorers act for the same number of steps: skills drawn from the skill prior, skills drawn from N(0, I), actions
drawn from a flat action prior, and uniform random actions.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import ray
import torch
from numpy.typing import NDArray

import spirl_ray.envs as envs
from spirl_ray.config import EnvironmentSettings
from spirl_ray.envs.spec import EnvironmentSpec, FloorPlan
from spirl_ray.episodes.features import Array, stack_observations
from spirl_ray.errors import SpirlError
from spirl_ray.files import layout
from spirl_ray.files.atomic import read_json, write_atomically, write_json
from spirl_ray.files.tables import write_csv
from spirl_ray.pipeline.events import Progress, silent
from spirl_ray.pipeline.results import ExplorationResult
from spirl_ray.pipeline.session import finished_tasks
from spirl_ray.pipeline.workspace import Trial, Workspace
from spirl_ray.skills.artifact import load_skills
from spirl_ray.skills.execution import SkillExecution
from spirl_ray.skills.model import SkillModel

Latents = Literal["prior", "standard_normal"]
_EPISODES_A_TASK = 25
_DRAWN_EVERY = 5
"""The number of primitive steps between the positions in the figure."""


@dataclass(frozen=True)
class Explorer:
    """An explorer: a skill artifact with its prior or with latents from N(0, I), or uniform random actions."""

    label: str
    skills: Path | None
    latents: Latents = "prior"


def explorers(skills: Path, action_prior: Path) -> list[Explorer]:
    """The explorers of the paper's figure, SPiRL's first."""
    return [
        Explorer("skill prior (SPiRL)", skills),
        Explorer("skills without prior", skills, "standard_normal"),
        Explorer("flat prior", action_prior),
        Explorer("random actions", None),
    ]


def exploring_trials(workspace: Workspace) -> list[Trial]:
    """The trials whose skills explore: open-loop skills and the flat action prior, of the experiment's first seed."""
    return [workspace.trial(method, workspace.experiment.seeds[0]) for method in ("spirl", "flat_prior")]


def exploration_folder(workspace: Workspace) -> Path:
    """The folder of an experiment's exploration, which may not exist yet."""
    return workspace.exploration([trial.skills for trial in exploring_trials(workspace)])


def check_floor_plan(spec: EnvironmentSpec) -> Callable[[Any], FloorPlan]:
    """Returns what makes the floor plan of an environment, on which exploration is drawn.

    Raises:
        SpirlError: the environment declares none.
    """
    if spec.floor_plan is None:
        raise SpirlError(
            f"explore: {spec.id} declares no floor plan, on which exploration is drawn; spirl/Maze-v0 does. Set "
            "explore.in_run to false."
        )
    return spec.floor_plan


def run_exploration(workspace: Workspace, progress: Progress = silent) -> ExplorationResult:
    """Explores on Ray with trained skills, and writes the figure, the coverage table and a summary.

    Args:
        workspace: folder of an experiment whose environment has a floor plan.
        progress: callback that gets the number of primitive steps.

    Raises:
        SpirlError: the environment has no floor plan.
    """
    experiment, out = workspace.experiment, exploration_folder(workspace)
    env, settings = experiment.environment, experiment.explore
    spec = envs.environment(env)
    floor_plan = check_floor_plan(spec)
    with workspace.locked(out):
        if (out / layout.SUMMARY).exists():
            rows = read_json(out / layout.SUMMARY)["rows"]
            return ExplorationResult(folder=out, ran=False, figure=out / layout.EXPLORATION_FIGURE, rows=rows)
        with contextlib.closing(envs.make(env)) as made:
            plan, limit = floor_plan(made), spec.max_episode_steps
        episodes = math.ceil(settings.env_steps / limit)
        chunks = [
            range(first, min(episodes, first + _EPISODES_A_TASK)) for first in range(0, episodes, _EPISODES_A_TASK)
        ]
        acting = explorers(*(trial.skills for trial in exploring_trials(workspace)))
        task: Any = ray.remote(num_cpus=1, max_retries=3)(explore)
        started = {
            task.remote(explorer, env, chunk, settings.seed): explorer.label for explorer in acting for chunk in chunks
        }
        paths: dict[str, list[NDArray[np.float32]]] = {explorer.label: [] for explorer in acting}
        done = 0
        for reference, found in finished_tasks(started):
            paths[started[reference]].append(found)
            done += found.shape[0] * (found.shape[1] - 1)
            progress(done, len(acting) * episodes * limit, metrics={"steps": done})
        rows = coverage_rows({label: np.concatenate(parts) for label, parts in paths.items()}, plan)
        write_csv(out / layout.EXPLORATION_TABLE, rows)
        write_atomically(out / layout.EXPLORATION_FIGURE, _figure(paths, rows, plan))
        summary = {"rows": rows, "env": env.model_dump(mode="json"), "env_steps": rows[0]["env_steps"]}
        write_json(out / layout.SUMMARY, summary)
    return ExplorationResult(folder=out, ran=True, figure=out / layout.EXPLORATION_FIGURE, rows=rows)


def coverage_rows(paths: dict[str, NDArray[np.float32]], plan: FloorPlan) -> list[dict[str, Any]]:
    """Computes the coverage of each explorer from positions [episodes, T + 1, 2]; ratios are to the first explorer.

    ``coverage`` is the share of all free cells, ``cells_per_episode`` the mean number of distinct ones,
    ``reached_goal`` the share of episodes that came within the goal's radius.
    """
    free = int((~plan.walls).sum())
    rows: list[dict[str, Any]] = []
    for label, visited in paths.items():
        cells = np.rint(visited).astype(np.int64)
        numbers = cells[..., 0] * plan.walls.shape[1] + cells[..., 1]
        reached = 0.0
        if plan.goal is not None:
            reached = float((np.linalg.norm(visited - plan.goal, axis=-1).min(axis=1) < plan.goal_radius).mean())
        rows.append(
            {
                "explorer": label,
                "env_steps": visited.shape[0] * (visited.shape[1] - 1),
                "episodes": visited.shape[0],
                "coverage": round(len(np.unique(numbers)) / free, 4),
                "cells_per_episode": round(float(np.mean([len(np.unique(row)) for row in numbers])), 2),
                "reached_goal": round(reached, 4),
            }
        )
    for row in rows:
        row["prior_over_this"] = round(rows[0]["coverage"] / row["coverage"], 3)
    return rows


def _figure(paths: dict[str, list[NDArray[np.float32]]], rows: list[dict[str, Any]], plan: FloorPlan) -> bytes:
    """Draws the panels as PNG."""
    import io

    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.0 * len(paths), 4.8), layout="constrained")
    for axes, (label, parts), row in zip(figure.subplots(1, len(paths)), paths.items(), rows, strict=True):
        visited = np.concatenate(parts)[:, ::_DRAWN_EVERY].reshape(-1, 2)
        axes.imshow(plan.walls.T, origin="lower", cmap="Greys", vmin=0, vmax=1.4, interpolation="nearest")
        axes.plot(*visited.T, ",", color="#2468a8", alpha=0.35, rasterized=True)
        for cell, colour, name in ((plan.start, "#2f9e44", "start"), (plan.goal, "#f08c00", "goal")):
            if cell is not None:
                axes.plot(*cell, "o", color=colour, markersize=9, markeredgecolor="white", label=name)
        axes.set_title(f"{label}\n{100 * row['coverage']:.0f} % of the free cells", fontsize=11)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.legend(loc="lower right", fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
    return buffer.getvalue()


def explore(explorer: Explorer, env: EnvironmentSettings, episodes: Sequence[int], seed: int) -> NDArray[np.float32]:
    """Runs whole episodes at the same time, so that networks get batches; returns positions [episodes, T + 1, 2].

    T is the environment's limit; an agent whose episode has ended earlier stays where it is. Episode i has environment
    seed ``seed + i``; the result depends on the episodes that share the call.
    """
    model = load_skills(explorer.skills) if explorer.skills is not None else None
    return explore_with(model, explorer.latents, env, episodes, seed)


@torch.inference_mode()
def explore_with(
    model: SkillModel | None,
    latents: Latents,
    env: EnvironmentSettings,
    episodes: Sequence[int],
    seed: int,
) -> NDArray[np.float32]:
    """Runs `explore` with a model in memory; None acts at random."""
    torch.set_num_threads(1)
    spec = envs.environment(env)
    generator = torch.Generator().manual_seed(seed + 7919 * episodes[0])
    running = [envs.make(env) for _ in episodes]
    assert spec.floor_plan is not None
    place = spec.floor_plan(running[0]).feature
    newest = [made.reset(seed=seed + number)[0] for made, number in zip(running, episodes, strict=True)]
    observations = stack_observations(newest)
    execution = SkillExecution(model) if model is not None else None
    positions, ended = [observations[place][:, :2]], np.zeros(len(running), np.bool_)
    actions: NDArray[np.float32]
    while not ended.all():
        if execution is None or model is None:
            actions = (2.0 * torch.rand(len(running), spec.action_dim, generator=generator) - 1.0).numpy()
        else:
            if len(positions) == 1 or execution.finished:
                execution.begin(_latents(model, latents, observations, generator))
            actions = execution.action(observations)
        for row in np.flatnonzero(~ended):
            newest[row], _, terminated, truncated, _ = running[row].step(actions[row])
            ended[row] = terminated or truncated
        observations = stack_observations(newest)
        positions.append(observations[place][:, :2])
    for made in running:
        made.close()
    positions += positions[-1:] * (spec.max_episode_steps + 1 - len(positions))
    return np.stack(positions, axis=1).astype(np.float32)


def _latents(
    model: SkillModel, latents: Latents, observations: Mapping[str, Array], generator: torch.Generator
) -> NDArray[np.float32]:
    if latents == "prior":
        encoded = {name: torch.from_numpy(values) for name, values in observations.items()}
        return model.prior_distribution(encoded).sample(generator).numpy()
    count = len(next(iter(observations.values())))
    return torch.randn(count, model.spec.latent_dim, generator=generator).numpy()
