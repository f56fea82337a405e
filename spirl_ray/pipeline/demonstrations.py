"""A video of the demonstrations, drawn from what was recorded."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import ray

from spirl_ray.envs import environment
from spirl_ray.episodes.dataset import read_card, read_episodes
from spirl_ray.episodes.episode import Episode
from spirl_ray.errors import SpirlError
from spirl_ray.pipeline.session import finished_tasks
from spirl_ray.pipeline.video import VideoWriter

MOST_FRAMES = 150
"""Of an episode; of longer ones every second step is shown, or every third, and so on."""


def spread_episodes(dataset: Path, count: int) -> list[Episode]:
    """Some episodes of a dataset, from its first to its last, read in one pass.

    Raises:
        SpirlError: the dataset cannot be read.
    """
    last = max(0, read_card(dataset).episodes - 1)
    chosen = set(np.linspace(0, last, count).round().astype(int).tolist())
    return [episode for number, episode in enumerate(read_episodes(dataset)) if number in chosen]


def film_demonstrations(dataset: Path, video: Path, episodes: int, fps: float) -> None:
    """Films evenly spread episodes, one after the other, in the time that they took.

    Args:
        dataset: an imported dataset.
        video: the mp4 to write.
        episodes: how many.
        fps: primitive steps a second.

    Raises:
        SpirlError: a dataset that cannot be read, or of an environment that cannot draw recorded episodes.
    """
    spec = environment(read_card(dataset).environment)
    if spec.render_recorded is None:
        raise SpirlError(f"{dataset}: {spec.id} cannot draw recorded episodes, so there is no film.")
    shown = spread_episodes(dataset, episodes)
    stride = math.ceil(max(episode.length for episode in shown) / MOST_FRAMES)
    with VideoWriter(video, fps / stride) as film:
        for episode in shown:
            steps = list(range(0, episode.length + 1, stride))
            done = " > ".join(map(str, episode.metadata.get("completed", ())))
            pictures = spec.render_recorded(episode.metadata, episode.observations, steps)
            for step, picture in zip(steps, pictures, strict=True):
                film.add(picture, f"{episode.id} · step {step} of {episode.length} · {done}")


def film_remotely(dataset: Path, video: Path, episodes: int, fps: float) -> None:
    """`film_demonstrations` as a Ray task, for a driver may be where there is no OpenGL."""
    task: Any = ray.remote(num_cpus=1, max_retries=1)(film_demonstrations)
    next(finished_tasks([task.remote(dataset.absolute(), video.absolute(), episodes, fps)]))
