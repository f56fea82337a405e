"""The methods: one algorithm with four switches, and the settings of each.

The paper compares the first six. Some of the others keep the demonstrations as off-policy data of the high-level
policy.

Any other method is one more row of `METHODS`, added by `register_method` or an entry point of the group
``spirl_ray.methods``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from spirl_ray.config import Settings, SkillSettings, TrainSettings
from spirl_ray.episodes.actions import ActionRange
from spirl_ray.episodes.features import Features
from spirl_ray.errors import SpirlError
from spirl_ray.registry import Registry
from spirl_ray.skills.decoders import DECODERS
from spirl_ray.skills.spec import SkillSpec

if TYPE_CHECKING:
    from spirl_ray.rl.replay import RowSource

Regulariser = Literal["prior", "uniform", "none"]
"""The distribution that the policy stays close to; ``none`` is SAC in a bounded box, with values of rewards alone."""
PolicyInit = Literal["prior", "scratch"]
PAPER_LATENT_LIMIT = 2.0
PAPER_TARGET_DIVERGENCE = 5.0


@dataclass(frozen=True)
class Method:
    """A method: the skills it acts through, what its policy stays close to and starts from, and what it learns from."""

    decoder: str
    """The name of the kind of skill decoder."""
    regulariser: Regulariser
    policy_init: PolicyInit
    summary: str
    rows: Callable[[Any], RowSource] | None = None
    """A function that builds the source of a learner's batches from the `SkillPriorSACLearner`; None draws them from
    its replay alone. A method that also learns from the demonstrations finds them at ``learner.config.dataset``."""
    offline_fraction: float = 0.0
    """The part of each batch that is offline decisions (`spirl_ray.rl.offline_decisions`)."""

    def starts_from(self, train: TrainSettings) -> PolicyInit:
        """Where the policy starts with these settings."""
        return self.policy_init if train.policy_init == "preset" else train.policy_init

    def uses_prior(self, train: TrainSettings) -> bool:
        """True where the method starts from a learned prior or stays close to one."""
        return "prior" in (self.stays_close_to(train), self.starts_from(train))

    def stays_close_to(self, train: TrainSettings) -> Regulariser:
        """What the policy stays close to with these settings."""
        return self.regulariser if train.regulariser == "preset" else train.regulariser


METHODS: Registry[Method] = Registry("method", group="spirl_ray.methods")


def register_method(name: str, method: Method, *, replace: bool = False) -> None:
    """Adds a method that ``methods`` in a config can name.

    Args:
        name: name of the method.
        method: its row of the table.
        replace: True to replace a method of this name.
    """
    METHODS.register(name, method, replace=replace)


register_method("spirl", Method("open_loop", "prior", "prior", "SPiRL, open-loop skills"))
register_method("spirl_cl", Method("closed_loop", "prior", "prior", "SPiRL, closed-loop skills"))
register_method("ssp", Method("open_loop", "uniform", "scratch", "skills without a prior"))
register_method("flat_prior", Method("identity", "prior", "prior", "flat action prior"))
register_method("bc_sac", Method("identity", "uniform", "prior", "behaviour cloning + SAC"))
register_method("sac", Method("identity", "uniform", "scratch", "SAC from scratch"))
register_method(
    "spirl_offline", Method("closed_loop", "prior", "prior", "SPiRL, offline decisions too", offline_fraction=0.5)
)
register_method("supe", Method("closed_loop", "none", "scratch", "SUPE: skills, no prior", offline_fraction=0.5))
register_method("spirl_plan", Method("plan", "prior", "prior", "SPiRL, plans from the first observation"))
register_method("flow", Method("flow", "prior", "prior", "flow skills, policy over their noise"))
register_method("flow_offline", Method("flow", "prior", "prior", "flow skills, offline too", offline_fraction=0.5))
register_method("dsrl", Method("own", "none", "scratch", "DSRL: the noise of a frozen policy"))
register_method("rlpd", Method("identity", "none", "scratch", "RLPD: flat, actions too", offline_fraction=0.5))


class MethodConfig(Settings):
    """A method with an experiment's settings applied, in plain values that can be written as JSON."""

    name: str
    regulariser: Regulariser
    policy_init: PolicyInit
    latent_limit: float | None = Field(default=None, gt=0.0)
    target_divergence: float
    features: tuple[str, ...] | None = None
    """The features that the policy observes; None leaves the choice to `spirl_ray.rl.policy_network.policy_spec`."""
    policy_head: str = "auto"
    offline_fraction: float = Field(default=0.0, ge=0.0, lt=1.0)
    offline_updates: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _updates_need_decisions(self) -> MethodConfig:
        if self.offline_updates and not self.offline_fraction:
            raise ValueError("offline_updates need offline decisions: set offline_fraction, or no updates")
        return self

    @property
    def divergence_counts(self) -> bool:
        """False where values count rewards alone."""
        return self.regulariser != "none"

    @property
    def uses_prior(self) -> bool:
        """True for methods that start from a learned prior or stay close to one."""
        return self.regulariser == "prior" or self.policy_init == "prior"


def skill_spec(
    settings: SkillSettings, method: str, features: Features, action_dim: int, actions: ActionRange | None = None
) -> SkillSpec:
    """The skill model that a method needs; flat methods share one, the action prior.

    Args:
        settings: settings of the skills.
        method: name of the method.
        features: features of the data.
        action_dim: A, the width of an action.
        actions: range of the actions in units of the environment; None is [-1, 1].

    Raises:
        SpirlError: the method is unknown, or a feature is a goal or not in the data.
    """
    name = METHODS[method].decoder
    kind = DECODERS[name]
    if not kind.takes_options:
        settings = settings.model_copy(update={"decoder_options": {}})
    return SkillSpec(
        decoder=name,
        data_features=dict(features),
        features=_skill_features(settings, features),
        encoders=settings.encoders,
        action_dim=action_dim,
        actions=actions,
        horizon=1 if kind.flat else settings.horizon,
        latent_dim=settings.latent_dim if kind.latent_dim is None else kind.latent_dim(settings, action_dim),
        settings=settings,
    )


def _skill_features(settings: SkillSettings, features: Features) -> tuple[str, ...]:
    for key, named in (("features", settings.features or ()), ("encoders", settings.encoders)):
        for name in named:
            if name not in features:
                raise SpirlError(
                    f"skills.{key}: {name!r} is not a feature of the data; the data have {', '.join(features)}."
                )
    if settings.features is not None:
        for name in settings.features:
            if features[name].role == "goal":
                raise SpirlError(f"skills.features: {name!r} is a goal, on which skills must not depend. Leave it out.")
        return settings.features
    images = any(feature.is_image for feature in features.values())
    roles = ("image", "proprioception") if images else ("proprioception", "state")
    return tuple(name for name, feature in features.items() if feature.role in roles)


def method_config(name: str, train: TrainSettings, spec: SkillSpec) -> MethodConfig:
    """Applies an experiment's settings to a method.

    For a uniform distribution over the latent box, D(s) = Z log(2 l) - entropy of z. SAC's rule "entropy -> -Z" is for
    z / l in [-1, 1]^Z, so it is the target divergence Z (1 + log 2) whatever the box's half-width l.

    Raises:
        SpirlError: the method is unknown or needs another kind of skills, or a setting does not fit it.
    """
    method = METHODS[name]
    if method.decoder != spec.decoder:
        raise SpirlError(f"method {name} needs skills with the decoder {method.decoder}, these have {spec.decoder}.")
    flat = DECODERS[method.decoder].flat
    limit = None if flat else train.latent_limit
    default = PAPER_TARGET_DIVERGENCE
    regulariser = method.stays_close_to(train)
    if regulariser != "prior":
        default = spec.latent_dim * (1.0 + math.log(2.0))
        if not flat and limit is None:
            limit = PAPER_LATENT_LIMIT  # an entropy bonus needs a bounded space
    target = train.target_divergence if regulariser == "prior" else None
    fraction = method.offline_fraction if train.offline_fraction is None else train.offline_fraction
    if fraction and method.rows is not None:
        raise SpirlError(f"train.offline_fraction: method {name} has batches of its own. Leave the setting out.")
    if fraction and not 0 < offline_share(train.batch_size, fraction) < train.batch_size:
        raise SpirlError(
            f"train.offline_fraction: a part of {fraction:g} of batches of {train.batch_size} (train.batch_size) takes "
            "no offline decision, or none of the agent's own. Choose another part, or larger batches."
        )
    return MethodConfig(
        name=name,
        regulariser=regulariser,
        policy_init=method.starts_from(train),
        latent_limit=limit,
        target_divergence=target if target is not None else default,
        features=train.features,
        policy_head=train.policy_head,
        offline_fraction=fraction,
        offline_updates=train.offline_updates if fraction else 0,
    )


def offline_share(batch_size: int, fraction: float) -> int:
    """The number of offline decisions in a batch."""
    return round(batch_size * fraction)


def kept_divergence(method: MethodConfig, train: TrainSettings) -> float | None:
    """Returns the divergence (nats per decision) at which alpha keeps the policy; None where alpha does not do that."""
    return method.target_divergence if method.regulariser == "prior" and train.fixed_alpha is None else None
