"""Episodes of a saved policy, or of a bare skill prior: run anywhere with torch alone, or distributed over Ray."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
import torch

import spirl_ray.envs as envs
from spirl_ray.config import EnvironmentSettings
from spirl_ray.envs.metrics import EpisodeOutcome, Mode, Scores, undeclared
from spirl_ray.errors import SpirlError
from spirl_ray.files.tables import read_csv, write_csv
from spirl_ray.pipeline.session import finished_tasks
from spirl_ray.pipeline.video import VideoWriter
from spirl_ray.policy.policy import Policy, load_policy, prior_policy, read_policy_card

_CHUNK = 10
"""The number of episodes in one Ray task."""


@dataclass(frozen=True)
class RolloutPlan:
    """The agent and the environment of rollouts. It is sent to Ray tasks; the folder must be readable there."""

    folder: str
    """The folder of a policy artifact, or of a skill artifact if ``prior``."""
    env: EnvironmentSettings
    mode: Mode
    prior: bool = False
    seed: int = 0
    scores: Scores = field(default_factory=undeclared)
    """The metrics of the episodes."""

    def agent(self) -> Policy:
        """Loads the agent; an artifact that is missing, damaged or of another environment raises `SpirlError`."""
        deterministic = self.mode == "deterministic"
        if self.prior:
            return prior_policy(self.folder, deterministic=deterministic)
        trained_for = read_policy_card(Path(self.folder)).environment.id
        if trained_for != self.env.id:
            raise SpirlError(
                f"The policy in {self.folder} was trained for {trained_for}, this experiment uses {self.env.id}. "
                "Evaluate it with the experiment that it belongs to, or train one for this environment."
            )
        return load_policy(self.folder, deterministic=deterministic)


@dataclass(frozen=True)
class EpisodeRow:
    """One evaluated episode; a row of ``episodes.csv``, whose columns are these and the metrics."""

    mode: str
    episode: int
    seed: int
    metrics: dict[str, float]
    """The metrics by name, in the order of `Scores`; those without a value are left out."""


def run_episodes(
    plan: RolloutPlan, episodes: Sequence[int], video: Path | None = None, fps: int = 25
) -> list[EpisodeRow]:
    """Runs episodes by number; episode i has environment and latent seed ``plan.seed + i``.

    Args:
        plan: agent and environment.
        episodes: numbers of the episodes.
        video: the mp4 that records all of them, captioned with the step and the metrics so far; None records none.
        fps: frames a second of the video.
    """
    torch.set_num_threads(1)
    agent = plan.agent()
    rows = []
    with ExitStack() as stack:
        env = envs.make(plan.env, render_mode="rgb_array" if video else None)
        stack.callback(env.close)
        writer = stack.enter_context(VideoWriter(video, fps)) if video else None
        for number in episodes:
            seed = plan.seed + number
            observation, info = env.reset(seed=seed)
            agent.reset(seed)
            total, steps, ended = 0.0, 0, False
            while not ended:
                observation, reward, terminated, truncated, info = env.step(agent.act(observation))
                total += float(reward)
                steps += 1
                ended = terminated or truncated
                if not ended and writer is None:
                    continue
                measured = plan.scores.of(EpisodeOutcome(total, steps, terminated, truncated, info))
                if writer:
                    caption = f"episode {number} · step {steps} · {_caption(plan.scores, measured)}"
                    writer.add(env.render(), caption)  # type: ignore[arg-type]
            values = {name: value for name, value in measured.items() if math.isfinite(value)}
            rows.append(EpisodeRow(plan.mode, number, seed, values))
    return rows


def _caption(scores: Scores, measured: dict[str, float]) -> str:
    """The caption: the score so far, and those of the metrics from 0 to 1 that have been achieved."""
    score = scores.score_in([measured])
    done = [m.label for m in scores.metrics if m.is_share and m.name != score.name and measured[m.name] == 1.0]
    return " ".join([f"{score.label} {measured[score.name]:.3g}", *(f"· {label} ✓" for label in done)])


def start_rollouts(plan: RolloutPlan, episodes: Sequence[int]) -> list[ray.ObjectRef]:
    """Starts Ray tasks that together run the episodes with these numbers, one logical CPU each."""
    chunks = [list(episodes[first : first + _CHUNK]) for first in range(0, len(episodes), _CHUNK)]
    task = ray.remote(num_cpus=1, max_retries=3)(run_episodes)
    return [task.remote(plan, chunk) for chunk in chunks]


def start_video(plan: RolloutPlan, episodes: int, video: Path, fps: int) -> ray.ObjectRef:
    """Starts a Ray task that records the first episodes; its result is a list of rows, too."""
    task: Any = ray.remote(num_cpus=1, max_retries=1)(run_episodes)
    return task.remote(plan, list(range(episodes)), video, fps)


def gather_rollouts(
    references: list[ray.ObjectRef], on_rows: Callable[[list[EpisodeRow]], None] | None = None
) -> list[EpisodeRow]:
    """Gathers the rows of all tasks, ordered by episode; ``on_rows`` gets those of each task as it finishes.

    Raises:
        SpirlError: see `finished_tasks`.
    """
    rows: list[EpisodeRow] = []
    for _, found in finished_tasks(references):
        rows += found
        if on_rows is not None:
            on_rows(found)
    return sorted(rows, key=lambda row: row.episode)


def write_episodes(path: Path, rows: Sequence[EpisodeRow]) -> None:
    """Writes ``episodes.csv``."""
    write_csv(path, [{"mode": r.mode, "episode": r.episode, "seed": r.seed, **r.metrics} for r in rows])


def read_episode_rows(path: Path) -> list[EpisodeRow]:
    """Reads what `write_episodes` wrote; no file is no rows.

    Raises:
        SpirlError: the file is damaged; the message names it.
    """
    fixed = ("mode", "episode", "seed")
    rows = []
    try:
        for row in read_csv(path, fixed):
            values = {name: row.number(name) for name, text in row.cells.items() if name not in fixed and text}
            rows.append(EpisodeRow(row.cells["mode"], row.whole_number("episode"), row.whole_number("seed"), values))
    except SpirlError as error:
        raise SpirlError(f"{error}. Remove this file, so that its episodes are run again.") from error
    return rows
