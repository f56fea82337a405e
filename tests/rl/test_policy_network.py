"""What a policy sees and where it starts, whatever features an environment has."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from ray.rllib.core.columns import Columns
from toy_skills import METHODS, random_observations, toy_model

from spirl_ray.config import TrainSettings
from spirl_ray.episodes.features import Feature, Features, ObjectSet
from spirl_ray.errors import SpirlError
from spirl_ray.rl.heads import ResidualHead
from spirl_ray.rl.methods import method_config
from spirl_ray.rl.module import SkillPriorModule
from spirl_ray.rl.policy_network import PolicyNetwork, PolicyObserver, PolicySpec, check_observation, policy_spec
from spirl_ray.skills.gaussian import DiagonalGaussian
from spirl_ray.skills.model import SkillModel
from spirl_ray.skills.priors import GaussianPrior, register_prior

CAMERAS: Features = {
    "hand": Feature(shape=(3,)),
    "speed": Feature(shape=(2,), role="proprioception"),
    "front": Feature(shape=(16, 24, 3), role="image", frames=2),
    "wrist": Feature(shape=(8, 8, 1), role="image"),
}
OBJECTS: Features = {
    "hand": Feature(shape=(3,), role="proprioception"),
    "blocks": Feature(shape=(5, 3), objects=ObjectSet(agent="hand", up=2, size=0.08)),
}
GOAL: Features = {"state": Feature(shape=(4,)), "goal": Feature(shape=(2,), role="goal")}
PRIORS = ["gaussian", "mixture", "flow"]
ROWS = 6


def spec_for(
    model: SkillModel, features: Features | None = None, train_features: tuple[str, ...] | None = None, **train: Any
) -> PolicySpec:
    settings = TrainSettings(features=train_features, **train)
    method = method_config(METHODS[model.spec.decoder], settings, model.spec)
    return policy_spec(model, method, model.spec.data_features if features is None else features)


def observe(model: SkillModel, spec: PolicySpec, observations: dict[str, torch.Tensor]) -> torch.Tensor:
    """Policy observations [ROWS, D]."""
    observer = PolicyObserver(spec, model)
    rows = [observer({name: value[i].numpy() for name, value in observations.items()}) for i in range(ROWS)]
    return torch.from_numpy(np.stack(rows))


def assert_same(one: Any, other: Any) -> None:
    for mine, theirs in zip(spread(one), spread(other), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def spread(distribution: Any) -> tuple[torch.Tensor, ...]:
    weights, components = distribution.as_mixture()
    return weights, components.mean, components.log_std


# --- what skills see ---


def test_skills_see_images_and_proprioception_or_else_everything_but_goals() -> None:
    assert toy_model(features=CAMERAS).spec.features == ("speed", "front", "wrist")
    assert toy_model(features=OBJECTS).spec.features == ("hand", "blocks")
    assert toy_model(features=GOAL).spec.features == ("state",)


def test_skills_and_prior_depend_on_what_they_see_and_on_nothing_else() -> None:
    model, seen = toy_model(features=CAMERAS), random_observations(CAMERAS, ROWS)
    for name in CAMERAS:
        other = {**seen, name: random_observations(CAMERAS, ROWS, seed=9)[name]}
        changed = not torch.equal(model.prior_parameters(other), model.prior_parameters(seen))
        assert changed == (name in model.spec.features), name


# --- what the policy sees ---


def test_a_policy_observation_holds_the_numbers_and_the_prior_parameters() -> None:
    model, seen = toy_model(features=CAMERAS), random_observations(CAMERAS, ROWS)
    spec = spec_for(model)
    assert list(spec.features) == ["hand", "speed"]
    inputs = observe(model, spec, seen)
    expected = torch.cat([seen["hand"], seen["speed"], model.prior_parameters(seen)], dim=1)
    torch.testing.assert_close(inputs, expected)
    network = PolicyNetwork(spec, model)
    encoded, prior = network.encode(inputs)
    assert encoded.shape == (ROWS, network.input_dim)
    torch.testing.assert_close(prior, model.prior_parameters(seen))
    mean, std = model.statistics.mean["hand"], model.statistics.std["hand"]
    torch.testing.assert_close(encoded[:, :3], (seen["hand"] - mean) / std)
    # The policy does not see the images, so it is shown what the prior makes of them.
    torch.testing.assert_close(encoded[:, 5:], prior)


def test_a_policy_that_sees_what_the_prior_sees_is_not_shown_its_parameters() -> None:
    model = toy_model(features=GOAL)
    spec = spec_for(model)
    network = PolicyNetwork(spec, model)
    assert list(spec.features) == ["state", "goal"]
    assert spec.uses_prior
    assert network.input_dim == 6
    assert network.observation_dim == 6 + model.prior.param_dim


def test_images_are_seen_through_the_frozen_priors_encoder_where_they_are_asked_for() -> None:
    model, seen = toy_model(features=CAMERAS), random_observations(CAMERAS, ROWS)
    spec = spec_for(model, train_features=("speed", "front", "wrist"), policy_init="scratch")
    inputs = observe(model, spec, seen)
    width = model.spec.settings.width
    for index, name in enumerate(("front", "wrist")):
        expected = model.observation_encoder.encoder(name)(seen)
        torch.testing.assert_close(inputs[:, 2 + index * width : 2 + (index + 1) * width], expected)
    only = {"front": CAMERAS["front"]}
    blind = toy_model(features=only)
    assert list(spec_for(blind).features) == ["front"]
    assert PolicyNetwork(spec_for(blind), blind)(observe(blind, spec_for(blind), seen)).mode().shape == (ROWS, 3)


def test_features_that_nobody_has_are_named() -> None:
    model = toy_model(features=CAMERAS)
    with pytest.raises(SpirlError, match=r"train\.features: 'head' is not a feature; .* hand, speed, front, wrist"):
        spec_for(model, train_features=("head",))
    with pytest.raises(SpirlError, match=r"skills\.encoders: 'head' is not a feature"):
        toy_model(encoders={"head": {"kind": "vector"}})


def test_a_feature_of_another_size_in_the_target_is_not_standardised() -> None:
    model = toy_model(features={**CAMERAS, "blocks": OBJECTS["blocks"]})
    target = {**model.spec.data_features, "blocks": OBJECTS["blocks"].model_copy(update={"shape": (11, 3)})}
    network = PolicyNetwork(spec_for(model, target), model)
    seen = random_observations(target, ROWS)
    encoded, _ = network.encode(observe(model, spec_for(model, target), seen))
    assert encoded.shape[1] == network.input_dim == 3 + 2 + (33 + 3 * 4) + model.prior.param_dim


def test_objects_are_seen_from_the_agent_in_an_order_of_their_own() -> None:
    model, seen = toy_model(features=OBJECTS), random_observations(OBJECTS, ROWS)
    encode = model.observation_encoder.encoder("blocks")
    encoded = encode(seen)
    near, high = ((part * 2).sinh().unflatten(1, (-1, 3)) * 0.08 for part in encoded[:, :24].split([15, 9], dim=1))
    hand, places = seen["hand"], seen["blocks"]
    assert (near.norm(dim=-1).diff(dim=1) >= 0).all()
    nearest = (places - hand[:, None]).norm(dim=-1).argmin(dim=1)
    torch.testing.assert_close(near[:, 0] + hand, places[torch.arange(ROWS), nearest], rtol=1e-3, atol=1e-4)
    highest = places[:, :, 2].argmax(dim=1)
    torch.testing.assert_close(high[:, 0] + hand, places[torch.arange(ROWS), highest], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(encoded[:, 24:] * 0.08, places[:, :, 2].sort(dim=1, descending=True).values[:, :3])
    assert torch.equal(encode({**seen, "blocks": places[:, torch.randperm(5)]}), encoded)


def test_objects_without_their_agent_are_refused_by_name() -> None:
    with pytest.raises(SpirlError, match=r"'blocks' needs the agent's position, 'hand'"):
        toy_model(features={"blocks": OBJECTS["blocks"]})


# --- where it starts ---


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("features", [CAMERAS, OBJECTS, GOAL], ids=["cameras", "objects", "goal"])
def test_a_policy_starts_as_the_prior_and_can_leave_it(features: Features, prior: str) -> None:
    model, seen = toy_model(features=features, prior=prior), random_observations(features, ROWS)
    spec = spec_for(model)
    policy = PolicyNetwork(spec, model)
    policy.start_from(model)
    inputs = observe(model, spec, seen)
    start = model.prior.policy_distribution(model.prior.policy_parameters(model.prior_parameters(seen)))
    assert_same(policy(inputs), start)
    assert isinstance(policy.head, ResidualHead) == (spec.head == "residual")
    assert (spec.head == "gaussian") == (prior == "gaussian" and features is OBJECTS)
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.1)
    policy(inputs).log_prob(torch.ones(ROWS, 3)).sum().backward()
    optimizer.step()
    for now, before in zip(spread(policy(inputs)), spread(start), strict=True):
        assert (now - before).abs().max() > 1e-3 or now.shape[-1] == 1  # a Gaussian's weight is one


class Bounded(GaussianPrior):
    """A Gaussian prior whose means stay within ±2, as in the documentation."""

    def forward(self, encoded: torch.Tensor) -> torch.Tensor:
        mean, log_std = self.net(encoded).chunk(2, dim=-1)
        return torch.cat([2.0 * torch.tanh(mean), log_std], dim=-1)


def test_a_policy_starts_as_a_prior_that_changes_what_its_network_says() -> None:
    register_prior("bounded for a test", Bounded)
    model, seen = toy_model(features=OBJECTS, prior="bounded for a test"), random_observations(OBJECTS, ROWS)
    with torch.no_grad():
        for parameter in model.prior.parameters():
            parameter.mul_(3.0)  # means beyond the bound
    spec = spec_for(model)
    policy = PolicyNetwork(spec, model)
    policy.start_from(model)
    parameters = model.prior_parameters(seen)
    assert_same(policy(observe(model, spec, seen)), model.prior.distribution(parameters))
    with pytest.raises(SpirlError, match=r"train\.policy_head: a gaussian head"):
        spec_for(model, policy_head="gaussian")


@pytest.mark.parametrize("head", ["gaussian", "mixture", "residual"])
def test_the_head_can_be_chosen_by_name(head: str) -> None:
    model = toy_model(features=OBJECTS)
    spec = spec_for(model, policy_head=head, policy_init="scratch")
    policy = PolicyNetwork(spec, model)
    chosen = policy(observe(model, spec, random_observations(OBJECTS, ROWS)))
    assert spec.head == head
    assert chosen.as_mixture()[0].shape == (ROWS, 2 if head == "mixture" else 1)


def test_a_head_that_cannot_start_as_the_prior_is_refused() -> None:
    with pytest.raises(SpirlError, match=r"train\.policy_head: a gaussian head"):
        spec_for(toy_model(features=GOAL), policy_head="gaussian")
    with pytest.raises(SpirlError, match="unknown policy head 'magic'"):
        PolicyNetwork(spec_for(toy_model(), policy_head="magic"), toy_model())
    model = toy_model()
    with pytest.raises(SpirlError, match=r"train\.policy_head: MixtureHead cannot start"):
        PolicyNetwork(spec_for(model, policy_head="mixture"), model).start_from(model)


# --- the module ---


def module_for(model: SkillModel, folder: Any, spec: PolicySpec) -> SkillPriorModule:
    from gymnasium.spaces import Box
    from toy_skills import save_toy_skills

    settings = TrainSettings(critic_width=8, critic_layers=1, initial_alpha=0.1)
    sizes = (PolicyNetwork(spec, model).observation_dim, model.spec.latent_dim)
    observations, latents = (Box(-np.inf, np.inf, (size,), np.float32) for size in sizes)
    made = SkillPriorModule(
        observation_space=observations,
        action_space=latents,
        model_config={
            "skills": str(save_toy_skills(folder, model)),
            "method": method_config(METHODS[model.spec.decoder], settings, model.spec).model_dump(mode="json"),
            "policy": spec.model_dump(mode="json"),
            "settings": settings.model_dump(mode="json"),
        },
    )
    made.make_target_networks()
    return made


@pytest.mark.parametrize("prior", ["gaussian", "mixture"])
def test_the_module_keeps_close_to_the_prior_in_its_observations(
    prior: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, seen = toy_model(features=CAMERAS, prior=prior), random_observations(CAMERAS, ROWS)
    spec = spec_for(model)
    module, inputs = module_for(model, tmp_path, spec), observe(model, spec, seen)
    batch = {Columns.OBS: inputs, Columns.NEXT_OBS: inputs.flip(0), Columns.ACTIONS: torch.zeros(ROWS, 3)}
    distribution: Any = model.prior_distribution(seen)
    assert module.forward_train(batch)["divergence"].abs().max() < 1e-4
    head: Any = module.policy.head
    with torch.no_grad():
        head.net[-1].bias += torch.linspace(0.0, 0.5, model.prior.policy_param_dim)
    monkeypatch.setattr(DiagonalGaussian, "sample", lambda self, generator=None: self.mean)
    out, policy = module.forward_train(batch), module.policy(inputs)
    weights, components = policy.as_mixture()
    if isinstance(distribution, DiagonalGaussian):
        divergence = policy.kl(distribution)
    else:
        divergence = sum(
            weight * (policy.log_prob(mean) - distribution.log_prob(mean))
            for weight, mean in zip(weights.T, components.mean.unbind(1), strict=True)
        )
        assert weights.min() > 0.01  # every component counts
    torch.testing.assert_close(out["divergence"], divergence, rtol=1e-4, atol=1e-5)
    encoded, _ = module.policy.encode(inputs)
    values = [module.critics(encoded, mean).min(0).values for mean in components.mean.unbind(1)]
    torch.testing.assert_close(out["policy_value"], (weights * torch.stack(values, 1)).sum(1), rtol=1e-4, atol=1e-5)


def test_a_mixture_policy_learns_which_component_to_take(tmp_path: Any) -> None:
    model, seen = toy_model(features=CAMERAS, prior="mixture"), random_observations(CAMERAS, ROWS)
    spec = spec_for(model)
    module, inputs = module_for(model, tmp_path, spec), observe(model, spec, seen)
    batch = {Columns.OBS: inputs, Columns.NEXT_OBS: inputs, Columns.ACTIONS: torch.zeros(ROWS, 3)}
    head: Any = module.policy.head
    (gradient,) = torch.autograd.grad(module.forward_train(batch)["policy_value"].sum(), head.net[-1].bias)
    assert (gradient != 0).all()
    # It explores with one of its components.
    chosen = module.forward_exploration(batch)[Columns.ACTION_DIST_INPUTS].unsqueeze(1)
    _, components = module.policy(inputs).as_mixture()
    found = (chosen - torch.cat([components.mean, components.log_std], dim=-1)).abs().amax(-1)
    assert (found.min(1).values < 1e-6).all()


def test_an_observation_that_does_not_fit_is_refused_by_feature() -> None:
    seen = {name: value[0].numpy() for name, value in random_observations(GOAL, 1).items()}
    check_observation({**seen, "more": 1}, GOAL)
    for wrong, said in (
        ({"state": seen["state"]}, "lacks the feature 'goal'; it has state"),
        ({**seen, "goal": np.zeros(3)}, r"'goal' has the shape \[3\], this policy needs \[2\]"),
    ):
        with pytest.raises(SpirlError, match=said):
            check_observation(wrong, GOAL)
    with pytest.raises(SpirlError, match="a mapping with the features state, goal, not ndarray"):
        check_observation(np.zeros(6), GOAL)  # type: ignore[arg-type]
