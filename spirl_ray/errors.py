"""The one exception whose message is written for users, and the search for it within other errors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


class SpirlError(Exception):
    """Bad input or an unusable environment, in one message that says what is wrong, where, and what to do.

    The command line prints it without a traceback and exits with status 2.
    """


def errors_within(error: BaseException) -> Iterator[BaseException]:
    """Yields an error and all that it wraps, each once.

    Beside Python's own links, Ray keeps the error of a task or actor as ``cause``, and Ray Train those of its workers,
    by rank, and of its controller.
    """
    seen: set[int] = set()
    pending: list[Any] = [error]
    while pending:
        found = pending.pop(0)
        if not isinstance(found, BaseException) or id(found) in seen:
            continue
        seen.add(id(found))
        yield found
        pending += [getattr(found, name, None) for name in ("cause", "_base_exc", "controller_failure")]
        pending += dict(getattr(found, "worker_failures", {})).values()
        pending += [found.__cause__, found.__context__]


def user_error_in(error: BaseException) -> SpirlError | None:
    """A copy of the first `SpirlError` within an error, without what is wrapped around it; None where there is none."""
    return next((SpirlError(*found.args) for found in errors_within(error) if isinstance(found, SpirlError)), None)
