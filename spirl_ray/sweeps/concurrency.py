"""How many trials of a sweep have room on a cluster, which may lose nodes and get others while the sweep runs."""

from __future__ import annotations

from dataclasses import dataclass

PATIENCE_S = 30.0
"""The seconds for which something must have waited in vain before fewer trials run."""
_BETWEEN_S = 10.0
"""The seconds in which a trial that begins takes the CPUs that it needs."""


@dataclass(frozen=True)
class ClusterState:
    """What the cluster looks like at one moment."""

    time_s: float
    cpus: float
    """The logical CPUs of the cluster."""
    free: float
    """Those of them that nobody holds."""
    waits: bool
    """True where something is asked for that has no place."""


class TrialSlots:
    """The number of trials that may run at the same time.

    Trials that hold a part of the CPUs that the others wait for would never end. So a trial begins where all of its
    CPUs are free, and where a cluster has become too small, the youngest trials are set aside: they give back what they
    hold, and continue when there is room again.

    Args:
        most: trials at the same time, if there is room.
        each: the logical CPUs of a trial.
        now: what there is at the beginning.
    """

    def __init__(self, most: int, each: float, now: ClusterState) -> None:
        self.most, self.each = most, each
        self.trials = max(1, min(most, self._fit(now.free)))
        """The number of trials that may run now."""
        self._satisfied_s = self._changed_s = now.time_s

    def _fit(self, cpus: float) -> int:
        return int((cpus - 1) // self.each)  # one CPU remains for the short tasks of all trials

    def look(self, now: ClusterState) -> bool:
        """Takes in what there is now; True where the number of trials has changed."""
        before = self.trials
        if not now.waits:
            self._satisfied_s = now.time_s
            if self._fit(now.free) >= 1 and now.time_s - self._changed_s >= _BETWEEN_S:
                self.trials = max(before, min(self.most, self._fit(now.cpus), before + 1))
        elif now.time_s - max(self._satisfied_s, self._changed_s) >= PATIENCE_S:
            self.trials = max(1, min(before, self._fit(now.cpus)))
        if self.trials != before:
            self._changed_s = now.time_s
        return self.trials != before
