"""The stage-1 model: its loss is the paper's, gradients stop where they must, decoders look where they should."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence
from toy_skills import random_observations, toy_model

from spirl_ray.skills.gaussian import DiagonalGaussian
from spirl_ray.skills.model import SkillModel

ACTIONS, LATENTS, HORIZON, BATCH = 2, 3, 5, 16


Batch = tuple[dict[str, Tensor], Tensor, Tensor]


def a_batch(model: SkillModel) -> Batch:
    spec, generator = model.spec, torch.Generator().manual_seed(1)
    observed = model.kind.observed_steps(spec.horizon)
    return (
        random_observations(spec.observed, BATCH, observed),
        0.9 * (2.0 * torch.rand(BATCH, spec.horizon, ACTIONS, generator=generator) - 1.0),
        torch.randn(BATCH, spec.latent_dim, generator=generator),
    )


def moved(observations: dict[str, Tensor], by: float = 0.3) -> dict[str, Tensor]:
    return {name: value + by for name, value in observations.items()}


def reference(gaussian: DiagonalGaussian) -> Independent:
    return Independent(Normal(gaussian.mean, gaussian.log_std.exp()), 1)


# --- the loss ---


@pytest.mark.parametrize("decoder", ["open_loop", "closed_loop"])
@pytest.mark.parametrize("prior_loss", ["nll", "kl"])
def test_loss_is_the_papers_averaged_over_batch_and_dimensions(decoder: str, prior_loss: str) -> None:
    model = toy_model(decoder, beta=0.3, prior_loss=prior_loss)
    states, actions, noise = a_batch(model)
    losses = model(states, actions, noise)

    seen = (states["state"] - model.statistics.mean["state"]) / model.statistics.std["state"]
    posterior = model.codec.encode(seen, actions)
    q, latent = reference(posterior), posterior.mean + posterior.log_std.exp() * noise
    p = reference(DiagonalGaussian.from_parameters(model.prior(seen[:, 0])))
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
    model = toy_model(prior=prior, prior_loss="kl")
    states, actions, noise = a_batch(model)
    posterior = model.codec.encode(model.codec.observe(states), actions)
    latent = posterior.mean + posterior.log_std.exp() * noise
    parameters = model.prior_parameters({"state": states["state"][:, 0]})
    expected = posterior.log_prob(latent) - model.prior.distribution(parameters).log_prob(latent)
    if (beside := model.prior.auxiliary(parameters)) is not None:
        expected = expected + posterior.kl(beside)
    assert (beside is not None) == (prior == "flow")
    torch.testing.assert_close(model(states, actions, noise)["prior"], expected.mean() / LATENTS)


@pytest.mark.parametrize("prior_loss", ["nll", "kl"])
@pytest.mark.parametrize("prior", ["gaussian", "mixture", "flow"])
def test_prior_loss_trains_the_prior_and_never_the_embedding(prior: str, prior_loss: str) -> None:
    model = toy_model(prior=prior, prior_loss=prior_loss)
    model(*a_batch(model))["prior"].backward()
    assert all(parameter.grad is None for parameter in model.codec.parameters())
    assert all(parameter.grad is not None for parameter in model.prior.parameters())
    assert any(parameter.grad.abs().sum() > 0 for parameter in model.prior.parameters())


def test_reconstruction_and_kl_train_the_embedding_and_never_the_prior() -> None:
    model = toy_model()
    losses = model(*a_batch(model))
    (losses["reconstruction"] + losses["kl"]).backward()
    assert all(parameter.grad is None for parameter in model.prior.parameters())
    assert all(parameter.grad is not None for parameter in model.codec.parameters())


@pytest.mark.parametrize(("target", "rises"), [(1e-6, True), (1e3, False)])
def test_beta_rises_while_the_divergence_exceeds_its_target_and_falls_below(target: float, rises: bool) -> None:
    model = toy_model(target_kl=target, beta=0.1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    before = float(model.log_beta.detach())
    assert before == pytest.approx(torch.tensor(0.1).log().item())
    losses = model(*a_batch(model))
    assert float(losses["beta"]) == pytest.approx(0.1)
    losses["loss"].backward()
    optimizer.step()
    assert (float(model.log_beta.detach()) > before) == rises


def test_tuned_beta_weighs_the_divergence_like_a_fixed_one() -> None:
    fixed, tuned = toy_model(beta=0.2), toy_model(beta=0.2, target_kl=0.5)
    for model in (fixed, tuned):
        model(*a_batch(model))["loss"].backward()
    for one, other in zip(fixed.codec.parameters(), tuned.codec.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


# --- augmented windows ---


def test_the_encoder_recognises_the_demonstration_and_the_rest_learns_from_the_perturbed_window() -> None:
    model = toy_model("closed_loop")
    states, actions, noise = a_batch(model)
    shifted, relabelled = moved(states), actions - 0.1
    losses = model(states, actions, noise, (shifted, relabelled))
    posterior = model.codec.encode(model.codec.observe(states), actions)
    latent = posterior.mean + posterior.log_std.exp() * noise
    torch.testing.assert_close(losses["kl"], posterior.kl_to_standard_normal().mean() / LATENTS)
    torch.testing.assert_close(
        losses["reconstruction"], 0.5 * (model.decode(shifted, latent) - relabelled).square().mean()
    )
    first = {"state": shifted["state"][:, 0]}
    prior = -model.prior_distribution(first).log_prob(latent).mean() / LATENTS
    torch.testing.assert_close(losses["prior"], prior)


@pytest.mark.parametrize("decoder", ["identity", "open_loop", "flow"])
def test_a_plan_from_a_displaced_start_is_the_relabelled_one(decoder: str) -> None:
    model = toy_model(decoder)
    states, actions, _ = a_batch(model)
    noise = torch.randn(BATCH, model.noise_dim, generator=torch.Generator().manual_seed(2))
    shifted, relabelled = moved(states), actions - 0.05
    losses, expected = model(states, actions, noise, (shifted, relabelled)), model(shifted, relabelled, noise)
    assert torch.equal(losses["prior"], expected["prior"])
    assert torch.equal(losses["loss"], expected["loss"])
    assert not torch.equal(losses["loss"], model(states, actions, noise)["loss"])


# --- normalisation ---


def test_small_deviations_are_floored() -> None:
    model = toy_model(state_std_floor=0.05)
    mean, std = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([0.0, 0.01, 0.05, 2.0])
    model.set_normalisation({"state": mean}, {"state": std})
    torch.testing.assert_close(model.statistics.std["state"], torch.tensor([0.05, 0.05, 0.05, 2.0]))
    standardised = model.observation_encoder({"state": torch.tensor([1.0, 2.1, 3.0, 0.0])})
    torch.testing.assert_close(standardised, torch.tensor([0.0, 2.0, 0.0, -2.0]))


def test_prior_and_decoder_take_raw_observations() -> None:
    model = toy_model()
    states, latent = torch.randn(6, 4), torch.randn(6, LATENTS)
    seen = (states - model.statistics.mean["state"]) / model.statistics.std["state"]
    torch.testing.assert_close(model.prior_parameters({"state": states}), model.prior(seen))
    decoded = model.decode({"state": states.unsqueeze(1)}, latent)
    torch.testing.assert_close(decoded, model.codec.decode(seen.unsqueeze(1), latent))


# --- encoders and decoders ---


def test_closed_loop_decoder_sees_the_state_of_each_step_and_no_other() -> None:
    model = toy_model("closed_loop")
    states, _, latent = a_batch(model)
    shifted = states["state"].clone()
    shifted[:, 2] += 1.0
    change = (model.decode({"state": shifted}, latent) - model.decode(states, latent)).abs().amax((0, 2))
    assert change[2] > 1e-3
    assert change[[0, 1, 3, 4]].tolist() == [0.0] * 4


@pytest.mark.parametrize("decoder", ["open_loop", "closed_loop"])
def test_decoders_depend_on_the_latent_at_every_step(decoder: str) -> None:
    model = toy_model(decoder)
    states, _, latent = a_batch(model)
    change = (model.decode(states, latent + 1.0) - model.decode(states, latent)).abs().amax((0, 2))
    assert (change > 1e-4).all()


def test_open_loop_decoder_is_autoregressive_and_reads_the_latent_at_every_step() -> None:
    model = toy_model("open_loop")
    decoder = model.codec.decoder
    with torch.no_grad():
        decoder.first_input.fill_(0.7)
    inputs: list[Tensor] = []
    decoder.cell.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    latent = torch.randn(3, LATENTS)
    actions = model.decode(None, latent)
    assert actions.shape == (3, HORIZON, ACTIONS)
    assert len(inputs) == HORIZON
    for step, seen in enumerate(inputs):
        before = actions[:, step - 1] if step else torch.full((3, ACTIONS), 0.7)
        torch.testing.assert_close(seen, torch.cat([before, latent], dim=-1))


def test_open_loop_decoder_learns_its_initial_input_and_state() -> None:
    decoder = toy_model("open_loop").codec.decoder
    decoder(torch.randn(3, LATENTS), HORIZON).square().sum().backward()
    for name in ("first_input", "first_hidden", "first_cell"):
        assert getattr(decoder, name).grad.abs().sum() > 0


@pytest.mark.parametrize(("decoder", "sees_states"), [("open_loop", False), ("closed_loop", True)])
def test_encoder_reads_every_action_and_in_the_closed_loop_every_state(decoder: str, sees_states: bool) -> None:
    model = toy_model(decoder)
    _, actions, _ = a_batch(model)
    states = torch.randn(BATCH, HORIZON, 4, requires_grad=sees_states)
    actions.requires_grad_(True)
    posterior = model.codec.encode(states, actions)
    (posterior.mean.sum() + posterior.log_std.sum()).backward()
    assert (actions.grad.abs().sum((0, 2)) > 0).all()
    if sees_states:
        assert (states.grad.abs().sum((0, 2)) > 0).all()


# --- the flat case ---


def test_a_flat_method_is_a_skill_of_one_action() -> None:
    spec = toy_model("identity").spec
    assert (spec.horizon, spec.latent_dim) == (1, ACTIONS)


def test_identity_codec_gives_back_the_action_it_was_given() -> None:
    model = toy_model("identity")
    _, actions, _ = a_batch(model)
    posterior = model.codec.encode(None, actions)
    torch.testing.assert_close(model.decode(None, posterior.mean), actions)


def test_identity_codec_stays_finite_at_the_limits_of_actions() -> None:
    model = toy_model("identity")
    limits = torch.tensor([[[-1.0, 1.0]]])
    posterior = model.codec.encode(None, limits)
    assert torch.isfinite(posterior.mean).all()
    torch.testing.assert_close(model.decode(None, posterior.mean), limits, atol=2e-3, rtol=0)


def test_the_flat_prior_is_behaviour_cloning() -> None:
    model = toy_model("identity", width=32)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    generator = torch.Generator().manual_seed(0)

    def demonstrate(count: int) -> tuple[dict[str, Tensor], Tensor]:
        states = torch.randn(count, 1, 4, generator=generator)
        return {"state": states}, 0.8 * torch.sin(states[..., :ACTIONS])

    for _ in range(250):
        states, actions = demonstrate(128)
        optimizer.zero_grad()
        model(states, actions, torch.randn(128, ACTIONS, generator=generator))["loss"].backward()
        optimizer.step()
    states, actions = demonstrate(256)
    with torch.no_grad():
        prior = model.prior_distribution({"state": states["state"][:, 0]})
        cloned = model.decode(None, prior.mode())
    # Deterministic demonstrations do not make it so narrow that a policy cannot stay close to it.
    assert 0.08 < float(prior.log_std.exp().median()) < 0.25
    assert float((cloned - actions).square().mean()) < 0.05 * float(actions.square().mean())


# --- priors ---


@pytest.mark.parametrize("prior", ["gaussian", "mixture", "flow"])
def test_policies_can_start_from_every_prior(prior: str) -> None:
    model = toy_model(prior=prior)
    parameters = model.prior_parameters(random_observations(model.spec.observed, 6))
    assert parameters.shape == (6, model.prior.param_dim)
    start = model.prior.policy_parameters(parameters)
    assert start.shape == (6, model.prior.policy_param_dim)
    weights, components = model.prior.policy_distribution(start).as_mixture()
    torch.testing.assert_close(weights.sum(-1), torch.ones(6))
    assert components.mean.shape == (6, 2 if prior == "mixture" else 1, LATENTS)
