"""The small job of stage 1 that several tests run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spirl_ray.config import AugmentationSettings, PretrainSettings, SkillSettings
from spirl_ray.envs import environment
from spirl_ray.episodes.dataset import episode_index
from spirl_ray.rl.methods import skill_spec
from spirl_ray.skills.batches import PretrainJob

PADS, EPISODES, FILES, HORIZON = "spirl/PointPads-v0", 9, 3, 5
UPDATES, CHECKPOINT_EVERY = 20, 5


def make_job(
    dataset: Path, *, horizon: int = HORIZON, limit_mb: float = 100.0, held: int = 1, **settings: Any
) -> PretrainJob:
    facts, known = environment(PADS), sorted(entry.id for entry in episode_index(dataset))
    small = SkillSettings(horizon=horizon, latent_dim=3, width=16, decoder_layers=1, prior_layers=1)
    training = {"updates": UPDATES, "batch_size": 16, "log_every": 5, "checkpoint_every": CHECKPOINT_EVERY}
    return PretrainJob(
        dataset=str(dataset),
        spec=skill_spec(small, "spirl_cl", facts.features, facts.action_dim),
        settings=PretrainSettings(
            **{**training, "augmentation": AugmentationSettings(kind="target_preserving"), **settings}
        ),
        seed=3,
        validation=frozenset(known[:held]),
        in_memory_limit_mb=limit_mb,
        position_target=facts.position_target,
    )
