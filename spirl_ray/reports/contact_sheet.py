"""A contact sheet of datasets: a few episodes of each, one a row, from the first step to the last."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from spirl_ray.envs.recorded import recorded_images
from spirl_ray.episodes.dataset import read_card
from spirl_ray.errors import SpirlError
from spirl_ray.files.atomic import write_atomically
from spirl_ray.pipeline.demonstrations import spread_episodes
from spirl_ray.pipeline.video import captioned

EPISODES, COLUMNS = 3, 5
"""The number of rows for each dataset, and of images in a row."""
IMAGE_WIDTH = 240
"""The width of an image in pixels."""


def write_contact_sheet(datasets: Sequence[Path], path: Path) -> None:
    """Writes a PNG that shows evenly spread steps of evenly spread episodes of every dataset.

    Raises:
        SpirlError: a dataset cannot be read, its environment cannot render recorded episodes, or a file cannot be
            written.
    """
    rows = [row for dataset in datasets for row in _rows(dataset)]
    sheet = np.concatenate(rows)
    buffer = io.BytesIO()
    Image.fromarray(sheet).save(buffer, format="PNG")
    write_atomically(path, buffer.getvalue())


def _rows(dataset: Path) -> Iterator[np.ndarray]:
    card = read_card(dataset)
    render = recorded_images(card)
    if render is None:
        raise SpirlError(f"{dataset}: nothing renders its episodes, and they hold no images, so there is no sheet.")
    for episode in spread_episodes(dataset, EPISODES):
        steps = np.linspace(0, episode.length, COLUMNS).round().astype(int).tolist()
        captions = [f"step {step} of {episode.length}" for step in steps]
        captions[0] = f"{dataset.name} · {episode.id}"
        captions[-1] = " > ".join(map(str, episode.metadata.get("completed", ()))) or captions[-1]
        images = []
        drawn = render(episode.metadata, episode.observations, steps)
        for image, caption in zip(drawn, captions, strict=True):
            height = round(IMAGE_WIDTH * image.shape[0] / image.shape[1])
            small = np.asarray(Image.fromarray(image).resize((IMAGE_WIDTH, height)))
            images.append(captioned(small, caption))
        yield np.concatenate(images, axis=1)
