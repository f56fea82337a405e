"""The range of actions: agents and datasets have actions in [-1, 1], environments and recordings in units of their
own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

Finite = Annotated[float, Field(allow_inf_nan=False)]


class ActionRange(BaseModel):
    """The least and the greatest value of each entry of an action, which are -1 and 1 for an agent."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    low: Annotated[tuple[Finite, ...], Field(min_length=1)]
    high: tuple[Finite, ...]

    @model_validator(mode="after")
    def _ordered(self) -> ActionRange:
        if len(self.low) != len(self.high):
            raise ValueError(f"low has {len(self.low)} entries, high has {len(self.high)}")
        for entry, (low, high) in enumerate(zip(self.low, self.high, strict=True)):
            if low >= high:
                raise ValueError(f"entry {entry}: low is {low:g}, which is not below high, {high:g}")
        return self

    @classmethod
    def around(cls, low: Sequence[float], high: Sequence[float]) -> ActionRange | None:
        """The range with these ends, or None where it is [-1, 1].

        The ends of a float32 space are taken as the decimals that they stand for: 0.05, not 0.05000000074505806. So
        they equal those that somebody writes.
        """
        found = cls(low=tuple(map(float, low)), high=tuple(map(float, high)))
        widths = [high - low for low, high in zip(found.low, found.high, strict=True)]
        found = cls(low=tuple(map(_decimal, found.low, widths)), high=tuple(map(_decimal, found.high, widths)))
        return None if set(found.low) == {-1.0} and set(found.high) == {1.0} else found

    @classmethod
    def of_data(cls, low: npt.NDArray[Any], high: npt.NDArray[Any]) -> ActionRange | None:
        """The range of recorded actions from their least and greatest values; an entry that never changes gets a range
        of 2 around its value."""
        constant = high <= low
        return cls.around((low - constant).tolist(), (high + constant).tolist())

    def normalised(self, actions: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Actions [..., A] in units of their own as float32 in [-1, 1]; those outside the range stay outside."""
        low, high = np.asarray(self.low), np.asarray(self.high)
        return (2.0 * (np.asarray(actions, np.float64) - low) / (high - low) - 1.0).astype(np.float32)

    def restored(self, actions: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Actions [..., A] in [-1, 1] in units of their own, float64."""
        low, high = np.asarray(self.low), np.asarray(self.high)
        return low + (np.asarray(actions, np.float64) + 1.0) / 2.0 * (high - low)


def _decimal(end: float, width: float) -> float:
    """The shortest decimal of a float32 number; other numbers, and those that this would move visibly, as they are."""
    with np.errstate(over="ignore"):
        single = np.float32(end)
    short = float(str(single))
    return short if float(single) == end and abs(short - end) <= 1e-7 * width else end


def described(actions: ActionRange | None, action_dim: int) -> str:
    """A range in words, for messages."""
    if actions is None:
        return f"{action_dim} actions in [-1, 1]"
    ends = ", ".join(f"[{low:g}, {high:g}]" for low, high in zip(actions.low, actions.high, strict=True))
    return f"{action_dim} actions in {ends}"
