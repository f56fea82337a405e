"""Layouts: walls with doors, everything within reach, merged walls that are the cells, views that a camera sees."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import ndimage

from spirl_ray.envs.maze.layout import (
    VIEW_REACH,
    VIEW_SIZE,
    WALL_SHARE,
    LayoutViews,
    distances,
    free_cells,
    layout,
    shortest_path,
    wall_rectangles,
)
from spirl_ray.errors import SpirlError

SEEDS = range(30)


@pytest.mark.parametrize("size", [6, 20, 40])
def test_a_layout_is_bordered_connected_and_about_a_quarter_wall(size: int) -> None:
    for seed in SEEDS:
        walls = layout(seed, size)
        assert walls.shape == (size + 2, size + 2)
        border = walls.copy()
        border[1:-1, 1:-1] = True
        assert border.all()
        assert ndimage.label(~walls)[1] == 1
    share = np.mean([layout(seed, size)[1:-1, 1:-1].mean() for seed in SEEDS])
    assert share == pytest.approx(WALL_SHARE, abs=0.08 if size == 6 else 0.03)


def test_a_seed_is_one_layout_and_seeds_differ() -> None:
    first = layout(3, 20).copy()
    layout.cache_clear()
    assert (layout(3, 20) == first).all()
    assert len({layout(seed, 20).tobytes() for seed in SEEDS}) == len(SEEDS)


@pytest.mark.parametrize(("seed", "size"), [(-1, 20), (0, 5)])
def test_a_layout_that_cannot_be_is_refused(seed: int, size: int) -> None:
    with pytest.raises(SpirlError, match="at least"):
        layout(seed, size)


def test_merged_walls_are_exactly_the_wall_cells() -> None:
    for seed in SEEDS:
        walls = layout(seed, 20)
        covered = np.zeros(walls.shape, dtype=int)
        rectangles = wall_rectangles(walls)
        for first_i, first_j, last_i, last_j in rectangles:
            covered[first_i : last_i + 1, first_j : last_j + 1] += 1
        assert (covered == walls).all()
        assert len(rectangles) < walls.sum() / 3


def test_distances_and_paths_agree_with_a_matrix_power_search() -> None:
    walls = layout(5, 12)
    cells = [tuple(cell) for cell in free_cells(walls)]
    number = {cell: n for n, cell in enumerate(cells)}
    neighbours = np.zeros((len(cells), len(cells)), dtype=bool)
    for (i, j), n in number.items():
        for cell in ((i + 1, j), (i, j + 1)):
            if cell in number:
                neighbours[n, number[cell]] = neighbours[number[cell], n] = True
    reached, expected = np.eye(len(cells), dtype=bool)[0], {0: 0}
    for step in range(1, len(cells)):
        grown = reached | neighbours[reached].any(0)
        expected |= {int(n): step for n in np.flatnonzero(grown & ~reached)}
        reached = grown
    found = distances(walls, cells[0])
    assert {number[cell]: found[cell] for cell in cells} == expected
    assert (found[walls] == -1).all()

    path = shortest_path(walls, cells[-1], cells[0], np.random.default_rng(0))
    assert len(path) == found[cells[-1]] + 1
    assert all(abs(a - c) + abs(b - d) == 1 for (a, b), (c, d) in itertools.pairwise(path))
    assert not any(walls[cell] for cell in path)


def test_a_goal_behind_walls_is_an_error() -> None:
    walls = np.ones((8, 8), dtype=bool)
    walls[1, 1] = walls[5, 5] = False
    with pytest.raises(SpirlError, match=r"\(1, 1\) to \(5, 5\)"):
        shortest_path(walls, (1, 1), (5, 5), np.random.default_rng(0))


def test_a_pixel_is_the_free_share_of_its_area() -> None:
    walls, fine = layout(1, 20), 40
    position = np.array([[7.37, 11.81]], np.float32)
    view = LayoutViews([walls])(np.zeros(1, np.int64), position)[0] / 255.0
    width = 2 * VIEW_REACH / VIEW_SIZE
    offsets = (np.arange(VIEW_SIZE * fine) + 0.5) / fine * width - VIEW_REACH
    x = np.rint(position[0, 0] + offsets).astype(int)
    y = np.rint(position[0, 1] - offsets).astype(int)
    sampled = 1.0 - walls[x[None, :], y[:, None]].reshape(VIEW_SIZE, fine, VIEW_SIZE, fine).mean((1, 3))
    assert 0.1 < sampled.mean() < 0.9
    np.testing.assert_allclose(view, sampled, atol=0.06)
    assert np.abs(view - sampled).mean() < 0.005


def test_views_show_motion_of_a_hundredth_of_a_cell() -> None:
    views = LayoutViews([layout(1, 20)])
    here = views(np.zeros(1, np.int64), np.array([[7.37, 11.81]], np.float32))
    there = views(np.zeros(1, np.int64), np.array([[7.38, 11.81]], np.float32))
    assert (here != there).any()


def test_views_of_several_layouts_are_those_of_each() -> None:
    layouts = [layout(seed, size) for seed, size in ((1, 20), (2, 12), (3, 20))]
    rng = np.random.default_rng(0)
    scenes, positions = rng.integers(3, size=50), rng.uniform(-3.0, 24.0, (50, 2)).astype(np.float32)
    together = LayoutViews(layouts)(scenes, positions)
    for view, scene, position in zip(together, scenes, positions, strict=True):
        inside = np.clip(position, -10, 30)
        alone = LayoutViews([layouts[scene]])(np.zeros(1, np.int64), inside[None])
        if (position < layouts[scene].shape[0] - 1).all() and (position > 0).all():
            np.testing.assert_array_equal(view, alone[0])
