"""How far open-loop skills can go in the kitchen: ``python -m benchmarks.open_loop [--skills FOLDER …]``.

Fresh demonstrations of the scripted experts are followed in the kitchen, with its noise, in two ways:

- ``replay``: the recorded actions, of which the first of every ``horizon`` also moves the arm back to where the
  demonstration was. So it is the best that plans of this length can do.
- ``latents``: with each folder of ``--skills``, the decoder gets the latents that its encoder finds in the
  demonstration, and, where it observes anything, the present observation. So it is what a policy could do that always
  knew the right latent.

Writes ``benchmarks/results/kitchen_open_loop.csv``, with the subtasks that are completed of four.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.collect import RESULTS, with_others
from spirl_ray.envs.kitchen import experts
from spirl_ray.envs.kitchen.env import GOALS, SPEC, KitchenEnv
from spirl_ray.episodes.episode import Episode
from spirl_ray.files.tables import write_csv
from spirl_ray.pipeline.provenance import commit, hardware
from spirl_ray.skills.artifact import load_skills, read_skill_card
from spirl_ray.skills.execution import SkillExecution
from spirl_ray.skills.model import SkillModel

HORIZONS = (1, 5, 10, 20, 280)
IDENTITY = ("control", "horizon", "decoder", "latent_dim", "width", "beta", "options", "updates", "seed")
"""The columns of which a new row replaces the old one with the same values."""
Observed = Mapping[str, NDArray[np.float32]]
Act = Callable[[int, Observed], NDArray[np.float32]]
"""A function from the step and the present observation to an action."""


def demonstrations(count: int) -> list[Episode]:
    """Fresh episodes of the experts, of a seed that no config has."""
    found: Iterator[Episode | None] = experts.generate(range(count), 77, keep_failures=True)
    return [episode for episode in found if episode is not None]


def completed(act: Act, episode: Episode, steps: int, seed: int) -> int:
    """The number of the subtasks of an episode that actions complete."""
    env = KitchenEnv(tasks=tuple(GOALS))
    observation, info = env.reset(seed=seed)
    for step in range(steps):
        observation, _, _, _, info = env.step(act(step, observation))
    env.close()
    return len({*info["completed"]} & {*episode.metadata["tasks"]})


def replayed(episode: Episode, horizon: int) -> Act:
    """The recorded actions; the first of each plan also makes up for where the arm is."""
    target = SPEC.position_target
    assert target is not None
    robot, gain = episode.observations[target.feature], np.array(target.gain, dtype=np.float32)

    def act(step: int, observation: Observed) -> NDArray[np.float32]:
        action = episode.actions[step]
        if step % horizon == 0:
            action = np.clip(action + (robot[step] - observation[target.feature]) / gain, -1.0, 1.0)
        return action

    return act


def decoded(episode: Episode, model: SkillModel) -> Act:
    """What the decoder makes of the latents of the demonstration."""
    horizon, execution = model.spec.horizon, SkillExecution(model)
    length = model.kind.observed_steps(horizon)

    @torch.inference_mode()
    def act(step: int, observation: Observed) -> NDArray[np.float32]:
        if step % horizon == 0:
            seen = {
                name: torch.from_numpy(value[step : step + length])[None]
                for name, value in model.select(episode.observations).items()
            }
            actions = torch.from_numpy(episode.actions[step : step + horizon])[None]
            execution.begin(model.codec.encode(model.codec.observe(seen), actions).mean[0].numpy())
        return execution.action(observation)

    return act


def described(folder: Path) -> dict[str, Any]:
    """What may differ in the skills that are compared."""
    card = read_skill_card(folder)
    settings = card.spec.settings
    return {
        "decoder": card.spec.decoder,
        "latent_dim": card.spec.latent_dim,
        "width": settings.width,
        "beta": settings.beta,
        "options": json.dumps(settings.decoder_options),
        "updates": card.pretrain["updates"],
        "seed": card.seed,
    }


def row(named: dict[str, Any], follow: Callable[[Episode], Act], episodes: list[Episode], plan: int) -> dict[str, Any]:
    """The mean over episodes, which are followed as far as whole plans of ``plan`` steps go."""
    scores = [
        completed(follow(episode), episode, len(episode.actions) // plan * plan, seed)
        for seed, episode in enumerate(episodes)
    ]
    found = {**named, "subtasks": round(float(np.mean(scores)), 2), "episodes": len(episodes)}
    print(found, flush=True)
    return {**found, "commit": commit(), **hardware()}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=40)
    parser.add_argument("--skills", type=Path, nargs="*", default=[], help="folders of trained skills")
    options = parser.parse_args()
    episodes = demonstrations(options.episodes)
    rows = []
    for folder in options.skills:
        model = load_skills(folder)
        named = {"control": "latents", "horizon": model.spec.horizon, **described(folder)}
        rows.append(row(named, partial(decoded, model=model), episodes, model.spec.horizon))
    for horizon in HORIZONS:
        rows.append(row({"control": "replay", "horizon": horizon}, partial(replayed, horizon=horizon), episodes, 1))
    path = RESULTS / "kitchen_open_loop.csv"
    write_csv(path, with_others(path, rows, IDENTITY))
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
