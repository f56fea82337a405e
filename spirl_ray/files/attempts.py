"""Fencing: of all processes that have begun to work on a result, only the newest may continue to write it.

Locks keep two processes apart on one machine. A job that a cluster starts again may overlap with the attempt before,
which lost its node's connection but not its life, and shared storage may not have locks that work across nodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from spirl_ray.errors import SpirlError
from spirl_ray.files import layout


@dataclass(frozen=True)
class Attempt:
    """The work of one process on a result; picklable, so that workers can check it as well."""

    folder: Path
    """The folder with an empty file for each attempt."""
    number: int

    @property
    def result(self) -> Path:
        """The folder of what is worked on."""
        return self.folder.parent

    @classmethod
    def begin(cls, result: Path) -> Attempt:
        """Takes the next number; from here on, older attempts fail their next `check`.

        Args:
            result: folder of what is worked on; made if it does not exist.
        """
        folder = result / layout.ATTEMPTS
        folder.mkdir(parents=True, exist_ok=True)
        number = _newest(folder)
        while True:
            number += 1
            try:
                (folder / f"{number:06d}").touch(exist_ok=False)
            except FileExistsError:
                continue  # another process took it at this moment
            return cls(folder, number)

    def check(self) -> None:
        """Checks that this is the newest attempt, before anything is written that another attempt may write, too.

        Raises:
            SpirlError: a newer attempt has begun.
        """
        newest = _newest(self.folder)
        if newest != self.number:
            raise SpirlError(
                f"{self.result}: attempt {newest} at this result has begun, so this one, number {self.number}, "
                "stops. Nothing is lost: the newer one resumes from the last checkpoint."
            )


def _newest(folder: Path) -> int:
    return max((int(file.name) for file in folder.iterdir() if file.name.isdecimal()), default=0)
