"""The scripted expert of block stacking: it goes from way-point to way-point and reads the world anew at every step.

Each way-point is disturbed a little, so that demonstrations differ and show how to correct what went wrong. Most begin
after a clumsy reach into the blocks, where no block is in the image, or with a block in the hand; how the hand came
there is not recorded. So they also show the way out of states that no expert gets into by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from spirl_ray.arguments import checked
from spirl_ray.envs.blocks.env import (
    DATA_BLOCKS,
    DATA_STEPS,
    STANDING_STEPS,
    AgentCamera,
    Building,
    subtasks,
)
from spirl_ray.envs.blocks.world import (
    BLOCK_HALF,
    BLOCK_SIDE,
    DENSITIES,
    HAND_HIGH,
    HAND_LOW,
    LEVELS,
    REACH,
    STEP_METRES,
    TIP_BELOW_HAND,
    BlockWorld,
)
from spirl_ray.episodes.episode import Episode
from spirl_ray.episodes.features import Array, stack_observations

Moves = Iterator[tuple[float, float, float]]
"""Actions (y, z, grip); the world advances by one step between two of them."""
Waypoint = Callable[[], tuple[float, float]]
"""A function that gives y and z (m) where the hand should be, which may depend on where things are now."""

OPEN, CLOSED = -1.0, 1.0
_WAIT = np.array([0.0, 0.0, OPEN])
SPREAD = 0.5  # m to either side of a place on the table, where blocks stand at the start
PLACE = 0.5  # m to either side of the table's middle, where that place is
CLOSEST, ROOM = 0.18, 0.15  # m between the middles of two of them; the fingers fit between if there is so much room
PAIR_RATE, PAIR_GAP = 0.4, (0.001, 0.04)  # how often two that are not needed stand together, and m between their sides
HAND_STARTS = (0.45, 0.7)  # m, heights
ASTRAY_RATE, ASTRAY = 0.3, (0.15, 0.9)  # how often the hand is away from all blocks, and m beyond the outermost
HELD_RATE = 0.25  # how often it holds the block that is put down first
FUMBLE_RATE = 0.7  # how often it has otherwise reached into the blocks before
FUMBLES = (1, 2)  # reaches, at least and at most
FUMBLE_OFF, FUMBLE_HEIGHT = 0.1, 0.25  # m beside a block (standard deviation), and at most above the lowest place
REACH_STEPS = 25  # at most
STACKS_DONE = (0, 1, 2)
STACKS_TO_DO = 2
GRASP_TRIES, PLACE_TRIES = 3, 2

CLEARANCE = (0.03, 0.08)  # m above whatever is on the way
SIDEWAYS = 0.13  # m that hand and open fingers reach to either side
AHEAD = 0.12  # m beyond that, up to which it considers what is in its way; the agent's camera shows as much
NEAR, OVER, EXACT = 0.04, 0.01, 0.006  # m from a way-point at which the next one is taken
SIDE_SPEED = 0.4  # command; the end of a plan of ten steps is then in the image when the plan is made
SLOW = 0.5  # command while a block is put down
DETOUR_RATE, DETOUR = 0.15, 0.06  # how often, and how far (standard deviation, m), a way-point is far off
MOST_MOVES = 60  # steps towards one way-point
MOST_OFF = 0.02  # m; a way-point further off would let a finger land on the block
MOST_NOISE = 0.03  # m; beyond, the expert is more often wrong than right


@dataclass
class _Builder:
    """The expert of one episode, which reads the world and chooses the next action."""

    world: BlockWorld
    rng: np.random.Generator
    subgoal_noise: float

    def stack(self, block: int, tower: int) -> Moves:
        """Fetches a block, if it is not in the hand already, and puts it onto another."""
        for _ in range(PLACE_TRIES):
            if not self.world.touches().grasped[block]:
                yield from self.fetch(block)
            yield from self._place(block, tower)
            if self.world.touches().levels[block] > 1:
                return

    @property
    def _hand(self) -> tuple[float, float]:
        _, y, z = self.world.hand
        return float(y), float(z)

    def fetch(self, block: int) -> Moves:
        for _ in range(GRASP_TRIES):
            yield from self._travel(block, None)
            yield from self._go(self._beside(block, self._noise(), TIP_BELOW_HAND + self._noise()), OPEN, EXACT)
            for _ in range(int(self.rng.integers(2, 4))):
                yield 0.0, 0.0, CLOSED
            if self.world.touches().grasped[block]:
                return

    def _place(self, block: int, tower: int) -> Moves:
        yield from self._travel(tower, block)
        side = 0.5 * self._noise()
        yield from self._go(self._across(tower, block, side, self._clearance()), CLOSED, OVER)

        def down() -> tuple[float, float]:
            (_, y, top), (_, held_y, held) = self.world.positions[[tower, block]]
            hand_y, hand_z = self._hand
            return hand_y + float(y - held_y) + side, hand_z + float(top + BLOCK_SIDE - held)

        yield from self._go(down, CLOSED, EXACT, speed=SLOW)
        for _ in range(int(self.rng.integers(2, 4))):
            yield 0.0, 0.0, OPEN

    def _travel(self, block: int, carried: int | None) -> Moves:
        """Moves across until the hand is over a block, now and then by way of somewhere else."""
        grip = OPEN if carried is None else CLOSED
        clearance = self._clearance()
        if self.rng.random() < DETOUR_RATE:
            off = self.rng.normal(0.0, DETOUR, 2)
            yield from self._go(self._across(block, carried, off[0], clearance + abs(off[1])), grip, NEAR)
        yield from self._go(self._across(block, carried, self._noise(), clearance + abs(self._noise())), grip, NEAR)

    def _clearance(self) -> float:
        """The clearance (m) of the hand above what it passes with a block between its fingers."""
        return TIP_BELOW_HAND + BLOCK_HALF + float(self.rng.uniform(*CLEARANCE))

    def _across(self, goal: int, carried: int | None, side: float, clearance: float) -> Waypoint:
        """A way-point over a block. The hand rises before an obstacle, but only once the agent's camera shows it.

        So the next action can be inferred from an image, however far the way and however high a tower.
        """

        def place() -> tuple[float, float]:
            y, z = self._hand
            positions = self.world.positions
            there = float(positions[goal, 1]) + side
            low, high = sorted((y, float(np.clip(there, y - AHEAD, y + AHEAD))))
            met = (positions[:, 1] > low - SIDEWAYS) & (positions[:, 1] < high + SIDEWAYS)
            if carried is not None:
                met[carried] = False
            height = float((positions[met, 2] + BLOCK_HALF).max(initial=BLOCK_SIDE)) + clearance
            return (there if z > height - NEAR else y), height

        return place

    def _beside(self, block: int, side: float, up: float) -> Waypoint:
        def place() -> tuple[float, float]:
            _, y, z = self.world.positions[block]
            return float(y) + side, float(z) + up

        return place

    def _noise(self) -> float:
        return float(np.clip(self.rng.normal(0.0, self.subgoal_noise), -MOST_OFF, MOST_OFF))

    def _go(self, goal: Waypoint, grip: float, within: float, speed: float = 1.0) -> Moves:
        """Moves towards a way-point that may move, until within a distance of it."""
        for _ in range(MOST_MOVES):
            here, there = np.array(self._hand), np.array(goal())
            there[1] = np.clip(there[1], HAND_LOW, HAND_HIGH)
            if np.abs(there - here).max() < within:
                return
            limits = np.minimum(speed, (SIDE_SPEED, 1.0))
            y, z = np.clip((there - here) / STEP_METRES, -limits, limits)
            yield float(y), float(z), grip


@checked
def generate(
    indices: Iterable[int],
    seed: int,
    *,
    subgoal_noise: Annotated[float, Field(ge=0.0, le=MOST_NOISE)] = 0.01,
    action_noise: Annotated[float, Field(ge=0.0, le=1.0)] = 0.05,
) -> Iterator[Episode | None]:
    """Generates demonstrations that put two more blocks onto a tower, one for each index.

    Five blocks stand at random places, none, one or two of them on the tower already, in random order.

    Args:
        indices: numbers of the episodes.
        seed: seed of the dataset; an episode depends on (seed, index, options) alone, its images also on the OpenGL
            implementation.
        subgoal_noise: standard deviation (m) of the Gaussian displacement of way-points; one in seven is far off.
        action_noise: standard deviation of the Gaussian noise on y and z, which is part of the recorded actions.

    Yields:
        Episodes with images and dense rewards, until the last block is let go; None where the tower did not stand
        after 250 steps or has fallen.
        ``metadata``: "tower" (the blocks of the planned tower from below), "done" (how many lie on others at the
        start), "completed" (heights that have been reached since).

    Raises:
        SpirlError: an option out of range, or OpenGL does not work.
    """
    return _episodes(indices, seed, subgoal_noise, action_noise)


def _episodes(indices: Iterable[int], seed: int, subgoal_noise: float, action_noise: float) -> Iterator[Episode | None]:
    world = BlockWorld(DATA_BLOCKS)
    camera = AgentCamera(world)
    try:
        for index in indices:
            rng = np.random.default_rng((seed, index))
            name = f"blocks-{seed}-{index:06d}"
            yield demonstrate(world, camera, rng, name, subgoal_noise, action_noise)
    finally:
        camera.close()


def demonstrate(
    world: BlockWorld,
    camera: AgentCamera | None,
    rng: np.random.Generator,
    name: str,
    subgoal_noise: float,
    action_noise: float,
) -> Episode | None:
    """Generates one episode with the id ``name``, see `generate`; without a camera, it has no images."""
    order, done = _begin(world, rng)
    goal = done + 1 + STACKS_TO_DO
    building = Building(DATA_BLOCKS)
    observations = [_observe(world, camera)]
    actions: list[NDArray[np.float32]] = []
    rewards: list[float] = []
    for move in _moves(_Builder(world, rng, subgoal_noise), order, done):
        if len(actions) == DATA_STEPS:
            return None
        noise = np.append(rng.normal(0.0, action_noise, 2), 0.0)
        actions.append(np.clip(move + noise, -1.0, 1.0).astype(np.float32))
        world.advance(actions[-1])
        rewards.append(building.follow(world.touches(), world.positions[:, 2]).reward("dense"))
        observations.append(_observe(world, camera))
        # Waiting for the tower to stand is not demonstrated, because skills would learn to idle at finished towers.
    for _ in range(STANDING_STEPS):
        world.advance(_WAIT)
        building.follow(world.touches(), world.positions[:, 2])
    if max(world.touches().levels) < goal or building.highest < goal:
        return None
    return Episode(
        id=name,
        observations=stack_observations(observations),
        actions=np.stack(actions),
        rewards=np.array(rewards, np.float32),
        terminated=False,
        truncated=True,
        metadata={"tower": order[:goal], "done": done, "completed": list(subtasks(building.highest)[done:])},
    )


def _observe(world: BlockWorld, camera: AgentCamera | None) -> dict[str, Array]:
    return world.observe() | ({} if camera is None else {"camera": camera.image()})


def _moves(builder: _Builder, order: Sequence[int], done: int) -> Moves:
    for step in range(STACKS_TO_DO):
        yield from builder.stack(order[done + 1 + step], order[done + step])


def _begin(world: BlockWorld, rng: np.random.Generator) -> tuple[list[int], int]:
    """Finds a start from which the task can be done.

    Returns:
        The blocks, those of the planned tower first and from below, and how many of them lie on others already.
    """
    while True:
        order = rng.permutation(DATA_BLOCKS).tolist()
        done = int(rng.choice(STACKS_DONE))
        tower, others = order[: done + 1], order[done + 1 :]
        places = _places(rng, tower, others)
        sides = [y for y, _ in places]
        hand = (places[rng.choice(order)][0] + rng.normal(0.0, FUMBLE_OFF), rng.uniform(*HAND_STARTS))
        if astray := rng.random() < ASTRAY_RATE:
            hand = _astray(rng, sides)
        world.arrange(places, hand, rng.choice(DENSITIES, DATA_BLOCKS))
        if not astray and rng.random() < FUMBLE_RATE:
            _fumble(world, rng)
        needed = others[:STACKS_TO_DO]
        if not _can_do(world, tower, needed):
            continue
        if rng.random() < HELD_RATE:
            for move in _Builder(world, rng, 0.0).fetch(needed[0]):
                world.advance(np.array(move))
            if astray:
                _reach(world, _astray(rng, sides), CLOSED)
            if not world.touches().grasped[needed[0]] or not _can_do(world, tower, needed[1:]):
                continue
        return order, done


def _can_do(world: BlockWorld, tower: Sequence[int], needed: Sequence[int]) -> bool:
    """True where the tower stands so far, and the blocks that are needed can be taken from the table."""
    levels = world.touches().levels
    return all(levels[block] == level for level, block in enumerate(tower, 1)) and all(
        levels[block] == 1 and _room_around(world, block) for block in needed
    )


def _astray(rng: np.random.Generator, sides: Sequence[float]) -> tuple[float, float]:
    """Draws y and z (m) of a hand that is too far to one side, or too high, for its camera to show any block."""
    high = float(rng.uniform(HAND_STARTS[0], HAND_HIGH))
    if rng.random() < 0.5:
        return float(rng.uniform(min(sides), max(sides))), high
    beyond = rng.uniform(*ASTRAY)
    y = min(sides) - beyond if rng.random() < 0.5 else max(sides) + beyond
    return float(np.clip(y, -REACH, REACH)), float(rng.uniform(HAND_LOW, high))


def _fumble(world: BlockWorld, rng: np.random.Generator) -> None:
    """Reaches for places beside blocks, with any grip and whatever is in the way."""
    for _ in range(int(rng.integers(FUMBLES[0], FUMBLES[1] + 1))):
        y = world.positions[rng.integers(DATA_BLOCKS), 1] + rng.normal(0.0, FUMBLE_OFF)
        _reach(world, (y, HAND_LOW + rng.uniform(0.0, FUMBLE_HEIGHT)), float(rng.choice(LEVELS)))


def _reach(world: BlockWorld, there: tuple[float, float], grip: float) -> None:
    """Moves the hand straight to a place, y and z (m), as far as blocks and time allow."""
    for _ in range(REACH_STEPS):
        away = there - world.hand[1:]
        if np.abs(away).max() < NEAR:
            break
        world.advance(np.append(np.clip(away / STEP_METRES, -1.0, 1.0), grip))


def _room_around(world: BlockWorld, block: int) -> bool:
    """True where nothing lies on a block and the fingers fit to either side."""
    positions = world.positions
    away = np.abs(np.delete(positions, block, axis=0) - positions[block])
    return bool(away[:, 1].min() > ROOM)


def _places(rng: np.random.Generator, tower: Sequence[int], others: Sequence[int]) -> list[tuple[float, float]]:
    """Draws y and z (m) of every block: the tower's above one another, the others beside it in random order."""
    pair = len(others) >= STACKS_TO_DO + 2 and rng.random() < PAIR_RATE
    columns = [list(tower), *([block] for block in others)]
    apart = len(columns) - pair
    middle = rng.uniform(-PLACE, PLACE)
    while True:
        sides = middle + rng.uniform(-SPREAD, SPREAD, len(columns))
        if pair:
            sides[-1] = sides[-2] + rng.choice((-1, 1)) * (BLOCK_SIDE + rng.uniform(*PAIR_GAP))
        close = np.diff(np.sort(sides[:apart])).min() <= CLOSEST
        if not close and not (pair and np.abs(sides[:-2] - sides[-1]).min() <= CLOSEST):
            break
    places = [(0.0, 0.0)] * DATA_BLOCKS
    for side, column in zip(sides.tolist(), columns, strict=True):
        for level, block in enumerate(column):
            places[block] = (side, BLOCK_HALF + BLOCK_SIDE * level)
    return places
