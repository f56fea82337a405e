"""Errors of an environment that env runners meet reach the user as what they are."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from spirl_ray.errors import SpirlError
from spirl_ray.rl import sampling
from spirl_ray.rl.sampling import Sampler


class Failing:
    """An env runner whose environment fails, as RLlib tells it."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def sample(self) -> Any:
        try:
            raise self.error
        except Exception as error:
            raise RuntimeError from error


class Group:
    """A group of one env runner, number 3."""

    def __init__(self, error: Exception) -> None:
        self.runner, self.waiting = Failing(error), 0

    def num_remote_env_runners(self) -> int:
        return 1

    def foreach_env_runner_async(self, function: Any, **_: Any) -> None:
        self.function, self.waiting = function, 1

    def num_in_flight_async_reqs(self, tag: str) -> int:
        return self.waiting

    def fetch_ready_async_reqs(self, **_: Any) -> list[tuple[int, Any]]:
        self.waiting = 0
        return [(3, self.function(self.runner))]


def collected(error: Exception) -> None:
    config = SimpleNamespace(sample_timeout_s=60.0, silence_limit_s=60.0)
    Sampler(Group(error), config).collect(lambda _: None)


def test_what_a_user_can_repair_is_told_without_a_traceback() -> None:
    with pytest.raises(SpirlError) as caught:
        collected(SpirlError("the reward of step 7 is nan"))
    assert str(caught.value) == "the reward of step 7 is nan"


def test_time_in_which_nobody_asks_is_no_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    clock = SimpleNamespace(monotonic=lambda: now, sleep=lambda _: None)
    monkeypatch.setattr(sampling, "time", clock)
    group = Group(KeyError("hand"))
    group.foreach_env_runner_async = lambda *_, **__: None  # type: ignore[method-assign]
    sampler = Sampler(group, SimpleNamespace(sample_timeout_s=60.0, silence_limit_s=60.0))
    now = 100.0
    assert sampler.collect(lambda _: None) == []
    now = 200.0
    with pytest.raises(SpirlError, match="No env runner has answered"):
        sampler.collect(lambda _: None)


def test_any_other_error_is_told_with_the_traceback_of_the_env_runner() -> None:
    with pytest.raises(RuntimeError, match=r"(?s)env runner 3 failed.*Traceback.*KeyError: 'hand'"):
        collected(KeyError("hand"))


@pytest.mark.parametrize(("healthy", "restarts"), [(4, 0), (3, 0), (4, 2), (2, 1)])
def test_env_runners_are_lost_whether_or_not_they_have_been_replaced(healthy: int, restarts: int) -> None:
    group = SimpleNamespace(
        num_remote_env_runners=lambda: 4,
        num_healthy_remote_env_runners=lambda: healthy,
        num_remote_worker_restarts=lambda: restarts,
    )
    lost = Sampler(group, SimpleNamespace()).lost()
    assert lost == {"env_runners_missing": 4 - healthy, "env_runners_lost": 4 - healthy + restarts}
