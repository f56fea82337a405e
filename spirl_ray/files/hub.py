"""Artifacts on a hub with the interface of Hugging Face's: ``hf://ORG/NAME`` or ``hf://ORG/NAME@REVISION``.

Only the files that an artifact consists of are downloaded, and they are then read with the same checks as local ones.
``HF_ENDPOINT`` names another hub, ``HF_TOKEN`` or ``hf auth login`` says who one is, and ``HF_HOME`` is the cache.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from spirl_ray.errors import SpirlError

SCHEME = "hf://"
LIMIT_BYTES = 2**31
"""The most bytes of a file that is downloaded; those of real artifacts are a thousand times smaller."""
_PART = r"[A-Za-z0-9][A-Za-z0-9._-]*"


@dataclass(frozen=True)
class HubPlace:
    """A repository on the hub."""

    repository: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> HubPlace:
        """Reads ``hf://ORG/NAME`` or ``hf://ORG/NAME@REVISION``; anything else is a `SpirlError`."""
        found = re.fullmatch(rf"{SCHEME}({_PART}/{_PART})(?:@([\w./-]+))?", text)
        if found is None:
            raise SpirlError(f"{text} is no place on the hub: write hf://ORG/NAME, or hf://ORG/NAME@REVISION.")
        return cls(found[1], found[2])

    def __str__(self) -> str:
        return f"{SCHEME}{self.repository}" + (f"@{self.revision}" if self.revision else "")


@contextlib.contextmanager
def local_artifact(place: str | Path, files: Sequence[str]) -> Iterator[Path]:
    """Yields the folder of an artifact: a local one as it is, one on the hub as a copy that is removed afterwards.

    Args:
        place: a folder, or ``hf://…``.
        files: the names of the files that are copied from the hub; others are not downloaded.

    Raises:
        SpirlError: the hub cannot be reached, or has no such repository; errors about files name the place.
    """
    if not isinstance(place, str) or not place.startswith(SCHEME):
        yield Path(place)
        return
    hub = HubPlace.parse(place)
    with tempfile.TemporaryDirectory(prefix="spirl-hub-") as name:
        folder = Path(name)
        snapshot = _download(hub, files)
        for file in files:
            # In the hub's cache, files are links to what it has stored.
            if (snapshot / file).exists():
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile((snapshot / file).resolve(), folder / file)
        try:
            yield folder
        except SpirlError as error:
            raise SpirlError(str(error).replace(str(folder), str(hub))) from error


def _download(place: HubPlace, files: Sequence[str]) -> Path:
    _require()
    from huggingface_hub import HfApi, snapshot_download

    listed = None
    # Where the hub does not answer, the cache may have the files; if not, the download says what is wrong.
    with contextlib.suppress(Exception):
        listed = HfApi().model_info(place.repository, revision=place.revision, files_metadata=True)
    for entry in (listed.siblings or ()) if listed is not None else ():
        if entry.rfilename in files and (entry.size or 0) > LIMIT_BYTES:
            raise SpirlError(
                f"{place}: {entry.rfilename} has {entry.size:,} bytes; at most {LIMIT_BYTES:,} are downloaded."
            )
    with _readable(place, "download"):
        found = snapshot_download(place.repository, revision=place.revision, allow_patterns=list(files), max_workers=1)
    return Path(found)


def upload(place: HubPlace, files: Mapping[str, bytes], *, private: bool, message: str) -> str:
    """Writes files to a repository in one commit, and makes the repository if need be.

    Args:
        place: where to; without a revision, the main branch.
        files: contents by name.
        private: True to make a new repository private.
        message: of the commit.

    Returns:
        The address of the commit.

    Raises:
        SpirlError: the hub cannot be reached or refuses.
    """
    _require()
    from huggingface_hub import CommitOperationAdd, HfApi

    with _readable(place, "publish"):
        api = HfApi(library_name="spirl-ray")
        api.create_repo(place.repository, private=private, exist_ok=True)
        operations = [CommitOperationAdd(name, data) for name, data in files.items()]
        commit = api.create_commit(
            place.repository, operations, commit_message=message, revision=place.revision, num_threads=1
        )
    return str(commit.commit_url)


def _require() -> None:
    if find_spec("huggingface_hub") is None:
        raise SpirlError("hf:// needs huggingface_hub: pip install 'spirl-ray[hub]'.")


@contextlib.contextmanager
def _readable(place: HubPlace, what: str) -> Iterator[None]:
    """Turns what the hub's client raises into one `SpirlError`; its kinds and bases differ between its versions."""
    from huggingface_hub import constants, errors

    try:
        yield
    except SpirlError:
        raise
    except errors.RevisionNotFoundError as error:
        raise SpirlError(f"{place}: there is no such revision at {constants.ENDPOINT}.") from error
    except Exception as error:
        response = getattr(error, "response", None)
        if response is None:
            cached = ", and it is not in the cache" if what == "download" else ""
            raise SpirlError(
                f"Cannot {what} {place}: the hub at {constants.ENDPOINT} cannot be reached{cached}. Check the network, "
                "HF_ENDPOINT and HF_HUB_OFFLINE, or copy the artifact's folder by other means and name the folder."
            ) from error
        if response.status_code in (401, 403, 404):
            raise SpirlError(
                f"Cannot {what} {place}: there is no such repository at {constants.ENDPOINT}, or you may not use it. "
                "Say who you are with HF_TOKEN or hf auth login."
            ) from error
        reason = str(error).strip().splitlines()[0]
        raise SpirlError(f"Cannot {what} {place}: {constants.ENDPOINT} answers {reason}") from error
