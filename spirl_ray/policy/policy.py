"""The high-level policy and the artifact that acts without Ray: ``load_policy(path).act(observation)``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError, model_validator
from torch import Tensor, nn

from spirl_ray.config import Settings
from spirl_ray.envs.spec import ObjectSpec
from spirl_ray.errors import SpirlError
from spirl_ray.files.atomic import write_atomically, write_json
from spirl_ray.files.tensors import build_module, load_tensors, save_tensors
from spirl_ray.files.untrusted import read_card
from spirl_ray.rl.policy_network import SkillPolicy
from spirl_ray.skills.artifact import load_skills
from spirl_ray.skills.execution import Array, SkillExecution
from spirl_ray.skills.gaussian import DiagonalGaussian
from spirl_ray.skills.model import SkillModel
from spirl_ray.skills.priors import GaussianMixture

TENSORS, CARD, SKILLS = "policy.safetensors", "policy.json", "skills"
FORMAT_VERSION = 1


class PolicyCard(Settings):
    """Contents of ``policy.json``."""

    format_version: int
    environment: str
    env_kwargs: dict[str, Any]
    method: str
    seed: int
    latent_limit: float | None
    state_dim: int
    """S of the target, which with images may differ from that of the skills' data."""
    proposals: bool = False
    residual: bool = False
    objects: ObjectSpec | None = None
    """How its network is built, see `SkillPolicy`."""
    env_steps: int
    skills: str
    """Folder of the skill artifact, relative to the policy's."""
    config_hash: str
    sha256: str

    @model_validator(mode="after")
    def _objects_fit(self) -> PolicyCard:
        if self.objects is not None:
            agent, first = self.objects.agent, self.objects.first
            rest = self.state_dim - first
            if not agent or not all(0 <= entry < first for entry in agent) or rest < 1 or rest % len(agent):
                raise ValueError(f"objects {agent}, {first} do not fit states of {self.state_dim} entries")
            if not 0.0 < self.objects.size < math.inf or not 0 <= self.objects.up < len(agent):
                raise ValueError(f"objects of size {self.objects.size}, whose coordinate {self.objects.up} is up")
        return self


class Policy:
    """A trained agent: an observation in, a primitive action out, a new skill every H steps.

    Call `reset` at the start of every episode. Nothing here needs Ray.

    Args:
        network: observations [1, O] -> a distribution over latents.
        execution: runs the skills.
        observation_dim: O; None takes observations whole, for with images a bare prior fits states of any size.
        deterministic: take the distribution's mode.
        seed: of the sampling.
    """

    def __init__(
        self,
        network: nn.Module,
        execution: SkillExecution,
        observation_dim: int | None,
        *,
        deterministic: bool = True,
        seed: int = 0,
    ) -> None:
        self.network = network.eval()
        self.execution = execution
        self.observation_dim = observation_dim
        self.deterministic = deterministic
        self.reset(seed)

    def reset(self, seed: int | None = None) -> None:
        """Forgets the running skill; ``seed`` restarts the sampling of latents."""
        if seed is not None:
            self._generator = torch.Generator().manual_seed(seed)
        self._running = False

    @torch.inference_mode()
    def act(self, observation: Array) -> Array:
        """The next primitive action, float32 [A] in [-1, 1], for an observation [O].

        Without frames more may follow, which is not looked at.

        Raises:
            SpirlError: the observation has another size.
        """
        seen = np.asarray(observation, np.float32)
        pixels = self.execution.model.spec.pixels
        if not pixels:
            seen = seen[: self.observation_dim]
        # A state of one entry at least stands before the frames.
        needed = self.observation_dim or 1 + pixels
        if seen.ndim != 1 or len(seen) < needed or (self.observation_dim and len(seen) > needed):
            raise SpirlError(f"the observation has shape {np.shape(observation)}, this policy needs {needed} entries")
        if not self._running or self.execution.finished:
            chosen = self.network(torch.from_numpy(seen).unsqueeze(0))
            latent = chosen.mode() if self.deterministic else chosen.sample(self._generator)
            self.execution.begin(latent[0].numpy())
            self._running = True
        return self.execution.action(seen)


class PriorNetwork(nn.Module):
    """The bare skill prior in the place of a policy: what skills do before any reinforcement learning."""

    def __init__(self, skills: SkillModel) -> None:
        super().__init__()
        self.skills = skills

    def forward(self, observations: Tensor) -> Any:
        return self.skills.prior_distribution(observations)


class _SeeingPolicy(nn.Module):
    """A `SkillPolicy` behind the observations of its environment."""

    def __init__(self, skills: SkillModel, policy: SkillPolicy, proposals: bool) -> None:
        super().__init__()
        self.skills, self.policy, self.proposals = skills, policy, proposals

    def forward(self, observations: Tensor) -> DiagonalGaussian | GaussianMixture:
        return self.policy(self.skills.decision_input(observations, proposals=self.proposals))


def prior_policy(skills: Path, environment: str, *, deterministic: bool) -> Policy:
    """A `Policy` that draws its latents from the prior of a skill artifact (or takes the prior's mode)."""
    model = load_skills(skills, environment)
    size = model.spec.state_dim if model.spec.view is None else None
    return Policy(PriorNetwork(model), SkillExecution(model), size, deterministic=deterministic)


def save_policy(
    folder: Path,
    state: dict[str, Tensor],
    skills: Path,
    *,
    proposals: bool = False,
    residual: bool = False,
    objects: ObjectSpec | None = None,
    **card: Any,
) -> PolicyCard:
    """Writes a policy artifact next to a copy of its skills, so that the folder is complete in itself.

    Args:
        folder: receives ``policy.safetensors``, ``policy.json`` and ``skills/``.
        state: state dict of a `SkillPolicy`.
        skills: folder of the skill artifact.
        proposals, residual, objects: how its network is built, see `SkillPolicy`.
        card: the fields of `PolicyCard` that are not derived here.
    """
    model = load_skills(skills)
    state_dim = len(state["state_mean"])
    how: dict[str, Any] = {"proposals": proposals, "residual": residual, "objects": objects}
    network = SkillPolicy(model, state_dim, **how)
    network.load_state_dict(state)
    copy = folder / SKILLS
    for file in sorted(skills.glob("skill*")):
        if file.is_file():
            write_atomically(copy / file.name, file.read_bytes())
    written = PolicyCard(
        format_version=FORMAT_VERSION,
        state_dim=state_dim,
        skills=SKILLS,
        sha256=save_tensors(network, folder / TENSORS),
        **how,
        **card,
    )
    write_json(folder / CARD, written.model_dump(mode="json"))
    return written


def read_policy_card(folder: Path) -> PolicyCard:
    """Reads and checks ``policy.json``."""
    raw = read_card(folder / CARD)
    if raw.get("format_version") != FORMAT_VERSION:
        raise SpirlError(
            f"{folder / CARD} has format version {raw.get('format_version')!r}; this program reads {FORMAT_VERSION}."
        )
    try:
        return PolicyCard.model_validate(raw)
    except ValidationError as error:
        raise SpirlError(f"{folder / CARD} is not a policy card: {error}") from error


def load_policy(folder: str | Path, *, deterministic: bool = True, seed: int = 0) -> Policy:
    """Loads a saved policy that acts in a gymnasium loop with torch alone.

    Example:
        >>> policy = load_policy("runs/kitchen_human/policy/...")
        >>> action = policy.act(observation)

    Raises:
        SpirlError: for a missing, damaged or foreign artifact.
    """
    folder = Path(folder)
    card = read_policy_card(folder)
    # Resolved, for a symbolic link leads out of the folder as well.
    inside = (folder / card.skills).resolve().is_relative_to(folder.resolve())
    if Path(card.skills).is_absolute() or ".." in Path(card.skills).parts or not inside:
        raise SpirlError(f"{folder / CARD} points outside its folder ({card.skills}): refused.")
    model = load_skills(folder / card.skills, card.environment)
    how: dict[str, Any] = {"proposals": card.proposals, "residual": card.residual, "objects": card.objects}
    network = build_module(lambda: SkillPolicy(model, card.state_dim, **how), folder / TENSORS)
    load_tensors(network, folder / TENSORS, card.sha256)
    execution = SkillExecution(model, card.latent_limit)
    seeing = _SeeingPolicy(model, network.requires_grad_(False), card.proposals)
    size = card.state_dim + model.spec.pixels
    return Policy(seeing, execution, size, deterministic=deterministic, seed=seed)
