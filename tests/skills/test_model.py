"""The stage-1 model: its loss is the paper's, gradients stop where they must, decoders look where they should."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

from spirl_ray.config import SkillSettings
from spirl_ray.skills.gaussian import DiagonalGaussian
from spirl_ray.skills.model import SkillModel, SkillSpec
from spirl_ray.skills.priors import FlowPrior, GaussianPrior, MixturePrior

STATES, ACTIONS, LATENTS, HORIZON, BATCH = 4, 2, 3, 5, 16


def make_model(decoder: str = "closed_loop", **settings: Any) -> SkillModel:
    torch.manual_seed(0)
    small = {"horizon": HORIZON, "latent_dim": LATENTS, "width": 16, "decoder_layers": 2, "prior_layers": 2}
    spec = SkillSpec(
        decoder=decoder, state_dim=STATES, action_dim=ACTIONS, settings=SkillSettings(**{**small, **settings})
    )
    model = SkillModel(spec)
    model.set_normalisation(torch.tensor([0.5, -1.0, 0.0, 2.0]), torch.tensor([1.0, 2.0, 0.5, 1.0]))
    return model


def a_batch(horizon: int = HORIZON, latents: int = LATENTS) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(BATCH, horizon, STATES, generator=generator),
        0.9 * (2.0 * torch.rand(BATCH, horizon, ACTIONS, generator=generator) - 1.0),
        torch.randn(BATCH, latents, generator=generator),
    )


def reference(gaussian: DiagonalGaussian) -> Independent:
    return Independent(Normal(gaussian.mean, gaussian.log_std.exp()), 1)


# --- the loss ---


@pytest.mark.parametrize("decoder", ["open_loop", "closed_loop"])
@pytest.mark.parametrize("prior_loss", ["nll", "kl"])
def test_loss_is_the_papers_averaged_over_batch_and_dimensions(decoder: str, prior_loss: str) -> None:
    model = make_model(decoder, beta=0.3, prior_loss=prior_loss)
    states, actions, noise = a_batch()
    losses = model(states, actions, noise)

    seen = (states - model.state_mean) / model.state_std
    posterior = model.codec.encode(seen, actions)
    q, latent = reference(posterior), posterior.mean + posterior.log_std.exp() * noise
    p = reference(model.prior(seen[:, 0]))
    decoded = model.codec.decode(seen, latent)
    constant = 0.5 * torch.log(torch.tensor(2 * torch.pi))
    reconstruction = -Normal(decoded, 1.0).log_prob(actions).mean() - constant
    standard = Independent(Normal(torch.zeros(LATENTS), torch.ones(LATENTS)), 1)
    kl = kl_divergence(q, standard.expand((BATCH,))).mean() / LATENTS
    prior = (kl_divergence(q, p) if prior_loss == "kl" else -p.log_prob(latent)).mean() / LATENTS

    torch.testing.assert_close(losses["reconstruction"], reconstruction)
    torch.testing.assert_close(losses["kl"], kl)
    torch.testing.assert_close(losses["prior"], prior)
    torch.testing.assert_close(losses["loss"], reconstruction + 0.3 * kl + prior)
    assert float(losses["beta"]) == pytest.approx(0.3)


@pytest.mark.parametrize("prior", ["mixture", "flow"])
def test_kl_towards_a_prior_without_closed_form_is_estimated_at_the_posterior_sample(prior: str) -> None:
    model = make_model(prior=prior, prior_loss="kl")
    states, actions, noise = a_batch()
    seen = model.standardise(states)
    posterior = model.codec.encode(seen, actions)
    latent = posterior.mean + posterior.log_std.exp() * noise
    estimate = posterior.log_prob(latent) - model.prior(seen[:, 0]).log_prob(latent)
    beside = posterior.kl(model.policy_start(seen[:, 0]))
    torch.testing.assert_close(model(states, actions, noise)["prior"], (estimate + beside).mean() / LATENTS)


@pytest.mark.parametrize("prior_loss", ["nll", "kl"])
@pytest.mark.parametrize("prior", ["gaussian", "mixture", "flow"])
def test_prior_loss_trains_the_prior_and_never_the_embedding(prior: str, prior_loss: str) -> None:
    model = make_model(prior=prior, prior_loss=prior_loss)
    model(*a_batch())["prior"].backward()
    assert all(parameter.grad is None for parameter in model.codec.parameters())
    assert all(parameter.grad is not None for parameter in model.prior.parameters())
    assert any(parameter.grad.abs().sum() > 0 for parameter in model.prior.parameters())


def test_reconstruction_and_kl_train_the_embedding_and_never_the_prior() -> None:
    model = make_model()
    losses = model(*a_batch())
    (losses["reconstruction"] + losses["kl"]).backward()
    assert all(parameter.grad is None for parameter in model.prior.parameters())
    assert all(parameter.grad is not None for parameter in model.codec.parameters())


@pytest.mark.parametrize(("target", "rises"), [(1e-6, True), (1e3, False)])
def test_beta_rises_while_the_divergence_exceeds_its_target_and_falls_below(target: float, rises: bool) -> None:
    model = make_model(target_kl=target, beta=0.1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    before = float(model.log_beta.detach())
    assert before == pytest.approx(torch.tensor(0.1).log().item())
    losses = model(*a_batch())
    assert float(losses["beta"]) == pytest.approx(0.1)
    losses["loss"].backward()
    optimizer.step()
    assert (float(model.log_beta.detach()) > before) == rises


def test_tuned_beta_weighs_the_divergence_like_a_fixed_one() -> None:
    fixed, tuned = make_model(beta=0.2), make_model(beta=0.2, target_kl=0.5)
    for model in (fixed, tuned):
        model(*a_batch())["loss"].backward()
    for one, other in zip(fixed.codec.parameters(), tuned.codec.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


# --- augmented windows ---


def test_the_encoder_recognises_the_demonstration_and_the_rest_learns_from_the_perturbed_window() -> None:
    model = make_model("closed_loop")
    states, actions, noise = a_batch()
    moved, relabelled = states + 0.3, actions - 0.1
    losses = model(states, actions, noise, (moved, relabelled))
    posterior = model.codec.encode(model.standardise(states), actions)
    latent = posterior.mean + posterior.log_std.exp() * noise
    torch.testing.assert_close(losses["kl"], posterior.kl_to_standard_normal().mean() / LATENTS)
    torch.testing.assert_close(
        losses["reconstruction"], 0.5 * (model.decode(moved, latent) - relabelled).square().mean()
    )
    prior = -model.prior_distribution(moved[:, 0]).log_prob(latent).mean() / LATENTS
    torch.testing.assert_close(losses["prior"], prior)


def test_an_open_loop_plan_stays_the_demonstrated_one() -> None:
    model = make_model("open_loop")
    states, actions, noise = a_batch()
    plain = model(states, actions, noise)
    losses = model(states, actions, noise, (states + 0.3, actions - 0.1))
    assert torch.equal(losses["reconstruction"], plain["reconstruction"])
    assert torch.equal(losses["kl"], plain["kl"])
    assert not torch.equal(losses["prior"], plain["prior"])


def test_a_flat_prior_learns_the_relabelled_action() -> None:
    model = make_model("identity")
    states, actions, noise = a_batch(1, ACTIONS)
    moved, relabelled = states + 0.3, actions - 0.05
    losses, expected = model(states, actions, noise, (moved, relabelled)), model(moved, relabelled, noise)
    assert torch.equal(losses["prior"], expected["prior"])
    assert torch.equal(losses["loss"], expected["loss"])


# --- normalisation ---


def test_small_deviations_are_floored() -> None:
    model = make_model(state_std_floor=0.05)
    model.set_normalisation(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([0.0, 0.01, 0.05, 2.0]))
    torch.testing.assert_close(model.state_std, torch.tensor([0.05, 0.05, 0.05, 2.0]))
    standardised = model.standardise(torch.tensor([1.0, 2.1, 3.0, 0.0]))
    torch.testing.assert_close(standardised, torch.tensor([0.0, 2.0, 0.0, -2.0]))


def test_prior_and_decoder_take_raw_states() -> None:
    model = make_model()
    states, latent = torch.randn(6, STATES), torch.randn(6, LATENTS)
    seen = (states - model.state_mean) / model.state_std
    torch.testing.assert_close(model.prior_distribution(states).mode(), model.prior(seen).mean)
    torch.testing.assert_close(model.decode(states.unsqueeze(1), latent), model.codec.decode(seen.unsqueeze(1), latent))


# --- encoders and decoders ---


def test_closed_loop_decoder_sees_the_state_of_each_step_and_no_other() -> None:
    model = make_model("closed_loop")
    states, _, latent = a_batch()
    moved = states.clone()
    moved[:, 2] += 1.0
    change = (model.decode(moved, latent) - model.decode(states, latent)).abs().amax((0, 2))
    assert change[2] > 1e-3
    assert change[[0, 1, 3, 4]].tolist() == [0.0] * 4


@pytest.mark.parametrize("decoder", ["open_loop", "closed_loop"])
def test_decoders_depend_on_the_latent_at_every_step(decoder: str) -> None:
    model = make_model(decoder)
    states, _, latent = a_batch()
    change = (model.decode(states, latent + 1.0) - model.decode(states, latent)).abs().amax((0, 2))
    assert (change > 1e-4).all()


def test_open_loop_decoder_is_autoregressive_and_reads_the_latent_at_every_step() -> None:
    model = make_model("open_loop")
    decoder = model.codec.decoder
    with torch.no_grad():
        decoder.first_input.fill_(0.7)
    inputs: list[Tensor] = []
    decoder.cell.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    latent = torch.randn(3, LATENTS)
    actions = model.decode(torch.empty(3, 0, STATES), latent)
    assert actions.shape == (3, HORIZON, ACTIONS)
    assert len(inputs) == HORIZON
    for step, seen in enumerate(inputs):
        before = actions[:, step - 1] if step else torch.full((3, ACTIONS), 0.7)
        torch.testing.assert_close(seen, torch.cat([before, latent], dim=-1))


def test_open_loop_decoder_learns_its_initial_input_and_state() -> None:
    decoder = make_model("open_loop").codec.decoder
    decoder(torch.randn(3, LATENTS), HORIZON).square().sum().backward()
    for name in ("first_input", "first_hidden", "first_cell"):
        assert getattr(decoder, name).grad.abs().sum() > 0


@pytest.mark.parametrize(("decoder", "sees_states"), [("open_loop", False), ("closed_loop", True)])
def test_encoder_reads_every_action_and_in_the_closed_loop_every_state(decoder: str, sees_states: bool) -> None:
    model = make_model(decoder)
    states, actions, _ = a_batch()
    states.requires_grad_(sees_states)
    actions.requires_grad_(True)
    posterior = model.codec.encode(states, actions)
    (posterior.mean.sum() + posterior.log_std.sum()).backward()
    assert (actions.grad.abs().sum((0, 2)) > 0).all()
    if sees_states:
        assert (states.grad.abs().sum((0, 2)) > 0).all()


# --- the flat case ---


def test_a_flat_method_is_a_skill_of_one_action() -> None:
    spec = make_model("identity").spec
    assert (spec.horizon, spec.latent_dim) == (1, ACTIONS)


def test_identity_codec_gives_back_the_action_it_was_given() -> None:
    model = make_model("identity")
    states, actions, _ = a_batch(1)
    posterior = model.codec.encode(states, actions)
    torch.testing.assert_close(model.decode(states, posterior.mean), actions)


def test_identity_codec_stays_finite_at_the_limits_of_actions() -> None:
    model = make_model("identity")
    limits = torch.tensor([[[-1.0, 1.0]]])
    posterior = model.codec.encode(torch.zeros(1, 1, STATES), limits)
    assert torch.isfinite(posterior.mean).all()
    torch.testing.assert_close(model.decode(torch.zeros(1, 1, STATES), posterior.mean), limits, atol=2e-3, rtol=0)


def test_the_flat_prior_is_behaviour_cloning() -> None:
    model = make_model("identity", width=32)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    generator = torch.Generator().manual_seed(0)

    def demonstrate(count: int) -> tuple[Tensor, Tensor]:
        states = torch.randn(count, 1, STATES, generator=generator)
        return states, 0.8 * torch.sin(states[..., :ACTIONS])

    for _ in range(250):
        states, actions = demonstrate(128)
        optimizer.zero_grad()
        model(states, actions, torch.randn(128, ACTIONS, generator=generator))["loss"].backward()
        optimizer.step()
    states, actions = demonstrate(256)
    with torch.no_grad():
        prior = model.prior_distribution(states[:, 0])
        cloned = model.decode(states, prior.mode())
    # Deterministic demonstrations do not make it so narrow that a policy cannot stay close to it.
    assert 0.08 < float(prior.log_std.exp().median()) < 0.25
    assert float((cloned - actions).square().mean()) < 0.05 * float(actions.square().mean())


# --- priors ---


@pytest.mark.parametrize(
    ("prior", "kind"), [("gaussian", GaussianPrior), ("mixture", MixturePrior), ("flow", FlowPrior)]
)
def test_policies_start_from_a_gaussian_whatever_the_prior(prior: str, kind: type) -> None:
    model = make_model(prior=prior)
    assert type(model.prior) is kind
    assert type(model.policy_start) is GaussianPrior
    assert (model.policy_start is model.prior) == (prior == "gaussian")
    model(*a_batch())["prior"].backward()
    assert all(parameter.grad is not None for parameter in model.policy_start.parameters())
