"""Labels of demonstrations: the rewards and the end that recorded steps get as decisions of stage 2."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import spirl_ray.envs as envs
from spirl_ray.config import EnvironmentSettings
from spirl_ray.config_train import Labels
from spirl_ray.envs.judgement import Judgement, judged, recorded_judgement
from spirl_ray.envs.spec import EnvironmentSpec
from spirl_ray.episodes.dataset import read_card, read_episodes
from spirl_ray.episodes.episode import Episode
from spirl_ray.errors import SpirlError

_POSSIBLE = {"success": (0.0, 1.0), "success - 1": (-1.0, 0.0)}
"""The rewards of a step where ``interface.reward`` replaces those of the environment."""


class Labeller:
    """Gives recorded episodes the rewards and ends that ``train.offline_labels`` asks for.

    The environment's own judge gives them, or the recording. Labels that are learned during training begin as zeros,
    and end no task.

    Args:
        environment: the settings of the environment.
        labels: what gives the labels.

    Raises:
        SpirlError: the environment is to judge recorded states and cannot, or it refuses an argument.
    """

    def __init__(self, environment: EnvironmentSettings, labels: Labels) -> None:
        self.spec = envs.environment(environment)
        check_judge(self.spec, labels)
        self._labels = labels
        self._arguments = envs.constructor_arguments(environment)
        self._reward = environment.interface.reward

    def __call__(self, episode: Episode) -> Judgement:
        """The rewards and ends of the steps of an episode.

        Raises:
            SpirlError: the judge fails, or its rewards cannot be those of this task.
        """
        if self._labels == "learned":
            return Judgement(np.zeros(episode.length, np.float32), np.zeros(episode.length, np.bool_))
        found = self._judged(episode)
        possible = _POSSIBLE.get(self._reward)
        if possible is not None and not np.isin(found.rewards, possible).all():
            other = next(value for value in found.rewards if value not in possible)
            raise SpirlError(
                f"train.offline_labels: {self._labels}: a step of episode {episode.id!r} gets {other:g}, and "
                f"interface.reward: {self._reward} gives steps {possible[0]:g} or {possible[1]:g}. Demonstrations and "
                "agent must have the rewards of one task: correct the judge, or leave interface.reward out."
            )
        return found

    def _judged(self, episode: Episode) -> Judgement:
        if self._labels == "recorded":
            return recorded_judgement(episode)
        assert self.spec.judge is not None
        return judged(self.spec.judge, self._arguments, episode)

    def check(self, dataset: Path) -> None:
        """Labels one demonstration, so that what does not fit is said before any training.

        Raises:
            SpirlError: as a call, or the rewards of the recordings are to be used and there are none.
        """
        if self._labels == "recorded" and not read_card(dataset).rewards:
            raise SpirlError(
                f"train.offline_labels: recorded: not all recordings in {dataset} have rewards. Leave out the sources "
                "without, set train.offline_labels to learned, or name a function in interface.judge and set it to "
                "environment."
            )
        for episode in read_episodes(dataset):
            self(episode)
            break


def check_judge(spec: EnvironmentSpec, labels: Labels) -> None:
    """Raises `SpirlError` where the environment is to judge the recorded states, and cannot."""
    if labels == "environment" and spec.judge is None:
        raise SpirlError(
            f"train.offline_labels: {spec.id} does not judge recorded states. Name a function in interface.judge "
            "that does, or set train.offline_labels to recorded (the rewards in the data are those of this task) "
            "or learned."
        )
