"""Keys of results: hashes of everything on which a result depends, and of nothing else."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from spirl_ray.config import EnvironmentSettings, Experiment, InterfaceSettings, SkillSettings
from spirl_ray.episodes.validation import file_digest
from spirl_ray.files.fingerprint import fingerprint
from spirl_ray.registry import source_of
from spirl_ray.rl.methods import METHODS, MethodConfig
from spirl_ray.rl.offline_decisions import FORMAT_VERSION as OFFLINE_FORMAT
from spirl_ray.settings import expanded
from spirl_ray.skills.decoders import DECODERS
from spirl_ray.skills.spec import SkillSpec

NOT_LEARNED_FROM = {
    *("env_steps", "evaluate_every", "evaluate_episodes", "checkpoint_every", "keep_checkpoints", "publish"),
    *("cuda_graph", "compile"),
}
"""The settings of stage 2 that do not change what a policy learns."""
_IN_THE_METHOD = {
    *("target_divergence", "latent_limit", "policy_init", "regulariser", "offline_fraction", "offline_updates"),
}
"""The settings that `MethodConfig` holds."""
_ONLY_SOMETIMES = {"offline_labels", "novelty_bonus", "policy_polyak", "policy_value"}
"""The settings that have no effect with some methods or values, and must not lead to another policy then."""


def skills_key(spec: SkillSpec, pretrain: Mapping[str, Any], *rest: Any) -> str:
    """The key of skills.

    Args:
        spec: what the skills are.
        pretrain: the settings of stage 1.
        rest: its data and seed, as plain data.
    """
    parts, kind = spec.model_dump(mode="json"), DECODERS[spec.decoder]
    if not spec.settings.decoder_options:
        del parts["settings"]["decoder_options"]
    if not kind.closed_loop and not kind.flat and pretrain["augmentation"]["kind"] != "none":
        parts["relabelled"] = 1  # the first action of a plan; until 0.2, none was
    return fingerprint(parts, pretrain, *rest, *_named_by_skills(spec.settings, spec.decoder))


def named_content(experiment: Experiment) -> list[Any]:
    """Lists what settings name but do not hold: the text of the user's code, and digests of files. The list is empty
    where they name nothing."""
    found = [source_of(experiment.interface.judge)]
    for method in experiment.methods:
        found += _named_by_skills(experiment.for_method(method).skills, METHODS[method].decoder)
    return [one for one in found if one is not None]


def _named_by_skills(settings: SkillSettings, decoder: str) -> list[Any]:
    user_class = DECODERS[decoder].user_class
    code = None if user_class is None else source_of(user_class(settings))
    options = [settings.decoder_options, *(encoder.options for _, encoder in sorted(settings.encoders.items()))]
    digests = [digest for text in _texts(options) if (digest := _digest(text)) is not None]
    return [one for one in (code, digests) if one]


def _texts(value: Any) -> Iterator[str]:
    """The texts in lists and mappings, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            yield from _texts(value[key])
    elif isinstance(value, Sequence):
        for one in value:
            yield from _texts(one)


def _digest(name: str) -> str | None:
    """The SHA-256 of a file, or of a folder's files with their names; None where the name is that of neither."""
    try:
        place = expanded(name)
        if not place.is_dir():
            return digest_of_file(place)
        files = sorted(file for file in place.rglob("*") if file.is_file())
        return fingerprint([(file.relative_to(place).as_posix(), digest_of_file(file)) for file in files])
    except (OSError, ValueError):
        return None


def digest_of_file(file: Path) -> str:
    """The SHA-256 of a file, read once for each size and time of its last change; it can have gigabytes."""
    state = file.stat()
    return _digest_of_state(file, state.st_size, state.st_mtime_ns)


@functools.lru_cache(maxsize=1024)
def _digest_of_state(file: Path, size: int, changed: int) -> str:
    return file_digest(file)


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
    settings = train.model_dump(mode="json", exclude=NOT_LEARNED_FROM | _IN_THE_METHOD | _ONLY_SOMETIMES)
    if offline is not None:
        settings["offline"] = offline
        if train.offline_labels == "learned":
            settings["novelty_bonus"] = train.novelty_bonus
    if train.policy_polyak < 1.0:
        settings["policy_polyak"] = train.policy_polyak
    if train.policy_value != "minimum" and train.critics > 1:
        settings["policy_value"] = train.policy_value
    chosen = method.model_dump(mode="json", exclude=None if method.offline_updates else {"offline_updates"})
    return fingerprint(skills_key, acting_environment(experiment), settings, chosen)


def acting_environment(experiment: Experiment) -> EnvironmentSettings:
    """The environment of an experiment without what an agent in it does not notice: what judges demonstrations, where
    position targets are, which are for the augmentation of stage 1, and which modules are imported."""
    unnoticed = InterfaceSettings()
    same = {name: getattr(unnoticed, name) for name in ("judge", "position_target", "imports")}
    env = experiment.environment
    return env.model_copy(update={"interface": env.interface.model_copy(update=same)})
