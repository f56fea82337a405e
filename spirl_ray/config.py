"""The one configuration language: a YAML file read into frozen models, with ``--set a.b=c`` overrides.

Every key is declared here with its meaning and default; unknown keys and wrong types are errors. Names of kinds, such
as methods, are plain strings here because plugins add to them; `spirl_ray.pipeline.kinds` checks them before any work.
The defaults are the paper's (Pertsch et al. 2020) unless a comment says otherwise.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from spirl_ray.config_environment import EnvironmentSettings, EnvSettings, InterfaceSettings
from spirl_ray.config_file import assign, assign_for_all, read_mapping, split_override, validated
from spirl_ray.config_submit import SubmitSettings
from spirl_ray.config_tracking import TrackingSettings
from spirl_ray.config_train import TrainSettings
from spirl_ray.errors import SpirlError
from spirl_ray.settings import (
    MANY,
    Name,
    OutputPath,
    Seed,
    SettingPath,
    Settings,
    StorageUri,
    check_last_seed,
    distinct,
)

_OVERRIDABLE = ("skills", "pretrain", "train")


class SourceSettings(Settings):
    """One source of episodes; the kind of source that ``type`` names has settings of its own."""

    model_config = ConfigDict(frozen=True, extra="allow")

    type: str
    """``generated`` (a scripted expert's), ``minari``, ``npz``, ``hdf5``, ``lerobot``, ``parquet``, ``python``,
    ``folder`` (a dataset of ours), or a name given to `spirl_ray.datasets.sources.register_source`."""


Outside = Literal["refuse", "clip", "rescale"]


class DataSettings(Settings):
    sources: tuple[SourceSettings, ...] = ()
    """The sources of the episodes, which become one dataset."""
    actions_outside: Outside = "refuse"
    """What happens to actions outside the range of the environment's actions: an error, the nearest one in the range,
    or the range becomes that of the data."""
    shards: int = Field(default=8, ge=1, le=100_000)
    """The number of Parquet files; at least as many as training workers."""
    skip_bad: bool = False
    """True leaves invalid episodes out and reports them, instead of stopping."""
    validation_fraction: float = Field(default=0.1, ge=0.0, lt=1.0)
    """The share of the episodes that is held out of stage 1."""
    in_memory_limit_mb: float = Field(default=2048.0, ge=0.0)
    """The memory in MB (2**20 bytes) of the training data in each training worker: their observed features, actions
    and order. Where the largest share of a worker fits, it is read once. Otherwise it is streamed through two buffers
    that share seven eighths of this less 80 MB, but at least half of it; an episode that is larger than a buffer has
    one to itself. The rest is for what does not grow with the number of steps: held-out windows (at most 1024, and an
    eighth of this), some row groups of 8 MB while a file is read, the model, and 17 bytes for each episode."""

    @model_validator(mode="before")
    @classmethod
    def _one_source_of_version_0_1(cls, raw: Any) -> Any:
        if isinstance(raw, Mapping) and "source" in raw:
            names = {"source": "type", "dataset": "id", "minari_root": "root", "generate": "options"}
            kept = {names.get(name, name): value for name, value in raw.items() if name not in cls.model_fields}
            raise ValueError(
                f"one source is how version 0.1 wrote it. Write sources: [{json.dumps(kept, default=str)}]"
            )
        return raw


class EncoderSettings(Settings):
    """The observation encoder of a feature."""

    kind: str
    """``vector``, ``image``, ``objects``, ``pretrained``, or one that a plugin has registered."""
    options: dict[str, Any] = Field(default_factory=dict)
    """The options of the encoder, such as ``{path: weights.safetensors, channels: [8, 16, 32]}`` for ``pretrained``."""


class SkillSettings(Settings):
    horizon: int = Field(default=10, ge=1, le=10_000)
    """H, the number of primitive actions in a skill."""
    latent_dim: int = Field(default=10, ge=1, le=10_000)
    width: int = Field(default=128, ge=1, le=65_536)
    decoder_layers: int = Field(default=5, ge=1, le=64)
    """The number of hidden layers of the closed-loop decoder, of both networks of a plan, and of a flow's velocity."""
    decoder_options: dict[str, Any] = Field(default_factory=dict)
    """The options that a kind of skill decoder has of its own, such as ``steps`` of flow skills."""
    prior_layers: int = Field(default=6, ge=1, le=64)
    prior: str = "gaussian"
    """``gaussian`` (the paper's), ``mixture``, ``flow``, or one that a plugin has registered. A mixture suits
    demonstrators whose next move does not follow from the observation."""
    mixture_components: int = Field(default=5, ge=1, le=1000)
    flow_layers: int = Field(default=4, ge=1, le=64)
    prior_loss: Literal["nll", "kl"] = "nll"
    """NLL of a detached posterior sample (the reference's default) or KL(stop_grad(q) || p)."""
    beta: float = Field(default=5e-4, ge=0.0)
    """Weight of KL(q || N(0, I)); the start value when ``target_kl`` is set."""
    target_kl: float | None = Field(default=None, gt=0.0)
    """Nats per dimension; when set, beta is tuned by dual gradient towards it."""
    state_std_floor: float | None = Field(default=None, gt=0.0)
    """The least deviation by which features are standardised, instead of a smaller one of the data; None is a hundredth
    of the largest deviation in the same feature."""
    artifact: SettingPath | None = None
    """A folder of trained skills, which are used as they are: there is no stage 1 then, and no data are needed."""
    features: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Names of the features that skills and prior observe. None: where there are images, these and proprioception; else
    everything except goals."""
    encoders: dict[str, EncoderSettings] = Field(default_factory=dict)
    """Observation encoders by feature, where the default does not fit: vector, image or objects, by the shape."""
    image_channels: int = Field(default=8, ge=1, le=4096)
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
    updates: int = Field(default=3000, ge=1, le=MANY)
    batch_size: int = Field(default=128, ge=1, le=10_000_000)
    """Windows per update over all workers together."""
    learning_rate: float = Field(default=1e-3, gt=0.0)
    optimizer: Literal["radam", "adam"] = "radam"
    cosine_decay: bool = False
    warmup_updates: int = Field(default=100, ge=0, le=MANY)
    """Updates with the gradient norm clipped to ``warmup_clip``."""
    warmup_clip: float = Field(default=1e-3, gt=0.0)
    gradient_clip: float = Field(default=1.0, gt=0.0)
    """The largest gradient norm of a later update. Norms are below 1 as a rule; those of a few windows far from all
    others can otherwise ruin the prior for good."""
    augmentation: AugmentationSettings = AugmentationSettings()
    workers: int = Field(default=1, ge=1, le=10_000)
    use_gpu: bool = False
    precision: Literal["float32", "bfloat16"] = "float32"
    """The precision of matrix products in stage 1; bfloat16 is for GPUs, and parameters stay float32."""
    log_every: int = Field(default=100, ge=1, le=MANY)
    checkpoint_every: int = Field(default=500, ge=1, le=MANY)
    max_failures: int = Field(default=3, ge=0, le=MANY)
    """The number of times that lost workers are replaced before the run gives up."""


class EvaluateSettings(Settings):
    episodes: int = Field(default=100, ge=1, le=1_000_000)
    modes: tuple[Literal["deterministic", "sampled"], ...] = Field(default=("deterministic", "sampled"), min_length=1)
    prior_episodes: int = Field(default=100, ge=0, le=1_000_000)
    """Rollouts of the bare prior, for each mode; 0 leaves them out."""
    videos: int = Field(default=2, ge=0, le=1000)
    """Recorded episodes for each mode."""
    metrics: tuple[str, ...] = ()
    """Registered metrics that are measured besides those that the environment declares."""
    score: str | None = None
    """The metric by which policies are compared; None leaves it to the environment."""
    seed: Seed = 10_000
    """The seed of the first episode; each further episode has the next one."""
    video_fps: int = Field(default=25, ge=1, le=1000)

    @field_validator("modes")
    @classmethod
    def _no_repeats(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        return distinct(values)

    @model_validator(mode="after")
    def _room_for_seeds(self) -> EvaluateSettings:
        check_last_seed(self.seed, max(self.episodes, self.prior_episodes, self.videos), "episodes")
        return self


class ExploreSettings(Settings):
    in_run: bool = False
    """True where ``spirl run`` also draws the exploration figure."""
    env_steps: int = Field(default=1_000_000, ge=1, le=MANY)
    """Primitive steps of each explorer, rounded up to whole episodes."""
    seed: Seed = 0

    @model_validator(mode="after")
    def _room_for_seeds(self) -> ExploreSettings:
        check_last_seed(self.seed, self.env_steps, "env_steps")
        return self


class RaySettings(Settings):
    address: str | None = None
    """A running cluster; None uses the surrounding job's cluster or starts a local Ray instance."""
    num_cpus: int | None = Field(default=None, ge=1, le=100_000)
    """Logical CPUs of the local Ray instance; None takes the machine's, at least 2."""
    dashboard: bool = False
    """True starts the dashboard of the local Ray instance, on 127.0.0.1."""
    object_store_mb: int = Field(default=512, ge=80, le=16_000_000)


class Experiment(Settings):
    name: Name
    output: OutputPath | None = None
    """The folder for all results; None means ``runs/<name>``. On a cluster, every node must see it."""
    storage: StorageUri | None = None
    """URI of a copy of ``output`` (s3://, gs://, hdfs://, file://), from which another machine resumes."""
    methods: tuple[str, ...] = Field(default=("spirl_cl",), min_length=1)
    """``spirl``, ``spirl_cl``, ``ssp``, ``flat_prior``, ``bc_sac``, ``sac``, ``spirl_offline``, ``supe``, ``rlpd``,
    ``spirl_plan``, ``flow``, ``flow_offline``, ``dsrl``, or those that a plugin has registered."""
    seeds: tuple[Seed, ...] = Field(default=(0,), min_length=1)
    env: EnvSettings = EnvSettings()
    interface: InterfaceSettings = InterfaceSettings()
    data: DataSettings = DataSettings()
    skills: SkillSettings = SkillSettings()
    pretrain: PretrainSettings = PretrainSettings()
    train: TrainSettings = TrainSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    explore: ExploreSettings = ExploreSettings()
    tracking: TrackingSettings = TrackingSettings()
    """The trackers that get metrics, videos and the report, besides the folder."""
    ray: RaySettings = RaySettings()
    submit: SubmitSettings = SubmitSettings()
    overrides: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Settings of skills, pretrain or train for one method only, e.g. ``sac: {train.updates_per_decision: 0.5}``."""

    @field_validator("methods", "seeds")
    @classmethod
    def _no_repeats(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        return distinct(values)

    @property
    def environment(self) -> EnvironmentSettings:
        """The environment: ``env`` and ``interface`` together."""
        return EnvironmentSettings(
            id=self.env.id,
            kwargs=self.env.kwargs,
            max_episode_steps=self.env.max_episode_steps,
            interface=self.interface,
        )

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
            assign(raw, key, value, f"overrides.{method}", Experiment)
        return parse_experiment(raw, f"overrides.{method}")


def load_experiment(
    source: str | Path | Mapping[str, Any], overrides: Sequence[str] | Mapping[str, Any] = ()
) -> Experiment:
    """Reads an experiment and changes some of its settings.

    Args:
        source: a YAML file, the name of a shipped one (``"maze"`` means ``tune_configs/maze.yaml``), or the settings
            themselves as a mapping.
        overrides: ``["train.env_steps=50000"]`` with YAML values, as after ``--set``, or a mapping
            ``{"train.env_steps": 50000}``. They hold for every method, whatever the file's own ``overrides`` say.

    Raises:
        SpirlError: an unreadable file, YAML that is no mapping, an unknown key or a wrong type; the message names file
            and key.
    """
    if isinstance(source, Mapping):
        raw, origin = copy.deepcopy(dict(source)), "the mapping"
    else:
        raw, path = read_mapping(Path(source), Experiment)
        origin = str(path)
    if isinstance(overrides, Mapping):
        changes = [(key, value, f"overrides[{key!r}]") for key, value in overrides.items()]
    else:
        changes = [(*split_override(override, Experiment), f"--set {override}") for override in overrides]
    for key, value, where in changes:
        assign_for_all(raw, key, value, where, Experiment)
    experiment = parse_experiment(raw, origin)
    for method in experiment.overrides:
        experiment.for_method(method)
    return experiment


def parse_experiment(raw: Mapping[str, Any], origin: str) -> Experiment:
    """Validates settings; every problem is listed by key in one `SpirlError`."""
    return validated(Experiment, raw, origin)
