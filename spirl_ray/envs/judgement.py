"""A judge tells from recorded states which rewards and ends an environment would have given to the recorded steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from spirl_ray.episodes.episode import Episode, FloatArray
from spirl_ray.errors import SpirlError


class Judgement(NamedTuple):
    """The rewards and ends that an environment gives to the T steps of a recorded episode."""

    rewards: FloatArray
    """The reward of each step, float32 [T]."""
    terminated: NDArray[np.bool_]
    """True in each step that ends the task, [T]; what follows the first of them does not count."""

    @property
    def end(self) -> int:
        """The first step that ends the task; T where none does."""
        return int(self.terminated.argmax()) if self.terminated.any() else len(self.terminated)


Judge = Callable[[Mapping[str, Any], Episode], Judgement]
"""A function from the arguments of an environment's constructor, and a recorded episode, to its judgement."""


def recorded_judgement(episode: Episode) -> Judgement:
    """The rewards and the end that the recording itself holds."""
    terminated = np.zeros(episode.length, np.bool_)
    terminated[-1:] = episode.terminated
    return Judgement(episode.rewards, terminated)


def judged(judge: Judge, arguments: Mapping[str, Any], episode: Episode) -> Judgement:
    """Calls a judge and checks its answer.

    Args:
        judge: the environment's judge.
        arguments: the arguments of the environment's constructor.
        episode: the recorded episode.

    Raises:
        SpirlError: the answer does not have a finite reward and an end for each step, or the judge raises.
    """
    where = f"The judge of recorded states, for episode {episode.id!r},"
    try:
        rewards, terminated = judge(arguments, episode)
        found = Judgement(np.asarray(rewards, np.float32), np.asarray(terminated, np.bool_))
    except SpirlError:
        raise
    except Exception as error:  # whatever a user's function raises
        raise SpirlError(f"{where} fails: {type(error).__name__}: {error}. Correct the function.") from error
    for name, values in found._asdict().items():
        if values.shape != (episode.length,) or not np.isfinite(values).all():
            raise SpirlError(
                f"{where} gives {name} of the shape {list(values.shape)}; it must give {episode.length} finite values, "
                "one for each step."
            )
    return found


def judge_subtasks(complete: Sequence[NDArray[np.bool_]], *, in_order: bool = False) -> Judgement:
    """The judgement of an environment with subtasks: 1 for each that is newly complete, and its end with the last one.

    Args:
        complete: for each target subtask, whether it is complete in each of the T + 1 observations, [T+1].
        in_order: True where a subtask counts only once all before it are done.
    """
    steps = len(complete[0]) - 1
    rewards, terminated = np.zeros(steps, np.float32), np.zeros(steps, np.bool_)
    last, earliest = 0, 0
    for found in complete:
        after = np.flatnonzero(found[1:])
        after = after[after >= earliest]
        if not len(after):
            last = steps
            if in_order:
                break
            continue
        rewards[after[0]] += 1.0
        last = max(last, int(after[0]))
        earliest = int(after[0]) if in_order else 0
    if last < steps:
        terminated[last] = True
    return Judgement(rewards, terminated)
