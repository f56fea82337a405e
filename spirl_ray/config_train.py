"""The settings of stage 2."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from spirl_ray.settings import MANY, Settings

Labels = Literal["environment", "recorded", "learned"]
Publish = Literal["best", "last"]


class LearnerSettings(Settings):
    """The settings that policy and learner read; `SkillPriorSACConfig.training` takes them by name."""

    target_divergence: float | None = Field(default=None, gt=0.0)
    """delta in nats per decision, for methods with a learned prior; None is 5. The others follow SAC's rule,
    entropy -> -dim, whatever this value is."""
    initial_alpha: float = Field(default=1.0, gt=0.0)
    alpha_min: float = Field(default=0.0, ge=0.0)
    """The least alpha, which prevents drifting away from the prior."""
    fixed_alpha: float | None = Field(default=None, gt=0.0)
    """A constant alpha, in place of a target divergence; None tunes alpha."""
    actor_lr: float = Field(default=3e-4, gt=0.0)
    critic_lr: float = Field(default=3e-4, gt=0.0)
    alpha_lr: float = Field(default=3e-4, gt=0.0)
    batch_size: int = Field(default=256, ge=1, le=10_000_000)
    updates_per_decision: float = Field(default=1.0, gt=0.0, le=10_000.0)
    """Gradient updates for each decision of the policy (a skill, or a primitive step for flat methods)."""
    warmup_decisions: int = Field(default=5000, ge=0, le=MANY)
    """Decisions sampled before learning starts."""
    replay_capacity: int = Field(default=1_000_000, ge=1, le=MANY)
    reward_scale: Annotated[float, Field(gt=0.0)] | Literal["auto"] = "auto"
    """The factor on rewards in the learner; ``auto`` brings values to about 5, see `spirl_ray.rl.rewards`. Returns are
    shown without it."""
    discount: float = Field(default=0.99, gt=0.0, le=1.0)
    discount_per: Literal["decision", "primitive_step"] = "decision"
    """gamma for every decision (the paper), or gamma^k for a skill of k primitive steps."""
    divergence_in_target: bool = True
    """Keep -alpha * D(s') in the critic's target; false for ablation."""
    timeout_is_terminal: bool = False
    """The paper's reference marks time-outs as terminal; bootstrapping through them is correct."""
    polyak: float = Field(default=0.005, gt=0.0, le=1.0)
    """The rate at which the target critics follow the critics, per update."""
    policy_polyak: float = Field(default=1.0, gt=0.0, le=1.0)
    """The rate at which the policy that is evaluated and published follows the one that acts and learns, per update;
    1 is the latter itself. An average does not swing with each update."""
    critic_width: int = Field(default=256, ge=1, le=65_536)
    critic_layers: int = Field(default=5, ge=1, le=64)
    critic_layer_norm: bool = False
    critics: int = Field(default=2, ge=1, le=100)
    critics_in_minimum: int | None = Field(default=None, ge=1, le=100)
    """The number of random critics whose minimum is the value, in the target and for the policy; None is all."""
    policy_value: Literal["minimum", "mean"] = "minimum"
    """The policy follows the minimum of the same critics (SPiRL), or the mean of all (REDQ, RLPD, SUPE)."""
    latent_limit: float | None = Field(default=None, gt=0.0)
    """Skills only: z = limit * tanh(u) (the paper: 2). None leaves latents unbounded. A divergence to a learned prior
    is that of the distribution of u."""
    policy_init: Literal["preset", "prior", "scratch"] = "preset"
    """Ablation of the preset's starting point."""
    regulariser: Literal["preset", "prior", "uniform", "none"] = "preset"
    """Ablation of what the preset's policy stays close to: the skill prior, the uniform distribution (SAC's entropy),
    or ``none``, SAC in a bounded box whose entropy is in the policy's loss alone, so that values count rewards."""
    offline_fraction: float | None = Field(default=None, ge=0.0, lt=1.0)
    """The part of each batch that is offline decisions, windows of the demonstrations; None is the preset's."""
    offline_updates: int = Field(default=0, ge=0, le=MANY)
    """Updates on offline decisions alone, between the warm-up and the first with the agent's own, for methods with
    offline decisions: what demonstrations say of the task is learned before the agent practises."""
    novelty_bonus: float = Field(default=0.1, ge=0.0)
    """The most that a learned label adds to the reward of a decision that is unlike those of the agent."""
    features: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Names of the features that policy and critics observe. None: all except images; of images alone, all; with flow
    skills or a frozen policy, also the images that these observe. Images are encoded as the frozen skills encode
    them."""
    policy_head: str = "auto"
    """``gaussian``, ``mixture``, ``residual`` (on the prior), or one that a plugin has registered. ``auto`` takes
    gaussian where the policy starts from scratch, or as a Gaussian prior with the same features; else residual."""
    cuda_graph: bool = True
    """Launch an update on a GPU as one captured graph; it has no effect on CPUs or with several learners."""
    compile: bool = False
    """Compile the losses with ``torch.compile``, which takes about a minute at the start."""

    @field_validator("reward_scale", mode="wrap")
    @classmethod
    def _one_message(cls, value: Any, validate: Any) -> Any:
        try:
            return validate(value)
        except ValidationError:
            raise ValueError("must be a number above 0, or auto") from None

    @model_validator(mode="after")
    def _one_alpha(self) -> LearnerSettings:
        if self.fixed_alpha is not None and self.fixed_alpha < self.alpha_min:
            raise ValueError(f"fixed_alpha {self.fixed_alpha} is below alpha_min {self.alpha_min}; lower alpha_min")
        return self

    @model_validator(mode="after")
    def _critics_in_minimum(self) -> LearnerSettings:
        if (self.critics_in_minimum or 1) > self.critics:
            raise ValueError(f"critics_in_minimum {self.critics_in_minimum} is above critics {self.critics}")
        return self


class TrainSettings(LearnerSettings):
    """All settings of stage 2: those of the learner, and what runs it."""

    env_steps: int = Field(default=300_000, ge=1, le=MANY)
    """Primitive environment steps. Raising it continues a finished run."""
    offline_labels: Labels = "environment"
    """Rewards of offline decisions: what the environment says of the recorded states, the recorded rewards (right only
    if they are those of this task), or a learned reward with a bonus for novelty."""
    env_runners: int = Field(default=1, ge=0, le=10_000)
    envs_per_runner: int = Field(default=2, ge=1, le=10_000)
    learners: int = Field(default=0, ge=0, le=1000)
    """0 learns in the driver's process; >= 1 starts remote learners (for GPUs)."""
    gpus_per_learner: float = Field(default=0.0, ge=0.0, le=1000.0)
    decisions_per_round: int = Field(default=32, ge=1, le=1_000_000)
    """Decisions that one env runner samples in a round, while the learner learns from the rounds before."""
    evaluate_every: int = Field(default=10_000, ge=1, le=MANY)
    """Primitive steps between snapshots, each evaluated while training continues."""
    evaluate_episodes: int = Field(default=20, ge=1, le=1_000_000)
    checkpoint_every: int = Field(default=10_000, ge=1, le=MANY)
    """Primitive steps."""
    keep_checkpoints: int = Field(default=2, ge=1, le=MANY)
    publish: Publish = "best"
    """The snapshot that becomes the policy: the best in the evaluations made during training, or the last one."""

    @model_validator(mode="after")
    def _labels_before_updates(self) -> TrainSettings:
        if self.offline_updates and self.offline_labels == "learned":
            raise ValueError(
                f"offline_updates {self.offline_updates} need rewards, and offline_labels: learned has none before the "
                "agent has practised; set offline_updates to 0, or other labels"
            )
        return self

    @model_validator(mode="after")
    def _a_shard_for_each_learner(self) -> TrainSettings:
        if self.learners > max(1, self.env_runners):
            raise ValueError(
                f"learners {self.learners} is above env_runners {self.env_runners}; each learner needs an env runner "
                "of its own, which fills its replay"
            )
        return self
