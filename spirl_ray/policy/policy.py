"""The policy artifact, which acts without Ray: ``load_policy(path).act(observation)``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from spirl_ray.config import EnvironmentSettings, Settings
from spirl_ray.episodes.features import Features
from spirl_ray.errors import SpirlError
from spirl_ray.files import layout
from spirl_ray.files.atomic import write_atomically, write_json
from spirl_ray.files.hub import local_artifact
from spirl_ray.files.tensors import build_module, load_tensors, save_tensors
from spirl_ray.files.untrusted import read_artifact_card
from spirl_ray.rl.policy_network import PolicyNetwork, PolicyObserver, PolicySpec, check_observation
from spirl_ray.skills.artifact import load_skills
from spirl_ray.skills.encoders import Observations
from spirl_ray.skills.execution import Array, Observation, SkillExecution
from spirl_ray.skills.model import SkillModel
from spirl_ray.skills.priors import LatentDistribution, PolicyDistribution

FORMAT_VERSION = 3


class PolicyCard(Settings):
    """The contents of ``policy.json``."""

    format_version: int
    environment: EnvironmentSettings
    """The environment in which the policy was trained."""
    method: str
    seed: int
    latent_limit: float | None = Field(default=None, gt=0.0, allow_inf_nan=False)
    policy: PolicySpec
    """The features that the policy observes, and the sizes of its network."""
    env_steps: int
    skills: str
    """The folder of the skill artifact, relative to the policy's."""
    config_hash: str
    sha256: str

    @model_validator(mode="after")
    def _objects_are_seen_from_the_agent(self) -> PolicyCard:
        for name, feature in self.policy.features.items():
            if feature.objects is not None and feature.objects.agent not in self.policy.features:
                raise ValueError(f"{name!r} is relative to {feature.objects.agent!r}, which is not among the features")
        return self


class SkillChooser(nn.Module):
    """The policy pi(z | s) over observations by name: what it observes, and its network.

    Args:
        spec: what the policy observes.
        network: the network of this spec.
        skills: the skills through which it acts.
    """

    def __init__(self, spec: PolicySpec, network: PolicyNetwork, skills: SkillModel) -> None:
        super().__init__()
        self.network, self.skills = network, skills
        self.observer = PolicyObserver(spec, skills)

    def forward(self, observations: Observations) -> PolicyDistribution:
        """Maps observations [B, *observed_shape] by name to a distribution over latents [B, Z]."""
        return self.network(self.observer.batch(observations))


class Policy:
    """A trained agent, which maps an observation to a primitive action and chooses a new skill every H steps.

    Call `reset` at the start of every episode. Nothing here needs Ray.

    Args:
        choose: function that maps observations [B, *observed_shape] by name to a distribution over latents [B, Z].
        execution: the execution of the skills.
        features: the features that observations must hold.
        deterministic: True to take the distribution's mode instead of a sample.
        seed: seed of the sampling.
    """

    def __init__(
        self,
        choose: Callable[[Observations], LatentDistribution],
        execution: SkillExecution,
        features: Features,
        *,
        deterministic: bool = True,
        seed: int = 0,
    ) -> None:
        self.choose = choose
        self.execution = execution
        self.features = features
        self.deterministic = deterministic
        self.reset(seed)

    def reset(self, seed: int | None = None) -> None:
        """Forgets the running skill; ``seed`` restarts the sampling of latents."""
        if seed is not None:
            self._generator = torch.Generator().manual_seed(seed)
        self._running = False

    @torch.inference_mode()
    def act(self, observation: Observation) -> Array:
        """Returns the next primitive action, float32 [A] in [-1, 1].

        Args:
            observation: values of features by name, as the environment returns them; it may hold more than is needed.

        Raises:
            SpirlError: a feature is missing or has another shape.
        """
        check_observation(observation, self.features)
        if not self._running or self.execution.finished:
            chosen = self.choose(
                {name: torch.from_numpy(np.asarray(observation[name])[None]) for name in self.features}
            )
            latent = chosen.mode() if self.deterministic else chosen.sample(self._generator)
            self.execution.begin(latent[0].numpy())
            self._running = True
        return self.execution.action(observation)


def prior_policy(skills: str | Path, *, deterministic: bool) -> Policy:
    """The bare skill prior in place of a policy, which shows what skills do before any reinforcement learning.

    Args:
        skills: folder of a skill artifact.
        deterministic: True to take the prior's mode; otherwise latents are drawn from it.
    """
    model = load_skills(skills)
    execution = SkillExecution(model)
    return Policy(model.prior_distribution, execution, model.spec.observed, deterministic=deterministic)


def save_policy(folder: Path, state: dict[str, Tensor], skills: Path, *, policy: PolicySpec, **card: Any) -> PolicyCard:
    """Writes a policy artifact next to a copy of its skills, so that the folder is complete by itself.

    Args:
        folder: folder that receives ``policy.safetensors``, ``policy.json`` and ``skills/``.
        state: state dict of a `PolicyNetwork`.
        skills: folder of the skill artifact.
        policy: values from which the network is built.
        card: the fields of `PolicyCard` that are not derived here.
    """
    network = PolicyNetwork(policy, load_skills(skills))
    network.load_state_dict(state)
    copy = folder / layout.SKILLS
    for file in sorted(skills.glob("skill*")):
        if file.is_file():
            write_atomically(copy / file.name, file.read_bytes())
    written = PolicyCard(
        format_version=FORMAT_VERSION,
        policy=policy,
        skills=layout.SKILLS,
        sha256=save_tensors(network, folder / layout.POLICY_TENSORS),
        **card,
    )
    write_json(folder / layout.POLICY_CARD, written.model_dump(mode="json"))
    return written


def read_policy_card(folder: Path) -> PolicyCard:
    """Reads and checks ``policy.json``.

    Raises:
        SpirlError: the card is missing, damaged, or of another version.
    """
    remedy = "Train the policy again with spirl train"
    return read_artifact_card(folder / layout.POLICY_CARD, PolicyCard, FORMAT_VERSION, kind="policy", remedy=remedy)


def load_policy(folder: str | Path, *, deterministic: bool = True, seed: int = 0) -> Policy:
    """Loads a saved policy that acts in a gymnasium loop with torch alone.

    Args:
        folder: folder of a policy, or ``hf://ORG/NAME``.
        deterministic: True to take the most likely latent instead of a sample.
        seed: seed of the sampling.

    Example:
        >>> policy = load_policy("runs/kitchen_human/policy/...")
        >>> action = policy.act(observation)

    Raises:
        SpirlError: the artifact is missing, damaged, or not a policy.
    """
    with local_artifact(folder, layout.POLICY_FILES) as found:
        return _load(found, deterministic=deterministic, seed=seed)


def _load(folder: Path, *, deterministic: bool, seed: int) -> Policy:
    card = read_policy_card(folder)
    # Resolved, because a symbolic link can also lead out of the folder.
    inside = (folder / card.skills).resolve().is_relative_to(folder.resolve())
    if Path(card.skills).is_absolute() or ".." in Path(card.skills).parts or not inside:
        raise SpirlError(
            f"{folder / layout.POLICY_CARD} refers to skills outside its folder ({card.skills}), which is refused."
        )
    model = load_skills(folder / card.skills)
    network = build_module(lambda: _network(card.policy, model, folder), folder / layout.POLICY_TENSORS)
    load_tensors(network, folder / layout.POLICY_TENSORS, card.sha256)
    network.eval().requires_grad_(False)
    execution = SkillExecution(model, card.latent_limit)
    features = {**model.spec.observed, **card.policy.features}
    chooser = SkillChooser(card.policy, network, model)
    return Policy(chooser, execution, features, deterministic=deterministic, seed=seed)


def _network(spec: PolicySpec, skills: SkillModel, folder: Path) -> PolicyNetwork:
    if unknown := sorted(set(spec.images) - set(skills.spec.observed)):
        raise SpirlError(
            f"{folder / layout.POLICY_CARD}: the policy needs the image {unknown[0]!r}, which its skills lack."
        )
    return PolicyNetwork(spec, skills)
