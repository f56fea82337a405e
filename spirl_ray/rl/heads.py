"""Policy heads, which map an encoded observation to the parameters of pi(z | s)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from spirl_ray.config import SkillSettings
from spirl_ray.errors import SpirlError
from spirl_ray.registry import Registry
from spirl_ray.skills.gaussian import DiagonalGaussian
from spirl_ray.skills.networks import mlp
from spirl_ray.skills.priors import GaussianMixture, GaussianPrior, PolicyDistribution, SkillPrior


@dataclass(frozen=True)
class HeadContext:
    """The arguments from which a policy head is built."""

    inputs: int
    """The width of the encoded observation."""
    prior: SkillPrior
    """The frozen prior; a head must not have it as a submodule, because its weights are not the policy's."""
    settings: SkillSettings
    """The settings of the skills; a policy's network has the size of the prior's."""

    def network(self, outputs: int) -> nn.Sequential:
        """Makes a new network of the policy's size."""
        return mlp(self.inputs, outputs, width=self.settings.width, layers=self.settings.prior_layers)


class PolicyHead(nn.Module):
    """The last part of a policy network.

    Args:
        context: sizes, settings and prior.
    """

    def __init__(self, context: HeadContext) -> None:
        super().__init__()

    def forward(self, encoded: Tensor, prior_parameters: Tensor | None) -> Tensor:
        """Computes policy parameters [..., Q] from encoded observations [..., F] and prior parameters [..., P]."""
        raise NotImplementedError

    def distribution(self, parameters: Tensor) -> PolicyDistribution:
        """The policy with parameters [..., Q]."""
        raise NotImplementedError

    def start_from(self, prior: SkillPrior) -> None:
        """Makes the policy equal to the prior; raises `SpirlError` where it cannot be."""
        raise SpirlError(
            f"train.policy_head: {type(self).__name__} cannot start as this skill prior, which is a "
            f"{type(prior).__name__}. Use residual or auto, or train.policy_init: scratch."
        )


class GaussianHead(PolicyHead):
    """A diagonal Gaussian with the same network as a Gaussian prior, from whose weights it can start."""

    def __init__(self, context: HeadContext) -> None:
        super().__init__(context)
        self.net = context.network(2 * context.prior.latent_dim)

    def forward(self, encoded: Tensor, prior_parameters: Tensor | None) -> Tensor:
        return self.net(encoded)

    def distribution(self, parameters: Tensor) -> DiagonalGaussian:
        return DiagonalGaussian.from_parameters(parameters)

    def start_from(self, prior: SkillPrior) -> None:
        if type(prior) is not GaussianPrior:  # a subclass may change what its network says
            return super().start_from(prior)
        self.net.load_state_dict(prior.net.state_dict())
        return None


class MixtureHead(PolicyHead):
    """A mixture of ``skills.mixture_components`` diagonal Gaussians, which starts from scratch."""

    def __init__(self, context: HeadContext) -> None:
        super().__init__(context)
        self.latent_dim = context.prior.latent_dim
        self.net = context.network(context.settings.mixture_components * (1 + 2 * self.latent_dim))

    def forward(self, encoded: Tensor, prior_parameters: Tensor | None) -> Tensor:
        return self.net(encoded)

    def distribution(self, parameters: Tensor) -> GaussianMixture:
        return GaussianMixture.from_parameters(parameters, self.latent_dim)


class ResidualHead(PolicyHead):
    """The sum of the prior's parameters and a network that starts at zero, so that the policy starts as the prior.

    Where the prior is a mixture, the policy is one, too, and also learns the weights of the components.
    """

    def __init__(self, context: HeadContext) -> None:
        super().__init__(context)
        prior = context.prior
        # Bound methods, not the prior itself: its weights do not belong to the policy.
        self._policy_parameters = prior.policy_parameters
        self._policy_distribution = prior.policy_distribution
        self.net = context.network(prior.policy_param_dim)
        last = self.net[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, encoded: Tensor, prior_parameters: Tensor | None) -> Tensor:
        assert prior_parameters is not None
        return self._policy_parameters(prior_parameters) + self.net(encoded)

    def distribution(self, parameters: Tensor) -> PolicyDistribution:
        return self._policy_distribution(parameters)

    def start_from(self, prior: SkillPrior) -> None:
        """Does nothing, because the policy is equal to the prior from the start."""


HeadFactory = Callable[[HeadContext], PolicyHead]
HEADS: Registry[HeadFactory] = Registry("policy head")


def register_head(name: str, factory: HeadFactory, *, replace: bool = False) -> None:
    """Adds a policy head that ``train.policy_head`` can name.

    Args:
        name: name of the head.
        factory: builds a `PolicyHead` from a `HeadContext`; a subclass can be given itself.
        replace: True to replace a head of this name.
    """
    HEADS.register(name, factory, replace=replace)


register_head("gaussian", GaussianHead)
register_head("mixture", MixtureHead)
register_head("residual", ResidualHead)
