"""The demonstrations as decisions of stage 2: made once for a policy's skills, environment and labels, on Ray Data."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

from spirl_ray.datasets.tasks import run_tasks
from spirl_ray.episodes.dataset import dataset_files, read_card, read_file
from spirl_ray.files import layout
from spirl_ray.files.atomic import partial_folder
from spirl_ray.files.shared import require_seen
from spirl_ray.pipeline.events import Progress, silent
from spirl_ray.pipeline.findings import offline_findings
from spirl_ray.pipeline.results import Finding
from spirl_ray.pipeline.workspace import Trial
from spirl_ray.rl.config import method_and_policy
from spirl_ray.rl.offline_decisions import (
    Encoding,
    OfflineCard,
    make_decisions,
    read_offline_card,
    write_card,
    write_part,
)
from spirl_ray.rl.offline_labels import Labeller


def offline_decisions(trial: Trial, progress: Progress = silent) -> Path | None:
    """Makes the offline decisions of a trial, unless they are there; None for a method without any.

    Raises:
        SpirlError: as `label_decisions`.
    """
    out = trial.offline
    if out is None:
        return None
    with trial.workspace.locked(out):
        if not (out / layout.OFFLINE_CARD).exists():  # making the environment and the policy takes a while
            encoding = _encoding(trial)
            label_decisions(encoding, trial.workspace.dataset, out, lambda done, total: progress(0, total))
    return out


def _encoding(trial: Trial) -> Encoding:
    experiment, method = trial.experiment, trial.method_config
    _, policy = method_and_policy(
        experiment.environment, str(trial.skills), method.model_dump(mode="json"), experiment.train
    )
    return Encoding(
        skills=str(trial.skills.absolute()),
        policy=policy,
        environment=experiment.environment,
        latent_limit=method.latent_limit,
        labels=experiment.train.offline_labels,
        seed=trial.seed,
    )


def check_labels(trial: Trial) -> None:
    """Labels one demonstration where a trial is going to learn from them a second time.

    Raises:
        SpirlError: the judge fails, or labels are not those of this task; see `Labeller.check`.
    """
    experiment = trial.experiment
    if trial.method_config.offline_fraction:
        Labeller(experiment.environment, experiment.train.offline_labels).check(trial.workspace.dataset)


def noted_offline(trial: Trial) -> tuple[Finding, ...]:
    """Says what is known of a trial's offline decisions; nothing where there are none."""
    out = trial.offline
    if out is None or not (out / layout.OFFLINE_CARD).exists():
        return ()
    return offline_findings(read_offline_card(out))


def label_decisions(
    encoding: Encoding, dataset: Path, out: Path, progress: Callable[[int, int], None] = lambda done, total: None
) -> OfflineCard:
    """Makes the decisions of a dataset, a task for each of its files, unless they are there.

    Args:
        encoding: how they are made.
        dataset: folder of the dataset.
        out: folder of the decisions; every node must see both.
        progress: callback that gets the number of finished files, and of all.

    Raises:
        SpirlError: the environment cannot judge the recorded states, or the episodes lack what the policy observes.
    """
    if (out / layout.OFFLINE_CARD).exists():
        return read_offline_card(out)
    Labeller(encoding.environment, encoding.labels).check(dataset)  # before any work
    files = dataset_files(dataset)
    with partial_folder(out) as folder:
        parts: dict[int, dict[str, int]] = {}
        label = functools.partial(_label_file, encoding, files, folder.absolute())
        for number, part in run_tasks(label, range(len(files))):
            parts[number] = part
            progress(len(parts), len(files))
        content = read_card(dataset).content_sha256
        card = write_card(folder, encoding, content, [parts[number] for number in sorted(parts)])
    return card


def _label_file(encoding: Encoding, files: list[str], out: Path, number: int) -> dict[str, int]:
    require_seen(out)
    file = files[number]
    episodes = read_file(file, read_card(Path(file).parent))
    return write_part(out, number, make_decisions(encoding, episodes, number), encoding.latent_limit)
