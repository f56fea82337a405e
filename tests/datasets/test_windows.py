"""Windows cover every offset of every episode and nothing else."""

from __future__ import annotations

import dataclasses
import math
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import chisquare
from torch import Tensor

from spirl_ray.datasets.windows import WindowTable, step_bytes
from spirl_ray.envs.spec import Renderer
from spirl_ray.episodes.episode import Episode
from spirl_ray.episodes.features import Feature, Observation
from spirl_ray.errors import SpirlError

LENGTHS, HORIZON = (12, 5, 30, 4, 7), 5
"""One episode of exactly one window, one too short for any."""


FEATURES = {"place": Feature(shape=(2,))}


def places(number: int, length: int) -> NDArray[np.float32]:
    return np.stack([np.full(length + 1, number), np.arange(length + 1)], axis=1).astype(np.float32)


def make_episodes(lengths: Sequence[int] = LENGTHS) -> list[Episode]:
    """Place t of episode e is (e, t), its action (100 e + t); what is called "unused" must not be touched."""
    return [
        Episode(
            id=f"e{number}",
            observations={"place": places(number, length), "unused": np.zeros((1, 1), np.float32)},
            actions=(100.0 * number + np.arange(length, dtype=np.float32)).reshape(-1, 1),
            rewards=np.zeros(length, np.float32),
            terminated=False,
            truncated=True,
        )
        for number, length in enumerate(lengths)
    ]


def all_windows(lengths: Sequence[int] = LENGTHS) -> set[tuple[int, int]]:
    return {(e, t) for e, length in enumerate(lengths) for t in range(length - HORIZON + 1)}


def checked(observations: dict[str, Tensor], actions: Tensor) -> list[tuple[int, int]]:
    """(episode, offset) of each window of a batch, each of which must be HORIZON steps on end of one episode."""
    found = []
    assert list(observations) == ["place"]
    for window, taken in zip(observations["place"], actions, strict=True):
        episode, first = (int(value) for value in window[0])
        steps = torch.arange(first, first + HORIZON)
        assert torch.equal(window, torch.stack([torch.full((HORIZON,), episode), steps], dim=1).float())
        assert torch.equal(taken.squeeze(-1), 100.0 * episode + steps)
        found.append((episode, first))
    return found


def test_every_offset_is_one_window_within_one_episode() -> None:
    table = WindowTable(make_episodes(), HORIZON, FEATURES)
    found = checked(*table.rows(torch.arange(len(table))))
    assert len(found) == len(table)
    assert set(found) == all_windows()
    assert len(found) == len(set(found))


def test_the_state_after_the_last_action_is_in_no_window() -> None:
    observations, _ = WindowTable(make_episodes((5,)), HORIZON, FEATURES).rows(torch.tensor([0]))
    assert observations["place"][0, :, 1].tolist() == [0, 1, 2, 3, 4]


def test_sampling_is_uniform_over_all_windows() -> None:
    table, generator = WindowTable(make_episodes(), HORIZON, FEATURES), torch.Generator().manual_seed(0)
    found = checked(*table.sample(8000, generator))
    counts = {window: 0 for window in all_windows()}
    for window in found:
        counts[window] += 1
    assert chisquare(list(counts.values())).pvalue > 1e-3


def test_sampling_repeats_with_the_generator() -> None:
    table = WindowTable(make_episodes(), HORIZON, FEATURES)
    (first, _), (second, _) = (table.sample(32, torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(first["place"], second["place"])


def test_shuffled_gives_every_window_once_and_tops_up_the_rest() -> None:
    table = WindowTable(make_episodes(), HORIZON, FEATURES)
    batches = [checked(*batch) for batch in table.shuffled(16, torch.Generator().manual_seed(0))]
    assert {len(batch) for batch in batches} == {16}
    found = [window for batch in batches for window in batch]
    assert set(found[: len(table)]) == all_windows()
    assert len(found) - len(table) < 16
    assert found[: len(table)] != sorted(found[: len(table)])


def test_no_window_is_an_error_that_says_what_to_change() -> None:
    with pytest.raises(SpirlError, match=r"No episode has a window of 5 steps: lower skills\.horizon"):
        WindowTable(make_episodes((4, 3)), HORIZON, FEATURES)
    with pytest.raises(SpirlError):
        WindowTable([], HORIZON, FEATURES)


def test_shuffled_continues_where_it_was_left() -> None:
    table = WindowTable(make_episodes(), HORIZON, FEATURES)
    whole, rest = (
        [checked(*batch) for batch in table.shuffled(8, torch.Generator().manual_seed(0), skip=skip)] for skip in (0, 2)
    )
    assert rest == whole[2:]


def test_episodes_need_not_be_in_memory_together() -> None:
    alive: list[weakref.ref[Episode]] = []

    def episodes() -> Iterator[Episode]:
        for number in range(len(LENGTHS)):
            assert sum(one() is not None for one in alive) <= 1
            episode = make_episodes()[number]
            alive.append(weakref.ref(episode))
            yield episode

    table = WindowTable(episodes(), HORIZON, FEATURES, steps=sum(LENGTHS))
    assert set(checked(*table.rows(torch.arange(len(table))))) == all_windows()


@pytest.mark.parametrize("wrong", [-1, 1])
def test_episodes_of_other_lengths_than_announced_are_refused(wrong: int) -> None:
    with pytest.raises(SpirlError, match="other lengths than their dataset says"):
        WindowTable(iter(make_episodes()), HORIZON, FEATURES, steps=sum(LENGTHS) + wrong)


def test_a_step_has_the_size_of_what_is_kept_of_it() -> None:
    recorded = {"place": Feature(shape=(2,)), "goal": Feature(shape=(3,)), **image("stored", 1)}
    assert step_bytes(FEATURES, recorded, 1) == 4 * (2 + 1) + 8
    assert step_bytes({**FEATURES, **image("stored", 2)}, recorded, 1) == 4 * (2 + 1) + 8 + math.prod(SHAPE)
    assert step_bytes({**FEATURES, **image("rendered", 2)}, recorded, 1) == 4 * (2 + 3 + 1) + 8


# --- images ---

SHAPE = (2, 3, 3)


def renderer(metadata: Sequence[Mapping[str, Any]]) -> Renderer:
    """An image's entries are its episode's brightness plus the step's number, so that any mix-up shows."""
    brightness = np.array([facts["brightness"] for facts in metadata])

    def images(episodes: NDArray[np.int64], observation: Observation) -> NDArray[np.uint8]:
        values = brightness[episodes] + observation["place"][:, 1].astype(np.int64)
        return np.broadcast_to(values[:, None, None, None], (len(values), *SHAPE)).astype(np.uint8)

    return images


def seen_episodes() -> list[Episode]:
    """Episodes whose metadata say what is rendered; they also store that, under another name."""
    episodes = [dataclasses.replace(e, metadata={"brightness": 50 * n}) for n, e in enumerate(make_episodes())]
    render = renderer([episode.metadata for episode in episodes])
    for number, episode in enumerate(episodes):
        place = {"place": episode.observations["place"]}
        stored = render(np.full(episode.length + 1, number), place)
        object.__setattr__(episode, "observations", {**place, "stored": stored})
    return episodes


RENDERERS = {"rendered": renderer}


def image(name: str, frames: int) -> dict[str, Feature]:
    return {name: Feature(shape=SHAPE, role="image", frames=frames, stored=name == "stored")}


@pytest.mark.parametrize("cache", [0, 10**6])
@pytest.mark.parametrize("observed", [1, 3, None])
@pytest.mark.parametrize("frames", [1, 2, 3, 7])
@pytest.mark.parametrize("name", ["stored", "rendered"])
def test_an_image_comes_with_those_of_the_steps_before(
    name: str, frames: int, observed: int | None, cache: int
) -> None:
    features = {**image(name, frames), **FEATURES}
    table = WindowTable(
        seen_episodes(), HORIZON, features, renderers=RENDERERS, observed=observed, frame_cache_bytes=cache
    )
    found, actions = table.rows(torch.arange(len(table)))
    plain, same = WindowTable(make_episodes(), HORIZON, FEATURES).rows(torch.arange(len(table)))
    steps = observed or HORIZON
    assert list(found) == [name, "place"]
    assert torch.equal(actions, same)
    assert torch.equal(found["place"], plain["place"][:, :steps])
    assert (found[name].dtype, found[name].shape) == (torch.uint8, (len(table), steps, frames, *SHAPE))
    assert found[name].is_contiguous()
    episode, step = found["place"][..., 0], found["place"][..., 1]
    for age in range(frames):
        expected = 50 * episode + (step - age).clamp_min(0)
        assert (found[name][:, :, frames - 1 - age] == expected[..., None, None, None]).all()


def test_several_images_are_kept_apart_and_what_is_not_asked_for_is_not_rendered() -> None:
    def black(metadata: Sequence[Mapping[str, Any]]) -> Renderer:
        return lambda episodes, observation: np.zeros((len(episodes), 4, 4, 1), np.uint8)

    def never(metadata: Sequence[Mapping[str, Any]]) -> Renderer:
        raise AssertionError("nobody asked for it")

    dark = {"dark": Feature(shape=(4, 4, 1), role="image", stored=False)}
    renderers = {"rendered": renderer, "dark": black, "other": never}
    features = {**image("rendered", 2), **dark, **image("stored", 1)}
    table = WindowTable(seen_episodes(), HORIZON, features, renderers=renderers)
    found, _ = table.sample(16, torch.Generator().manual_seed(0))
    assert found["dark"].shape == (16, HORIZON, 1, 4, 4, 1)
    assert torch.equal(found["stored"][:, :, 0], found["rendered"][:, :, 1])
    assert not found["dark"].any()


def test_the_cache_has_room_for_some_images_only() -> None:
    rendered: list[int] = []

    def counted(metadata: Sequence[Mapping[str, Any]]) -> Renderer:
        own = renderer(metadata)

        def images(episodes: NDArray[np.int64], observation: Observation) -> NDArray[np.uint8]:
            rendered.append(len(episodes))
            return own(episodes, observation)

        return images

    rows, size = sum(LENGTHS), math.prod(SHAPE)
    features = {name: Feature(shape=SHAPE, role="image", stored=False) for name in ("one", "two")}
    for cache, expected in ((rows * size * 2 - 1, [rows, 3 * HORIZON]), (rows * size * 2, [rows, rows])):
        rendered.clear()
        table = WindowTable(
            seen_episodes(), HORIZON, features, renderers=dict.fromkeys(features, counted), frame_cache_bytes=cache
        )
        table.rows(torch.arange(3))
        assert rendered == expected


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"leg": Feature(shape=(2,))}, "'e0' does not hold the feature 'leg'"),
        ({"left": Feature(shape=SHAPE, role="image")}, "'e0' does not hold the feature 'left'"),
        (image("rendered", 1), "'rendered' is not stored, and nothing renders it"),
    ],
)
def test_features_that_are_nowhere_are_refused(features: dict[str, Feature], message: str) -> None:
    with pytest.raises(SpirlError, match=message):
        WindowTable(seen_episodes(), HORIZON, features)
