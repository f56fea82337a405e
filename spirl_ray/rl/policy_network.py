"""The high-level policy pi(z | s): what it observes, and its network.

RLlib, the replay and the learner handle one flat vector a decision, the *policy observation*: the numbers that the
policy observes, then images as the frozen skill prior encodes them, then the prior parameters. The env runner makes it
once for each decision (`PolicyObserver`), so stage 2 never encodes an image or evaluates the prior a second time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from spirl_ray.config import EncoderSettings, Settings
from spirl_ray.episodes.features import Feature, Features
from spirl_ray.errors import SpirlError
from spirl_ray.rl.heads import HEADS, HeadContext
from spirl_ray.rl.methods import MethodConfig
from spirl_ray.skills.decoders import DECODERS
from spirl_ray.skills.encoders import ObservationEncoder, Observations
from spirl_ray.skills.execution import Array, Observation
from spirl_ray.skills.model import SkillModel
from spirl_ray.skills.priors import GaussianPrior, PolicyDistribution
from spirl_ray.skills.spec import SkillSpec


class PolicySpec(Settings):
    """The plain values from which, with the skills, a policy network is built; the card of a policy holds them."""

    features: dict[str, Feature] = Field(min_length=1)
    """The features that the policy observes, with the shapes that they have in its environment."""
    encoders: dict[str, EncoderSettings] = Field(default_factory=dict)
    head: str
    uses_prior: bool
    """True where the policy observation holds the prior parameters."""
    sees_prior: bool = False
    """True where policy and critics get them as input, because the prior observes more than they do."""

    @property
    def numbers(self) -> dict[str, Feature]:
        """The features that are not images."""
        return {name: feature for name, feature in self.features.items() if not feature.is_image}

    @property
    def images(self) -> list[str]:
        """The names of the features that are images."""
        return [name for name, feature in self.features.items() if feature.is_image]


def policy_features(named: Sequence[str] | None, features: Features, skills: SkillSpec) -> tuple[str, ...]:
    """The names of the features that a policy observes.

    Args:
        named: what ``train.features`` says; None for all numbers, or all images where there are no numbers.
        features: features of the environment.
        skills: description of the skills through which the policy acts.

    Raises:
        SpirlError: a feature does not exist, or is an image that the skills do not use.
    """
    if named is None:
        # Prior parameters tell a policy what an image shows. N(0, I) has none, so it observes the image itself.
        images = set(skills.observed) if DECODERS[skills.decoder].noise else ()
        named = [name for name, feature in features.items() if not feature.is_image or name in images] or list(features)
    for name in named:
        if name not in features:
            raise SpirlError(f"train.features: {name!r} is not a feature; the environment has {', '.join(features)}.")
        if features[name].is_image and name not in skills.observed:
            raise SpirlError(
                f"train.features: the policy uses images as the skill prior encodes them, and the skills do not use "
                f"{name!r}. Add it to skills.features."
            )
    return tuple(named)


def policy_spec(skills: SkillModel, method: MethodConfig, features: Features) -> PolicySpec:
    """Determines what a method's policy observes and how its network starts.

    Args:
        skills: the skills through which it acts.
        method: the method with its settings.
        features: features of the made environment.

    Raises:
        SpirlError: a feature or a head does not exist or does not fit the skills.
    """
    names = policy_features(method.features, features, skills.spec)
    chosen = {name: features[name] for name in features if name in names}
    encoders = {name: kind for name, kind in skills.spec.encoders.items() if name in chosen}
    images = any(feature.is_image for feature in chosen.values())
    # Such a policy can have the prior's own weights.
    copies = (
        type(skills.prior) is GaussianPrior  # a subclass may change what its network says
        and not images
        and list(chosen.items()) == [*skills.spec.observed.items()]
    )
    head = method.policy_head
    if head == "auto":
        head = "gaussian" if method.policy_init == "scratch" or copies else "residual"
    elif head == "gaussian" and method.policy_init == "prior" and not copies:
        raise SpirlError(
            "train.policy_head: a gaussian head can start as a prior only if that is learned and gaussian, and both "
            "observe the same features, none of them an image. Use residual or auto, or train.policy_init: scratch."
        )
    hidden = not set(skills.spec.features) <= set(chosen)
    uses_prior = method.uses_prior or head == "residual"
    return PolicySpec(
        features=chosen, encoders=encoders, head=head, uses_prior=uses_prior, sees_prior=uses_prior and hidden
    )


class PolicyNetwork(nn.Module):
    """The network of pi(z | s) over policy observations, with the size of the skill prior.

    Numbers are standardised by the data's statistics, where the feature has the same shape there.

    Args:
        spec: what the policy observes, and its head.
        skills: the skills through which the policy acts.
    """

    def __init__(self, spec: PolicySpec, skills: SkillModel) -> None:
        super().__init__()
        settings = skills.spec.settings
        self.encoder = ObservationEncoder(
            spec.numbers, spec.encoders, width=settings.width, image_channels=settings.image_channels
        )
        self.encoder.set_normalisation(skills.statistics.mean, skills.statistics.std)
        self.shapes = {name: feature.shape for name, feature in spec.numbers.items()}
        self.sizes = _sizes(spec, skills)
        self.uses_prior, self.sees_prior = spec.uses_prior, spec.sees_prior
        self.observation_dim = sum(self.sizes)
        """D, the size of a policy observation."""
        self.input_dim = self.encoder.outputs + self.sizes[-2] + (self.sizes[-1] if spec.sees_prior else 0)
        """F, the size of an encoded policy observation."""
        self.head = HEADS[spec.head](HeadContext(self.input_dim, skills.prior, settings))

    def start_from(self, skills: SkillModel) -> None:
        """Makes the policy equal to the skill prior.

        Raises:
            SpirlError: the head cannot start as this prior.
        """
        self.head.start_from(skills.prior)
        if list(self.shapes) == list(skills.spec.features):
            self.encoder.load_state_dict(skills.observation_encoder.state_dict())

    def encode(self, inputs: Tensor) -> tuple[Tensor, Tensor | None]:
        """Splits policy observations [..., D] into encoded ones [..., F] and prior parameters [..., P] (or None)."""
        *values, images, prior = inputs.split(self.sizes, dim=-1)
        numbers = {
            name: value if len(shape) == 1 else value.unflatten(-1, shape)
            for (name, shape), value in zip(self.shapes.items(), values, strict=True)
        }
        parts = [self.encoder(numbers)] if numbers else []
        if images.shape[-1]:
            parts.append(images)
        if self.sees_prior:
            parts.append(prior)
        encoded = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        return encoded, prior if self.uses_prior else None

    def forward(self, inputs: Tensor) -> PolicyDistribution:
        """Maps policy observations [..., D] to a distribution over latents [..., Z]."""
        return self.head.distribution(self.head(*self.encode(inputs)))


def _sizes(spec: PolicySpec, skills: SkillModel) -> list[int]:
    """The widths of the parts of a policy observation: each feature of numbers, all encoded images, the prior
    parameters."""
    images = sum(skills.observation_encoder.encoder(name).outputs for name in spec.images)
    prior = skills.prior.param_dim if spec.uses_prior else 0
    return [*(feature.size for feature in spec.numbers.values()), images, prior]


class PolicyObserver:
    """Converts observations of the environment to policy observations for the network of a `PolicySpec`."""

    def __init__(self, spec: PolicySpec, skills: SkillModel) -> None:
        self.spec, self.skills = spec, skills
        self.size = sum(_sizes(spec, skills))
        """D, the size of a policy observation."""
        self._asks_prior = spec.uses_prior and skills.prior.param_dim > 0
        skills_too = skills.spec.features if spec.images or self._asks_prior else ()
        self.needed = list(dict.fromkeys([*spec.features, *skills_too]))
        """The names of the features from which a policy observation is made."""

    def batch(self, observations: Observations) -> Tensor:
        """Converts observations [B, *observed_shape] by name to policy observations, float32 [B, D]."""
        parts = [observations[name].float().flatten(1) for name in self.spec.numbers]
        if self.spec.images or self._asks_prior:
            seen = self.skills.select(observations)
            parts += [self.skills.observation_encoder.encoder(name)(seen) for name in self.spec.images]
            if self._asks_prior:
                parts.append(self.skills.prior_parameters(seen))
        return torch.cat(parts, dim=-1)

    @torch.inference_mode()
    def __call__(self, observation: Observation) -> Array:
        """Converts an observation, [*observed_shape] by name, to its policy observation, float32 [D]."""
        rows = {name: torch.from_numpy(np.asarray(observation[name])[None]) for name in self.needed}
        return self.batch(rows)[0].numpy()


def check_observation(observation: Mapping[str, Any], features: Features) -> None:
    """Checks that an observation holds the needed features.

    Raises:
        SpirlError: a feature is missing or has another shape; the message names it.
    """
    if not isinstance(observation, Mapping):
        raise SpirlError(
            f"an observation is a mapping with the features {', '.join(features)}, not {type(observation).__name__}"
        )
    for name, feature in features.items():
        if name not in observation:
            raise SpirlError(f"the observation lacks the feature {name!r}; it has {', '.join(map(str, observation))}")
        if np.shape(observation[name]) != feature.observed_shape:
            raise SpirlError(
                f"the feature {name!r} has the shape {list(np.shape(observation[name]))}, this policy needs "
                f"{list(feature.observed_shape)}"
            )
