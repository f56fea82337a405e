"""A copy of an experiment's folder behind a URI (S3, GCS, HDFS, …), from which another machine can resume.

Work happens in the folder, because locks and atomic renames need a file system. While a result is in work, what changed
is copied every minute, and once more when it ends. In this project JSON files come last and complete the files
beside them; so here: they are read first and copied last, so that a machine may die at any moment.

One folder writes to a storage at a time: the newest that took it, by an id on both sides. A job that is started again
on another machine takes it over, and the one before, if it still lives, notices this and stops copying.

Names in a storage that lead out of the folder are refused (SECURITY.md).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pyarrow as pa
from pyarrow import fs

from spirl_ray.errors import SpirlError
from spirl_ray.files.atomic import write_atomically

OWNER, PARTIAL = ".storage-owner", ".storage-partial"
_COPY_EVERY_S = 60.0
_CHUNK_BYTES = 2**20
_OWNER_LIMIT_BYTES = 100


class _Stamp(NamedTuple):
    """The state of a file when it was examined."""

    size: int
    modified: int
    """The time of the last change in ns."""


class _Gone(Exception):
    """The error that a file was removed or replaced while everything was being copied."""


@dataclass
class Storage:
    """The storage of one experiment folder."""

    folder: Path
    uri: str
    copy_every_s: float = _COPY_EVERY_S
    _copied: dict[str, _Stamp] = field(default_factory=dict, repr=False)
    """The state of files when this process copied them, by path in the folder."""

    def __post_init__(self) -> None:
        try:
            self._remote, root = fs.FileSystem.from_uri(self.uri)
        except (pa.ArrowException, ValueError, OSError) as error:
            raise SpirlError(
                f"storage: {self.uri} cannot be opened: {error}. Use a URI such as s3://bucket/folder or "
                "gs://bucket/folder, and set its credentials in the environment, as for every client of that storage."
            ) from error
        self._root = root.rstrip("/")
        if isinstance(self._remote, fs.LocalFileSystem):
            there, here = Path(self._root).resolve(), self.folder.resolve()
            if there == here or there in here.parents or here in there.parents:
                raise SpirlError(f"storage: {self.uri} overlaps with the output, {self.folder}. Choose another one.")

    def attach(self, mark: str) -> None:
        """Fills a new folder from the storage, if it holds anything, and takes it. Its folder must be locked.

        Args:
            mark: name of the file that marks an experiment's folder, on both sides.

        Raises:
            SpirlError: another folder has taken the storage, or it cannot be used.
        """
        with self._named_errors("used"):
            here, there = (self.folder / mark).exists(), self._info(mark) is not None
            if here and there and self._owner() != self._id():
                raise SpirlError(
                    f"{self.folder} is not what {self.uri} is a copy of, or no longer. Choose another `output`, which "
                    "then starts from the storage, or another `storage`."
                )
            if there and not here:
                self._fetch(mark)
                self._take()

    def _take(self) -> None:
        owner = uuid.uuid4().hex.encode()
        write_atomically(self.folder / OWNER, owner)
        self._write(OWNER, owner)

    @contextlib.contextmanager
    def mirrored(self, target: Path) -> Iterator[None]:
        """Copies what changes in ``target`` (in the folder) while the block runs, and when it ends, however it ends.

        Raises:
            SpirlError: the last copy fails; an earlier copy that fails is repeated by the next.
        """
        done = threading.Event()

        def copy_now_and_then() -> None:
            while not done.wait(self.copy_every_s):
                with contextlib.suppress(SpirlError):
                    self.copy(target)

        thread = threading.Thread(target=copy_now_and_then, daemon=True, name="storage")
        thread.start()

        def stop() -> None:
            done.set()
            thread.join()

        try:
            yield
        except BaseException:  # Ctrl-C and SIGTERM, too, because work resumes from this copy
            stop()
            with contextlib.suppress(SpirlError):  # the first error is the one that matters
                self.copy(target)
            raise
        stop()
        self.copy(target)

    def copy(self, target: Path) -> None:
        """Makes the storage's copy of a file or folder in the folder the same as it is now.

        Raises:
            SpirlError: the storage cannot be written to, or another folder has taken it.
        """
        with self._named_errors("written"), contextlib.suppress(_Gone):  # then the next copy will be complete
            if (owner := self._owner()) is None:
                self._take()
            elif owner != self._id():
                raise SpirlError(
                    f"storage: {self.uri} has been taken by another run of this experiment, which resumes from "
                    f"what was copied. What this one has done since is in {self.folder} alone."
                )
            there = self._list(target)
            stamps = {name: self._stamp(name) for name in self._files(target)}
            changed = [name for name in stamps if not self._known(name, stamps[name], there.get(name))]
            completing = {name: self._read(name) for name in changed if name.endswith(".json")}
            for name in changed:
                if name not in completing:
                    self._send(name)
                    self._copied[name] = stamps[name]
            for name in sorted(completing, key=lambda name: stamps[name].modified):
                self._write(name, completing[name])
                self._copied[name] = stamps[name]
            for name in there.keys() - stamps.keys() - {OWNER}:  # old checkpoints, for one: they would fill the storage
                self._remote.delete_file(self._path(name))

    # --- the folder ---

    def _files(self, target: Path) -> Iterator[str]:
        """Paths in the folder of files that count: nothing hidden, which is partial or a lock, and no links."""
        if target.is_file():
            yield target.relative_to(self.folder).as_posix()
        for root, folders, names in os.walk(target):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for path in (Path(root) / name for name in names if not name.startswith(".")):
                if path.is_file() and not path.is_symlink():
                    yield path.relative_to(self.folder).as_posix()

    def _known(self, name: str, stamp: _Stamp, there: fs.FileInfo | None) -> bool:
        """True where the storage has the file as it is, because this process has copied it, or by its size and time."""
        if there is None or name in self._copied:
            return there is not None and self._copied[name] == stamp
        same = there.size == stamp.size and there.mtime_ns is not None and there.mtime_ns >= stamp.modified
        return same and not name.endswith(".json")

    def _stamp(self, name: str) -> _Stamp:
        with _still_there():
            found = (self.folder / name).stat()
        return _Stamp(found.st_size, found.st_mtime_ns)

    def _read(self, name: str) -> bytes:
        with _still_there():
            return (self.folder / name).read_bytes()

    def _id(self) -> str:
        path = self.folder / OWNER
        return path.read_text() if path.exists() else "none"

    # --- the storage ---

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _info(self, name: str) -> fs.FileInfo | None:
        info = self._remote.get_file_info(self._path(name))
        return info if info.type == fs.FileType.File else None

    def _list(self, target: Path) -> dict[str, fs.FileInfo]:
        """Lists what the storage has of a file or folder, by path in the folder.

        Raises:
            SpirlError: a name would lead out of the folder.
        """
        under = target.relative_to(self.folder).as_posix()
        if info := self._info(under) if under != "." else None:
            return {under: info}
        selector = fs.FileSelector(self._root if under == "." else self._path(under), True, True)
        found = {}
        for info in self._remote.get_file_info(selector):
            name = info.path.removeprefix(self._root + "/")
            if any(part in ("", ".", "..") for part in name.split("/")) or "\\" in name or "\0" in name:
                raise SpirlError(f"storage: {self.uri} holds {name!r}, which no experiment has written. Remove it.")
            if info.type == fs.FileType.File:
                found[name] = info
        return found

    def _owner(self) -> str | None:
        if self._info(OWNER) is None:
            return None
        with self._remote.open_input_stream(self._path(OWNER)) as stream:
            return bytes(stream.read(_OWNER_LIMIT_BYTES)).decode("ascii", "replace")

    def _send(self, name: str) -> None:
        with _still_there():
            source = (self.folder / name).open("rb")
        with source, self._writing(name) as sink:
            shutil.copyfileobj(source, sink, _CHUNK_BYTES)

    def _write(self, name: str, content: bytes) -> None:
        with self._writing(name) as sink:
            sink.write(content)

    @contextlib.contextmanager
    def _writing(self, name: str) -> Iterator[pa.NativeFile]:
        """Opens a file to write: object stores show it when it is complete, and in file systems it is renamed then."""
        path = PurePosixPath(self._path(name))
        if self._remote.type_name not in ("local", "hdfs"):
            with self._remote.open_output_stream(str(path)) as sink:
                yield sink
            return
        partial = path.with_name(f".{path.name}.partial")
        self._remote.create_dir(str(path.parent), recursive=True)
        with self._remote.open_output_stream(str(partial)) as sink:
            yield sink
        self._remote.move(str(partial), str(path))

    def _fetch(self, mark: str) -> None:
        """Copies everything beside the folder's contents, then moves it there, the mark last."""
        partial = self.folder / PARTIAL
        shutil.rmtree(partial, ignore_errors=True)
        for name, info in self._list(self.folder).items():
            if PurePosixPath(name).name.startswith("."):
                continue
            path = partial / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with self._remote.open_input_stream(info.path) as source, path.open("wb") as sink:
                shutil.copyfileobj(source, sink, _CHUNK_BYTES)
            if info.mtime_ns is not None:
                os.utime(path, ns=(info.mtime_ns, info.mtime_ns))
        for path in sorted(partial.iterdir(), key=lambda path: path.name == mark):
            path.rename(self.folder / path.name)
        partial.rmdir()

    @contextlib.contextmanager
    def _named_errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, OSError) as error:
            raise SpirlError(f"storage: {self.uri} cannot be {what}: {error}. {self.folder} is as it was.") from error


@contextlib.contextmanager
def _still_there() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise _Gone from error
