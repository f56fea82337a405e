"""Keys of results: hashes of everything on which a result depends, and of nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spirl_ray.config import Experiment
from spirl_ray.episodes.validation import file_digest
from spirl_ray.files.fingerprint import fingerprint
from spirl_ray.registry import source_of
from spirl_ray.rl.methods import MethodConfig
from spirl_ray.rl.offline_decisions import FORMAT_VERSION as OFFLINE_FORMAT
from spirl_ray.settings import expanded
from spirl_ray.skills.decoders import DECODERS
from spirl_ray.skills.spec import SkillSpec

_NOT_LEARNED_FROM = {
    *("env_steps", "evaluate_every", "evaluate_episodes", "checkpoint_every", "keep_checkpoints", "publish"),
    *("cuda_graph", "compile"),
}
"""The settings of stage 2 that do not change what a policy learns."""
_IN_THE_METHOD = {"target_divergence", "latent_limit", "policy_init", "regulariser", "offline_fraction"}
"""The settings that `MethodConfig` holds."""
_ONLY_SOMETIMES = {"offline_labels", "novelty_bonus", "policy_polyak"}
"""The settings that have no effect with some methods or values, and must not lead to another policy then."""


def skills_key(spec: SkillSpec, pretrain: Mapping[str, Any], *rest: Any) -> str:
    """The key of skills.

    Args:
        spec: what the skills are.
        pretrain: the settings of stage 1.
        rest: its data and seed, as plain data.
    """
    parts, options, kind = spec.model_dump(mode="json"), spec.settings.decoder_options, DECODERS[spec.decoder]
    own: list[Any] = []
    if options:  # a codec of the user's: its code, and the files that its options name
        codec = options.get("codec")
        contents = [_content(value) for value in options.values() if isinstance(value, str)]
        own = [contents, source_of(codec if isinstance(codec, str) else None)]
    else:
        del parts["settings"]["decoder_options"]
    if not kind.closed_loop and not kind.flat and pretrain["augmentation"]["kind"] != "none":
        parts["relabelled"] = "the first action of a plan"  # until 0.2, none was
    return fingerprint(parts, pretrain, *rest, *own)


def _content(name: str) -> str | None:
    """The SHA-256 of a file; None where the name is not that of one."""
    try:
        return file_digest(expanded(name))
    except (OSError, ValueError):
        return None


def offline_key(content: str, skills_key: str, seed: int, experiment: Experiment, method: MethodConfig) -> str:
    """The key of offline decisions.

    Args:
        content: SHA-256 of the demonstrations' content.
        skills_key: key of the skills.
        seed: seed of the trial.
        experiment: the experiment of the trial.
        method: its method.
    """
    env = experiment.environment
    # What the policy observes follows from these, see `spirl_ray.rl.policy_network.policy_spec`.
    observed = (method.features, method.policy_head, method.policy_init, method.uses_prior)
    parts = (skills_key, seed, observed, method.latent_limit, env.id, env.kwargs, env.interface)
    labels = (experiment.train.offline_labels, source_of(env.interface.judge))
    return fingerprint(OFFLINE_FORMAT, content, *parts, *labels)


def policy_key(skills_key: str, experiment: Experiment, method: MethodConfig, offline: str | None) -> str:
    """The key of a policy, without the length of its training and evaluations.

    Args:
        skills_key: key of the skills.
        experiment: the experiment of the trial.
        method: its method.
        offline: the name of the folder of its offline decisions; None where it has none.
    """
    train = experiment.train
    settings = train.model_dump(mode="json", exclude=_NOT_LEARNED_FROM | _IN_THE_METHOD | _ONLY_SOMETIMES)
    if offline is not None:
        settings["offline"] = offline
        if train.offline_labels == "learned":
            settings["novelty_bonus"] = train.novelty_bonus
    if train.policy_polyak < 1.0:
        settings["policy_polyak"] = train.policy_polyak
    return fingerprint(skills_key, experiment.environment, settings, method)
