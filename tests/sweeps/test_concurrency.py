"""Which trials run when a cluster has lost room, or has it again."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import TaskCancelledError

from spirl_ray.sweeps import trial
from spirl_ray.sweeps.concurrency import PATIENCE_S, ClusterState, TrialSlots
from spirl_ray.sweeps.trial import TrialStatus

SIX_FREE = ClusterState(time_s=0.0, cpus=6.0, free=6.0, waits=False)


def test_a_cluster_that_has_lost_a_node_runs_fewer_trials_and_more_when_another_joins() -> None:
    slots = TrialSlots(2, 2.0, SIX_FREE)
    assert slots.trials == 2
    assert not slots.look(ClusterState(100.0, 6.0, 1.0, waits=False))
    # Two trials of two CPUs and one for tasks do not fit into four, and each waits for what the other holds.
    lost = ClusterState(101.0, 4.0, 0.0, waits=True)
    assert not slots.look(lost)  # a node may join at once
    assert slots.look(replace(lost, time_s=101.0 + PATIENCE_S))
    assert slots.trials == 1
    assert not slots.look(ClusterState(200.0, 4.0, 3.0, waits=False))  # the trial takes the other one later
    assert not slots.look(ClusterState(200.5, 6.0, 2.0, waits=False))  # one of the two is for tasks
    assert slots.look(ClusterState(201.0, 6.0, 4.0, waits=False))
    assert slots.trials == 2
    assert not slots.look(ClusterState(300.0, 60.0, 50.0, waits=False))  # not more than asked for


def test_what_waits_for_its_turn_alone_sets_no_trial_aside() -> None:
    slots = TrialSlots(2, 2.0, SIX_FREE)
    assert not any(slots.look(ClusterState(10.0 * i, 6.0, 0.0, waits=True)) for i in range(100))


def test_one_trial_remains_however_little_there_is() -> None:
    slots = TrialSlots(3, 4.0, replace(SIX_FREE, cpus=13.0, free=13.0))
    assert slots.trials == 3
    assert slots.look(ClusterState(PATIENCE_S, 1.0, 0.0, waits=True))
    assert slots.trials == 1


def test_trials_begin_where_all_of_their_cpus_are_free() -> None:
    slots = TrialSlots(2, 2.0, replace(SIX_FREE, free=3.0))  # another job has the others
    assert slots.trials == 1
    assert not slots.look(replace(SIX_FREE, time_s=60.0, free=2.0))
    assert slots.look(replace(SIX_FREE, time_s=90.0, free=3.0))


def test_the_oldest_trials_run() -> None:
    status = TrialStatus(2)
    assert [status.may_run(name) for name in ("a", "b", "c")] == [True, True, False]
    status.limit(1)
    assert [status.may_run(name) for name in ("a", "b", "c")] == [True, False, False]
    status.leave("a")
    assert [status.may_run(name) for name in ("c", "b")] == [False, True]


def test_a_trial_that_is_set_aside_gives_back_what_it_holds_and_continues_without_a_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    status = TrialStatus(1)
    happened: list[str] = []

    class Remote:
        """The status as an actor that answers at once."""

        def __getattr__(self, name: str) -> Any:
            return SimpleNamespace(remote=getattr(status, name))

    def start(*arguments: object) -> str:
        happened.append("start")
        if happened.count("start") == 1:
            status.limit(0)
        return "work"

    def wait(tasks: list[str], timeout: float) -> tuple[list[str], list[str]]:
        ends = happened[-1] == "cancel" or happened.count("start") == 2
        return (tasks, []) if ends else ([], tasks)

    def get(value: Any) -> Any:
        if value != "work":
            return value
        if happened.count("start") == 1:
            raise TaskCancelledError
        return {"env_steps": 3}

    def pause(seconds: float) -> None:
        happened.append("pause")
        status.limit(1)

    fake = SimpleNamespace(get=get, wait=wait, cancel=lambda task, force: happened.append("cancel"))
    monkeypatch.setattr(trial, "ray", fake)
    monkeypatch.setattr(trial, "_start", start)
    monkeypatch.setattr(trial.time, "sleep", pause)
    monkeypatch.setattr(
        trial, "tune", SimpleNamespace(get_checkpoint=lambda: None, report=lambda row: happened.append(str(row)))
    )
    request: Any = SimpleNamespace(max_failures=0, population=False)
    trial.supervise(request, "a", Remote())
    assert happened == ["start", "cancel", "pause", "start", "{'env_steps': 3, 'final': True}"]
    assert status.failure("a") is None
