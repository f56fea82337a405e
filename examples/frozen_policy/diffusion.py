"""A small diffusion policy of another program, and the class that lets spirl-ray choose its noise.

    cd examples/frozen_policy
    python diffusion.py                       # trains the policy with plain PyTorch: policy.pt
    spirl run frozen_policy.yaml              # freezes it and learns which noise solves the task

The policy imitates the recordings of the drawer (examples/own_environment): it opens it as far as it likes. What it was
not trained for is to open it as far as a goal says. `ChunkPolicy` and `train` stand for code and a checkpoint that you
have already. `FrozenDiffusion` is all that one has to write.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from spirl_ray.settings import expanded
from spirl_ray.skills.decoders import NoiseCodec
from spirl_ray.skills.encoders import Observations
from spirl_ray.skills.spec import SkillSpec

H, A, S = 10, 3, 4
"""The actions that the policy plans at once, the width of each, and that of the state (hand, opening)."""
LEVELS = 20
"""The number of noise levels. Sampling uses half of them."""


# --- the other program ---


class ChunkPolicy(nn.Module):
    """The noise in H actions, predicted from the state and the noise level; actions in metres, divided by `SCALE`."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(H * A + S + 1, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, H * A)
        )

    def forward(self, actions: Tensor, state: Tensor, level: Tensor) -> Tensor:
        return self.net(torch.cat([actions, state, level / LEVELS], dim=-1))

    @staticmethod
    def signal_variance(level: Tensor | int) -> Tensor:
        """The part of the variance that is not noise: 1 at level 0, nearly 0 at the last (a cosine)."""
        return torch.cos(torch.as_tensor(level) / (LEVELS + 1) * torch.pi / 2) ** 2

    def sample(self, state: Tensor, noise: Tensor) -> Tensor:
        """Turns noise [B, H A] into actions [B, H A] by deterministic sampling (DDIM)."""
        value = noise
        for level in range(LEVELS, 0, -2):
            now, then = self.signal_variance(level), self.signal_variance(level - 2)
            guess = self(value, state, torch.full_like(state[:, :1], level))
            clean = ((value - (1 - now).sqrt() * guess) / now.sqrt()).clamp(-1.5, 1.5)
            value = then.sqrt() * clean + (1 - then).sqrt() * guess
        return value


SCALE = torch.tensor([0.05, 0.05, 1.0])
"""What the other program divided its actions by: metres, metres, and a gripper in [0, 1]."""


def train(states: Tensor, actions: Tensor, updates: int) -> ChunkPolicy:
    """Trains the policy on states [N, S] and the next H actions [N, H A]."""
    torch.manual_seed(0)
    policy = ChunkPolicy()
    optimizer = torch.optim.Adam(policy.parameters(), 1e-3)
    for _ in range(updates):
        rows = torch.randint(len(states), (256,))
        level, noise = torch.randint(1, LEVELS + 1, (256, 1)), torch.randn(256, H * A)
        signal = policy.signal_variance(level)
        noisy = signal.sqrt() * actions[rows] + (1 - signal).sqrt() * noise
        loss = (policy(noisy, states[rows], level) - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return policy


# --- the class that spirl-ray needs ---


class FrozenDiffusion(NoiseCodec):
    """The policy as a skill decoder: its noise is the latent, and H of its actions are a skill."""

    def __init__(self, spec: SkillSpec) -> None:
        super().__init__()
        self.path = spec.settings.decoder_options["path"]
        self.shape = (spec.horizon, spec.action_dim)
        self.policy = ChunkPolicy()  # frozen by spirl-ray, because this class has no loss

    def load_pretrained(self) -> None:
        # Called before stage 1; the skill artifact has the weights, too.
        self.policy.load_state_dict(torch.load(expanded(self.path), weights_only=True))

    def observe(self, observations: Observations) -> Tensor:
        # Features as the environment gives them, [B, 1, ...]: the policy has its own normalisation.
        return torch.cat([observations["hand"], observations["opening"]], dim=-1)

    def decode(self, features: Tensor | None, latent: Tensor) -> Tensor:
        assert features is not None
        scaled = self.policy.sample(features[:, 0], latent).unflatten(-1, self.shape)
        # The other program's gripper is in [0, 1], and spirl-ray's actions are in [-1, 1].
        return scaled * scaled.new_tensor([1.0, 1.0, 2.0]) - scaled.new_tensor([0.0, 0.0, 1.0])


def main() -> None:
    parser = argparse.ArgumentParser(description="Trains a small diffusion policy on recordings of the drawer.")
    parser.add_argument("--path", type=Path, default=Path("policy.pt"), help="the file to write")
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--updates", type=int, default=5000)
    asked = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parents[1] / "own_environment"))
    from my_tasks.drawer import episodes

    states, actions = [], []
    for episode in episodes(range(asked.episodes)):
        seen = np.concatenate([episode["observations"]["hand"], episode["observations"]["opening"]], axis=1)
        for start in range(len(episode["actions"]) - H + 1):
            states.append(torch.from_numpy(seen[start]))
            actions.append((torch.from_numpy(episode["actions"][start : start + H]) / SCALE).flatten())
    policy = train(torch.stack(states), torch.stack(actions), asked.updates)
    torch.save(policy.state_dict(), asked.path)
    print(f"{asked.path}: trained on {len(states)} windows")


if __name__ == "__main__":
    main()
