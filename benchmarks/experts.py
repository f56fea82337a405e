"""How often the scripted experts succeed, and at what cost: ``python -m benchmarks.experts [--out FILE.csv]``.

Kitchen: every set of four subtasks (a chain), in several random orders, with first attempts only and an action noise of
0.05. A chain counts as solved if all four subtasks are complete within the environment's 280 steps. The paper's target,
which no demonstration contains, gets most of the episodes. Blocks: random tower tasks, as `spirl data generate` makes
them, with images. Seconds are those of one core (`time.process_time`). The seed is not that of a shipped config.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spirl_ray.envs.blocks import expert as blocks_expert
from spirl_ray.envs.kitchen import experts as kitchen_experts
from spirl_ray.envs.kitchen.env import GOALS
from spirl_ray.episodes.episode import Episode
from spirl_ray.files.tables import write_csv
from spirl_ray.pipeline.provenance import commit, hardware

SEED = 77
_PER_ORDER = 5
"""The number of episodes for each order of a chain."""
Row = dict[str, Any]


def _row(environment: str, task: str, attempts: int, started: float, solved: Sequence[Episode]) -> Row:
    seconds = time.process_time() - started
    return {
        "environment": environment,
        "task": task,
        "attempts": attempts,
        "solved": len(solved),
        "rate": round(len(solved) / attempts, 4),
        "steps_mean": round(float(np.mean([episode.length for episode in solved])), 1) if solved else "",
        "core_seconds_per_attempt": round(seconds / attempts, 4),
        "seed": SEED,
    }


def kitchen(chain: Iterable[str], attempts: int) -> Row:
    """Makes first attempts at a chain, `_PER_ORDER` for each of as many random orders as are needed."""
    names = sorted(chain)
    rng = np.random.default_rng(SEED)
    started, solved = time.process_time(), list[Episode]()
    for first in range(0, attempts, _PER_ORDER):
        indices = range(first, min(first + _PER_ORDER, attempts))
        order = rng.permutation(names).tolist()
        made = kitchen_experts.generate(indices, SEED, tasks=order, keep_failures=True)
        solved += [episode for episode in made if episode is not None and episode.metadata["solved"]]
    return _row("kitchen", " + ".join(names), attempts, started, solved)


def blocks(attempts: int) -> Row:
    """Makes attempts at random tower tasks."""
    started = time.process_time()
    solved = [episode for episode in blocks_expert.generate(range(attempts), SEED) if episode is not None]
    return _row("blocks", "two more blocks", attempts, started, solved)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=int, default=60, help="episodes of the kitchen's target chain; 0: none")
    parser.add_argument("--others", type=int, default=10, help="episodes of each of the other 34 chains; 0: none")
    parser.add_argument("--blocks", type=int, default=200, help="attempts at block stacking; 0: none")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    target = kitchen_experts.HELD_OUT
    others = [chain for chain in itertools.combinations(GOALS, kitchen_experts.CHAIN_LENGTH) if set(chain) != target]
    rows = []
    for chain, attempts in [(target, options.target), *((chain, options.others) for chain in others)]:
        if attempts:
            rows.append(kitchen(chain, attempts))
            print(rows[-1], flush=True)
    if options.blocks:
        rows.append(blocks(options.blocks))
        print(rows[-1], flush=True)
    for row in rows:
        row |= {"commit": commit(), **hardware()}
    if options.out is not None:
        write_csv(options.out, rows)


if __name__ == "__main__":
    main()
