"""The checks of an experiment's settings, made before any work, so that an error is not hours late."""

from __future__ import annotations

from collections.abc import Sequence

import torch

import spirl_ray.envs as envs
from spirl_ray.config import Experiment
from spirl_ray.envs.spec import EnvironmentSpec
from spirl_ray.errors import SpirlError
from spirl_ray.files.fingerprint import fingerprint
from spirl_ray.pipeline.exploration import check_floor_plan
from spirl_ray.pipeline.kinds import check_kinds
from spirl_ray.pipeline.scores import experiment_scores
from spirl_ray.pipeline.trackers import check_trackers
from spirl_ray.pipeline.user_code import make_importable
from spirl_ray.pipeline.workspace import given_skills
from spirl_ray.rl.methods import METHODS, method_config, skill_spec
from spirl_ray.rl.offline_labels import check_judge
from spirl_ray.rl.policy_network import PolicyNetwork, PolicySpec, policy_features, policy_spec
from spirl_ray.skills.artifact import check_fit, read_skill_card
from spirl_ray.skills.augmentation import augmentation
from spirl_ray.skills.decoders import DECODERS, cannot_encode
from spirl_ray.skills.model import SkillModel
from spirl_ray.skills.own_codec import trust
from spirl_ray.skills.spec import SkillSpec


def check_experiments(experiments: Sequence[Experiment], *, make: bool = True) -> None:
    """Checks before any work what would otherwise fail later: names of kinds, features, arguments of environments.

    Args:
        experiments: the experiments whose settings are checked.
        make: True makes each environment and all networks once.

    Raises:
        SpirlError: a setting is wrong; the message names its key.
    """
    made: set[str] = set()
    for experiment in experiments:
        make_importable(experiment.submit.ship)
        check_kinds(experiment)
        check_trackers(experiment)
        _check_options(experiment)
        for method in experiment.methods:
            own = experiment.for_method(method)
            trust(own.skills)
            _check_files(own)
        if experiment.env.id is None:
            continue  # the data say what their features are
        env = experiment.environment
        spec = envs.environment(env)
        artifact = given_skills(experiment)
        given = None if artifact is None else read_skill_card(artifact).spec
        if given is not None:
            check_fit(given, spec.features, spec.action_dim, spec.actions, f"The skills in {artifact} and {spec.id}")
        for method in experiment.methods:
            own = experiment.for_method(method)
            skills = given or skill_spec(own.skills, method, spec.features, spec.action_dim)
            policy_features(own.train.features, spec.features, skills)
        if not make:
            continue
        _check_parts(experiment, spec, given)
        if (key := fingerprint(env)) not in made:
            made.add(key)
            envs.try_out(env)


def _check_options(experiment: Experiment) -> None:
    """Raises `SpirlError` for options that no method has, or that are given to one whose skills have none."""
    without = [method for method in experiment.methods if not DECODERS[METHODS[method].decoder].takes_options]
    if experiment.skills.decoder_options and len(without) == len(experiment.methods):
        names = ", ".join(without)
        raise SpirlError(f"skills.decoder_options: the skills of {names} have no options. Leave it out.")
    for method in without:
        if experiment.for_method(method).skills.decoder_options != experiment.skills.decoder_options:
            raise SpirlError(
                f"overrides.{method}: skills.decoder_options: the skills of {method} have no options. Leave it out."
            )


def _check_files(experiment: Experiment) -> None:
    """Raises `SpirlError` where an import, which may take hours, would write fewer files than there are workers."""
    workers, files = experiment.pretrain.workers, experiment.data.shards
    if workers > files and all(source.type != "folder" for source in experiment.data.sources):
        raise SpirlError(
            f"pretrain.workers: {workers} training workers need at least as many data files, and data.shards is "
            f"{files}. Set data.shards to {workers} or more, or lower pretrain.workers."
        )


def _check_parts(experiment: Experiment, spec: EnvironmentSpec, given: SkillSpec | None) -> None:
    """Builds the networks of every method, the augmentation and the scores of an experiment, and forgets them, because
    each part says itself what does not fit.

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
