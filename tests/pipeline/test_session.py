"""Results and failures of Ray's tasks and workers, as a command sees them."""

from __future__ import annotations

import threading
import time
import weakref
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import RayTaskError, TaskCancelledError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from spirl_ray.errors import SpirlError
from spirl_ray.pipeline import session
from spirl_ray.pipeline.session import finished_tasks, readable_cause


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_results_come_as_tasks_finish_and_a_failure_cancels_those_that_have_not(tmp_path: Path) -> None:
    begun = tmp_path / "begun"

    def work(steps: int) -> int:
        for _ in range(steps):
            begun.touch()
            time.sleep(0.01)  # a cancellation takes effect between two of them
        return steps

    def fail(earlier: int) -> None:
        while not begun.exists():  # Ray may lose the cancellation of a task whose process is still starting
            time.sleep(0.01)
        raise SpirlError("the culprit")

    task: Any = ray.remote(num_cpus=1, max_retries=0)(work)
    # The long one ends by itself, because otherwise a failure here would take a CPU from the tests that come after.
    quick, long = task.remote(0), task.remote(6000)
    results = finished_tasks([long, quick, ray.remote(num_cpus=1, max_retries=0)(fail).remote(quick)])
    assert next(results) == (quick, 0)
    with pytest.raises(SpirlError, match="the culprit"):
        next(results)
    with pytest.raises(TaskCancelledError):
        ray.get(long, timeout=120.0)


@pytest.mark.parametrize(
    "cause",
    [
        SpirlError("the culprit"),
        OSError(28, "No space left on device", "/out/culprit"),
        OSError(28, "Error writing bytes to the culprit"),  # as pyarrow raises it, without a file
    ],
)
def test_what_a_user_can_act_on_is_found_in_errors_of_tasks_and_training_workers(cause: Exception) -> None:
    in_task = RayTaskError("run_episodes", "traceback", cause)
    in_worker = WorkerGroupError("message", {1: UserExceptionWithTraceback(cause, "traceback")})
    for error in (in_task, in_worker, ControllerError(in_worker), ControllerError(cause)):
        assert "culprit" in str(readable_cause(error))
    for bug in (ValueError("a bug"), ConnectionResetError(104, "Connection reset by peer")):
        assert readable_cause(RayTaskError("f", "traceback", bug)) is None


def test_threads_that_outlive_the_connection_are_silent_and_later_ones_are_heard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heard: list[str] = []
    monkeypatch.setattr(session, "_OUTLIVED", weakref.WeakSet())
    monkeypatch.setattr(threading, "excepthook", lambda arguments: heard.append(arguments.thread.name))
    ended = threading.Event()

    def ask() -> None:
        ended.wait(60.0)
        raise RuntimeError("Ray has ended")

    asking = threading.Thread(target=ask, name="asking")
    asking.start()
    session._silence_threads()
    session._silence_threads()
    ended.set()
    asking.join()
    later = threading.Thread(target=ask, name="later")
    later.start()
    later.join()
    assert heard == ["later"]
