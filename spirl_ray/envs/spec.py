"""What the rest of the program knows about an environment, and the table of those it ships."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spirl_ray.envs.metrics import Scores, undeclared
from spirl_ray.errors import SpirlError


@dataclass(frozen=True)
class PositionTarget:
    """The environment turns an action into a position target, ``target = q + gain * action``.

    This is what target-preserving augmentation needs: moving ``q`` by d and the action by ``-d / gain``
    leaves the target where the demonstration had it.
    """

    positions: tuple[int, ...]
    """Entries of the state that hold q, one for each action dimension."""
    gain: tuple[float, ...]
    """Position units for an action of 1, one for each action dimension."""
    objects: tuple[int, ...] = ()
    """Entries of the state that are not under direct control and may be perturbed without relabelling."""


Frames = Callable[[NDArray[np.int64], NDArray[np.float32]], NDArray[np.uint8]]
"""Episode numbers [B] and states [B, S] -> grey frames uint8 [B, N, N]."""


@dataclass(frozen=True)
class ViewSpec:
    """The environment shows images: its observation is the state, then the newest frames, oldest first, and no more.

    Skills and prior see frames and egocentric entries, so the rest of the state may have another size in the target
    (`spirl_ray.envs.state_dim`) than in the data.
    """

    frames: int
    """Frames in an observation, of successive primitive steps."""
    size: int
    """Pixels N of a frame's side."""
    egocentric: tuple[int, ...]
    """State entries of the agent itself that mean the same in the target as in the data, such as its velocity."""
    renderer: Callable[[Sequence[Mapping[str, Any]]], Frames] | None = None
    """From the metadata of episodes to what renders their frames. None: episodes hold them (`Episode.frames`)."""

    @property
    def pixels(self) -> int:
        return self.frames * self.size * self.size


@dataclass(frozen=True)
class ObjectSpec:
    """The state lists alike objects in an order that tells nothing; see `spirl_ray.rl.objects`."""

    agent: tuple[int, ...]
    """State entries with the agent's position."""
    first: int
    """From this entry on, the state holds nothing but the objects' positions, in the agent's coordinates."""
    up: int
    """Which of these coordinates is the height."""
    size: float
    """Of an object, in these coordinates."""


@dataclass(frozen=True)
class FloorPlan:
    """Where an agent can be: the positions are the first two entries of the state, in cells."""

    walls: NDArray[np.bool_]
    """[X, Y]; cell (i, j) spans positions from i - 0.5 to i + 0.5 and from j - 0.5 to j + 0.5."""
    start: tuple[int, int] | None
    goal: tuple[int, int] | None
    goal_radius: float


@dataclass(frozen=True)
class EnvironmentSpec:
    """Facts about one environment id that data, skills and training share.

    An observation starts with the state. With a view, the pixels of its frames (0 to 255) follow; without, what
    follows (a constant goal) is not shown to networks.
    """

    id: str
    state_dim: int
    """S of the states in datasets."""
    action_dim: int
    """Actions are float32 in [-1, 1]."""
    max_episode_steps: int
    """Primitive steps."""
    metrics: Callable[[Mapping[str, Any]], Scores] | None = None
    """From the constructor's arguments to the metrics of an episode and the score (`spirl_ray.envs.metrics.declare`).
    None: the return is the score, or success where the environment's info tells it."""
    view: ViewSpec | None = None
    position_target: PositionTarget | None = None
    objects: ObjectSpec | None = None
    expert: str | None = None
    """What `generate` gives, as "module:function"; imported when it is asked for."""
    pictures: Callable[[Mapping[str, Any], NDArray[np.float32], Sequence[int]], list[NDArray[np.uint8]]] | None = None
    """From an episode's metadata, states [T+1, S] and some of its steps to pictures uint8 [N, N, 3] of these steps."""
    floor_plan: Callable[[Any], FloorPlan] | None = None
    """The plan of an environment that has been made, where exploration can be drawn."""
    minari_states: Callable[[Any], Any] | None = None
    """Maps the observations of a Minari episode (array [T+1, ·] or dict of them) to states float32 [T+1, S]."""
    completed: Callable[[NDArray[np.float32]], list[str]] | None = None
    """Subtasks completed along recorded states [T+1, S], in order, for sources that do not tell."""

    @property
    def generate(self) -> Callable[..., Iterator[Any]]:
        """The scripted expert: ``generate(indices, seed, **kwargs)`` yields an `Episode` for each index, or None.

        An episode depends on (seed, index, kwargs) alone, so any number of workers produces the same data.

        Raises:
            SpirlError: the environment has no expert.
        """
        if self.expert is None:
            raise SpirlError(f"environment {self.id!r} has no scripted expert to generate data with")
        found: Callable[..., Iterator[Any]] = pkgutil.resolve_name(self.expert)
        return found

    def scores(self, kwargs: Mapping[str, Any]) -> Scores:
        """The metrics of the environment's episodes when it is made with these arguments."""
        return undeclared() if self.metrics is None else self.metrics(kwargs)

    @property
    def stored_frames(self) -> int | None:
        """Pixels of a side of the frames that episodes hold; None where there are none, or they are rendered."""
        return self.view.size if self.view is not None and self.view.renderer is None else None
