"""The detector of success in the steps of somebody else's environment."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from spirl_ray.config_environment import InterfaceSettings
from spirl_ray.episodes.recording import NUMBERS
from spirl_ray.errors import SpirlError

SUCCESS_KEYS = ("success", "is_success", "goal_achieved")
"""The keys of info in which environments say success, in the order in which they are looked for."""
_RETURN = re.compile(r"return\s*(>=|>|<=|<)\s*([-+0-9.eE]+)")
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">=": lambda a, b: a >= b,
    ">": lambda a, b: a > b,
    "<=": lambda a, b: a <= b,
    "<": lambda a, b: a < b,
}


class SuccessDetector:
    """The detector says whether a step is a success, after `InterfaceSettings.success`.

    Args:
        settings: interface whose ``success`` is read.
        where: whose interface it is, for messages.

    Raises:
        SpirlError: ``success`` cannot be read, or a reward asks for a success that nothing says.
    """

    def __init__(self, settings: InterfaceSettings, where: str) -> None:
        self.text = settings.success
        self.where = where
        self._compare: Callable[[float], bool] | None = None
        self._key: str | None = None
        self._missed = False
        self._rewards = settings.reward != "env"
        text = (self.text or "").strip()
        if text.startswith("info.") and len(text) > len("info."):
            self._key = text.removeprefix("info.")
        elif (found := _RETURN.fullmatch(text)) is not None:
            operator, limit = found.groups()
            try:
                self._compare = partial(
                    lambda compare, bound, value: compare(value, bound), _COMPARE[operator], float(limit)
                )
            except ValueError as error:
                raise SpirlError(f"interface.success: {self.text}: {limit} is not a number.") from error
        elif text not in ("", "terminated", "none"):
            raise SpirlError(
                f"interface.success: {self.text!r} cannot be read; write info.KEY, terminated, return >= X, or none."
            )
        if self._rewards and text == "none":
            raise SpirlError(f"interface.reward: {settings.reward} needs a success; interface.success is none.")

    def begin(self) -> None:
        """Begins an episode."""
        self._missed = True

    def __call__(self, info: Mapping[str, Any], terminated: bool, episode_return: float, *, ended: bool) -> bool | None:
        """True or False for a step; None where nothing says it.

        Raises:
            SpirlError: no info of the whole episode had the key that the settings name, or one that a reward needs.
        """
        if self.text is not None and self._key is None:
            if self._compare is not None:
                return ended and self._compare(episode_return)
            return terminated if self.text.strip() == "terminated" else None
        for key in SUCCESS_KEYS if self._key is None else (self._key,):
            if (value := _looked_up(info, key)) is not None:
                self._missed = False
                if np.asarray(value).dtype.kind not in NUMBERS:
                    raise SpirlError(
                        f"interface.success: info of {self.where} has {value!r} for {key!r}, which is neither true "
                        "nor false."
                    )
                return bool(np.any(value))
        if ended and self._missed and (self._key is not None or self._rewards):
            asked = "a key that says success, which interface.reward asks for" if self._key is None else repr(self._key)
            raise SpirlError(
                f"interface.success: no info of an episode of {self.where} had {asked}; the last one has the keys "
                f"{', '.join(map(str, info)) or 'none'}. Name one of them, or write terminated, return >= X, or none."
            )
        return None if self._key is None else False


def _looked_up(info: Any, key: str) -> Any:
    if not isinstance(info, Mapping):
        return None
    if key in info:
        return info[key]
    first, dot, rest = key.partition(".")
    return _looked_up(info.get(first), rest) if dot else None
