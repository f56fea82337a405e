"""A video of the demonstrations, rendered from what was recorded."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import ray

from spirl_ray.datasets.shard import Shard
from spirl_ray.envs.recorded import recorded_images
from spirl_ray.episodes.dataset import dataset_files, read_card
from spirl_ray.episodes.episode import Episode
from spirl_ray.errors import SpirlError
from spirl_ray.pipeline.session import finished_tasks
from spirl_ray.pipeline.video import VideoWriter

MOST_FRAMES = 150
"""The most frames of an episode; of longer ones every second step is shown, or every third, and so on."""


def spread_episodes(dataset: Path, count: int) -> list[Episode]:
    """Reads some episodes of a dataset, evenly spread from its first to its last, and little more than these.

    Raises:
        SpirlError: the dataset cannot be read.
    """
    card = read_card(dataset)
    shard = Shard.of(card, dataset_files(dataset), held=())
    chosen = np.unique(np.linspace(0, len(shard.lengths) - 1, count).round().astype(int))
    return list(shard.read(chosen, card.features, copy=True))


def render_demonstrations(dataset: Path, video: Path, episodes: int, fps: float) -> None:
    """Renders evenly spread episodes, one after the other, to a video that takes as long as they did.

    Args:
        dataset: an imported dataset.
        video: path of the mp4 to write.
        episodes: number of episodes.
        fps: primitive steps a second.

    Raises:
        SpirlError: the dataset cannot be read, or its environment cannot render recorded episodes.
    """
    render = recorded_images(read_card(dataset))
    if render is None:
        raise SpirlError(f"{dataset}: nothing renders its episodes, and they hold no images, so there is no video.")
    shown = spread_episodes(dataset, episodes)
    stride = math.ceil(max(episode.length for episode in shown) / MOST_FRAMES)
    with VideoWriter(video, fps / stride) as writer:
        for episode in shown:
            steps = list(range(0, episode.length + 1, stride))
            done = " > ".join(map(str, episode.metadata.get("completed", ())))
            images = render(episode.metadata, episode.observations, steps)
            for step, image in zip(steps, images, strict=True):
                writer.add(image, f"{episode.id} · step {step} of {episode.length} · {done}")


def render_remotely(dataset: Path, video: Path, episodes: int, fps: float) -> None:
    """Runs `render_demonstrations` as a Ray task, because the node of the driver may have no OpenGL."""
    task: Any = ray.remote(num_cpus=1, max_retries=1)(render_demonstrations)
    next(finished_tasks([task.remote(dataset.absolute(), video.absolute(), episodes, fps)]))
