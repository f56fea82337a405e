"""What ``train.reward_scale: auto`` is worth: the same training with it and with 1, where rewards are large or small.

    python -m benchmarks.reward_scale runs/reward_scale

This records demonstrations of Pendulum (rewards of about -8 to 0 a step) and of PointMaze_UMaze, which ends at its goal
(1 there, else 0), learns skills, and trains a policy twice in each environment: six to 17 minutes each on two busy
cores. The results are in ``reward_scale.csv`` in the folder.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import gymnasium_robotics
import numpy as np
from numpy.typing import NDArray

import spirl_ray as spirl
from spirl_ray.config import Experiment
from spirl_ray.files import layout
from spirl_ray.files.atomic import read_json
from spirl_ray.files.tables import read_csv, write_csv
from spirl_ray.pipeline.results import ExperimentResult

Numbers = NDArray[np.floating]
Row = dict[str, Any]
MAZE, PENDULUM = "gymnasium_robotics:PointMaze_UMaze-v3", "Pendulum-v1"
EPISODES = {MAZE: 400, PENDULUM: 200}
KWARGS: dict[str, dict[str, Any]] = {MAZE: {"continuing_task": False}, PENDULUM: {}}
SCALES: tuple[float | str, ...] = ("auto", 1.0)
SETTINGS: dict[str, Any] = {
    "skills": {"horizon": 10, "beta": 0.002},
    "pretrain": {"updates": 8000, "optimizer": "adam", "cosine_decay": True, "warmup_updates": 0},
    "train": {
        "env_steps": 60000,
        "target_divergence": 4.0,
        "initial_alpha": 0.1,
        "alpha_lr": 0.001,
        "warmup_decisions": 500,
        "critic_layers": 3,
        "critic_layer_norm": True,
        "evaluate_every": 10000,
        "evaluate_episodes": 30,
    },
    "evaluate": {"episodes": 100, "prior_episodes": 100, "videos": 0},
}
"""The settings with which ``spirl init`` begins."""
CORRIDOR = ((1, 1), (1, 2), (1, 3), (2, 3), (3, 3), (3, 2), (3, 1))
"""The cells of PointMaze_UMaze from one end to the other."""
MOODS, SHARES = ("pump", "hold", "brake", "left", "right"), (0.35, 0.3, 0.15, 0.1, 0.1)
"""What the controller of Pendulum does for some tens of steps, and how often it chooses it."""


class Walker:
    """A controller that walks along the corridor to the goal, with noise."""

    def __init__(self, env: gymnasium.Env, rng: np.random.Generator) -> None:
        self.rng = rng
        maze: Any = env.get_wrapper_attr("maze")
        self.cells = np.array([maze.cell_rowcol_to_xy(np.array(cell)) for cell in CORRIDOR])

    def __call__(self, observed: Any) -> Numbers:
        state, goal = observed["observation"], observed["desired_goal"]
        here, there = (int(np.argmin(((self.cells - place) ** 2).sum(1))) for place in (state[:2], goal))
        target = goal if here == there else self.cells[here + np.sign(there - here)]
        return 6.0 * (target - state[:2]) - 1.5 * state[2:] + 0.3 * self.rng.normal(size=2)


class Swinger:
    """A controller that swings the pendulum up, holds it, brakes, or pushes to one side, as its mood is."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng, self.mood, self.left = rng, "pump", 0

    def __call__(self, observed: Any) -> Numbers:
        if self.left == 0:
            self.mood, self.left = str(self.rng.choice(MOODS, p=SHARES)), int(self.rng.integers(15, 40))
        self.left -= 1
        cosine, sine, speed = observed
        torque = {
            "pump": 2.0 * np.sign(speed) if abs(speed) > 1e-3 else 2.0,
            "brake": -2.0 * np.sign(speed),
            "hold": -10.0 * np.arctan2(sine, cosine) - 2.0 * speed,
            "left": -1.0,
            "right": 1.0,
        }[self.mood]
        return np.array([torque + 0.2 * self.rng.normal()])


def record(env_id: str, file: Path, episodes: int) -> None:
    """Writes demonstrations in D4RL's layout, unless the file is there."""
    if file.exists():
        return
    gymnasium.register_envs(gymnasium_robotics)
    env = gymnasium.make(env_id.rpartition(":")[2], **KWARGS[env_id])
    rng = np.random.default_rng(0)
    box = env.action_space
    assert isinstance(box, gymnasium.spaces.Box)
    rows: dict[str, list[Any]] = {name: [] for name in ("observations", "actions", "rewards", "next_observations")}
    ends: dict[str, list[bool]] = {"terminals": [], "timeouts": []}
    for episode in range(episodes):
        observed, _ = env.reset(seed=episode)
        act: Callable[[Any], Numbers] = Walker(env, rng) if env_id == MAZE else Swinger(rng)
        over = False
        while not over:
            action = np.clip(act(observed), box.low, box.high).astype(np.float32)
            following, reward, terminated, truncated, _ = env.step(action)
            taken = (_state(observed), action, reward, _state(following))
            for values, value in zip(rows.values(), taken, strict=True):
                values.append(value)
            ends["terminals"].append(bool(terminated))
            ends["timeouts"].append(bool(truncated))
            observed, over = following, terminated or truncated
    env.close()
    file.parent.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {name: np.array(values, np.float32) for name, values in rows.items()}
    arrays |= {name: np.array(values) for name, values in ends.items()}
    np.savez_compressed(file, **arrays)


def _state(observed: Any) -> Numbers:
    return observed["observation"] if isinstance(observed, dict) else observed


def experiment(env_id: str, data: Path, folder: Path, scale: float | str) -> Experiment:
    """The experiment of an environment with a scale of rewards."""
    raw = {
        "name": env_id.rpartition(":")[2],
        "output": str(folder),
        "env": {"id": env_id, "kwargs": KWARGS[env_id]},
        "data": {"sources": [{"type": "npz", "path": str(data)}]},
        **SETTINGS,
    }
    return spirl.load_experiment(raw, {"train.reward_scale": scale})


def rows_of(result: ExperimentResult, env_id: str, scale: float | str) -> list[Row]:
    """The rows of a run: the evaluations during training, the final one, and those of the bare prior."""
    policy = result.policies[0].folder
    same = {
        "environment": env_id,
        "reward_scale": scale,
        "factor": read_json(policy / layout.REWARDS)["metrics"]["reward_scale"],
    }
    found: list[Row] = [
        {**same, "evaluation": "training", **row.cells} for row in read_csv(policy / layout.EVALUATIONS)
    ]
    for kind, evaluations in (("final", result.evaluations), ("bare prior", result.priors)):
        for mode, means in evaluations[0].modes.items():
            found.append({**same, "evaluation": kind, "mode": mode, **means})
    return [{key: value for key, value in row.items() if key != "wall_clock_s"} for row in found]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Compares train.reward_scale: auto with 1.")
    parser.add_argument("folder", type=Path, help="the folder for data, runs and reward_scale.csv")
    asked = parser.parse_args(arguments)
    rows: list[Row] = []
    for env_id, episodes in EPISODES.items():
        folder = asked.folder / env_id.rpartition(":")[2]
        record(env_id, data := folder.with_suffix(".npz"), episodes)
        for scale in SCALES:
            rows += rows_of(spirl.run(experiment(env_id, data, folder, scale)), env_id, scale)
            write_csv(asked.folder / "reward_scale.csv", rows)


if __name__ == "__main__":
    main()
