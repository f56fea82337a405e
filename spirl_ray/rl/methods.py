"""The methods that the paper compares: one algorithm with three switches, and how each is resolved."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from spirl_ray.config import Experiment, MethodName
from spirl_ray.envs import EnvironmentSpec, environment
from spirl_ray.envs.spec import ObjectSpec
from spirl_ray.errors import SpirlError
from spirl_ray.skills.model import DecoderKind, SkillSpec, ViewShape

Regulariser = Literal["prior", "uniform"]
PolicyInit = Literal["prior", "scratch"]
PAPER_LATENT_LIMIT = 2.0
PAPER_TARGET_DIVERGENCE = 5.0


@dataclass(frozen=True)
class Method:
    """Where a method acts, what its policy is kept close to, and where the policy starts."""

    decoder: DecoderKind
    regulariser: Regulariser
    policy_init: PolicyInit
    summary: str


METHODS: dict[MethodName, Method] = {
    "spirl": Method("open_loop", "prior", "prior", "SPiRL, open-loop skills"),
    "spirl_cl": Method("closed_loop", "prior", "prior", "SPiRL, closed-loop skills"),
    "ssp": Method("open_loop", "uniform", "scratch", "skills without a prior"),
    "flat_prior": Method("identity", "prior", "prior", "flat action prior"),
    "bc_sac": Method("identity", "uniform", "prior", "behaviour cloning + SAC"),
    "sac": Method("identity", "uniform", "scratch", "SAC from scratch"),
}


@dataclass(frozen=True)
class ResolvedMethod:
    """A method with an experiment's settings applied; all plain values, so it travels as JSON."""

    name: MethodName
    regulariser: Regulariser
    policy_init: PolicyInit
    latent_limit: float | None
    target_divergence: float
    proposals: bool
    """The policy's input holds the prior's parameters, for the environment has frames and the method needs a prior."""
    objects: ObjectSpec | None

    @property
    def residual(self) -> bool:
        """The policy starts as the proposal in its input."""
        return self.proposals and self.policy_init == "prior"


def skill_spec(experiment: Experiment, method: MethodName, facts: EnvironmentSpec) -> SkillSpec:
    """The skill model that a method needs; flat methods share one, the action prior."""
    view = facts.view
    return SkillSpec(
        decoder=METHODS[method].decoder,
        state_dim=facts.state_dim,
        action_dim=facts.action_dim,
        view=ViewShape(frames=view.frames, size=view.size, egocentric=view.egocentric) if view else None,
        settings=experiment.skills,
    )


def resolve(experiment: Experiment, name: MethodName, spec: SkillSpec) -> ResolvedMethod:
    """Applies the experiment's settings to a preset.

    Towards a uniform distribution over the latent box, D(s) = Z log(2 l) - entropy, so SAC's rule
    "entropy -> -Z" is the target divergence Z (1 + log 2) whatever the box's half-width l.
    """
    method, train = METHODS[name], experiment.train
    limit = None if method.decoder == "identity" else train.latent_limit
    default = PAPER_TARGET_DIVERGENCE
    if method.regulariser == "uniform":
        default = spec.latent_dim * (1.0 + math.log(2.0))
        if method.decoder != "identity" and limit is None:
            limit = PAPER_LATENT_LIMIT  # an entropy bonus needs a bounded space
    target = train.target_divergence if method.regulariser == "prior" else None
    init = method.policy_init if train.policy_init == "preset" else train.policy_init
    proposals = spec.view is not None and (method.regulariser == "prior" or init == "prior")
    if proposals and spec.settings.prior == "flow":
        raise SpirlError("skills.prior: flow works for environments without images only. Use gaussian or mixture.")
    target = target if target is not None else default
    objects = environment(experiment.env.id).objects
    return ResolvedMethod(name, method.regulariser, init, limit, target, proposals, objects)
