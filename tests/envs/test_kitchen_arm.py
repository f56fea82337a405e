"""The arm's servo: the hand goes where it is sent, as fast as it is told, and no joint is asked for too much."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import mujoco
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from spirl_ray.envs.kitchen.arm import (
    ARM_DIM,
    CLOSED,
    LONGEST_PAUSE,
    OPEN,
    Actions,
    Arm,
    Style,
    rotation,
    rotation_vector,
)
from spirl_ray.envs.kitchen.env import STEP_SECONDS, KitchenEnv

PLAIN = Style(speed=1.0, carelessness=0.0, hesitation=0.0, bow=0.0, posture=np.zeros(ARM_DIM), pitch=0.0)
FREE_POINT = np.array([-0.35, 0.30, 2.10])  # nothing is near it


@pytest.fixture(scope="module")
def kitchen() -> Iterator[KitchenEnv]:
    """Without noise; the model is costly to load, so tests share it."""
    env = KitchenEnv(robot_noise=0.0, object_noise=0.0)
    yield env
    env.close()


@pytest.fixture
def arm(kitchen: KitchenEnv) -> Arm:
    return arm_of(kitchen)


def arm_of(kitchen: KitchenEnv, **style: Any) -> Arm:
    kitchen.reset(seed=0)
    return Arm(kitchen.model, kitchen.data, dataclasses.replace(PLAIN, **style), np.random.default_rng(0))


def perform(kitchen: KitchenEnv, actions: Actions) -> NDArray[np.float64]:
    """Positions of the hand [T+1, 3] along a move."""
    site = kitchen.model.site("end_effector").id
    positions = [kitchen.data.site_xpos[site].copy()]
    for action in actions:
        kitchen.step(action)
        positions.append(kitchen.data.site_xpos[site].copy())
    return np.array(positions)


def driving(arm: Arm, velocity: NDArray[np.float64], turn: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """The part of an arm action that moves it, rather than holds it against gravity."""
    still = arm.data.qfrc_bias[:ARM_DIM] / arm._torque_at_full_action
    return arm.action(velocity, turn, OPEN)[:ARM_DIM] - still


# --- geometry ---


@settings(deadline=None)  # machines may be busy
@given(axis=st.integers(0, 2), angle=st.floats(-3.0, 3.0))
def test_a_rotation_vector_is_axis_times_angle(axis: int, angle: float) -> None:
    np.testing.assert_allclose(rotation_vector(rotation(axis, angle)), angle * np.eye(3)[axis], atol=1e-9)


def test_a_hand_points_ahead_down_with_negative_pitch_and_left_with_positive_yaw(arm: Arm) -> None:
    np.testing.assert_allclose(arm.hand(0.0)[:, 2], (0.0, 1.0, 0.0), atol=1e-12)
    np.testing.assert_allclose(arm.hand(-0.3)[:, 2], (0.0, math.cos(0.3), -math.sin(0.3)), atol=1e-12)
    np.testing.assert_allclose(arm.hand(0.0, 0.3)[:, 2], (-math.sin(0.3), math.cos(0.3), 0.0), atol=1e-12)


# --- the servo ---


def test_a_move_reaches_its_point_with_the_hand_aligned(kitchen: KitchenEnv, arm: Arm) -> None:
    hand = arm.hand(-0.2, 0.2)
    path = perform(kitchen, arm.go(FREE_POINT, hand, within=0.01, align=0.05, steps=60))
    assert len(path) < 40
    assert np.linalg.norm(path[-1] - FREE_POINT) < 0.015
    assert arm.misalignment(hand) < 0.06


@pytest.mark.parametrize("velocity", [(-0.25, 0.0, 0.0), (0.0, 0.2, 0.0), (0.0, 0.0, -0.2)])
def test_the_hand_moves_with_the_velocity_that_it_is_told(
    kitchen: KitchenEnv, arm: Arm, velocity: tuple[float, float, float]
) -> None:
    perform(kitchen, arm.go(FREE_POINT, arm.hand(0.0), align=0.05, steps=60))
    wanted = np.array(velocity)
    path = perform(kitchen, (arm.action(wanted, np.zeros(3), OPEN) for _ in range(6)))
    reached = (path[-1] - path[1]) / (5 * STEP_SECONDS)  # after one step to start
    assert np.linalg.norm(reached - wanted) < 0.15 * np.linalg.norm(wanted)


def test_an_arm_told_to_hold_does_not_sag(kitchen: KitchenEnv, arm: Arm) -> None:
    perform(kitchen, arm.go(FREE_POINT, arm.hand(0.0), steps=60))
    path = perform(kitchen, (arm.action(np.zeros(3), np.zeros(3), OPEN) for _ in range(20)))
    assert np.linalg.norm(path[-1] - path[0]) < 0.02


def test_joints_slow_down_together_when_one_saturates(arm: Arm) -> None:
    arm.posture = arm.data.qpos[:ARM_DIM].copy()
    velocity = np.array([0.1, 0.05, 0.1])
    slow, fast = driving(arm, velocity), driving(arm, 50 * velocity)
    np.testing.assert_allclose(fast / np.linalg.norm(fast), slow / np.linalg.norm(slow), atol=1e-9)
    action = arm.action(50 * velocity, None, OPEN)
    assert np.abs(action).max() == pytest.approx(1.0)


def test_a_joint_at_its_stop_is_not_driven_further_and_the_others_make_up_for_it(arm: Arm) -> None:
    velocity, turn = np.array([0.0, 0.05, 0.0]), np.array([0.0, 0.0, 0.1])
    arm.posture = arm.data.qpos[:ARM_DIM].copy()
    free = driving(arm, velocity, turn)
    joint = int(np.abs(free).argmax())
    arm._low[joint], arm._high[joint] = (
        (-9.0, arm.data.qpos[joint] - 0.01) if free[joint] > 0 else (arm.data.qpos[joint] + 0.01, 9.0)
    )
    stopped = driving(arm, velocity, turn)
    assert stopped[joint] == pytest.approx(0.0, abs=1e-12)
    free[joint] = 0.0
    jacobian = arm._jacobian[:3, :ARM_DIM] * arm._velocity_at_full_action
    assert np.linalg.norm(jacobian @ stopped - velocity) < 0.8 * np.linalg.norm(jacobian @ free - velocity)


def test_the_posture_moves_joints_but_not_the_hand(kitchen: KitchenEnv, arm: Arm) -> None:
    hand = arm.hand(0.0)
    perform(kitchen, arm.go(FREE_POINT, hand, align=0.05, steps=60))
    next(arm.hold(1, hand, OPEN))
    joints = kitchen.data.qpos[:ARM_DIM].copy()
    elbow = np.linalg.svd(arm._jacobian[:, :ARM_DIM])[2][-1]  # what the arm can do while the hand stays
    arm.posture = joints + 0.5 * elbow
    path = perform(kitchen, arm.hold(15, hand, OPEN))
    assert (kitchen.data.qpos[:ARM_DIM] - joints) @ elbow > 0.2
    assert np.linalg.norm(path[-1] - path[0]) < 0.02


def test_reading_the_physics_does_not_change_them(kitchen: KitchenEnv, arm: Arm) -> None:
    size = mujoco.mj_stateSize(kitchen.model, mujoco.mjtState.mjSTATE_INTEGRATION)
    before, after = np.zeros(size), np.zeros(size)
    mujoco.mj_getState(kitchen.model, kitchen.data, before, mujoco.mjtState.mjSTATE_INTEGRATION)
    next(arm.go(FREE_POINT, arm.hand(0.0)))
    mujoco.mj_getState(kitchen.model, kitchen.data, after, mujoco.mjtState.mjSTATE_INTEGRATION)
    np.testing.assert_array_equal(before, after)


# --- moves ---


def test_a_move_ends_after_its_steps_or_when_asked(kitchen: KitchenEnv, arm: Arm) -> None:
    assert len(perform(kitchen, arm.go(FREE_POINT, steps=3))) == 1 + 3
    assert len(perform(kitchen, arm.go(FREE_POINT, steps=30, until=lambda: True))) == 1 + 1


def test_a_free_move_passes_its_point_at_full_speed(kitchen: KitchenEnv, arm: Arm) -> None:
    target = np.add(arm.position, (0.0, 0.0, 0.25))
    passing = perform(kitchen, arm.via(target, within=0.02))
    kitchen.reset(seed=0)
    stopping = perform(kitchen, arm.go(target, within=0.02))
    speed = [np.linalg.norm(path[-1] - path[-2]) / STEP_SECONDS for path in (passing, stopping)]
    assert speed[0] > 1.5 * speed[1]


def test_an_insertion_waits_until_the_hand_is_on_its_line(kitchen: KitchenEnv, arm: Arm) -> None:
    hand = arm.hand(0.0)
    perform(kitchen, arm.go(FREE_POINT, hand, align=0.05, steps=60))
    ahead = perform(kitchen, arm.insert(np.add(arm.position, (0.0, 0.08, 0.0)), hand, steps=4))
    perform(kitchen, arm.go(FREE_POINT, hand, align=0.05, steps=60))
    beside = perform(kitchen, arm.insert(np.add(arm.position, (0.06, 0.08, 0.0)), hand, steps=4))
    assert beside[2, 1] - beside[0, 1] < 0.5 * (ahead[2, 1] - ahead[0, 1])
    assert beside[-1, 0] - beside[0, 0] > 0.03


def test_the_fingers_open_and_close(kitchen: KitchenEnv, arm: Arm) -> None:
    perform(kitchen, arm.hold(8, None, CLOSED))
    assert kitchen.data.qpos[7:9].max() < 0.01
    perform(kitchen, arm.hold(8, None, OPEN))
    assert kitchen.data.qpos[7:9].min() > 0.03


# --- styles ---


def test_a_hesitant_style_pauses_before_a_move(kitchen: KitchenEnv) -> None:
    path = perform(kitchen, arm_of(kitchen, hesitation=1.0).go(FREE_POINT, steps=2, within=0.0))
    assert 1 + 2 + 1 <= len(path) <= 1 + 2 + LONGEST_PAUSE
    assert np.linalg.norm(path[1] - path[0]) < 0.01


def test_a_fast_style_needs_fewer_steps(kitchen: KitchenEnv) -> None:
    lengths = [len(perform(kitchen, arm_of(kitchen, speed=speed).go(FREE_POINT))) for speed in (0.8, 1.2)]
    assert lengths[1] < lengths[0]


def test_a_careless_style_scatters_its_way_points(kitchen: KitchenEnv) -> None:
    careful, careless = (arm_of(kitchen, carelessness=factor) for factor in (0.0, 1.0))
    np.testing.assert_allclose(careful.near(FREE_POINT, 0.01, (0.0, 0.1, 0.0)), np.add(FREE_POINT, (0.0, 0.1, 0.0)))
    points = np.array([careless.near(FREE_POINT, 0.01) for _ in range(400)])
    np.testing.assert_allclose(points.std(0), 0.01, rtol=0.2)


def test_a_style_has_its_own_posture_and_pitch(kitchen: KitchenEnv) -> None:
    np.testing.assert_allclose(arm_of(kitchen, pitch=0.1).hand(-0.3), arm_of(kitchen).hand(-0.2))
    plain, own = (
        driving(arm_of(kitchen, posture=posture), np.zeros(3)) for posture in (np.zeros(ARM_DIM), np.full(ARM_DIM, 0.2))
    )
    assert np.abs(own - plain).max() > 0.01


def test_styles_are_drawn_from_the_generator_alone() -> None:
    one, same, other = (Style.draw(np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert one.speed == same.speed
    assert one.speed != other.speed
    np.testing.assert_array_equal(one.posture, same.posture)
