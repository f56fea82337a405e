"""The columns of a table of episodes: which are actions, rewards and flags, and which are observations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from spirl_ray.datasets.formats.arrays import missing
from spirl_ray.datasets.formats.tables import TableFile, is_number
from spirl_ray.errors import SpirlError

ACTIONS, REWARDS = ("action", "actions"), ("reward", "rewards", "next.reward")
SUCCESSORS = ("next.", "next_")
"""What the names of columns begin with that hold the value after the action."""


class Columns(NamedTuple):
    """The names of a table's columns."""

    observations: tuple[str, ...]
    """All columns of numbers that are nothing else."""
    successors: Mapping[str, str]
    """The column of the next value of each observation that has one."""
    actions: tuple[str, ...]
    rewards: tuple[str, ...]
    episode: str | None
    step: str | None
    terminated: str | None
    truncated: str | None


@dataclass(frozen=True)
class Roles:
    """The columns that a user names; where there are none, a column of the usual name counts."""

    actions: tuple[str, ...] = ()
    rewards: tuple[str, ...] = ()
    episode: str | None = None
    step: str | None = None
    terminated: str | None = None
    truncated: str | None = None

    def columns(self, file: TableFile) -> Columns:
        """Finds the columns in a file.

        Raises:
            SpirlError: a column is missing; the message lists those that are there.
        """
        there = file.columns
        named = (self.episode, self.step, self.terminated, self.truncated, *self.actions, *self.rewards)
        for name in named:
            if name is not None and name not in there:
                raise missing(f"{file.path}: table", name, there)
        actions = self.actions or tuple(name for name in ACTIONS if name in there)[:1]
        if not actions:
            raise missing(f"{file.path}: table", ACTIONS[0], there)
        rewards = self.rewards or tuple(name for name in REWARDS if name in there)[:1]
        terminated = self.terminated or ("terminated" if "terminated" in there else None)
        truncated = self.truncated or ("truncated" if "truncated" in there else None)
        others = {*actions, *rewards, self.episode, self.step, terminated, truncated}
        for name in (*actions, *rewards, terminated, truncated):
            if name is not None and not is_number(there[name]):
                raise SpirlError(f"{file.path}: {name}: holds {there[name]}; expected numbers or lists of numbers.")
        successors = {
            name.removeprefix(prefix): name for prefix in SUCCESSORS for name in there if name.startswith(prefix)
        }
        successors = {name: column for name, column in successors.items() if name in there and name not in others}
        observations = tuple(
            name
            for name, kind in there.items()
            if name not in others and name not in successors.values() and is_number(kind)
        )
        return Columns(observations, successors, actions, rewards, self.episode, self.step, terminated, truncated)
