"""What is wrapped in other errors is found in them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from spirl_ray.errors import SpirlError, errors_within, user_error_in


def wrapped(**links: Any) -> Exception:
    """An error that keeps others as Ray's do."""
    error = RuntimeError("wrapped")
    for name, value in links.items():
        setattr(error, name, value)
    return error


def test_every_wrapped_error_is_found_once_whatever_wraps_it() -> None:
    inner = [ValueError(str(number)) for number in range(6)]
    error = wrapped(
        cause=inner[0],
        _base_exc=inner[1],
        controller_failure=wrapped(worker_failures={1: inner[2], 0: inner[3]}),
        __cause__=inner[4],
        __context__=inner[5],
    )
    inner[0].__cause__, inner[5].__context__ = error, inner[0]  # circles end
    found = list(errors_within(error))
    assert found[0] is error
    assert len(found) == len({id(one) for one in found}) == 8
    assert {id(one) for one in inner} < {id(one) for one in found}


def test_links_that_hold_no_errors_are_passed_over() -> None:
    assert [str(one) for one in errors_within(wrapped(cause="text", worker_failures={0: SimpleNamespace()}))] == [
        "wrapped"
    ]


def test_the_error_for_users_comes_without_what_is_wrapped_around_it() -> None:
    class Special(SpirlError):
        pass

    known = Special("the reason")
    known.__cause__ = KeyError("what led to it")
    found = user_error_in(wrapped(cause=wrapped(cause=known)))
    assert type(found) is SpirlError
    assert (found.args, found.__cause__) == (("the reason",), None)
    assert user_error_in(wrapped(cause=ValueError("a bug"))) is None
