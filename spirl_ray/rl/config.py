"""The RLlib config of SkillPriorSAC: one settings model, the skills, and the environment that they act in."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

import torch
from pydantic import ValidationError
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig, NotProvided
from ray.rllib.core.learner.learner import Learner
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.tune.registry import register_env

import spirl_ray.envs as envs
from spirl_ray.config import TrainSettings, readable_problems
from spirl_ray.errors import SpirlError
from spirl_ray.rl.learner import SkillPriorSACLearner
from spirl_ray.rl.methods import METHODS, MethodConfig, method_config
from spirl_ray.rl.module import SkillPriorModule
from spirl_ray.rl.policy_network import PolicySpec, policy_spec
from spirl_ray.rl.skill_env import SkillEnv
from spirl_ray.skills.artifact import check_fit, load_skills
from spirl_ray.skills.spec import SkillSpec

SKILL_ENV = "spirl/SkillEnv"
"""Name under which RLlib makes the skill environment, in which the environment of the config is wrapped."""


class TrainingArguments(TypedDict, total=False):
    """The settings of stage 2 that `SkillPriorSACConfig.training` takes; `TrainSettings` explains each."""

    target_divergence: float | None
    """delta, nats a decision."""
    initial_alpha: float
    alpha_min: float
    fixed_alpha: float | None
    actor_lr: float
    critic_lr: float
    alpha_lr: float
    batch_size: int
    updates_per_decision: float
    warmup_decisions: int
    replay_capacity: int
    reward_scale: float
    discount: float
    discount_per: Literal["decision", "primitive_step"]
    divergence_in_target: bool
    timeout_is_terminal: bool
    polyak: float
    critic_width: int
    critic_layers: int
    critic_layer_norm: bool
    latent_limit: float | None
    policy_init: Literal["preset", "prior", "scratch"]
    features: tuple[str, ...] | None
    policy_head: str


class SkillPriorSACConfig(AlgorithmConfig):
    """Config of `SkillPriorSAC` for users of RLlib.

    Example:
        >>> config = (
        ...     SkillPriorSACConfig()
        ...     .skills("runs/kitchen_play/skills/closed_loop-…")
        ...     .environment("spirl/Kitchen-v0", env_config={"tasks": ["microwave", "kettle"]})
        ...     .training(target_divergence=2.0, warmup_decisions=256)
        ... )
        >>> algorithm = config.build_algo()
        >>> result = algorithm.train()

    ``tune.Tuner(SkillPriorSAC, param_space=config)`` takes it as well; a value of ``training`` may be a search space.
    """

    def __init__(self, algo_class: type | None = None) -> None:
        if algo_class is None:
            from spirl_ray.rl.algorithm import SkillPriorSAC

            algo_class = SkillPriorSAC
        super().__init__(algo_class=algo_class)
        self.env: Any
        self.env_config: Any
        self.train: dict[str, Any] = {}
        """The settings of stage 2 that differ from the defaults, see `settings`."""
        self.skills_folder: str | None = None
        self.method: dict[str, Any] | str | None = None
        """A `MethodConfig` as plain values, or the name of a method; None is the method that the skills are for."""
        self.dataset: str | None = None
        """Folder of the demonstrations, for methods that also learn from them."""
        self.metrics_every = 20
        """Updates between two readings of the learner's metrics."""
        self.silence_limit_s = 1800.0
        """Training gives up when no env runner has answered for this long."""
        self.normalize_actions = False
        self.clip_actions = False
        # The learner checks its own losses, two scans of every gradient less.
        self.torch_skip_nan_gradients = True
        # There are no connectors with state. Syncing them would make every round wait for the sampling.
        self._dont_auto_sync_env_runner_states = True
        self.min_time_s_per_iteration = None
        self.restart_failed_env_runners = True
        # A round waits this long for runners that are away, not the default 30 s, so that the others continue.
        self.env_runner_health_probe_timeout_s = 1.0
        # A restarted runner then gets the learner's weights, not those of a local runner that never learns.
        self.create_local_env_runner = False

    @property
    def settings(self) -> TrainSettings:
        """The settings of stage 2.

        Raises:
            SpirlError: naming the setting whose value is impossible.
        """
        try:
            return TrainSettings.model_validate(self.train)
        except ValidationError as error:
            raise readable_problems(error, "SkillPriorSACConfig.training", TrainSettings) from error

    @property
    def policy(self) -> PolicySpec:
        """What the policy sees; known once the config has been validated, which building the algorithm does."""
        return PolicySpec.model_validate(self.env_config["policy"])

    def skills(
        self,
        folder: str | Path,
        *,
        method: str | MethodConfig | None = None,
        dataset: str | Path | None = None,
    ) -> SkillPriorSACConfig:
        """Says through which skills the policy acts.

        Args:
            folder: of the skill artifact; every node must be able to read it.
            method: which method uses them; None is the first of the table with skills of this kind and a prior.
            dataset: folder of the demonstrations, for methods that also learn from them.
        """
        self.skills_folder = str(Path(folder).absolute())
        self.method = method.model_dump(mode="json") if isinstance(method, MethodConfig) else method
        self.dataset = None if dataset is None else str(Path(dataset).absolute())
        return self

    def training(
        self,
        *,
        metrics_every: int = NotProvided,
        silence_limit_s: float = NotProvided,
        **settings: Unpack[TrainingArguments],
    ) -> SkillPriorSACConfig:
        """Sets settings of stage 2 by name, and passes on what RLlib knows, such as ``grad_clip``.

        Args:
            metrics_every: updates between two readings of the learner's metrics.
            silence_limit_s: training gives up when no env runner has answered for so many seconds.
            settings: see `TrainingArguments`. RLlib's ``gamma`` and ``train_batch_size_per_learner`` are ``discount``
                and ``batch_size`` here.
        """
        given: dict[str, Any] = dict(settings)
        for theirs, ours in (("gamma", "discount"), ("train_batch_size_per_learner", "batch_size")):
            if theirs in given:
                given[ours] = given.pop(theirs)
        own = {name: given.pop(name) for name in list(given) if name in TrainingArguments.__annotations__}
        self.train = {**self.train, **{name: value for name, value in own.items() if value is not NotProvided}}
        if metrics_every is not NotProvided:
            self.metrics_every = metrics_every
        if silence_limit_s is not NotProvided:
            self.silence_limit_s = silence_limit_s
        super().training(**given)
        return self

    def with_settings(self, settings: TrainSettings) -> SkillPriorSACConfig:
        """Takes over a whole settings model, in place of single values of `training`."""
        self.train = settings.model_dump(mode="json")
        return self

    def validate(self) -> None:
        """Wraps the environment in a `SkillEnv`, which building the algorithm asks for.

        Raises:
            SpirlError: no skills, skills that do not fit the environment, or an impossible setting.
        """
        if self.env != SKILL_ENV:
            self._wrap_environment()
        register_env(SKILL_ENV, make_skill_env)
        super().validate()

    def _wrap_environment(self) -> None:
        if self.skills_folder is None:
            raise SpirlError(
                "SkillPriorSACConfig needs skills: call .skills(FOLDER) with the folder of a skill artifact."
            )
        settings, skills = self.settings, load_skills(self.skills_folder)
        made = envs.make(self.env, **self.env_config)
        try:
            features, actions = envs.observed_features(made), made.action_space.shape
        finally:
            made.close()
        assert actions is not None
        check_fit(skills.spec, features, actions[0], f"The skills in {self.skills_folder} and {self.env}")
        if isinstance(self.method, dict):
            method = MethodConfig.model_validate(self.method)
        else:
            method = method_config(self.method or _method_for(skills.spec), settings, skills.spec)
        self.method = method.model_dump(mode="json")
        policy = policy_spec(skills, method, features).model_dump(mode="json")
        self.env_config = {
            "environment": self.env,
            "kwargs": dict(self.env_config),
            "skills": self.skills_folder,
            "latent_limit": method.latent_limit,
            "policy": policy,
        }
        self.env = SKILL_ENV
        self.gamma, self.train_batch_size_per_learner = settings.discount, settings.batch_size
        self.rl_module(
            model_config={
                "skills": self.skills_folder,
                "method": self.method,
                "policy": policy,
                "settings": settings.model_dump(mode="json"),
            }
        )

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        return RLModuleSpec(module_class=SkillPriorModule)

    def get_default_learner_class(self) -> type[Learner]:
        return SkillPriorSACLearner


def _method_for(spec: SkillSpec) -> str:
    for name in METHODS:
        method = METHODS[name]
        if method.decoder == spec.decoder and method.regulariser == "prior":
            return name
    raise SpirlError(f"No method uses skills with the decoder {spec.decoder}: name one, .skills(FOLDER, method=…).")


def make_skill_env(config: Any) -> SkillEnv:
    """The skill environment of an env runner, from the ``env_config`` that `SkillPriorSACConfig.validate` writes."""
    torch.set_num_threads(1)
    return SkillEnv(
        config["environment"],
        config["kwargs"],
        load_skills(config["skills"]),
        PolicySpec.model_validate(config["policy"]),
        config["latent_limit"],
    )
