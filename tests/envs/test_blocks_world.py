"""The physics of block stacking: what the gripper does with blocks, and what counts as resting on what."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest

from spirl_ray.envs.blocks.world import (
    BLOCK_HALF,
    BLOCK_SIDE,
    DENSITIES,
    FINGER_TRAVEL,
    OBSERVATION_LIMIT,
    STEP_METRES,
    TABLE_HALF,
    TIP_BELOW_HAND,
    BlockWorld,
    grip_level,
)
from spirl_ray.errors import SpirlError

OPEN, CLOSED = -1.0, 1.0
ON_TABLE = BLOCK_HALF
GRASP_HEIGHT = BLOCK_HALF + TIP_BELOW_HAND  # of a hand around a block on the table


def level(number: int) -> float:
    """Height of the centre of the block at a level of a tower, 1 on the table."""
    return BLOCK_HALF + BLOCK_SIDE * (number - 1)


def arranged(
    *blocks: tuple[float, float], hand: tuple[float, float] = (0.0, 0.6), density: float = 1000.0
) -> BlockWorld:
    world = BlockWorld(len(blocks))
    world.arrange(blocks, hand, [density] * len(blocks))
    return world


def do(world: BlockWorld, y: float, z: float, grip: float, steps: int = 1) -> None:
    for _ in range(steps):
        world.advance(np.array([y, z, grip]))


def test_an_action_of_one_moves_the_hand_five_centimetres_a_step() -> None:
    world = arranged((1.0, ON_TABLE))
    do(world, 1.0, -0.5, OPEN)
    before = world.hand
    do(world, 1.0, -0.5, OPEN)
    np.testing.assert_allclose(world.hand - before, [0.0, STEP_METRES, -0.5 * STEP_METRES], atol=1e-3)
    do(world, 0.0, 0.0, OPEN, 10)
    assert np.abs(world.observe()["gripper"][1:4]).max() < 1e-3, "it stays where it is"


def test_the_hand_keeps_to_its_plane_when_a_block_pushes_it_aside() -> None:
    world = arranged((0.15, ON_TABLE), hand=(-0.1, GRASP_HEIGHT), density=5000.0)
    world.data.qpos[6] = 0.06  # the block's x, so that the fingers meet its side
    do(world, 1.0, 0.0, CLOSED, 12)
    do(world, 0.0, 0.0, CLOSED, 10)
    assert abs(world.hand[0]) < 0.01
    assert abs(world.observe()["gripper"][4]) < 0.05


@pytest.mark.parametrize(
    ("command", "before", "expected"),
    [
        (-0.9, 1.0, -1.0),
        (0.9, -1.0, 1.0),
        (0.0, 1.0, 0.0),
        (0.29, 1.0, 0.0),
        (0.31, 1.0, 1.0),
        (0.5, -1.0, -1.0),
        (-0.69, 1.0, 1.0),
        (0.71, -1.0, 1.0),
    ],
)
def test_grip_has_three_levels_and_holds_the_last_one_between(command: float, before: float, expected: float) -> None:
    assert grip_level(command, before) == expected


def test_fingers_reach_the_opening_of_each_level() -> None:
    world = arranged((1.0, ON_TABLE))
    for command, opening in ((1.0, 0.0), (0.0, 0.5), (-1.0, 1.0)):
        do(world, 0.0, 0.0, command, 5)
        assert world.observe()["gripper"][5] == pytest.approx(opening, abs=0.02)
        do(world, 0.0, 0.0, 0.5, 2)
        assert world.observe()["gripper"][5] == pytest.approx(opening, abs=0.02)


@pytest.mark.parametrize("density", [DENSITIES[0], DENSITIES[-1]])
def test_a_block_is_grasped_lifted_and_stacked(density: float) -> None:
    world = arranged((0.0, level(1)), (0.2, level(1)), hand=(0.0, GRASP_HEIGHT), density=density)
    assert world.touches().grasped == (False, False)
    assert world.touches().levels == (1, 1)
    do(world, 0.0, 0.0, CLOSED, 3)
    assert world.touches().grasped == (True, False)
    assert world.touches().levels == (0, 1), "a grasped block does not stand on its own"
    do(world, 0.0, 1.0, CLOSED, 4)
    assert world.positions[0, 2] > level(1) + 3 * STEP_METRES
    assert world.touches().free == (True, False)
    do(world, 1.0, 0.0, CLOSED, 4)
    while world.positions[0, 2] > level(2) + 0.004:
        do(world, 0.0, -0.2, CLOSED)
    assert world.touches().levels[0] == 0
    do(world, 0.0, 0.0, OPEN, 3)
    assert world.touches().levels == (2, 1)
    assert world.touches().grasped == (False, False)
    np.testing.assert_allclose(world.positions[0], [0.0, 0.2, level(2)], atol=0.01)


def test_levels_count_what_rests_on_what() -> None:
    tower = [(0.0, level(1)), (0.01, level(2)), (-0.01, level(3))]
    world = arranged(*tower, (0.5, level(1)), (0.52, level(2)), (-0.5, 0.4))
    do(world, 0.0, 0.0, OPEN)
    assert world.touches().levels == (1, 2, 3, 1, 2, 0), "the last one is falling"
    do(world, 0.0, 0.0, OPEN, 10)
    assert world.touches().levels == (1, 2, 3, 1, 2, 1)


def test_blocks_side_by_side_do_not_rest_on_each_other() -> None:
    world = arranged((0.0, level(1)), (BLOCK_SIDE - 0.001, level(1)))
    do(world, 0.0, 0.0, OPEN, 3)
    assert world.touches().levels == (1, 1)
    assert world.touches().free == (False, False)


def test_a_block_across_two_others_is_on_the_second_level() -> None:
    world = arranged((-0.06, level(1)), (0.06, level(1)), (0.0, level(2)))
    do(world, 0.0, 0.0, OPEN, 5)
    assert world.touches().levels == (1, 1, 2)


def test_a_tower_that_overhangs_falls() -> None:
    world = arranged((0.0, level(1)), (0.03, level(2)), (0.06, level(3)), (0.09, level(4)))
    do(world, 0.0, 0.0, OPEN, 20)
    assert max(world.touches().levels) < 4


def test_a_tower_of_eleven_stands() -> None:
    world = arranged(*[(0.0, level(number)) for number in range(1, 12)], hand=(0.5, 1.2))
    do(world, 0.0, 0.0, OPEN, 10)
    assert max(world.touches().levels) == 11
    assert world.observe()["blocks"].max() < OBSERVATION_LIMIT


def test_blocks_cannot_be_pushed_off_the_table() -> None:
    """A wall stops even what is thrown at it."""
    world = arranged((1.0, ON_TABLE), (-1.0, ON_TABLE))
    world.data.qvel[6:9], world.data.qvel[12:15] = (4.0, 8.0, 1.0), (-4.0, -8.0, 3.0)
    for _ in range(30):
        do(world, 0.0, 0.0, OPEN)
        positions = np.abs(world.positions)
        assert positions[:, 0].max() < TABLE_HALF[0]
        assert positions[:, 1].max() < TABLE_HALF[1]
    assert world.positions[:, 2].min() > 0.0


def test_an_observation_has_hand_gripper_and_blocks_and_is_clipped() -> None:
    found = arranged((0.3, 0.5), (-0.3, 2.5), hand=(0.2, 0.7)).observe()
    assert {values.dtype for values in found.values()} == {np.dtype(np.float32)}
    np.testing.assert_allclose(found["hand"], [0.0, 0.2, 0.7], atol=1e-6)
    np.testing.assert_allclose(found["gripper"], [0.2, 0.0, 0.0, 0.0, 0.0, 1.0], atol=1e-6)
    np.testing.assert_allclose(found["blocks"], [[0.0, 0.3, 0.5], [0.0, -0.3, 2.0]], atol=1e-6)


def test_heavier_blocks_weigh_more() -> None:
    world = arranged((0.0, ON_TABLE), density=5000.0)
    assert world.model.body("block0").mass == pytest.approx(5000.0 * BLOCK_SIDE**3)


@pytest.mark.parametrize("action", [[np.nan, 0, 0], [np.inf, 0, 0], [0, 0], [0, 0, 0, 0], [[0, 0, 0]]])
def test_what_is_no_action_is_refused(action: list[float]) -> None:
    world = arranged((0.0, ON_TABLE))
    with pytest.raises(SpirlError, match="three finite numbers"):
        world.advance(np.array(action))
    assert all(np.isfinite(values).all() for values in world.observe().values())


@pytest.mark.parametrize("n_blocks", [0, -1, 21, 2.0, True, "5"])
def test_impossible_numbers_of_blocks_are_refused(n_blocks: object) -> None:
    with pytest.raises(SpirlError, match="1 to 20 blocks"):
        BlockWorld(n_blocks)  # type: ignore[arg-type]


def random_play(n_blocks: int, steps: int, seed: int = 0) -> None:
    """Random actions, each kept for a while so that the hand gets about; a new arrangement now and then."""
    world, rng = BlockWorld(n_blocks), np.random.default_rng(seed)
    action = np.zeros(3)
    for step in range(steps):
        if step % 500 == 0:
            places = [(y, ON_TABLE) for y in np.linspace(-0.25, 0.25, n_blocks)]
            world.arrange(places, (0.0, 0.3), rng.choice(DENSITIES, n_blocks))
        if step % 7 == 0:
            action = rng.uniform(-1.0, 1.0, 3)
            action[1] -= 0.4 * (world.hand[2] > 0.25)  # down, where the blocks are
        world.advance(action)
        assert np.isfinite(world.data.qpos).all(), step
        assert np.isfinite(world.data.qvel).all(), step
        assert np.abs(world.positions[:, :2]).max() < TABLE_HALF[1], step
        assert world.positions[:, 2].min() > 0.0, step
    assert not any(warning.number for warning in world.data.warning)


def test_physics_stays_finite_under_random_actions() -> None:
    random_play(n_blocks=5, steps=2000)


@pytest.mark.slow
def test_physics_stays_finite_for_a_hundred_thousand_random_steps() -> None:
    with ThreadPoolExecutor(2) as pool:  # MuJoCo lets go of the interpreter while it computes
        list(pool.map(partial(random_play, 3, 50_000), (0, 1)))


def test_closed_fingers_stop_before_they_touch() -> None:
    world = arranged((1.0, ON_TABLE))
    do(world, 0.0, 0.0, CLOSED, 5)
    assert world.data.qpos[4:6].min() > -0.1 * FINGER_TRAVEL


def test_an_observation_is_shown_as_it_was() -> None:
    world = arranged((-0.2, ON_TABLE), (0.1, ON_TABLE), hand=(0.1, GRASP_HEIGHT))
    do(world, 0.0, 0.0, CLOSED, 5)
    do(world, 0.5, 0.5, CLOSED, 5)
    seen = world.observe()
    other = arranged((0.3, ON_TABLE), (0.5, ON_TABLE))
    do(other, 0.0, 0.0, OPEN, 5)
    assert other.data.ntree_awake == 1  # the robot
    other.show(seen)
    shown = other.observe()
    seen["gripper"][1:4] = 0.0  # velocities have no picture
    shown["gripper"][1:4] = 0.0
    for name, values in seen.items():
        np.testing.assert_allclose(shown[name], values, atol=1e-6)
    drawn = [other.data.geom(f"block{i}").xpos for i in range(2)]
    np.testing.assert_allclose(drawn, seen["blocks"], atol=1e-6)
