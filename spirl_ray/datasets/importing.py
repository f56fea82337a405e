"""The import of a source into a validated dataset on disk by Ray Data tasks, each of which writes one shard."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from spirl_ray import __version__
from spirl_ray.datasets.opened import OpenedData
from spirl_ray.datasets.sources import Chunk, EpisodeSource
from spirl_ray.datasets.tasks import run_tasks
from spirl_ray.episodes.actions import ActionRange
from spirl_ray.episodes.dataset import FORMAT_VERSION, DatasetCard, FileEntry, read_card
from spirl_ray.episodes.dataset_file import DatasetFile, write_card
from spirl_ray.episodes.episode import Episode
from spirl_ray.episodes.features import Features
from spirl_ray.episodes.validation import Problem, check_episode, episode_digest, file_digest
from spirl_ray.errors import SpirlError
from spirl_ray.files import layout
from spirl_ray.files.atomic import FolderExists, partial_file, partial_folder, write_json
from spirl_ray.files.fingerprint import fingerprint
from spirl_ray.files.shared import require_seen

_SHOWN_PROBLEMS = 10
OUTSIDE_HINT = "For actions outside their range there are data.actions_outside and interface.action."


@dataclass(frozen=True)
class ImportReport:
    """The report of an import."""

    card: DatasetCard
    skipped: list[Problem]
    """The problems of the episodes that were left out; empty unless ``skip_bad``."""
    missing: int = 0
    """The number of indices for which the source had no episode, because a scripted expert gave up."""


@dataclass(frozen=True)
class _Shard:
    """The values that a task needs to write one Parquet file, and nothing else."""

    source: EpisodeSource
    indices: Chunk
    file: Path
    features: Features
    action_dim: int
    actions: ActionRange | None
    skip_bad: bool

    @property
    def key(self) -> str:
        """A key that is equal for shards of equal content."""
        features = {name: feature.model_dump(mode="json") for name, feature in self.features.items()}
        parts = (self.source.identity().settings, self.indices, features, self.action_dim, self.actions, self.skip_bad)
        return fingerprint(FORMAT_VERSION, __version__, *parts)

    @property
    def result(self) -> Path:
        """The file that describes a finished shard, so that an interrupted import need not write it again."""
        return self.file.with_suffix(".json")


def import_dataset(
    data: OpenedData,
    out: Path,
    *,
    environment: str | None,
    skip_bad: bool = False,
    shards: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> ImportReport:
    """Reads every episode of a source, checks it, and writes a dataset to the folder ``out``.

    Episode chunk i goes to file i modulo ``min(shards, chunks)``; the result is the same for any number of
    workers. The dataset appears at `out` complete or not at all. Ray must be initialised; on a cluster `out`
    must be on storage that all nodes share.

    Args:
        data: source of the episodes, and what they hold.
        out: folder to create. If it already is a dataset of the same content, that one is returned.
        environment: id of the environment, for the card; None for data alone.
        skip_bad: leave bad episodes out and report them, instead of refusing the import.
        shards: number of Parquet files and of tasks, each of one CPU.
        progress: called with (episodes read, episodes in all) whenever a file is done.

    Raises:
        SpirlError: bad episodes, an unreadable source, something else at `out`, or storage that fails.
    """
    if shards < 1:
        raise SpirlError(f"data import: shards must be ≥ 1, not {shards}")
    out = Path(out).absolute()
    _refuse_foreign(out, environment)
    source = data.source
    chunks = source.chunks()
    if not chunks:
        raise SpirlError(f"{source.description().source}: the source holds no episode")
    try:
        with partial_folder(out, resume=True) as partial:
            report = _write_dataset(partial, data, chunks, environment, skip_bad, shards, progress)
    except FolderExists:
        return replace(report, card=_same_dataset(out, report.card))
    return report


def _write_dataset(
    partial: Path,
    data: OpenedData,
    chunks: list[Chunk],
    environment: str | None,
    skip_bad: bool,
    shards: int,
    progress: Callable[[int, int], None] | None,
) -> ImportReport:
    """Writes the files of a dataset and its card to a folder, which may hold shards of an interrupted import."""
    description = data.source.description()
    count = min(shards, len(chunks))
    tasks = [
        _Shard(
            source=data.source,
            indices=tuple(index for chunk in chunks[number::count] for index in chunk),
            file=partial / f"shard-{number:05d}",
            features=data.features,
            action_dim=data.action_dim,
            actions=data.actions,
            skip_bad=skip_bad,
        )
        for number in range(count)
    ]
    results = _run(tasks, progress)
    found = sorted(problem for result in results for problem in result["problems"])
    problems = [Problem(description.source, *problem) for problem in found]
    if problems and not skip_bad:
        raise SpirlError(_refusal(description.source, problems))
    digests: list[tuple[str, str]] = [
        (identifier, digest) for result in results for identifier, digest in result["digests"]
    ]
    if not digests:
        raise SpirlError(
            _refusal(description.source, problems)
            if problems
            else f"{description.source}: gave no episode for any of {sum(map(len, chunks))} indices"
        )
    _refuse_twins(description.source, [identifier for identifier, _ in digests])
    card = write_card(
        partial,
        _name_files(partial, tasks, results),
        digests,
        sum(result["steps"] for result in results),
        environment=environment,
        features=data.features,
        action_dim=data.action_dim,
        actions=data.actions,
        rewards=data.rewards,
        source=description.source,
        licence=description.licence,
        attribution=description.attribution,
    )
    read = len(digests) + len({problem.episode for problem in problems})
    return ImportReport(card, problems, missing=sum(map(len, chunks)) - read)


def _run(tasks: list[_Shard], progress: Callable[[int, int], None] | None) -> list[dict[str, Any]]:
    """Runs `_write_shard` on Ray, and returns the results in the order of ``tasks``."""
    total = sum(len(task.indices) for task in tasks)
    results = {number: found for number, task in enumerate(tasks) if (found := _finished(task)) is not None}
    done = sum(len(tasks[number].indices) for number in results)
    if progress is not None and done:
        progress(done, total)
    missing = [number for number in range(len(tasks)) if number not in results]
    for number, result in run_tasks(functools.partial(_write_one, tasks), missing):
        results[number] = result
        done += len(tasks[number].indices)
        if progress is not None:
            progress(done, total)
    return [results[number] for number in range(len(tasks))]


def _write_one(tasks: list[_Shard], number: int) -> dict[str, Any]:
    shard = tasks[number]
    try:
        return _write_shard(shard)
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            require_seen(Path(error.filename or shard.file))
        raise SpirlError(
            f"Cannot write the dataset: {error.filename or shard.file}: {error.strerror or error}"
        ) from error


def _write_shard(shard: _Shard) -> dict[str, Any]:
    """Reads, checks and writes one shard; returns a JSON-able description of it."""
    require_seen(shard.file.parent)
    problems: list[tuple[str, str, str]] = []
    with (
        partial_file(shard.file) as partial,
        DatasetFile(partial, shard.features, shard.action_dim) as written,
    ):
        source, indices = shard.source, shard.indices
        for episode in _readable(source, indices, problems) if shard.skip_bad else source.read(indices):
            if episode.terminated and episode.truncated:
                episode = replace(episode, truncated=False)  # a time limit in the step in which the task ended
            found = check_episode(episode, shard.features, shard.action_dim, shard.actions)
            if found:
                problems += [(episode.id, name, what) for name, what in found]
                if not shard.skip_bad and len(problems) >= _SHOWN_PROBLEMS:
                    break
                continue
            written.add(episode, episode_digest(episode))
        entry = written.finish()
    result = {"digests": written.digests, "problems": problems, "steps": written.steps, "file": entry.model_dump()}
    write_json(shard.result, {"key": shard.key, "result": result})
    return result


def _readable(source: EpisodeSource, indices: Chunk, problems: list[tuple[str, str, str]]) -> Iterator[Episode]:
    """Reads the episodes that can be read, and notes a problem for each that the source refuses. Which one it refused
    is found by reading halves, because sources read many episodes of a file much faster than one at a time."""
    seen: set[str] = set()
    try:
        for episode in source.read(indices):
            seen.add(episode.id)
            yield episode
    except SpirlError as error:
        if len(indices) == 1:
            problems.append((f"number {indices[0]}", "", str(error)))
            return
        half = len(indices) // 2
        for part in (indices[:half], indices[half:]):
            yield from (episode for episode in _readable(source, part, problems) if episode.id not in seen)


def _finished(shard: _Shard) -> dict[str, Any] | None:
    """Returns the description of a shard from an interrupted import, if that had finished the shard."""
    try:
        note = json.loads(shard.result.read_text())
        result: dict[str, Any] = note["result"]
        whole = note["key"] == shard.key and file_digest(shard.file) == result["file"]["sha256"]
    except (OSError, ValueError, KeyError):
        return None
    return result if whole else None


def _name_files(partial: Path, tasks: list[_Shard], results: list[dict[str, Any]]) -> dict[str, FileEntry]:
    """Gives the shards their final names; one that lost all its episodes is dropped."""
    pairs = [(task.file, FileEntry(**result["file"])) for task, result in zip(tasks, results, strict=True)]
    kept = [(file, entry) for file, entry in pairs if entry.rows]
    files = {}
    for number, (file, entry) in enumerate(kept):
        if not file.is_file():
            raise SpirlError(
                f"{file}: written by a task but not visible here; the dataset must be on storage that all nodes share"
            )
        name = layout.episodes_file(number, len(kept))
        file.rename(partial / name)
        files[name] = entry
    for file in [*partial.glob("shard-*"), *partial.glob(".shard-*")]:
        file.unlink()
    return files


def _refuse_foreign(out: Path, environment: str | None) -> None:
    """Refuses early what can never be the same dataset; the content itself is compared at the end."""
    try:
        if not os.path.lexists(out) or (out.is_dir() and not any(out.iterdir())):
            return
    except OSError as error:
        raise SpirlError(f"Cannot write {out}: {error.strerror}") from error
    if not out.is_dir():
        raise SpirlError(f"{out}: this is a file; choose a folder for the dataset or remove the file")
    if not (out / layout.DATASET_CARD).exists():
        raise SpirlError(
            f"{out}: the folder has no {layout.DATASET_CARD}, so it is not a dataset; choose another one or remove it"
        )
    card = read_card(out)
    if card.environment != environment:
        raise SpirlError(_occupied(out, card))


def _same_dataset(out: Path, card: DatasetCard) -> DatasetCard:
    """Returns the card of the dataset that exists already, if that is complete and of the same content."""
    existing = read_card(out)
    if existing.content_sha256 != card.content_sha256:
        raise SpirlError(_occupied(out, existing))
    for name, entry in existing.files.items():
        file = out / name
        if not file.is_file() or file_digest(file) != entry.sha256:
            raise SpirlError(
                f"{file}: missing or damaged in a dataset that is otherwise the one to import; remove {out} "
                "and import again"
            )
    return existing


def _occupied(out: Path, card: DatasetCard) -> str:
    return (
        f"{out}: there is another dataset ({card.episodes} episodes of {card.environment or 'no environment'} from "
        f"{card.source}); choose another folder or remove it"
    )


def _refuse_twins(source: str, identifiers: list[str]) -> None:
    seen: set[str] = set()
    for identifier in identifiers:
        if identifier in seen:
            raise SpirlError(f"{source}: more than one episode has the id {identifier!r}; ids must be unique")
        seen.add(identifier)


def _refusal(source: str, problems: list[Problem]) -> str:
    shown = "\n".join(f"  {problem}" for problem in problems[:_SHOWN_PROBLEMS])
    more = f"\n  and {len(problems) - _SHOWN_PROBLEMS} or more" if len(problems) > _SHOWN_PROBLEMS else ""
    return (
        f"{source}: bad episodes; repair the source, or leave them out with data.skip_bad (at least one must be good). "
        f"{OUTSIDE_HINT}\n{shown}{more}"
    )
