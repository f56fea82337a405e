"""What decides whether stage 2 can learn, in sentences: what latents carry, and what rewards are worth.

The limits of the warnings are from experience with Gaussian priors and closed-loop skills of 10 steps:

| skills | nats a latent | target divergence | error removed | stage 2 |
|---|---|---|---|---|
| OGBench cube, beta 0.008 | 0.7 | 2 | 14 to 42 % | does not learn |
| kitchen, beta 0.008, 10 dimensions | 2.1 | 2 | 51 % | learns |
| kitchen, beta 0.008, 4 dimensions | 0.79 to 0.9 | 2 | 33 to 36 % | learns, more steadily |
| OGBench cube, beta 0.002 | 3 | 4 | not recorded | learns |
| kitchen, plans, beta 0.004 | 10.2, 15.7 | 5 | 65 to 69 % | learns, with offline decisions |
| quickstart's maze (open loop), beta 0.01 | 6.1 | 4 | 92 % | learns |
| OGBench cube, beta 5e-4 | 11 | 4 | not recorded | sampled latents fail |
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from spirl_ray.config import SkillSettings, TrainSettings
from spirl_ray.pipeline.results import Finding
from spirl_ray.pipeline.status import number
from spirl_ray.rl.methods import MethodConfig, kept_divergence
from spirl_ray.rl.offline_decisions import OfflineCard
from spirl_ray.rl.rewards import TARGET_VALUE, scale_for
from spirl_ray.skills.decoders import DECODERS
from spirl_ray.skills.spec import SkillSpec

LEAST_UPDATES = 1000
"""After fewer updates, latents are not yet what they will be, so nothing is warned of. In PointMaze_UMaze they removed
36 % of the error after 100 updates and 54 % after 8000."""
LEAST_NATS = 0.37
"""A latent that carries less than this part of the target divergence hardly steers."""
LEAST_REMOVED = 0.3
"""A latent that removes a smaller share of the error that the prior's mean leaves hardly steers."""
MOST_LEFT = 0.25
"""The noise of a window decodes to other actions where it leaves more than this share of the error of noise 0."""
LEAST_SPREAD = 1.1
"""Noise hardly steers where drawn noise has less than this many times the error of noise 0."""
MOST_CUT = 0.05
"""The box of latents is too small where it cuts more than this share of the offline decisions."""
MOST_NATS = 2.0
"""A prior cannot follow latents that carry more than this many times the target divergence."""
MOST_SAMPLE_ERROR = 2.5
"""A prior is too wide where samples have more than this many times the error of its mean. Two independent draws from
one distribution differ by twice its variance, so a prior that is right has about 2 at most."""
MOST_AHEAD = 2.0
"""A discount that looks this many episodes ahead hardly says that sooner is better within one."""
MOST_OFF = 5.0
"""Values are too large or too small where they are this many times away from `TARGET_VALUE`."""


# --- after stage 1 ---


def skill_findings(
    metrics: Mapping[str, float], spec: SkillSpec, method: MethodConfig, train: TrainSettings
) -> tuple[Finding, ...]:
    """Says what the latents of trained skills decide.

    Args:
        metrics: the metrics of the skills' card; nothing is said of skills for which these were not measured.
        spec: the spec of the skills.
        method: the method that uses the skills.
        train: the settings of stage 2.
    """
    kind = DECODERS[spec.decoder]
    if "error_prior_mean" not in metrics or (kind.flat and not method.uses_prior):
        return ()
    if kind.flat:
        return (_flat_finding(metrics),)
    return tuple(_noise_findings(metrics, method) if kind.noise else _latent_findings(metrics, spec, method, train))


def _flat_finding(metrics: Mapping[str, float]) -> Finding:
    return Finding(
        f"The squared error of the action prior is {number(metrics['error_prior_mean'])} with its mean action, which "
        f"is behaviour cloning, and {number(metrics['error_prior_sample'])} with actions drawn from it."
    )


def _noise_findings(metrics: Mapping[str, float], method: MethodConfig) -> Iterator[Finding]:
    mean, sample, own = metrics["error_prior_mean"], metrics["error_prior_sample"], metrics.get("error_posterior")
    inverted = "" if own is None else f"{number(own)} with the noise that decodes to the window itself, "
    yield Finding(
        f"The latent is noise. The squared error of decoded actions is {inverted}{number(mean)} with noise 0, "
        f"and {number(sample)} with noise drawn from N(0, I)."
    )
    if not _was_short(metrics) and sample < LEAST_SPREAD * mean:
        text = "The noise hardly steers: drawn noise has the error of noise 0, so a policy has little to choose."
    elif own is not None and method.offline_fraction and own >= MOST_LEFT * mean:
        text = "Offline decisions are only roughly what was demonstrated, because the flow cannot be inverted well."
    else:
        return
    yield Finding(f"{text} Raise skills.decoder_options.steps, or pretrain.updates.", True)


def _latent_findings(
    metrics: Mapping[str, float], spec: SkillSpec, method: MethodConfig, train: TrainSettings
) -> Iterator[Finding]:
    mean, sample, nats = metrics["error_prior_mean"], metrics["error_prior_sample"], metrics["latent_nats"]
    removes = f"removes {100 * metrics['error_removed']:.0f} % of the error"
    delta = kept_divergence(method, train)
    used = number(delta or 0.0)
    allowed = "" if delta is None else f" In stage 2 a policy may use {used} nats per decision."
    yield Finding(
        f"A latent carries {number(nats)} nats beyond the skill prior, KL(q(z | window) || p(z | s)), and "
        f"{number(metrics['latent_nats_standard'])} nats beyond N(0, I).{allowed}"
    )
    yield Finding(
        f"The squared error of decoded actions is {number(metrics['error_posterior'])} with the window's own latent, "
        f"{number(mean)} with the prior's mean latent, and {number(sample)} with latents drawn from the prior. So the "
        f"latent {removes} that the prior's mean leaves."
    )
    if _was_short(metrics):
        text = f"Stage 1 was short, {number(metrics['update'])} updates (pretrain.updates)"
        yield Finding(f"{text}, so these numbers do not tell yet whether a policy can steer with the latents.")
        return
    too_few = delta is not None and nats < LEAST_NATS * delta
    too_many = delta is not None and nats > MOST_NATS * delta
    removes_little = metrics["error_removed"] < LEAST_REMOVED
    if too_few:
        yield _cannot_steer(f"carries {number(nats)} of the {used} nats that a policy may use", spec)
    elif removes_little and too_many:
        text = f"The latent {removes}, although it carries {number(nats)} nats."
        yield Finding(f"{text} Most of what it carries does not reach the actions. {_fewer_nats(spec)}.", True)
    elif removes_little:
        yield _cannot_steer(removes, spec)
    if too_many:
        cost = f"one costs {number(nats)} nats, and a policy may use {used}"
        advice = f"{_fewer_nats(spec)}, or raise train.target_divergence to {number(nats / MOST_NATS)} or more"
        yield Finding(f"The skill prior cannot follow the latents: to choose {cost}. {advice}.", True)
    if method.uses_prior and sample > MOST_SAMPLE_ERROR * mean:
        text = f"latents drawn from it have {number(sample / mean)} times the error of its mean, where 2 would do"
        wider = "" if spec.settings.prior != "gaussian" else ", or set skills.prior: mixture"
        yield Finding(f"The skill prior is too wide: {text}. {_fewer_nats(spec)}{wider}.", True)


def _was_short(metrics: Mapping[str, float]) -> bool:
    """True where stage 1 made too few updates for warnings."""
    return metrics.get("update", LEAST_UPDATES) < LEAST_UPDATES


def _cannot_steer(why: str, spec: SkillSpec) -> Finding:
    text = f"The latent hardly steers: it {why}. The decoder imitates without it, so a policy has little to choose."
    return Finding(f"{text} {_more_nats(spec.settings)}; if the losses still fall, raise pretrain.updates.", True)


def _more_nats(settings: SkillSettings) -> str:
    if settings.target_kl is not None:
        return f"Raise skills.target_kl (now {number(settings.target_kl)})"
    return f"Lower skills.beta (now {number(settings.beta)}), for example to {number(settings.beta / 4)}"


def _fewer_nats(spec: SkillSpec) -> str:
    settings = spec.settings
    if settings.target_kl is not None:
        return f"Lower skills.target_kl (now {number(settings.target_kl)})"
    return f"Raise skills.beta (now {number(settings.beta)}), for example to {number(settings.beta * 4 or 0.001)}"


# --- before stage 2 ---


def offline_findings(card: OfflineCard) -> tuple[Finding, ...]:
    """Says what the demonstrations are as decisions of stage 2."""
    text = f"The demonstrations make {card.decisions:,} offline decisions"
    return (_what_labels_say(text, card), *_cut(card))


def _what_labels_say(text: str, card: OfflineCard) -> Finding:
    if card.labels == "learned":
        return Finding(f"{text}, whose rewards are learned during training (train.offline_labels: learned).")
    says = "the environment's judgement of" if card.labels == "environment" else "the rewards recorded with"
    text += f". By {says} the recorded steps, {card.rewarded:,} have a reward and {card.terminated:,} end the task"
    if card.rewarded:
        return Finding(f"{text}.")
    return Finding(f"{text}: they say nothing of how to solve it. See train.offline_labels.", True)


def _cut(card: OfflineCard) -> tuple[Finding, ...]:
    """Says that many latents of the demonstrations are beyond the box, which the policy cannot choose."""
    if card.latent_limit is None or card.cut <= MOST_CUT * card.decisions:
        return ()
    share, limit = 100.0 * card.cut / card.decisions, number(card.latent_limit)
    text = f"{share:.0f} % of the offline decisions have a latent beyond the box of ±{limit}, and got one within it"
    return (Finding(f"{text}. Raise train.latent_limit, for example to {number(2.0 * card.latent_limit)}.", True),)


def reward_numbers(rewards: Mapping[str, float], train: TrainSettings, method: MethodConfig) -> dict[str, float]:
    """The values of the metrics of stage 2 that decide, by name.

    Args:
        rewards: see `spirl_ray.rl.rewards.RewardScale.numbers`.
        train: the settings of stage 2.
        method: the method.
    """
    alpha = starting_alpha(train)
    numbers = {**rewards, "starting_penalty": alpha * rewards["starting_divergence"]}
    if train.fixed_alpha is None:
        numbers["target_penalty"] = alpha * method.target_divergence
    return numbers


def starting_alpha(train: TrainSettings) -> float:
    """The temperature of the first update."""
    return max(train.initial_alpha, train.alpha_min) if train.fixed_alpha is None else train.fixed_alpha


def reward_findings(
    numbers: Mapping[str, float], train: TrainSettings, method: MethodConfig, *, settled: bool
) -> tuple[Finding, ...]:
    """Says what rewards are worth beside the penalty for leaving the prior.

    Args:
        numbers: see `reward_numbers`.
        train: the settings of stage 2.
        method: the method.
        settled: False while ``reward_scale: auto`` follows what has been seen.
    """
    automatic, scale, value = train.reward_scale == "auto", numbers["reward_scale"], numbers["expected_value"]
    found = [Finding(_rewards_in_words(numbers))]
    if value:
        found.append(Finding(_values_in_words(numbers, train)))
    found.append(Finding(_penalty_in_words(numbers, train, method)))
    if (hurry := _no_hurry(numbers, train)) is not None:
        found.append(Finding(hurry))
    if automatic and settled:
        found.append(Finding(f"train.reward_scale: auto has chosen {number(scale)}, which brings values to about 5."))
    elif automatic:
        found.append(
            Finding(
                "train.reward_scale: auto follows the rewards that are seen, until the first episode with a reward has "
                f"ended. Now it is {number(scale)}."
            )
        )
    if method.offline_updates:
        alone = f"{method.offline_updates:,} updates on offline decisions alone"
        found.append(Finding(f"{alone} come between the warm-up and the agent's practice (train.offline_updates)."))
    return (*found, *_reward_warnings(numbers, train, method))


def _rewards_in_words(numbers: Mapping[str, float]) -> str:
    recorded = numbers.get("return_largest_data")
    if not numbers["expected_value"]:
        also = "" if recorded is None else " or in the demonstrations"
        return f"No reward has been seen so far{also}. Stage 2 learns nothing from rewards before it finds one."
    if not numbers["reward_largest"]:
        return (
            "The warm-up has seen no reward. In the demonstrations, the discounted sum of rewards to the end of an "
            f"episode that is farthest from 0 is {number(recorded or 0.0)}."
        )
    also = f" In the demonstrations it is {number(recorded)}." if recorded else ""
    return (
        f"A decision earns {number(numbers['reward_mean'])} on average; the reward farthest from 0 is "
        f"{number(numbers['reward_largest'])}. The discounted sum to the end of an episode that is farthest from 0 is "
        f"{number(numbers['return_largest'])}.{also}"
    )


def _values_in_words(numbers: Mapping[str, float], train: TrainSettings) -> str:
    value, scale = numbers["expected_value"], numbers["reward_scale"]
    text = f"So Q will be about {number(value)} in size, {number(scale * value)} with reward_scale {number(scale)}."
    if train.discount == 1.0 or train.discount_per != "decision" or train.timeout_is_terminal:
        return text
    endless = numbers["reward_mean"] / (1.0 - train.discount)
    if abs(endless) < 2.0 * value:
        return text
    return (
        f"{text} Time-outs are bootstrapped through, so a policy whose episodes end in no other way goes to "
        f"{number(endless)} ({number(scale * endless)} scaled)."
    )


def _no_hurry(numbers: Mapping[str, float], train: TrainSettings) -> str | None:
    """Says that the discount looks far beyond an episode; None where it does not, or no episode has ended."""
    decisions = numbers.get("episode_decisions", 0.0)
    if train.discount == 1.0 or train.timeout_is_terminal or train.discount_per != "decision" or not decisions:
        return None
    ahead = 1.0 / (1.0 - train.discount)
    if ahead <= MOST_AHEAD * decisions:
        return None
    return (
        f"train.discount {train.discount:g} looks {number(ahead)} decisions ahead, and an episode has "
        f"{number(decisions)}. Time-outs are bootstrapped through, so what is reached after the end of an episode is "
        "worth almost as much as within it, though no score counts it. If policies dawdle, try "
        f"{1.0 - 1.0 / max(2.0, round(0.7 * decisions)):.2g}."
    )


def _penalty_in_words(numbers: Mapping[str, float], train: TrainSettings, method: MethodConfig) -> str:
    alpha = number(starting_alpha(train))
    text = (
        f"The penalty alpha · D is {alpha} · {number(numbers['starting_divergence'])} = "
        f"{number(numbers['starting_penalty'])} before the first update"
    )
    if "target_penalty" not in numbers:
        return f"{text}; alpha stays as it is."
    target = f"{alpha} · {number(method.target_divergence)} = {number(numbers['target_penalty'])}"
    return f"{text}, and {target} at the target divergence; training changes alpha."


def _reward_warnings(numbers: Mapping[str, float], train: TrainSettings, method: MethodConfig) -> list[Finding]:
    scale, value = numbers["reward_scale"], numbers["expected_value"]
    scaled, found = scale * value, []
    if not value:
        return []
    advice = f"Set train.reward_scale: {number(scale_for(value))}"
    if scaled > MOST_OFF * TARGET_VALUE and train.reward_scale == "auto":
        text = f"Values have grown to {number(scaled)} since train.reward_scale was chosen"
        found.append(Finding(f"{text}. {advice}, which trains anew, if this policy does not learn.", True))
    elif scaled > MOST_OFF * TARGET_VALUE:
        text = f"Rewards are large: critics learn values of about {number(scaled)} slowly"
        found.append(Finding(f"{text}. {advice}, or auto.", True))
    elif scaled <= TARGET_VALUE / MOST_OFF:
        text = f"Rewards are small: values of about {number(scaled)} hardly count beside the penalty"
        found.append(Finding(f"{text}. {advice}, or auto.", True))
    if train.fixed_alpha is None and (least := train.alpha_min * method.target_divergence) > scaled:
        text = f"The penalty at the target divergence is at least {number(least)}, more than values of {number(scaled)}"
        found.append(Finding(f"{text} can make up for. Lower train.alpha_min.", True))
    return found
