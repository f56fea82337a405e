"""An exported policy acts in the maze with NumPy and onnxruntime alone; the package is needed for the maze only.

spirl export runs/maze/policy/spirl-s0-… --onnx exported
python examples/onnx_maze.py exported
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime

import spirl_ray.envs as envs
from spirl_ray.config import EnvironmentSettings


class OnnxPolicy:
    """Acts like ``spirl_ray.load_policy``, with the most likely skill at every decision."""

    def __init__(self, folder: Path) -> None:
        self.card = json.loads((folder / "export.json").read_text())
        self.policy, self.decoder = (
            onnxruntime.InferenceSession(str(folder / self.card[name]["file"])) for name in ("policy", "decoder")
        )
        self.step = 0

    def act(self, observation: dict[str, np.ndarray]) -> np.ndarray:
        values = {f"observation.{name}": np.asarray(observation[name])[None] for name in self.card["features"]}
        closed_loop, now = self.card["closed_loop"], self.step % self.card["horizon"]
        if now == 0:  # a new skill is due
            inputs = {name: values[name] for name in self.card["policy"]["inputs"]}
            self.latent = self.policy.run(["latent"], inputs)[0]
        if now == 0 or closed_loop:
            values["latent"] = self.latent
            inputs = {name: values[name] for name in self.card["decoder"]["inputs"]}
            self.actions = self.decoder.run(["actions"], inputs)[0][0]
        self.step += 1
        return self.actions[0 if closed_loop else now]


folder, episodes = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 3
settings = json.loads((folder / "export.json").read_text())["environment"]
env = envs.make(EnvironmentSettings(**settings))
for episode in range(episodes):
    observation, _ = env.reset(seed=episode)
    policy, total, steps, ended = OnnxPolicy(folder), 0.0, 0, False
    while not ended:
        observation, reward, terminated, truncated, _ = env.step(policy.act(observation))
        total, steps, ended = total + float(reward), steps + 1, terminated or truncated
    print(f"episode {episode}: return {total:.2f} in {steps} steps")
