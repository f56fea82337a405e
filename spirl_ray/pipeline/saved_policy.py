"""A saved policy as an experiment that has nothing left to train, so that it can be evaluated anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from spirl_ray.config import Experiment, load_experiment
from spirl_ray.policy.policy import read_policy_card


def policy_experiment(folder: Path, overrides: Sequence[str] = ()) -> Experiment:
    """The experiment of a policy's folder: its environment, method and seed, with its skills.

    Args:
        folder: folder of a policy artifact, which gives the experiment its name.
        overrides: ``key=value``, as after ``--set``.

    Raises:
        SpirlError: the folder holds no policy, or an override is wrong.
    """
    card = read_policy_card(folder)
    env = card.environment
    raw = {
        "name": folder.resolve().name,
        "methods": [card.method],
        "seeds": [card.seed],
        "env": {"id": env.id, "max_episode_steps": env.max_episode_steps, **env.kwargs},
        "interface": env.interface.model_dump(mode="json"),
        "skills": {"artifact": str((folder / card.skills).resolve())},
    }
    return load_experiment(raw, overrides)
