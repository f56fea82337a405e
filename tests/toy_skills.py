"""Small skill models with random weights, for the features that a test names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from spirl_ray.config import EnvironmentSettings, SkillSettings, TrainSettings
from spirl_ray.episodes.features import Feature, Features
from spirl_ray.policy.policy import save_policy
from spirl_ray.rl.methods import method_config, skill_spec
from spirl_ray.rl.policy_network import PolicyNetwork, policy_spec
from spirl_ray.skills.artifact import load_skills, save_skills
from spirl_ray.skills.model import SkillModel
from spirl_ray.skills.spec import SkillSpec

STATE: Features = {"state": Feature(shape=(4,))}
METHODS = {
    "open_loop": "spirl",
    "closed_loop": "spirl_cl",
    "identity": "flat_prior",
    "plan": "spirl_plan",
    "flow": "flow",
    "own": "dsrl",
}
"""A method for each kind of decoder."""
SMALL: dict[str, Any] = {
    "horizon": 5,
    "latent_dim": 3,
    "width": 16,
    "decoder_layers": 2,
    "prior_layers": 2,
    "mixture_components": 2,
    "flow_layers": 2,
}


def toy_spec(
    decoder: str = "closed_loop", features: Features = STATE, action_dim: int = 2, **settings: Any
) -> SkillSpec:
    """The spec of a small model; ``settings`` are those of `SkillSettings`."""
    return skill_spec(SkillSettings(**{**SMALL, **settings}), METHODS[decoder], features, action_dim)


def toy_model(
    decoder: str = "closed_loop", features: Features = STATE, action_dim: int = 2, **settings: Any
) -> SkillModel:
    """A small model whose statistics are not trivial."""
    torch.manual_seed(0)
    model = SkillModel(toy_spec(decoder, features, action_dim, **settings))
    numbers = [name for name, feature in features.items() if not feature.is_image]
    mean = {name: torch.linspace(-1.0, 2.0, features[name].size).reshape(features[name].shape) for name in numbers}
    model.set_normalisation(mean, {name: 0.7 + 0.1 * value.abs() for name, value in mean.items()})
    return model


def save_toy_skills(folder: Path, model: SkillModel, environment: str = "spirl/PointPads-v0") -> Path:
    """Writes the model's artifact to a folder, and returns the folder."""
    save_skills(
        folder,
        model,
        environment=environment,
        dataset_sha256="d" * 64,
        pretrain={"updates": 3},
        seed=7,
        metrics={"train_loss": 0.1},
        package_version="0.0.0",
    )
    return folder


def random_observations(features: Features, *leading: int, seed: int = 1) -> dict[str, torch.Tensor]:
    """Random values [*leading, *observed_shape] by name: standard normal numbers, uniform images."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randint(0, 256, (*leading, *feature.observed_shape), generator=generator, dtype=torch.uint8)
        if feature.is_image
        else torch.randn(*leading, *feature.observed_shape, generator=generator)
        for name, feature in features.items()
    }


def save_toy_policy(
    folder: Path, skills: Path, features: Features, train: TrainSettings | None = None, **card: Any
) -> Path:
    """Writes a policy with random weights that acts through the skills of a folder, and returns its folder."""
    model = load_skills(skills)
    method = method_config(METHODS[model.spec.decoder], train or TrainSettings(policy_init="scratch"), model.spec)
    spec = policy_spec(model, method, features)
    torch.manual_seed(5)
    fields = {
        "environment": EnvironmentSettings(id="spirl/PointPads-v0"),
        "method": method.name,
        "seed": 0,
        "latent_limit": method.latent_limit,
        "env_steps": 10,
        "config_hash": "abc",
    }
    save_policy(folder, PolicyNetwork(spec, model).state_dict(), skills, policy=spec, **fields | card)
    return folder
