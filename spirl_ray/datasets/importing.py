"""From a source to a validated dataset on disk, as Ray Data tasks: one task reads and writes one shard."""

from __future__ import annotations

import functools
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray.data
from ray.exceptions import RayError

from spirl_ray import __version__
from spirl_ray.datasets.sources import Chunk, EpisodeSource
from spirl_ray.envs import environment as environment_spec
from spirl_ray.episodes.dataset import CARD, FORMAT_VERSION, DatasetCard, FileEntry, read_card
from spirl_ray.episodes.episode import Episode
from spirl_ray.episodes.features import Features
from spirl_ray.episodes.table import episodes_to_table, schema
from spirl_ray.episodes.validation import Problem, check_episode, content_digest, episode_digest, file_digest
from spirl_ray.errors import SpirlError
from spirl_ray.files.fingerprint import fingerprint

_SHOWN_PROBLEMS = 10
_EPISODES_A_ROW_GROUP = 64


@dataclass(frozen=True)
class ImportReport:
    """What an import did."""

    card: DatasetCard
    skipped: list[Problem]
    """Problems of the episodes that were left out; empty unless ``skip_bad``."""
    missing: int = 0
    """Indices for which the source had no episode (a scripted expert that gave up)."""


@dataclass(frozen=True)
class _Shard:
    """What a task needs to write one Parquet file, and nothing else."""

    source: EpisodeSource
    indices: Chunk
    file: Path
    features: Features
    action_dim: int
    skip_bad: bool

    @property
    def key(self) -> str:
        """Equal for shards of equal content."""
        features = {name: feature.model_dump(mode="json") for name, feature in self.features.items()}
        facts = (self.source.identity().facts, self.indices, features, self.action_dim, self.skip_bad)
        return fingerprint(FORMAT_VERSION, __version__, *facts)

    @property
    def result(self) -> Path:
        """Where the facts about a finished shard are, so that an interrupted import need not write it again."""
        return self.file.with_suffix(".json")


def import_dataset(
    source: EpisodeSource,
    out: Path,
    *,
    environment: str,
    skip_bad: bool = False,
    shards: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> ImportReport:
    """Read every episode of `source`, check it, and write a dataset to the folder `out`.

    Episode chunk i goes to file i modulo ``min(shards, chunks)``; the result is the same for any number of
    workers. The dataset appears at `out` complete or not at all. Ray must be initialised; on a cluster `out`
    must be on storage that all nodes share.

    Args:
        source: where the episodes come from.
        out: folder to create. If it already is a dataset of the same content, that one is returned.
        environment: spirl id; gives the features and the width of actions.
        skip_bad: leave bad episodes out and report them, instead of refusing the import.
        shards: number of Parquet files and of tasks, each of one CPU.
        progress: called with (episodes looked at, episodes in all) whenever a file is done.

    Raises:
        SpirlError: bad episodes, an unreadable source, something else at `out`, or storage that fails.
    """
    if shards < 1:
        raise SpirlError(f"data import: shards must be ≥ 1, not {shards}")
    spec = environment_spec(environment)
    out = Path(out).absolute()
    description = source.description()
    _refuse_foreign(out, environment)
    chunks = source.chunks()
    if not chunks:
        raise SpirlError(f"{description.source}: holds no episode")
    with _partial_folder(out) as partial:
        count = min(shards, len(chunks))
        tasks = [
            _Shard(
                source=source,
                indices=tuple(index for chunk in chunks[number::count] for index in chunk),
                file=partial / f"shard-{number:05d}",
                features=spec.features,
                action_dim=spec.action_dim,
                skip_bad=skip_bad,
            )
            for number in range(count)
        ]
        results = _run(tasks, progress)
        found = sorted(facts for result in results for facts in result["problems"])
        problems = [Problem(description.source, *facts) for facts in found]
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
        card = DatasetCard(
            environment=environment,
            features=dict(spec.features),
            action_dim=spec.action_dim,
            episodes=len(digests),
            steps=sum(result["steps"] for result in results),
            source=description.source,
            licence=description.licence,
            attribution=description.attribution,
            content_sha256=content_digest(digests),
            files=_name_files(partial, tasks, results),
            created_by=f"spirl-ray {__version__}",
        )
        read = len(digests) + len({problem.episode for problem in problems})
        report = ImportReport(card, problems, missing=sum(map(len, chunks)) - read)
        (partial / CARD).write_text(card.model_dump_json(indent=2) + "\n", encoding="utf-8")
        existing = _publish(partial, out, card)
    return report if existing is None else ImportReport(existing, problems, report.missing)


def _run(tasks: list[_Shard], progress: Callable[[int, int], None] | None) -> list[dict[str, Any]]:
    """Results of `_write_shard` in the order of `tasks`."""
    total = sum(len(task.indices) for task in tasks)
    results = {number: found for number, task in enumerate(tasks) if (found := _finished(task)) is not None}
    done = sum(len(tasks[number].indices) for number in results)
    if progress is not None and done:
        progress(done, total)
    numbers = [{"shard": number} for number in range(len(tasks)) if number not in results]
    if not numbers:
        return [results[number] for number in range(len(tasks))]
    # One block for each shard makes one task of it.
    rows = ray.data.from_items(numbers, override_num_blocks=len(numbers)).map(
        functools.partial(_write_row, tasks), num_cpus=1
    )
    rows.context.enable_progress_bars = False
    rows.context.print_on_execution_start = False
    try:
        # Without prefetching, or a finished shard would only be seen once the next one is finished too.
        for batch in rows.iter_batches(batch_size=None, prefetch_batches=0, batch_format="numpy"):
            for number, text in zip(batch["shard"].tolist(), batch["result"].tolist(), strict=True):
                result = json.loads(text)
                if "error" in result:
                    raise SpirlError(result["error"])
                results[number] = result
                done += len(tasks[number].indices)
                if progress is not None:
                    progress(done, total)
    except RayError as error:
        unwrapped = spirl_error_within(error)
        if unwrapped is None:
            raise
        raise unwrapped from error
    return [results[number] for number in range(len(tasks))]


def spirl_error_within(error: BaseException) -> SpirlError | None:
    """The `SpirlError` that Ray wrapped on its way from a task to the driver, if that is what happened."""
    seen: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        found = pending.pop()
        if found is None or id(found) in seen:
            continue
        seen.add(id(found))
        if isinstance(found, SpirlError):
            return SpirlError(*found.args)
        pending += [found.__context__, found.__cause__, getattr(found, "cause", None)]
    return None


def _write_row(tasks: list[_Shard], row: dict[str, Any]) -> dict[str, Any]:
    shard = tasks[int(row["shard"])]
    try:
        result = _write_shard(shard)
    except SpirlError as error:
        # As a value, so that Ray neither retries nor logs a traceback for what is the user's to fix.
        result = {"error": str(error)}
    except OSError as error:
        result = {"error": _storage_message(shard.file.parent, error)}
    return {"shard": row["shard"], "result": json.dumps(result)}


def _write_shard(shard: _Shard) -> dict[str, Any]:
    """Read, check and write one shard; JSON-able facts about it."""
    digests: list[tuple[str, str]] = []
    problems: list[tuple[str, str, str]] = []
    steps = 0
    # A task that Ray retries must not meet the file of an attempt that is still dying.
    attempt = shard.file.with_name(f"{shard.file.name}.{os.getpid()}")
    kind = (shard.features, shard.action_dim)
    with pq.ParquetWriter(attempt, schema(*kind), compression="zstd", write_page_checksum=True) as writer:
        waiting: list[Episode] = []
        for episode in shard.source.read(shard.indices):
            found = check_episode(episode, *kind)
            if found:
                problems += [(episode.id, name, what) for name, what in found]
                if not shard.skip_bad and len(problems) >= _SHOWN_PROBLEMS:
                    break
                continue
            digests.append((episode.id, episode_digest(episode)))
            steps += episode.length
            waiting.append(episode)
            if len(waiting) == _EPISODES_A_ROW_GROUP:
                writer.write_table(episodes_to_table(waiting, *kind))
                waiting = []
        if waiting:
            writer.write_table(episodes_to_table(waiting, *kind))
    os.replace(attempt, shard.file)
    entry = FileEntry(sha256=file_digest(shard.file), bytes=shard.file.stat().st_size, rows=len(digests))
    result = {"digests": digests, "problems": problems, "steps": steps, "file": entry.model_dump()}
    note = shard.result.with_name(f"{shard.result.name}.{os.getpid()}")
    note.write_text(json.dumps({"key": shard.key, "result": result}))
    os.replace(note, shard.result)
    return result


def _finished(shard: _Shard) -> dict[str, Any] | None:
    """What an interrupted import knew of a shard, if it had finished this one."""
    try:
        note = json.loads(shard.result.read_text())
        result: dict[str, Any] = note["result"]
        whole = note["key"] == shard.key and file_digest(shard.file) == result["file"]["sha256"]
    except (OSError, ValueError, KeyError):
        return None
    return result if whole else None


def _name_files(partial: Path, tasks: list[_Shard], results: list[dict[str, Any]]) -> dict[str, FileEntry]:
    """Give the shards their final names; one that lost all its episodes is dropped."""
    pairs = [(task.file, FileEntry(**result["file"])) for task, result in zip(tasks, results, strict=True)]
    kept = [(file, entry) for file, entry in pairs if entry.rows]
    files = {}
    for number, (file, entry) in enumerate(kept):
        if not file.is_file():
            raise SpirlError(
                f"{file}: written by a task but not visible here; the dataset must be on storage that all nodes share"
            )
        name = f"episodes-{number:05d}-of-{len(kept):05d}.parquet"
        os.rename(file, partial / name)
        files[name] = entry
    for file in partial.glob("shard-*"):
        file.unlink()
    return files


def _refuse_foreign(out: Path, environment: str) -> None:
    """Refuse early what can never be the same dataset; the content itself is compared at the end."""
    try:
        if not os.path.lexists(out) or (out.is_dir() and not any(out.iterdir())):
            return
    except OSError as error:
        raise SpirlError(_storage_message(out, error)) from error
    if not out.is_dir():
        raise SpirlError(f"{out}: there is a file; choose another folder for the dataset or remove it")
    if not (out / CARD).exists():
        raise SpirlError(f"{out}: there is a folder that is not a dataset (no {CARD}); choose another one or remove it")
    card = read_card(out)
    if card.environment != environment:
        raise SpirlError(_occupied(out, card))


def _publish(partial: Path, out: Path, card: DatasetCard) -> DatasetCard | None:
    """Move the finished folder to its place; the card that was there if that is the same dataset."""
    (partial / _OWNER).unlink()
    try:
        os.rename(partial, out)
        return None
    except OSError:
        if not (out / CARD).exists():
            raise
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
        f"{out}: there is another dataset ({card.episodes} episodes of {card.environment} from "
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
        f"{source}: bad episodes; repair the source, or leave them out with skip_bad "
        f"(which needs at least one good episode):\n{shown}{more}"
    )


_OWNER = "owner.json"


@contextmanager
def _partial_folder(out: Path) -> Iterator[Path]:
    """A sibling of `out` to write into: what an import that was stopped has left, or a new folder.

    It is removed when the import fails, and stays when it is stopped.
    """
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    stopped = False
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        for leftover in sorted(out.parent.glob(f".{out.name}.partial-*")):
            if leftover == partial or not _abandoned(leftover):
                continue
            if partial.exists():
                shutil.rmtree(leftover)
            else:
                leftover.rename(partial)
        partial.mkdir(exist_ok=True)
        (partial / _OWNER).write_text(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}))
        yield partial
    except (OSError, pa.ArrowException) as error:
        raise SpirlError(_storage_message(out, error)) from error
    except (KeyboardInterrupt, SystemExit):
        stopped = True
        raise
    finally:
        if not stopped:
            shutil.rmtree(partial, ignore_errors=True)


def _abandoned(folder: Path) -> bool:
    """Whether the process that made a partial folder is gone; on shared storage it may be on another host."""
    try:
        pid = int(folder.name.rpartition("-")[2])
        host = json.loads((folder / _OWNER).read_text())["host"]
    except (OSError, ValueError, KeyError):
        host = socket.gethostname()
    return host == socket.gethostname() and (pid == os.getpid() or not _alive(pid))


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _storage_message(path: Path, error: BaseException) -> str:
    name = getattr(error, "filename", None) or path
    reason = getattr(error, "strerror", None) or error
    return f"{name}: {reason}; the dataset could not be written"
