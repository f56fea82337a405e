"""Metrics: what a metric is, and the one table of the metrics of training.

A row holds a metric's name, meaning and unit, how it is computed and where it is shown. CSV columns, report, gauges,
Grafana, sweeps and the terminal are made from these rows, so a new metric needs no change anywhere else. The metrics of
episodes, which environments declare, are in `spirl_ray.envs.metrics`. Code outside the package adds rows of both
kinds with `register_metric`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from spirl_ray.errors import SpirlError
from spirl_ray.registry import Registry

Stage = Literal["pretrain", "train"]
PHASES = 3
"""The number of equal parts of an episode for which the divergence is recorded."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric, a row of the table."""

    name: str
    """The name in files, sweeps and gauges: lower-case letters, digits and underscores."""
    meaning: str
    """The meaning: a sentence without its full stop."""
    unit: str = ""
    label: str = ""
    """The name on pages and in tables; empty means the name with blanks instead of underscores."""
    range: tuple[float | None, float | None] = (None, None)
    """The lowest and highest value, for axes; None where there is no bound, or no known one."""
    more_is_better: bool | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.name):
            raise SpirlError(f"metric {self.name!r}: a name has lower-case letters, digits and underscores only")
        if not self.label:
            object.__setattr__(self, "label", self.name.replace("_", " "))

    @property
    def sign(self) -> float:
        """The sign, -1 where less is better, else 1; the best value is the one that is greatest times the sign."""
        return -1.0 if self.more_is_better is False else 1.0

    @property
    def is_share(self) -> bool:
        """True for a metric from 0 to 1; its mean is shown as a share."""
        return self.range == (0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class TrainingMetric(Metric):
    """A column of a stage's ``metrics.csv``, or what only the gauges show. Each has a gauge; one without a panel is in
    no figure."""

    stage: Stage
    panel: str = ""
    """The title of the panel in the report and in Grafana. Metrics with the same panel are drawn together."""
    counter: bool = False
    """True for a count of progress, of which the report, which draws over the steps, has no panel."""
    log: bool = False
    """True for a logarithmic axis, where the values span more than a factor of ten."""
    brief: str = ""
    """The name in the terminal's line of progress; empty leaves it out."""
    decides: bool = False
    """True for a value that tells whether stage 2 can learn. It is measured once, at the end of stage 1 or before the
    first update of stage 2, and the report shows it under "What decides"."""
    of: Callable[[Mapping[str, Any]], Any] | None = None
    """A function from the tensors of an update (see `learner_metrics`) to a number, for metrics of the learner."""

    @property
    def gauge(self) -> str:
        """The name of the gauge, to which Ray's endpoint adds the prefix ``ray_``."""
        return f"spirl_{'pretrain_' * (self.stage == 'pretrain')}{self.name}"


TRAINING: Registry[TrainingMetric] = Registry("metric of training")
EPISODE: Registry[Any] = Registry("metric of an episode")
"""The metrics that any environment's declaration and any config (``evaluate.metrics``) can name."""


def training_metrics(stage: str) -> list[TrainingMetric]:
    """The rows of a stage, in the order of the table."""
    return [TRAINING[key] for key in TRAINING if TRAINING[key].stage == stage]


def deciding_metrics(stage: str) -> list[TrainingMetric]:
    """The rows of a stage that tell whether stage 2 can learn, in the order of the table."""
    return [metric for metric in training_metrics(stage) if metric.decides]


def learner_metrics(update: Mapping[str, Any]) -> dict[str, float]:
    """The metrics that are computed in the learner, by name.

    Args:
        update: tensors of one update, by name: ``critic_loss``, ``policy_loss``, ``alpha`` (scalars); ``values``,
            ``latent_std``; ``divergence`` [B] and ``phase`` [B] (where in the episode the skill began, from 0 to 1, or
            less than 0 where the decision is not the agent's own, so that its divergence does not count beside those
            that are); and whatever else a learner of one's own gives.
    """
    found = {}
    for metric in training_metrics("train"):
        if metric.of is not None and (value := metric.of(update)) is not None:
            found[metric.name] = float(value)
    return found


def register_metric(metric: Metric, *, replace: bool = False) -> None:
    """Adds a row to the table.

    A metric of an episode can then be named by any environment's declaration and by ``evaluate.metrics`` of a config.
    A metric of training is a column that a stage, or its learner (``of``), gives a value.

    Raises:
        SpirlError: another metric has the name.
    """
    if isinstance(metric, TrainingMetric):
        TRAINING.register(f"{metric.stage}.{metric.name}", metric, replace=replace)
    else:
        EPISODE.register(metric.name, metric, replace=replace)


def _in_phase(index: int) -> Callable[[Mapping[str, Any]], Any]:
    def mean(update: Mapping[str, Any]) -> Any:
        part = (update["phase"] * PHASES).long().clamp(max=PHASES - 1)
        chosen = update["divergence"][(part == index) & (update["phase"] >= 0.0)]
        return chosen.mean() if len(chosen) else None

    return mean


def _quantile(level: float) -> Callable[[Mapping[str, Any]], Any]:
    return lambda update: _own_divergence(update).quantile(level)


def _own_divergence(update: Mapping[str, Any]) -> Any:
    """The divergences of the agent's own decisions, or all where the batch has none of its own."""
    own = update["phase"] >= 0.0
    return update["divergence"][own] if own.any() else update["divergence"]


def _row(stage: Stage, name: str, meaning: str, unit: str = "", *, signed: bool = False, **more: Any) -> TrainingMetric:
    bounds = (None if signed else 0.0, None)
    return TrainingMetric(stage=stage, name=name, meaning=meaning, unit=unit, range=bounds, **more)


_DIVERGENCE, _BY_PHASE = "Divergence from the prior", "Divergence by phase of the episode"
_NATS = "nats per decision"
_LOSSES = (
    ("loss", "Total loss of stage 1", "loss", "held out"),
    ("reconstruction", "Reconstruction loss", "", ""),
    ("kl", "KL divergence of the encoder", "", ""),
    ("prior", "Prior loss", "", ""),
)
_DISK = ("disk_used", "Share of the disk of the output folder that is in use")
# fmt: off
_ROWS = (
    _row("train", "env_steps", "Primitive environment steps so far", "steps", panel="Environment steps", counter=True,
         brief="steps"),
    _row("train", "decisions", "Decisions of the policy so far, each of which is one skill", counter=True),
    _row("train", "updates", "Gradient updates so far", counter=True, brief="updates"),
    _row("train", "offline_updates", "Updates on offline decisions alone so far", counter=True),
    _row("train", "episodes", "Training episodes so far", counter=True, brief="episodes"),
    _row("train", "wall_clock_s", "Seconds of training so far, without interruptions", "s", counter=True),
    _row("train", *_DISK, panel="Disk of the output"),
    _row("train", "env_runners_missing", "Env runners that do not answer now", panel="Env runners", label="missing"),
    _row("train", "env_runners_lost", "Env runners that were lost since the driver started, replaced or not",
         panel="Env runners", label="lost so far"),
    # Computed in the learner.
    _row("train", "divergence", "Mean divergence of the policy from the prior; alpha keeps it at the target divergence",
         _NATS, panel=_DIVERGENCE, label="mean", brief="divergence", of=lambda u: _own_divergence(u).mean()),
    _row("train", "divergence_p50", "Median of the divergence", _NATS, panel=_DIVERGENCE, label="median",
         of=_quantile(0.5)),
    _row("train", "divergence_p90", "90th percentile of the divergence", _NATS, panel=_DIVERGENCE,
         label="90th percentile", of=_quantile(0.9)),
    _row("train", "divergence_p99", "99th percentile of the divergence", _NATS, of=_quantile(0.99)),
    _row("train", "target_divergence", "Divergence at which alpha keeps the policy, where it does", _NATS,
         panel=_DIVERGENCE, label="target"),
    *(
        _row("train", f"divergence_phase_{index}", f"Mean divergence of skills that begin {when} in the episode",
             _NATS, panel=_BY_PHASE, label=when, of=_in_phase(index))
        for index, when in enumerate(("early", "halfway", "late"))
    ),
    _row("train", "alpha", "Temperature (alpha), the weight of the divergence; where it stays near zero, the target "
         "divergence is looser than the task needs", panel="Temperature (alpha)", label="temperature (alpha)",
         brief="temperature (alpha)", log=True, of=lambda u: u["alpha"], signed=True),
    _row("train", "q_mean", "Mean value that the critics give to the decisions of a batch", panel="Mean Q value",
         label="Q", of=lambda u: u["values"].mean(), signed=True),
    _row("train", "critic_loss", "Loss of the critics", panel="Critic loss", log=True, of=lambda u: u["critic_loss"],
         signed=True),
    _row("train", "policy_loss", "Loss of the policy", panel="Policy loss", of=lambda u: u["policy_loss"], signed=True),
    _row("train", "latent_std", "Mean standard deviation of the policy's latents", of=lambda u: u["latent_std"].mean(),
         panel="Standard deviation of latents"),
    # Measured by the driver.
    _row("train", "env_steps_per_s", "Primitive environment steps in a second; sampling limits the training where "
         "updates per second fall with it", "steps / s", panel="Environment speed", brief="steps/s"),
    _row("train", "updates_per_s", "Gradient updates in a second", "updates / s", panel="Learning speed"),
    # What decides: before the first update, and in units of the environment's rewards where nothing else is said.
    _row("train", "reward_scale", "Factor on rewards in the learner", decides=True),
    _row("train", "reward_mean", "Mean reward of a decision so far", decides=True, signed=True),
    _row("train", "reward_largest", "Reward of a decision that is farthest from 0", decides=True, signed=True),
    _row("train", "return_largest", "Discounted sum of rewards to the end of an episode that is farthest from 0",
         decides=True, signed=True),
    _row("train", "return_largest_data", "The same in the demonstrations", decides=True, signed=True),
    _row("train", "episode_decisions", "Number of decisions in the longest possible episode, as far as it is known",
         decides=True),
    _row("train", "expected_value", "Size that Q is expected to have if rewards are not scaled", decides=True),
    _row("train", "starting_divergence", "Mean divergence of the policy before the first update", _NATS, decides=True,
         signed=True),
    _row("train", "starting_penalty", "Starting temperature times starting divergence, in scaled rewards", decides=True,
         signed=True),
    _row("train", "target_penalty", "Starting temperature times target divergence, in scaled rewards", decides=True),
    # Stage 1; the losses are those of the skill model, by its own names.
    _row("pretrain", "update", "Gradient updates so far", panel="Updates", counter=True),
    _row("pretrain", *_DISK, panel="Disk of the output"),
    *(
        _row("pretrain", f"{part}_{name}", f"{panel}, {windows} windows", "nats per dimension", panel=panel,
             label=windows, brief=brief, log=name == "loss", signed=True)
        for name, panel, *briefs in _LOSSES
        for part, windows, brief in zip(("train", "validation"), ("training", "held-out"), briefs, strict=True)
    ),
    # What decides: at the end of stage 1, on held-out windows.
    _row("pretrain", "latent_nats", "Divergence of the encoder from the skill prior: what one latent carries",
         "nats per skill", decides=True),
    _row("pretrain", "latent_nats_standard", "Divergence of the encoder from N(0, I)", "nats per skill", decides=True),
    _row("pretrain", "error_posterior", "Squared error of the actions decoded from the latent of the window",
         decides=True),
    _row("pretrain", "error_prior_mean", "Squared error of the actions decoded from the prior's mean latent",
         decides=True),
    _row("pretrain", "error_prior_sample", "Squared error of the actions decoded from latents drawn from the prior",
         decides=True),
    _row("pretrain", "error_removed", "Share of the error with the prior's mean latent that the window's own removes",
         decides=True, signed=True),
    _row("pretrain", "windows_per_s", "Windows in a second, all workers together", "windows / s",
         panel="Training speed", brief="windows/s"),
)
# fmt: on
for _metric in _ROWS:
    register_metric(_metric)
