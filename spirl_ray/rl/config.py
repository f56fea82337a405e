"""Parts of the RLlib config of SkillPriorSAC: its arguments, and the user's environment wrapped for skills."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Mapping
from typing import Any

import ray
import torch
from ray.rllib.env.env_context import EnvContext

import spirl_ray.envs as envs
from spirl_ray.config import EnvironmentSettings, TrainSettings
from spirl_ray.config_file import validated
from spirl_ray.errors import SpirlError
from spirl_ray.rl.methods import METHODS, MethodConfig, method_config
from spirl_ray.rl.policy_network import PolicySpec, policy_spec
from spirl_ray.rl.skill_env import SkillEnv
from spirl_ray.skills.artifact import check_fit, load_skills
from spirl_ray.skills.spec import SkillSpec

SKILL_ENV = "spirl/SkillEnv"
"""The name under which RLlib makes the skill environment, in which the environment of the config is wrapped."""


def train_settings(given: Mapping[str, Any]) -> TrainSettings:
    """The settings of stage 2 with these values, and the defaults of all others.

    Raises:
        SpirlError: a setting has an impossible value; the message names it.
    """
    return validated(TrainSettings, given, "SkillPriorSACConfig.training")


def environment_settings(
    env_id: str, kwargs: Mapping[str, Any], max_episode_steps: int | None, interface: Mapping[str, Any]
) -> EnvironmentSettings:
    """The settings of the environment of a config.

    Raises:
        SpirlError: a setting has an impossible value; the message names it.
    """
    given = {"id": env_id, "kwargs": dict(kwargs), "max_episode_steps": max_episode_steps, "interface": interface}
    return validated(EnvironmentSettings, given, "SkillPriorSACConfig.reading")


def method_and_policy(
    environment: EnvironmentSettings,
    skills_folder: str,
    method: dict[str, Any] | str | None,
    settings: TrainSettings,
) -> tuple[MethodConfig, PolicySpec]:
    """Applies all settings to a method, and determines what its policy observes in an environment.

    Args:
        environment: settings of the environment.
        skills_folder: folder of the skill artifact.
        method: a `MethodConfig` as plain values, the name of a method, or None for the first that fits the skills.
        settings: settings of stage 2.

    Raises:
        SpirlError: the skills do not fit the environment or the method.
    """
    skills = load_skills(skills_folder)
    described = envs.environment(environment)
    with contextlib.closing(envs.make(environment)) as made:
        features = envs.observed_features(made, described)
    where = f"The skills in {skills_folder} and {described.id}"
    check_fit(skills.spec, features, described.action_dim, described.actions, where)
    if isinstance(method, dict):
        resolved = MethodConfig.model_validate(method)
    else:
        resolved = method_config(method or _method_for(skills.spec), settings, skills.spec)
    return resolved, policy_spec(skills, resolved, features)


def _method_for(spec: SkillSpec) -> str:
    for name in METHODS:
        method = METHODS[name]
        if method.decoder == spec.decoder and method.regulariser == "prior" and not method.offline_fraction:
            return name
    names = ", ".join(name for name in METHODS if METHODS[name].decoder == spec.decoder) or "none"
    raise SpirlError(
        f"No method with the decoder {spec.decoder} is kept close to a prior by online decisions alone. Name the one "
        f"that you want: .skills(FOLDER, method=…). Those with this decoder: {names}."
    )


def make_skill_env(config: EnvContext) -> SkillEnv:
    """Makes a skill environment of an env runner from the ``env_config`` that `SkillPriorSACConfig.validate` writes."""
    torch.set_num_threads(1)
    return SkillEnv(
        EnvironmentSettings.model_validate(config["environment"]),
        load_skills(config["skills"]),
        PolicySpec.model_validate(config["policy"]),
        config["latent_limit"],
        stream=_stream(config),
    )


def _stream(context: EnvContext) -> tuple[int, ...]:
    """The numbers that tell an environment from all others of its training, which RLlib's seeds do not: environment j
    of env runner i gets the seed of the run + i + j, so several environments would draw the same episodes.

    These are the numbers of the env runner and of the environment in it. A restarted env runner gets the seeds of the
    first one again, so a random number follows; what was lost with the first one depends on the time of its end, so
    such a training cannot be repeated exactly anyway.
    """
    number = context.vector_index
    # All environments of an env runner are made from one context, in which RLlib leaves this number at 0.
    context.vector_index += 1
    here = ray.get_runtime_context() if ray.is_initialized() else None
    restarted = here is not None and here.get_actor_id() is not None and here.was_current_actor_reconstructed
    return (context.worker_index, number, *([secrets.randbits(32)] if restarted else []))
