"""What is said about latents and rewards, and when it is a warning."""

from __future__ import annotations

from typing import Any

import pytest
from toy_skills import METHODS, toy_spec

from spirl_ray.config import TrainSettings
from spirl_ray.episodes.features import Feature
from spirl_ray.pipeline.findings import offline_findings, reward_findings, reward_numbers, skill_findings
from spirl_ray.pipeline.results import Finding
from spirl_ray.pipeline.status import number
from spirl_ray.rl.methods import method_config
from spirl_ray.rl.offline_decisions import OfflineCard
from spirl_ray.rl.policy_network import PolicySpec
from spirl_ray.rl.rewards import RewardScale


def latents(nats: float = 3.0, removed: float = 0.6, sample: float = 1.5) -> dict[str, float]:
    """Metrics of skills; ``sample`` is the error of samples in errors of the prior's mean."""
    return {
        "latent_nats": nats,
        "latent_nats_standard": nats + 1.0,
        "error_prior_mean": 0.1,
        "error_posterior": 0.1 * (1.0 - removed),
        "error_prior_sample": 0.1 * sample,
        "error_removed": removed,
    }


def said(metrics: dict[str, float], delta: float = 4.0, method: str = "spirl_cl", **skills: Any) -> tuple[Finding, ...]:
    train = TrainSettings(target_divergence=delta)
    decoder = next((kind for kind, name in METHODS.items() if name == method), "open_loop" if method == "ssp" else "")
    spec = toy_spec(decoder or "identity", **skills)
    return skill_findings(metrics, spec, method_config(method, train, spec), train)


@pytest.mark.parametrize(("left", "method", "warned"), [(0.01, "flow_offline", False), (0.09, "flow_offline", True)])
def test_noise_has_errors_and_offline_decisions_need_an_inverse(left: float, method: str, warned: bool) -> None:
    train = TrainSettings()
    spec = toy_spec("flow")
    metrics = {"error_prior_mean": 0.1, "error_prior_sample": 0.2, "error_posterior": left, "error_removed": 0.0}
    findings = skill_findings(metrics, spec, method_config(method, train, spec), train)
    assert f"is {number(left)} with the noise that decodes to the window itself, 0.1 with noise 0" in findings[0].text
    assert bool(warnings(findings)) == warned
    assert not warnings(skill_findings(metrics, spec, method_config("flow", train, spec), train))


@pytest.mark.parametrize(("sample", "warned"), [(0.1, True), (0.13, False)])
def test_noise_that_does_not_change_the_actions_is_warned_of(sample: float, warned: bool) -> None:
    train, spec = TrainSettings(), toy_spec("flow")
    metrics = {"error_prior_mean": 0.1, "error_prior_sample": sample}
    found = warnings(skill_findings(metrics, spec, method_config("flow", train, spec), train))
    assert ("The noise hardly steers" in found) == warned
    short = {**metrics, "update": 100.0}
    assert not warnings(skill_findings(short, spec, method_config("flow", train, spec), train))


@pytest.mark.parametrize(("cut", "warned"), [(5, ""), (16, "16 % of the offline decisions"), (16, "to 4.")])
def test_a_box_that_cuts_many_latents_is_warned_of(cut: int, warned: str) -> None:
    made: dict[str, Any] = {"decisions": 100, "rewarded": 9, "terminated": 1, "parts": 1, "dataset": "d"}
    features = {"state": Feature(shape=(3,), role="state")}
    policy = PolicySpec(features=features, head="gaussian", uses_prior=False)
    for labels in ("environment", "learned"):
        card = OfflineCard(skills="s", policy=policy, latent_limit=2.0, labels=labels, cut=cut, **made)
        found = warnings(offline_findings(card))
        assert warned in found
        assert bool(found) == bool(warned)


def warnings(findings: tuple[Finding, ...]) -> str:
    return " ".join(finding.text for finding in findings if finding.warning)


@pytest.mark.parametrize(
    ("nats", "delta", "removed", "key"),
    [
        (0.7, 2.0, 0.42, "Lower skills.beta"),
        (0.7, 2.0, 0.6, "Lower skills.beta"),
        (3.0, 4.0, 0.29, "Lower skills.beta"),
        (2.1, 2.0, 0.51, ""),
        (0.9, 2.0, 0.355, ""),
        (0.788, 2.0, 0.326, ""),
        (3.0, 4.0, 0.5, ""),
        (6.1, 4.0, 0.92, ""),
        (11.0, 4.0, 0.6, "raise train.target_divergence to 5.5"),
        (9.5, 2.0, 0.57, "Raise skills.beta"),
        (9.5, 2.0, 0.2, "does not reach the actions"),
    ],
)
def test_latents_that_steer_too_little_or_carry_too_much_are_warned_of(
    nats: float, delta: float, removed: float, key: str
) -> None:
    text = warnings(said(latents(nats, removed), delta))
    assert key in text
    assert bool(text) == bool(key)


def test_a_prior_is_too_wide_where_samples_are_far_worse_than_its_mean() -> None:
    assert not warnings(said(latents(sample=2.0)))
    assert "skills.prior: mixture" in warnings(said(latents(sample=3.0)))
    assert "skills.prior: mixture" not in warnings(said(latents(sample=3.0), prior="mixture"))


def test_every_number_is_in_a_sentence() -> None:
    text = " ".join(finding.text for finding in said(latents(3.14, 0.6, 1.7)))
    assert all(part in text for part in ("3.14", "4.14", "4 nats", "0.04", "0.1", "0.17", "60 %"))


def test_a_tuned_beta_is_moved_by_its_target() -> None:
    assert "Raise skills.target_kl (now 0.2)" in warnings(said(latents(0.5), target_kl=0.2))
    assert "Lower skills.target_kl (now 0.2)" in warnings(said(latents(20.0), target_kl=0.2))
    assert "for example to 0.001" in warnings(said(latents(20.0), beta=0.0))


def test_of_flat_methods_only_what_makes_sense_is_said() -> None:
    metrics = {"error_prior_mean": 0.385, "error_prior_sample": 0.675}
    (finding,) = said(metrics, method="flat_prior")
    assert "0.385" in finding.text
    assert not finding.warning
    assert said(metrics, method="bc_sac") == (finding,)
    assert said(metrics, method="sac") == ()


def test_without_a_prior_nothing_is_compared_with_a_divergence_from_it() -> None:
    assert not warnings(said(latents(nats=30.0, sample=9.0), method="ssp"))
    assert "hardly steers" in warnings(said(latents(removed=0.1), method="ssp"))
    train = TrainSettings(fixed_alpha=0.1)
    spec = toy_spec()
    fixed = skill_findings(latents(nats=30.0), spec, method_config("spirl_cl", train, spec), train)
    assert not warnings(fixed)


def test_after_a_short_stage_1_nothing_is_warned_of_and_its_length_is_told() -> None:
    poor = latents(nats=30.0, removed=0.1, sample=9.0)
    for updates, short in ((100.0, True), (1000.0, False)):
        found = said({**poor, "update": updates})
        assert bool(warnings(found)) is not short
        assert ("pretrain.updates" in found[-1].text and "100 updates" in found[-1].text) is short


def test_of_skills_of_which_nothing_was_measured_nothing_is_said() -> None:
    assert said({"validation_loss": 1.0}) == ()


# --- rewards ---


def rewards(reward: float, largest_return: float, settled: bool = True, **train: Any) -> tuple[Finding, ...]:
    settings = TrainSettings(**{"initial_alpha": 0.1, "target_divergence": 4.0, **train})
    scale = RewardScale(settings, 10)
    scale.seen.decisions, scale.seen.total, scale.seen.largest = 100, 100 * reward, reward or largest_return
    scale.seen.largest_return, scale.seen.decisions_in_episode = largest_return, 20.0
    scale.starting_divergence = 0.5
    spec = toy_spec()
    method = method_config("spirl_cl", settings, spec)
    return reward_findings(reward_numbers(scale.numbers(), settings, method), settings, method, settled=settled)


def test_minus_one_a_step_is_too_large_and_never_succeeding_is_told() -> None:
    found = rewards(-10.0, -182.0, reward_scale=1.0)
    text = " ".join(finding.text for finding in found)
    assert "train.reward_scale: 0.02, or auto" in warnings(found)
    assert all(part in text for part in ("-10 on average", "-182", "-1,000", "0.1 · 0.5 = 0.05", "0.1 · 4 = 0.4"))
    assert "-1,000" not in " ".join(f.text for f in rewards(-10.0, -182.0, reward_scale=1.0, timeout_is_terminal=True))
    scaled = rewards(-10.0, -182.0)
    assert "auto has chosen 0.02" in " ".join(finding.text for finding in scaled)
    assert not warnings(scaled)


def test_one_at_success_is_too_small() -> None:
    assert "train.reward_scale: 5, or auto" in warnings(rewards(0.0, 1.0, reward_scale=1.0))
    assert not warnings(rewards(0.0, 1.0, reward_scale=5.0))
    assert not warnings(rewards(0.0, 1.0))


def test_a_reward_that_nobody_has_seen_is_no_warning() -> None:
    found = rewards(0.0, 0.0, settled=False, alpha_min=0.5)
    assert "No reward has been seen" in found[0].text
    assert "until the first episode with a reward has ended" in found[-1].text
    assert not warnings(found)


def test_a_penalty_that_rewards_cannot_make_up_for_is_warned_of() -> None:
    assert "Lower train.alpha_min" in warnings(rewards(0.0, 4.0, alpha_min=2.0))
    assert not warnings(rewards(0.0, 4.0, alpha_min=0.5))


def test_a_discount_that_looks_far_beyond_an_episode_is_told() -> None:
    def text(**train: Any) -> str:
        return " ".join(finding.text for finding in rewards(0.1, 4.0, **train))

    assert "0.99 looks 100 decisions ahead, and an episode has 20" in text(discount=0.99)
    assert "try 0.93" in text(discount=0.99)
    assert not warnings(rewards(0.1, 4.0, discount=0.99))
    for unhurried in ({"discount": 0.95}, {"discount": 1.0}, {"timeout_is_terminal": True}):
        assert "decisions ahead" not in text(**{"discount": 0.99, **unhurried})


def test_a_fixed_alpha_has_no_target() -> None:
    text = " ".join(finding.text for finding in rewards(0.0, 4.0, fixed_alpha=0.2))
    assert "0.2 · 0.5 = 0.1 before the first update; alpha stays" in text
    assert "target divergence" not in text


@pytest.mark.parametrize(
    ("value", "text"),
    [(-1000.0, "-1,000"), (999.9999, "1,000"), (0.012345, "0.0123"), (-4.7e-9, "0"), (2.0, "2"), (0.00025, "0.00025")],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert number(value) == text
