"""The card of published skills or of a published policy, made from what the report says of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from spirl_ray.episodes.actions import described
from spirl_ray.episodes.dataset import DatasetCard, read_card
from spirl_ray.errors import SpirlError
from spirl_ray.files import layout
from spirl_ray.files.atomic import read_json
from spirl_ray.files.tables import read_csv
from spirl_ray.pipeline.trained import read_trained
from spirl_ray.pipeline.training import read_provenance
from spirl_ray.policy.policy import PolicyCard, load_policy, read_policy_card
from spirl_ray.skills.artifact import SkillCard, load_skills, read_skill_card

HOME = "https://github.com/spirl-ray/spirl-ray"
CARD = "README.md"
_SETTINGS = ("method", "seed", "env_steps", "mode", "evaluation", "episodes", "wall_clock_s", "config_hash", "commit")
"""The columns of the report's table that are no metrics."""
_PATH = re.compile(r"(?<!\w)(?:~|/)[\w.-]*/\S*")


@dataclass(frozen=True)
class Results:
    """The evaluations of a policy and of its siblings with other seeds."""

    source: str
    """A sentence that says what the rows are."""
    score: str = ""
    rows: Sequence[Mapping[str, str]] = ()
    """The cells by column: ``seed``, ``mode``, ``episodes``, ``env_steps`` and metrics."""
    metrics: Sequence[str] = field(default_factory=tuple)


def published_files(folder: Path, place: str, licence: str | None) -> dict[str, bytes]:
    """Returns the files to publish by name: those of the artifact, and its card.

    Args:
        folder: folder of a policy or of skills; it is loaded once, so nothing is published that cannot be read.
        place: where it will be, for the sample in the card.
        licence: identifier of the licence, such as ``apache-2.0``; None for that of the dataset.

    Raises:
        SpirlError: the folder holds no artifact, or a damaged one, or there is no licence.
    """
    if (folder / layout.POLICY_CARD).exists():
        load_policy(folder)
        names: tuple[str, ...] = layout.POLICY_FILES
        policy, skills = read_policy_card(folder), read_skill_card(folder / layout.SKILLS)
    elif (folder / layout.SKILL_CARD).exists():
        load_skills(folder)
        names, policy, skills = layout.SKILL_FILES, None, read_skill_card(folder)
    else:
        raise SpirlError(
            f"{folder} is neither a policy ({layout.POLICY_CARD}) nor skills ({layout.SKILL_CARD}). Name a folder in "
            f"{layout.POLICIES}/ or {layout.SKILLS}/ of an experiment."
        )
    card = model_card(folder, place, licence, policy, skills)
    return {**{name: (folder / name).read_bytes() for name in names}, CARD: card.encode()}


def model_card(folder: Path, place: str, licence: str | None, policy: PolicyCard | None, skills: SkillCard) -> str:
    """The card as Markdown with metadata in front; see `published_files`."""
    data = _dataset(folder, skills.dataset_sha256)
    licence = licence or (None if data is None else data.licence)
    if not licence:
        raise SpirlError(
            f"The licence of {folder} is not known, because the dataset is not beside it. Say --licence apache-2.0, or "
            "whatever the demonstrations allow."
        )
    results = Results("No evaluation is part of skills.") if policy is None else _results(folder, policy)
    environment = skills.environment if policy is None else policy.environment.id
    title = place.rpartition("/")[2].partition("@")[0]
    spec = skills.spec
    features = {**spec.observed, **({} if policy is None else policy.policy.features)}
    columns = ["seed", "mode", "episodes", "env_steps", *results.metrics]
    page = _template().render(
        title=title,
        place=place,
        home=HOME,
        policy=policy,
        skills=skills,
        environment=environment,
        source=results.source,
        score=results.score,
        columns=[column.replace("_", " ") for column in columns],
        rows=[[row.get(column, "") for column in columns] for row in results.rows],
        made=_made(folder, policy, skills, data),
        features=", ".join(f"`{name}` ({one.role}, {list(one.observed_shape)})" for name, one in features.items()),
        actions=described(spec.actions, spec.action_dim),
        licence=licence,
        attribution=None if data is None else data.attribution,
    )
    front = _front(title, licence, environment, policy, results)
    return f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---\n\n{page}"


def _front(
    title: str, licence: str, environment: str | None, policy: PolicyCard | None, results: Results
) -> dict[str, Any]:
    """The metadata that a hub reads."""
    front: dict[str, Any] = {
        "license": licence.lower(),
        "library_name": "spirl-ray",
        "tags": ["reinforcement-learning", "skill-prior", "spirl", *([environment] if environment else [])],
    }
    found = [row for row in results.rows if row.get(results.score)]
    if policy is None or not found:
        return front
    metrics = [
        {
            "type": results.score,
            "value": float(row[results.score]),
            "name": f"{results.score}, {row['mode']}, seed {row['seed']}, {row['episodes']} episodes",
        }
        for row in found
    ]
    task = {"type": "reinforcement-learning", "name": "reinforcement learning"}
    where = {"name": environment, "type": environment}
    entry = {"name": title, "results": [{"task": task, "dataset": where, "metrics": metrics}]}
    return {**front, "pipeline_tag": "reinforcement-learning", "model-index": [entry]}


def _results(folder: Path, policy: PolicyCard) -> Results:
    """The final evaluations in the report, of this method with every seed; without a report, those of the training."""
    report = folder.parent.parent / layout.REPORTS
    found = [row.cells for row in read_csv(report / layout.REPORT_TABLE)]
    mine = {row["seed"] for row in found if row.get("config_hash") == policy.config_hash}
    rows = [row for row in found if row["method"] == policy.method and row["evaluation"] == "final"]
    if rows and str(policy.seed) in mine:
        metrics = [name for name in rows[0] if name not in _SETTINGS and any(row.get(name) for row in rows)]
        score = str(read_json(report / layout.REPORT_NUMBERS).get("score", ""))
        return Results("Final evaluations of this method, a row for each seed and mode.", score, rows, metrics)
    trained = read_trained(folder)
    if trained is None:
        return Results("The policy came without its evaluations.")
    modes = trained.published.modes
    rows = [
        {"seed": str(policy.seed), "mode": mode, "env_steps": str(trained.published_env_steps)}
        | {name: f"{value:g}" for name, value in means.items()}
        for mode, means in modes.items()
    ]
    metrics = list(dict.fromkeys(name for means in modes.values() for name in means if name not in _SETTINGS))
    text = "Evaluations during training, by which this snapshot was chosen: they flatter it. A report has final ones."
    return Results(text, trained.score, rows, metrics)


def _dataset(folder: Path, content_sha256: str) -> DatasetCard | None:
    """The card of the dataset that the skills were learned from, if the experiment's folder holds it."""
    for path in sorted((folder.parent.parent / layout.DATA).glob(f"*/{layout.DATASET_CARD}")):
        card = read_card(path.parent)
        if card.content_sha256 == content_sha256:
            return card
    return None


def _made(folder: Path, policy: PolicyCard | None, skills: SkillCard, data: DatasetCard | None) -> dict[str, str]:
    made = {"demonstrations, SHA-256 of the episodes": f"`{skills.dataset_sha256}`"}
    if data is not None:
        made["demonstrations"] = f"{data.episodes:,} episodes, {data.steps:,} steps; {_PATH.sub('…', data.source)}"
    made["skills"] = f"seed {skills.seed}, SHA-256 `{skills.sha256}`, spirl-ray {skills.package_version}"
    if policy is not None:
        made["policy"] = f"seed {policy.seed}, settings `{policy.config_hash}`, SHA-256 `{policy.sha256}`"
    processes = [] if policy is None else read_provenance(folder)
    if processes:
        made["commit"] = ", ".join(f"`{commit}`" for commit in dict.fromkeys(p["commit"] for p in processes))
        made["versions"] = ", ".join(f"{name} {version}" for name, version in processes[-1]["versions"].items())
    return made


def _template() -> Any:
    environment = Environment(
        loader=PackageLoader("spirl_ray.reports"),
        autoescape=False,  # Markdown; a hub cleans what it shows
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("model_card.md.j2")
