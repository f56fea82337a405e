"""The one configuration language: a YAML file read into frozen models, with ``--set a.b=c`` overrides.

Every key is declared here with its meaning and default; unknown keys and wrong types are errors. Names of kinds, such
as methods, are plain strings here because plugins add to them; `spirl_ray.pipeline.kinds` checks them before any work.
The defaults are the paper's (Pertsch et al. 2020) unless a comment says otherwise.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError, field_validator, model_validator

from spirl_ray.config_file import read_mapping, split_override
from spirl_ray.errors import SpirlError

_OVERRIDABLE = ("skills", "pretrain", "train")


class Settings(BaseModel):
    """A group of settings: immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, protected_namespaces=())


class EnvSettings(Settings):
    id: str = "spirl/Kitchen-v0"
    kwargs: dict[str, Any] = Field(default_factory=dict)
    """The arguments of the environment's constructor, such as ``tasks``. ``env.tasks`` is short for
    ``env.kwargs.tasks``."""

    @model_validator(mode="before")
    @classmethod
    def _constructor_arguments(cls, raw: Any) -> Any:
        if not isinstance(raw, dict) or not isinstance(raw.get("kwargs", {}), dict):
            return raw
        own = {name: value for name, value in raw.items() if name in cls.model_fields}
        short = {name: value for name, value in raw.items() if name not in cls.model_fields}
        if twice := sorted(set(short) & set(raw.get("kwargs", {}))):
            raise ValueError(f"{twice[0]} is given twice, as env.{twice[0]} and as env.kwargs.{twice[0]}")
        return {**own, "kwargs": {**raw.get("kwargs", {}), **short}}


class DataSettings(Settings):
    source: str = "minari"
    """``minari`` for recorded demonstrations, ``generated`` for a scripted expert's, ``both`` in one dataset, or a name
    given to `spirl_ray.datasets.sources.register_source`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of a source that has been registered from outside."""
    dataset: str | None = None
    """Minari id, e.g. ``D4RL/kitchen/complete-v2``."""
    minari_root: Path | None = None
    """A local Minari root; None downloads (or uses Minari's own cache)."""
    episodes: int = Field(default=100, ge=1)
    """The number of episodes to generate."""
    seed: int = 0
    generate: dict[str, Any] = Field(default_factory=dict)
    """Options of the environment's scripted expert."""
    shards: int = Field(default=8, ge=1)
    """The number of Parquet files; at least as many as training workers."""
    skip_bad: bool = False
    """True leaves invalid episodes out and reports them, instead of stopping."""
    validation_fraction: float = Field(default=0.1, ge=0.0, lt=1.0)
    """The share of the episodes that is held out of stage 1."""
    in_memory_limit_mb: float = Field(default=2048.0, ge=0.0)
    """A worker's shard is drained into tensors up to this size and streamed beyond it."""


class EncoderSettings(Settings):
    """The observation encoder of a feature."""

    kind: str
    """``vector``, ``image``, ``objects``, ``pretrained``, or one that a plugin has registered."""
    options: dict[str, Any] = Field(default_factory=dict)
    """The options of the encoder, such as ``{path: weights.safetensors, channels: [8, 16, 32]}`` for ``pretrained``."""


class SkillSettings(Settings):
    horizon: int = Field(default=10, ge=1)
    """H, the number of primitive actions in a skill."""
    latent_dim: int = Field(default=10, ge=1)
    width: int = Field(default=128, ge=1)
    decoder_layers: int = Field(default=5, ge=1, le=64)
    """The number of hidden layers of the closed-loop decoder."""
    prior_layers: int = Field(default=6, ge=1, le=64)
    prior: str = "gaussian"
    """``gaussian`` (the paper's), ``mixture``, ``flow``, or one that a plugin has registered. A mixture suits
    demonstrators whose next move does not follow from the observation."""
    mixture_components: int = Field(default=5, ge=1)
    flow_layers: int = Field(default=4, ge=1, le=64)
    prior_loss: Literal["nll", "kl"] = "nll"
    """NLL of a detached posterior sample (the reference's default) or KL(stop_grad(q) || p)."""
    beta: float = Field(default=5e-4, ge=0.0)
    """Weight of KL(q || N(0, I)); the start value when ``target_kl`` is set."""
    target_kl: float | None = Field(default=None, gt=0.0)
    """Nats per dimension; when set, beta is tuned by dual gradient towards it."""
    state_std_floor: float = Field(default=0.05, gt=0.0)
    """The least deviation by which features are standardised, instead of a smaller one of the data."""
    features: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Names of the features that skills and prior observe. None: where there are images, these and proprioception; else
    everything except goals."""
    encoders: dict[str, EncoderSettings] = Field(default_factory=dict)
    """Observation encoders by feature, where the default does not fit: vector, image or objects, by the shape."""
    image_channels: int = Field(default=8, ge=1)
    """Feature maps of the first of the image encoder's 3 convolutions; each further one has twice as many."""


class AugmentationSettings(Settings):
    kind: Literal["none", "target_preserving"] = "none"
    """``target_preserving`` is ours, not the paper's: move the robot, relabel the action, keep the target."""
    position_normal: float = Field(default=0.03, ge=0.0)
    """Deviation of the Gaussian part of the displacement d (position units)."""
    position_uniform: float = Field(default=0.01, ge=0.0)
    """Half-width of the uniform part of d."""
    object_normal: float = Field(default=0.01, ge=0.0)
    """Deviation of the noise on object entries, not relabelled."""


class PretrainSettings(Settings):
    updates: int = Field(default=3000, ge=1)
    batch_size: int = Field(default=128, ge=1)
    """Windows per update over all workers together."""
    learning_rate: float = Field(default=1e-3, gt=0.0)
    optimizer: Literal["radam", "adam"] = "radam"
    cosine_decay: bool = False
    warmup_updates: int = Field(default=100, ge=0)
    """Updates with the gradient norm clipped to ``warmup_clip``."""
    warmup_clip: float = Field(default=1e-3, gt=0.0)
    augmentation: AugmentationSettings = AugmentationSettings()
    workers: int = Field(default=1, ge=1)
    use_gpu: bool = False
    log_every: int = Field(default=100, ge=1)
    checkpoint_every: int = Field(default=500, ge=1)
    max_failures: int = Field(default=3, ge=0)
    """The number of times that lost workers are replaced before the run gives up."""


class TrainSettings(Settings):
    env_steps: int = Field(default=300_000, ge=1)
    """Primitive environment steps. Raising it continues a finished run."""
    target_divergence: float | None = Field(default=None, gt=0.0)
    """delta in nats a decision, for methods with a learned prior; None is 5. The others follow SAC's rule,
    entropy -> -dim, whatever this value is."""
    initial_alpha: float = Field(default=1.0, gt=0.0)
    alpha_min: float = Field(default=0.0, ge=0.0)
    """The least alpha, which prevents drifting away from the prior."""
    fixed_alpha: float | None = Field(default=None, gt=0.0)
    """A constant alpha, in place of a target divergence; None tunes alpha."""
    actor_lr: float = Field(default=3e-4, gt=0.0)
    critic_lr: float = Field(default=3e-4, gt=0.0)
    alpha_lr: float = Field(default=3e-4, gt=0.0)
    batch_size: int = Field(default=256, ge=1)
    updates_per_decision: float = Field(default=1.0, gt=0.0)
    """Gradient updates for each decision of the policy (a skill, or a primitive step for flat methods)."""
    warmup_decisions: int = Field(default=5000, ge=0)
    """Decisions sampled before learning starts."""
    replay_capacity: int = Field(default=1_000_000, ge=1)
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
    critic_width: int = Field(default=256, ge=1)
    critic_layers: int = Field(default=5, ge=1)
    critic_layer_norm: bool = False
    latent_limit: float | None = Field(default=None, gt=0.0)
    """Skills only: z = limit * tanh(u) (the paper: 2). None leaves latents unbounded."""
    policy_init: Literal["preset", "prior", "scratch"] = "preset"
    """Ablation of the preset's starting point."""
    features: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Names of the features that policy and critics observe. None: all except images; of images alone, all. Images are
    encoded by the image encoder of the frozen skill prior."""
    policy_head: str = "auto"
    """``gaussian``, ``mixture``, ``residual`` (on the prior), or one that a plugin has registered. ``auto`` takes
    gaussian where the policy starts from scratch, or as a Gaussian prior with the same features; else residual."""
    env_runners: int = Field(default=1, ge=0)
    envs_per_runner: int = Field(default=2, ge=1)
    learners: int = Field(default=0, ge=0)
    """0 learns in the driver's process; >= 1 starts remote learners (for GPUs)."""
    gpus_per_learner: float = Field(default=0.0, ge=0.0)
    decisions_per_round: int = Field(default=32, ge=1)
    """Decisions that one env runner samples in a round, while the learner learns from the rounds before."""
    evaluate_every: int = Field(default=10_000, ge=1)
    """Primitive steps between snapshots, each evaluated while training continues."""
    evaluate_episodes: int = Field(default=20, ge=1)
    checkpoint_every: int = Field(default=10_000, ge=1)
    """Primitive steps."""
    keep_checkpoints: int = Field(default=2, ge=1)
    publish: Literal["best", "last"] = "best"
    """The snapshot that becomes the policy: the best in the evaluations made during training, or the last one."""

    @field_validator("reward_scale", mode="wrap")
    @classmethod
    def _one_message(cls, value: Any, validate: Any) -> Any:
        try:
            return validate(value)
        except ValidationError:
            raise ValueError("must be a number above 0, or auto") from None

    @model_validator(mode="after")
    def _one_alpha(self) -> TrainSettings:
        if self.fixed_alpha is not None and self.fixed_alpha < self.alpha_min:
            raise ValueError(f"fixed_alpha {self.fixed_alpha} is below alpha_min {self.alpha_min}; lower alpha_min")
        return self


class EvaluateSettings(Settings):
    episodes: int = Field(default=100, ge=1)
    modes: tuple[Literal["deterministic", "sampled"], ...] = Field(default=("deterministic", "sampled"), min_length=1)
    prior_episodes: int = Field(default=100, ge=0)
    """Rollouts of the bare prior, for each mode; 0 leaves them out."""
    videos: int = Field(default=2, ge=0)
    """Recorded episodes for each mode."""
    metrics: tuple[str, ...] = ()
    """Registered metrics that are measured besides those that the environment declares."""
    score: str | None = None
    """The metric by which policies are compared; None leaves it to the environment."""
    seed: int = 10_000
    video_fps: int = Field(default=25, ge=1)


class ExploreSettings(Settings):
    in_run: bool = False
    """True where ``spirl run`` also draws the exploration figure."""
    env_steps: int = Field(default=1_000_000, ge=1)
    """Primitive steps of each explorer, rounded up to whole episodes."""
    seed: int = 0


class RaySettings(Settings):
    address: str | None = None
    """A running cluster; None uses the surrounding job's cluster or starts a local Ray instance."""
    num_cpus: int | None = Field(default=None, ge=1)
    """Logical CPUs of the local Ray instance; None takes the machine's, at least 2."""
    dashboard: bool = False
    """True starts the dashboard of the local Ray instance, on 127.0.0.1."""
    object_store_mb: int = Field(default=512, ge=80)


class Experiment(Settings):
    name: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")
    output: Path | None = None
    """The folder for all results; None means ``runs/<name>``. On a cluster, every node must see it."""
    storage: str | None = None
    """URI of a copy of ``output`` (s3://, gs://, hdfs://, file://), from which another machine resumes."""
    methods: tuple[str, ...] = Field(default=("spirl_cl",), min_length=1)
    """``spirl``, ``spirl_cl``, ``ssp``, ``flat_prior``, ``bc_sac``, ``sac``, or those that a plugin has registered."""
    seeds: tuple[NonNegativeInt, ...] = Field(default=(0,), min_length=1)
    env: EnvSettings = EnvSettings()
    data: DataSettings = DataSettings()
    skills: SkillSettings = SkillSettings()
    pretrain: PretrainSettings = PretrainSettings()
    train: TrainSettings = TrainSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    explore: ExploreSettings = ExploreSettings()
    ray: RaySettings = RaySettings()
    overrides: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Settings of skills, pretrain or train for one method only, e.g. ``sac: {train.updates_per_decision: 0.5}``."""

    @field_validator("output", mode="before")
    @classmethod
    def _no_uri(cls, value: Any) -> Any:
        if isinstance(value, str) and "://" in value:
            raise ValueError(
                "this is a URI, and work is done in a folder that every node sees. Name that one, and add "
                f"storage: {value} to have a copy there, from which another machine can resume"
            )
        return value

    @field_validator("storage")
    @classmethod
    def _uri(cls, value: str | None) -> str | None:
        if value is not None and "://" not in value:
            raise ValueError(f"{value!r} is not a URI such as s3://bucket/folder; for a folder it is file:///folder")
        return value

    @field_validator("methods", "seeds")
    @classmethod
    def _no_repeats(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(values)) < len(values):
            raise ValueError("the same value occurs twice; one run must not count as two")
        return values

    @property
    def folder(self) -> Path:
        return self.output if self.output is not None else Path("runs") / self.name

    def for_method(self, method: str) -> Experiment:
        """Returns this experiment with ``overrides[method]`` applied."""
        changes = self.overrides.get(method, {})
        if not changes:
            return self
        raw = self.model_dump(mode="json")
        for key, value in changes.items():
            if key.partition(".")[0] not in _OVERRIDABLE:
                raise SpirlError(
                    f"overrides.{method}: {key} cannot differ between methods, only {', '.join(_OVERRIDABLE)} can."
                )
            assign(raw, key, value, f"overrides.{method}")
        return parse_experiment(raw, f"overrides.{method}")


def load_experiment(
    source: str | Path | Mapping[str, Any], overrides: Sequence[str] | Mapping[str, Any] = ()
) -> Experiment:
    """Reads an experiment and changes some of its settings.

    Args:
        source: a YAML file, the name of a shipped one (``"maze"`` means ``tune_configs/maze.yaml``), or the settings
            themselves as a mapping.
        overrides: ``["train.env_steps=50000"]`` with YAML values, as after ``--set``, or a mapping
            ``{"train.env_steps": 50000}``.

    Raises:
        SpirlError: an unreadable file, YAML that is no mapping, an unknown key or a wrong type; the message names file
            and key.
    """
    if isinstance(source, Mapping):
        raw, origin = copy.deepcopy(dict(source)), "the mapping"
    else:
        raw, path = read_mapping(Path(source))
        origin = str(path)
    if isinstance(overrides, Mapping):
        changes = [(key, value, f"overrides[{key!r}]") for key, value in overrides.items()]
    else:
        changes = [(*split_override(override), f"--set {override}") for override in overrides]
    for key, value, where in changes:
        assign(raw, key, value, where)
    experiment = parse_experiment(raw, origin)
    for method in experiment.overrides:
        experiment.for_method(method)
    return experiment


def parse_experiment(raw: Mapping[str, Any], origin: str) -> Experiment:
    """Validates settings; every problem is listed by key in one `SpirlError`."""
    try:
        return Experiment.model_validate(raw)
    except ValidationError as error:
        raise readable_problems(error, origin, Experiment) from error


def readable_problems(error: ValidationError, origin: str, settings: type[Settings]) -> SpirlError:
    """Makes the error about a file of these settings, with a line for each wrong key."""
    lines = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"]) or "together"
        if problem["type"] == "extra_forbidden":
            known = _known_keys(problem["loc"][:-1], settings)
            lines.append(f"  {key}: unknown key. Known here: {', '.join(known)}")
        elif problem["type"] == "missing":
            lines.append(f"  {key}: is missing")
        elif isinstance(problem["input"], Mapping):
            lines.append(f"  {key}: {problem['msg']}")
        else:
            lines.append(f"  {key}: {problem['msg']} (found {problem['input']!r})")
    return SpirlError(f"The configuration from {origin} is not valid:\n" + "\n".join(lines))


def to_yaml(settings: Settings) -> str:
    """The exact settings as YAML that `load_experiment` reads back."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def assign(raw: dict[str, Any], dotted: str, value: Any, origin: str, settings: type[Settings] | None = None) -> None:
    """Sets one key, or several of a group: ``train: {a: 1}`` leaves the other settings of train alone."""
    *parents, last = dotted.split(".")
    if isinstance(value, Mapping) and _known_keys([*parents, last], settings or Experiment):
        for key, inner in value.items():
            assign(raw, f"{dotted}.{key}", inner, origin, settings)
        return
    node = raw
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise SpirlError(f"{origin}: {parent} is a single value, it has no key {last}.")
        node = child
    node[last] = value


def _known_keys(location: Sequence[int | str], settings: type[Settings]) -> list[str]:
    model: Any = settings
    for part in location:
        field = getattr(model, "model_fields", {}).get(part)
        model = field.annotation if field is not None else None
    return sorted(getattr(model, "model_fields", {}))
