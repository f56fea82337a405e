"""A search over settings of stage 2 by Ray Tune alone: the param_space is a `SkillPriorSACConfig`.

    python examples/tune_native.py runs/kitchen_play/skills/closed_loop-… --divergences 1 2 4

`spirl sweep` does more: it also varies stage 1, trains skills once where they are equal, and resumes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ray import tune

from spirl_ray.rl.algorithm import SkillPriorSAC, SkillPriorSACConfig


def main() -> None:
    parser = argparse.ArgumentParser(description="Compares target divergences with Ray Tune.")
    parser.add_argument("skills", help="folder of a skill artifact")
    parser.add_argument("--environment", default="spirl/Kitchen-v0", help="id of the environment")
    parser.add_argument("--arguments", type=json.loads, default={}, help="of the environment's constructor, as JSON")
    parser.add_argument("--max-episode-steps", type=int, help="the environment's own if not given")
    parser.add_argument("--training", type=json.loads, default={}, help="arguments of .training(…), as JSON")
    parser.add_argument("--divergences", type=float, nargs="+", default=[1.0, 5.0], help="nats per decision")
    parser.add_argument("--iterations", type=int, default=100)
    parser.add_argument("--output", type=Path, default=Path("runs/tune_native"))
    asked = parser.parse_args()

    config = (
        SkillPriorSACConfig()
        .skills(asked.skills)
        .environment(asked.environment, env_config=asked.arguments)
        .reading(max_episode_steps=asked.max_episode_steps)
        .env_runners(num_env_runners=0, num_envs_per_env_runner=2, rollout_fragment_length=8)
        .training(**{**asked.training, "target_divergence": tune.grid_search(asked.divergences)})
    )
    results = tune.Tuner(
        SkillPriorSAC,
        param_space=config,
        run_config=tune.RunConfig(
            name=asked.output.name,
            storage_path=str(asked.output.parent.absolute()),
            stop={"training_iteration": asked.iterations},
            verbose=0,
        ),
    ).fit()
    if results.errors:
        raise results.errors[0]
    for result in results:
        assert result.config is not None
        assert result.metrics is not None
        divergence = result.config["train"]["target_divergence"]
        print(f"target divergence {divergence}: {result.metrics['skills']['updates']:.0f} updates, {result.path}")


if __name__ == "__main__":
    main()
