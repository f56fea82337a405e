"""Made-up decisions for a replay."""

from __future__ import annotations

import numpy as np
from ray.rllib.core.columns import Columns

from spirl_ray.rl.replay import DISCOUNTS, PHASE


def made_decisions(width: int, latent_dim: int, rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Random decisions, of which a tenth are terminal, with the columns of `DecisionReplay`.

    Args:
        width: width of a policy observation.
        latent_dim: Z.
        rows: number of decisions.
        seed: seed of the random numbers.
    """
    rng = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys((Columns.OBS, Columns.NEXT_OBS), (rows, width))
    shapes |= {Columns.ACTIONS: (rows, latent_dim), Columns.REWARDS: (rows,)}
    found = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    found |= {Columns.TERMINATEDS: (rng.random(rows) < 0.1).astype(np.float32)}
    return found | {DISCOUNTS: np.full(rows, 0.9, np.float32), PHASE: rng.random(rows).astype(np.float32)}
