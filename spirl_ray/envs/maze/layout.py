"""Maze layouts: walls with doors from a seed, shortest paths, merged walls, and agent-centred views of them.

A layout is a bool array [size + 2, size + 2], True where there is a wall; its border is wall. Cell (i, j) covers
x from i - 0.5 to i + 0.5 and y from j - 0.5 to j + 0.5, so positions are in cells.
"""

from __future__ import annotations

from collections import deque
from functools import lru_cache
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy import ndimage

from spirl_ray.errors import SpirlError

Layout = NDArray[np.bool_]
Cell = tuple[int, int]
LARGEST = 100
Size = Annotated[int, Field(ge=6, le=LARGEST)]
"""The side of a layout in cells."""

LONGEST, SHORTEST = 0.5, 0.3
"""The length of a wall as a share of the layout's size."""
WALL_SHARE = 0.25
"""The share of the cells inside the border that walls cover; walls are added until it is reached."""
DOOR = 2
"""The number of cells that stay open in every wall."""
_ATTEMPTS = 40
"""The number of walls that are tried for each that would fit by area; walls may cover a little less than planned."""

VIEW_SIZE = 32
VIEW_REACH = 5.0 * np.tan(np.pi / 8)
"""The half-width of a view in cells, as of a camera of 45 degrees at distance 5."""
_PATCH = 6
"""The number of cells along each axis that a view can reach into."""
_MARGIN = 3


@lru_cache(maxsize=256)
def layout(seed: int, size: int) -> Layout:
    """Makes the layout of a seed: straight walls with doors, and every free cell within reach of every other.

    Raises:
        SpirlError: the size is below 6 or the seed is negative.
    """
    if size < 6 or seed < 0:
        raise SpirlError(f"a maze needs a size of at least 6 and a seed of at least 0, not size {size}, seed {seed}")
    rng = np.random.default_rng((size, seed))
    walls = np.ones((size + 2, size + 2), dtype=bool)
    inside = walls[1:-1, 1:-1]
    inside[:] = False
    wanted = round(WALL_SHARE * size * size)
    for _ in range(_ATTEMPTS * wanted // max(1, round(SHORTEST * size))):
        if inside.sum() >= wanted:
            break
        added = _wall(rng, size)
        if _thickens(inside, added):
            continue
        inside |= added
        if ndimage.label(~inside)[1] > 1:
            inside &= ~added
    walls.setflags(write=False)
    return walls


def _wall(rng: np.random.Generator, size: int) -> Layout:
    length = int(rng.integers(max(3, round(SHORTEST * size)), round(LONGEST * size) + 1))
    first, across = int(rng.integers(0, size - length + 1)), int(rng.integers(0, size))
    door = int(rng.integers(0, length - DOOR + 1))
    wall = np.zeros((size, size), dtype=bool)
    wall[first : first + length, across] = True
    wall[first + door : first + door + DOOR, across] = False
    return wall if rng.random() < 0.5 else wall.T


def _thickens(inside: Layout, added: Layout) -> bool:
    """True where walls would fill a 2 × 2 square, or the new one would mostly repeat another."""
    both = inside | added
    square = both[:-1, :-1] & both[1:, :-1] & both[:-1, 1:] & both[1:, 1:]
    return bool(square.any() or (inside & added).sum() > 2)


def free_cells(walls: Layout) -> NDArray[np.int64]:
    """The coordinates [N, 2] of the cells without a wall."""
    return np.argwhere(~walls)


def distances(walls: Layout, goal: Cell) -> NDArray[np.int64]:
    """The length in steps of the shortest 4-connected path from every cell to ``goal``; -1 where there is none."""
    steps = np.full(walls.shape, -1)
    if walls[goal]:
        return steps
    steps[goal] = 0
    pending = deque([goal])
    while pending:
        i, j = pending.popleft()
        for cell in ((i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)):
            if not walls[cell] and steps[cell] < 0:
                steps[cell] = steps[i, j] + 1
                pending.append(cell)
    return steps


def shortest_path(walls: Layout, start: Cell, goal: Cell, rng: np.random.Generator) -> list[Cell]:
    """The cells from ``start`` to ``goal``, both included; of equally short paths, a straight or a random one.

    Raises:
        SpirlError: no path leads from start to goal.
    """
    steps = distances(walls, goal)
    if steps[start] < 0:
        raise SpirlError(f"the maze has no path from {start} to {goal}")
    path, heading = [start], (0, 0)
    while path[-1] != goal:
        i, j = path[-1]
        ways = [d for d in ((1, 0), (-1, 0), (0, 1), (0, -1)) if steps[i + d[0], j + d[1]] == steps[i, j] - 1]
        heading = heading if heading in ways else ways[int(rng.integers(len(ways)))]
        path.append((i + heading[0], j + heading[1]))
    return path


def wall_rectangles(walls: Layout) -> list[tuple[int, int, int, int]]:
    """Joins the walls to few rectangles (first i, first j, last i, last j), which physics checks faster than cells."""
    remaining = walls.copy()
    rectangles = []
    for i, j in np.argwhere(walls):
        if not remaining[i, j]:
            continue
        tall = i
        while tall + 1 < len(remaining) and remaining[tall + 1, j]:
            tall += 1
        wide = j
        while wide + 1 < remaining.shape[1] and remaining[i, wide + 1]:
            wide += 1
        if tall - i > wide - j:
            wide = j
        else:
            tall = i
        remaining[i : tall + 1, j : wide + 1] = False
        rectangles.append((int(i), int(j), int(tall), int(wide)))
    return rectangles


class LayoutViews:
    """Agent-centred top-down views of layouts: images as of a camera straight above the agent.

    A pixel is the share of its area that is free, computed exactly, so a view moves smoothly with the position.
    """

    def __init__(self, layouts: list[Layout]) -> None:
        height = max(walls.shape[0] for walls in layouts) + 2 * _MARGIN
        width = max(walls.shape[1] for walls in layouts) + 2 * _MARGIN
        self._free = np.zeros((len(layouts), height, width), dtype=np.float32)
        for index, walls in enumerate(layouts):
            self._free[index, _MARGIN : _MARGIN + walls.shape[0], _MARGIN : _MARGIN + walls.shape[1]] = ~walls

    def __call__(self, scenes: NDArray[np.int64], positions: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Renders views, uint8 [B, 32, 32], 255 for floor and 0 for wall; x runs to the right and y up.

        Args:
            scenes: index of the layout [B].
            positions: positions of the agent [B, 2], in cells.
        """
        weights, firsts = zip(*(_pixel_weights(positions[:, axis]) for axis in (0, 1)), strict=True)
        cells = np.arange(_PATCH)
        # Outside the layout all is wall, wherever the agent has been put.
        rows = np.clip(firsts[0][:, None] + cells + _MARGIN, 0, self._free.shape[1] - 1)
        columns = np.clip(firsts[1][:, None] + cells + _MARGIN, 0, self._free.shape[2] - 1)
        patches = self._free[scenes[:, None, None], rows[:, :, None], columns[:, None, :]]
        downwards = weights[1][:, ::-1]
        free = downwards @ (weights[0] @ patches).transpose(0, 2, 1)
        free *= 255.0
        free += 0.5
        return free.astype(np.uint8)


def _pixel_weights(centre: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Computes the share of each pixel, along one axis, that each of 6 cells covers [B, 32, 6], and the first cell."""
    low = centre.astype(np.float64) - VIEW_REACH
    first = np.floor(low + 0.5).astype(np.int64)
    width = 2.0 * VIEW_REACH / VIEW_SIZE
    starts = (low + 0.5 - first)[:, None, None] + width * np.arange(VIEW_SIZE)[None, :, None]
    edges = np.arange(_PATCH)[None, None, :]
    covered = np.minimum(starts + width, edges + 1) - np.maximum(starts, edges)
    return (np.maximum(covered, 0.0) / width).astype(np.float32), first
