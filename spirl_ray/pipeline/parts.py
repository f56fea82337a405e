"""The parts that a config chooses are built once before any work, because each says itself what does not fit."""

from __future__ import annotations

import torch

from spirl_ray.config import Experiment
from spirl_ray.envs.spec import EnvironmentSpec
from spirl_ray.errors import SpirlError
from spirl_ray.pipeline.exploration import check_floor_plan
from spirl_ray.pipeline.scores import experiment_scores
from spirl_ray.rl.methods import method_config, skill_spec
from spirl_ray.rl.offline_labels import check_judge
from spirl_ray.rl.policy_network import PolicyNetwork, PolicySpec, policy_spec
from spirl_ray.skills.augmentation import augmentation
from spirl_ray.skills.decoders import cannot_encode
from spirl_ray.skills.model import SkillModel
from spirl_ray.skills.spec import SkillSpec


def check_parts(experiment: Experiment, spec: EnvironmentSpec, given: SkillSpec | None) -> None:
    """Builds the networks of every method, the augmentation and the scores of an experiment, and forgets them.

    Args:
        experiment: the experiment whose settings are checked.
        spec: the description of its environment.
        given: the spec of skills that have been trained already; None: stage 1 trains them.

    Raises:
        SpirlError: parts do not fit each other, the environment, or a file; the message names the setting.
    """
    experiment_scores(experiment)
    if experiment.explore.in_run:
        check_floor_plan(spec)
    for method in experiment.methods:
        own = experiment.for_method(method)
        with torch.random.fork_rng(devices=[]):
            skills = SkillModel(given or skill_spec(own.skills, method, spec.features, spec.action_dim))
            if given is None:
                skills.load_pretrained()
                skills.try_out()
                augmentation(own.pretrain.augmentation, spec.position_target, skills.spec.observed)
            chosen = method_config(method, own.train, skills.spec)
            if chosen.offline_fraction:
                check_judge(spec, own.train.offline_labels)
            observed = policy_spec(skills, chosen, spec.features)
            if chosen.offline_fraction and not skills.codec.can_encode:
                raise cannot_encode(skills.codec)
            _check_images(skills, observed)
            policy = PolicyNetwork(observed, skills)
            if chosen.policy_init == "prior":
                policy.start_from(skills)


def _check_images(skills: SkillModel, observed: PolicySpec) -> None:
    if skills.kind.noise and observed.images and skills.codec.shared_encoder() is None:
        raise SpirlError(
            "train.features: a policy observes images as its skills encode them, and "
            f"{type(skills.codec).__name__} does not say how: give it `observations = spec.observation_encoder()`, and "
            "load its weights in `load_pretrained`, because nothing trains them; or name features that are no images."
        )
