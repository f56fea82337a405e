"""Sampling that overlaps learning, because env runners get the next request before the learner uses their samples."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

from ray.rllib.env.env_runner import EnvRunner
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from spirl_ray.errors import SpirlError, user_error_in

_POLL_S = 0.002
_PAUSE_S = 0.5


class Sampled(NamedTuple):
    """One fragment of samples."""

    runner: int
    """The number of the env runner; 0 is the local one."""
    episodes: list[SingleAgentEpisode]
    """The pieces of episodes."""
    metrics: Any
    """RLlib's metrics."""
    seconds: float
    """The time that sampling took."""


def _sample_and_measure(runner: EnvRunner) -> Sampled:
    started = time.perf_counter()
    episodes = runner.sample()
    return Sampled(runner.worker_index, episodes, runner.get_metrics(), time.perf_counter() - started)


def _try_to_sample(runner: EnvRunner) -> Sampled | SpirlError | str:
    """Returns samples, or an error in the environment, which RLlib would hide behind restarts: what a user can repair,
    or a traceback."""
    try:
        return _sample_and_measure(runner)
    except Exception as error:  # whatever a user's environment raises; the driver reports it
        return user_error_in(error) or traceback.format_exc()


class Sampler:
    """The samples of the env runners, and the requests on which they work.

    Args:
        group: RLlib's group of env runners.
        config: config of the algorithm.
    """

    def __init__(self, group: Any, config: Any) -> None:
        self.group, self.config = group, config
        self._waiting_since: float | None = None
        """The time of the first call that got no samples; None where the last one got some."""

    def collect(self, send_weights: Callable[[list[int] | None], None]) -> list[Sampled]:
        """Returns what has been sampled since the last call, and requests the next samples before that.

        The list is empty while the env runners are away; RLlib brings them back between two rounds.

        Args:
            send_weights: sends the newest weights to env runners by their number, or to the local one (None).

        Raises:
            RuntimeError: the environment failed; the message holds the traceback of the env runner.
            SpirlError: the environment does not do what it must, or no env runner has answered for ``silence_limit_s``.
        """
        if self.group.num_remote_env_runners() == 0:
            samples = [_sample_and_measure(self.group.local_env_runner)]
            send_weights(None)
            return samples
        found = self._next_samples()
        if found:
            # Only to the runners that sample next, because weights that wait for a running request would be outdated.
            send_weights(list(found))
            self.group.foreach_env_runner_async(_try_to_sample, tag="sample", remote_worker_ids=list(found))
        return list(found.values())

    def lost(self) -> dict[str, int]:
        """Counts the env runners that do not answer now, and all that were lost so far, by the names of the metrics."""
        missing = self.group.num_remote_env_runners() - self.group.num_healthy_remote_env_runners()
        lost = missing + self.group.num_remote_worker_restarts()
        return {"env_runners_missing": missing, "env_runners_lost": lost}

    def _next_samples(self) -> dict[int, Sampled]:
        """Returns the samples by env runner; waits for the first, and sends requests to the idle ones."""
        group = self.group
        group.foreach_env_runner_async(_try_to_sample, tag="sample")  # no more than one request a runner
        began = time.monotonic()
        deadline = began + self.config.sample_timeout_s
        results: list[tuple[int, Sampled | SpirlError | str]] = []
        while not results and group.num_in_flight_async_reqs("sample") and time.monotonic() < deadline:
            results = group.fetch_ready_async_reqs(tags="sample", timeout_seconds=0.0)
            if not results:
                time.sleep(_POLL_S)
        samples = {}
        for index, sampled in results:
            if isinstance(sampled, SpirlError):
                raise sampled
            if isinstance(sampled, str):
                raise RuntimeError(f"The environment of env runner {index} failed:\n{sampled}")
            samples[index] = sampled
        if samples:
            self._waiting_since = None
            return samples
        self._waiting_since = began if self._waiting_since is None else self._waiting_since
        if time.monotonic() - self._waiting_since > self.config.silence_limit_s:
            raise SpirlError(
                f"No env runner has answered for {self.config.silence_limit_s:.0f} s. Check that the cluster has a "
                "free CPU for each (`ray status`), then start the command again: it resumes from the last checkpoint."
            )
        time.sleep(_PAUSE_S)
        return samples
