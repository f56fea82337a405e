"""Moves of the kitchen's Franka arm, which turn what the hand has to do into velocity actions.

Differential inverse kinematics, damped least squares after Nakamura and Hanafusa 1986 with a posture in the null
space. Positions are metres in the world's frame, in which the kitchen is ahead (+y) of the robot; angles are
radians. A move is an iterator of noise-free actions, each for the physics as they are when it is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spirl_ray.envs.kitchen.env import GAIN, INITIAL_POSITIONS, STEP_SECONDS, VELOCITY_AT_FULL_ACTION
from spirl_ray.envs.offscreen import load_mujoco

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]
"""A rotation [3, 3]. The columns of a hand's are: up between the fingers, the way they open, where they point."""
Actions = Iterator[Vector]
"""Actions, float64 [9] each, within [-1, 1] except for what holds the arm against gravity."""

ARM_DIM = 7
SITE = "end_effector"  # about 4 cm behind the fingertips
OPEN, CLOSED = 0.3, -0.3  # actions of the fingers: their whole travel of 4 cm is 0.25

CRUISE_SPEED = 0.42  # m/s
TURN_SPEED = 2.2  # rad/s
APPROACH_GAIN = 6.0  # 1/s, speed for a metre of distance
TURN_GAIN = 4.0  # 1/s
POSTURE_GAIN = 1.0  # 1/s
TURN_WEIGHT = 0.3  # m/rad, what an error in orientation counts beside one in position
DAMPING = 0.04
STOP_MARGIN = 0.03  # rad before a joint's stop at which it is not driven further
LEAST_ROOM = 0.1  # of the action's range, for motion where gravity takes nearly all of it
INSERTION_PACE = 0.8  # of the cruise speed
OFF_LINE = 0.02  # m from the line of an insertion at which it has slowed down to half its speed
SLOWEST_ADVANCE = 0.1  # of its speed, however far off that line
PACE_SPREAD = 0.12  # of the logarithm of a move's speed
LONGEST_PAUSE = 4  # steps

_WEIGHTS = np.array([1.0] * 3 + [TURN_WEIGHT] * 3)
_AHEAD = np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
_TINY = 1e-9


@dataclass(frozen=True, eq=False)
class Style:
    """The style of one demonstrator, by which two episodes of the same chain differ more than by their noise."""

    speed: float
    """The factor on every speed."""
    carelessness: float
    """The factor on the scatter of way-points."""
    hesitation: float
    """The chance of a pause of 1 to 4 steps before a move."""
    bow: float
    """The scatter, per axis, of the sideways bow of a free move, as a part of the remaining distance."""
    posture: Vector
    """The offset [7] (rad) that is added to the posture to which the null space is drawn."""
    pitch: float
    """The angle (rad) that is added to every pitch of the hand."""

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Style:
        return cls(
            speed=rng.uniform(0.8, 1.2),
            carelessness=rng.uniform(0.5, 1.3),
            hesitation=rng.uniform(0.0, 0.1),
            bow=rng.uniform(0.0, 0.25),
            posture=rng.normal(0.0, 0.15, ARM_DIM),
            pitch=rng.normal(0.0, 0.06),
        )


def rotation(axis: int, angle: float) -> Matrix:
    """The rotation by ``angle`` rad about the world's axis 0, 1 or 2."""
    first, second = (axis + 1) % 3, (axis + 2) % 3
    matrix = np.eye(3)
    matrix[first, first] = matrix[second, second] = math.cos(angle)
    matrix[second, first] = math.sin(angle)
    matrix[first, second] = -math.sin(angle)
    return matrix


def rotation_vector(matrix: Matrix) -> Vector:
    """The axis times the angle (rad) of a rotation by less than π."""
    skew = 0.5 * np.array([matrix[2, 1] - matrix[1, 2], matrix[0, 2] - matrix[2, 0], matrix[1, 0] - matrix[0, 1]])
    sine = float(np.linalg.norm(skew))
    angle = math.atan2(sine, (float(np.trace(matrix)) - 1.0) / 2.0)
    return skew * (angle / max(sine, _TINY))


class Arm:
    """The arm in a simulated kitchen; it reads the physics without noise and never steps them.

    Args:
        model: MuJoCo's model of the kitchen.
        data: its state; every action is computed from what it holds at the time.
        style: how the demonstrator of the episode moves.
        rng: source of randomness for scatter, pauses and free choices.
    """

    def __init__(self, model: Any, data: Any, style: Style, rng: np.random.Generator) -> None:
        self.data = data
        self.style = style
        self.rng = rng
        self.posture: Vector = INITIAL_POSITIONS[:ARM_DIM]
        self._model = model
        self._site_jacobian = load_mujoco().mj_jacSite
        self._site = model.site(SITE).id
        self._jacobian = np.zeros((6, model.nv))
        self._low = model.jnt_range[:ARM_DIM, 0] + STOP_MARGIN
        self._high = model.jnt_range[:ARM_DIM, 1] - STOP_MARGIN
        stiffness = model.actuator_gainprm[:ARM_DIM, 0]
        # A position actuator against a damper is a first-order lag: of what a step commands, this part happens.
        happens = 1.0 - np.exp(-STEP_SECONDS * stiffness / model.dof_damping[:ARM_DIM])
        self._velocity_at_full_action = VELOCITY_AT_FULL_ACTION * happens
        self._torque_at_full_action = GAIN * stiffness

    @property
    def position(self) -> Vector:
        """The position [3] of the hand (m)."""
        return np.array(self.data.site_xpos[self._site])

    def misalignment(self, hand: Matrix) -> float:
        """The angle (rad) between the hand's orientation and the one that it should have."""
        return float(np.linalg.norm(self._turn_to(hand)))

    def hand(self, pitch: float, yaw: float = 0.0) -> Matrix:
        """An orientation of the hand that points ahead with the fingers side by side; a negative pitch is down."""
        return rotation(2, yaw) @ rotation(0, pitch + self.style.pitch) @ _AHEAD

    def near(
        self, point: Sequence[float] | Vector, scatter: float, offset: Sequence[float] = (0.0, 0.0, 0.0)
    ) -> Vector:
        """A point [3] near ``point`` plus ``offset``; ``scatter`` (m) is the deviation per axis at carelessness 1."""
        return np.add(point, offset) + self.rng.normal(0.0, scatter * self.style.carelessness, 3)

    # --- single actions ---

    def action(self, velocity: Vector, turn: Vector | None, grip: float) -> Vector:
        """The action [9] that moves the hand with ``velocity`` (m/s), and turns it with ``turn`` (rad/s) if given."""
        self._site_jacobian(self._model, self.data, self._jacobian[:3], self._jacobian[3:], self._site)
        jacobian, twist = self._jacobian[:3, :ARM_DIM], velocity
        if turn is not None:
            jacobian = _WEIGHTS[:, None] * self._jacobian[:, :ARM_DIM]
            twist = _WEIGHTS * np.concatenate([velocity, turn])
        wanted = self._joint_velocities(jacobian, twist) / self._velocity_at_full_action
        against_gravity = self.data.qfrc_bias[:ARM_DIM] / self._torque_at_full_action
        # All joints slow down with the one that saturates, so that the hand keeps to its line.
        room = np.maximum(1.0 - np.sign(wanted) * against_gravity, LEAST_ROOM)
        wanted /= max(1.0, float(np.max(np.abs(wanted) / room)))
        return np.concatenate([wanted + against_gravity, [grip, grip]])

    def toward(
        self,
        target: Vector,
        hand: Matrix | None,
        grip: float,
        *,
        speed: float = 1.0,
        through: bool = False,
        turn_speed: float = TURN_SPEED,
    ) -> Vector:
        """The action [9] toward a point, slowing down before it unless the hand shall pass ``through`` it.

        Args:
            target: point [3].
            hand: orientation to turn to; None leaves the wrist free.
            grip: `OPEN` or `CLOSED`.
            speed: factor on the cruise speed.
            through: True to pass the point without slowing down.
            turn_speed: the highest angular speed, rad/s.
        """
        error = target - self.position
        distance = float(np.linalg.norm(error))
        highest = CRUISE_SPEED * speed * self.style.speed
        pace = highest if through else min(highest, APPROACH_GAIN * distance)
        turn = None if hand is None else self._turn(hand, turn_speed)
        return self.action(error * (pace / max(distance, _TINY)), turn, grip)

    def _joint_velocities(self, jacobian: Matrix, twist: Vector) -> Vector:
        """Joint velocities [7] in rad/s; joints that would be driven into their stops take no part."""
        joints = self.data.qpos[:ARM_DIM]
        pull = POSTURE_GAIN * (self.posture + self.style.posture - joints)
        damping = DAMPING**2 * np.eye(len(twist))
        free = np.ones(ARM_DIM, dtype=bool)
        while True:
            usable, drift = jacobian * free, pull * free
            velocities = drift + usable.T @ np.linalg.solve(usable @ usable.T + damping, twist - usable @ drift)
            stopped = ((joints > self._high) & (velocities > 0)) | ((joints < self._low) & (velocities < 0))
            if not stopped.any():
                return velocities
            free &= ~stopped

    def _turn_to(self, hand: Matrix) -> Vector:
        return rotation_vector(hand @ self.data.site_xmat[self._site].reshape(3, 3).T)

    def _turn(self, hand: Matrix, turn_speed: float) -> Vector:
        turn = TURN_GAIN * self._turn_to(hand)
        return turn * min(1.0, turn_speed * self.style.speed / max(float(np.linalg.norm(turn)), _TINY))

    # --- moves ---

    def go(
        self,
        target: Vector,
        hand: Matrix | None = None,
        grip: float = OPEN,
        *,
        within: float = 0.02,
        steps: int = 30,
        speed: float = 1.0,
        through: bool = False,
        align: float = math.inf,
        bow: float = 0.0,
        until: Callable[[], bool] | None = None,
    ) -> Actions:
        """Moves to a point, until the hand is there or after ``steps`` steps.

        Args:
            target, hand, grip, speed, through: see `toward`.
            within: metres from the target that are near enough.
            steps: the most that the move takes.
            align: the hand must also be within this angle of its orientation.
            bow: scatter of the path's bow, as a part of the remaining distance.
            until: function that ends the move early where it is true.
        """
        yield from self._pause(hand, grip)
        speed *= self._pace()
        sideways = self.rng.normal(0.0, 1.0, 3) * bow
        for _ in range(steps):
            remaining = max(float(np.linalg.norm(target - self.position)) - within, 0.0)
            yield self.toward(target + remaining * sideways, hand, grip, speed=speed, through=through)
            there = np.linalg.norm(target - self.position) < within
            if (there and (hand is None or self.misalignment(hand) < align)) or (until is not None and until()):
                return

    def via(
        self,
        target: Vector,
        hand: Matrix | None = None,
        grip: float = OPEN,
        *,
        within: float = 0.07,
        steps: int = 35,
        align: float = math.inf,
    ) -> Actions:
        """A free, bowed move past a point; it slows down there only if the hand must be aligned."""
        through = math.isinf(align)
        return self.go(target, hand, grip, within=within, steps=steps, through=through, align=align, bow=self.style.bow)

    def insert(self, target: Vector, hand: Matrix, *, within: float = 0.015, steps: int = 18) -> Actions:
        """Advances with open fingers along the line that the hand points in; off that line, waits for the hand."""
        yield from self._pause(hand, OPEN)
        highest = INSERTION_PACE * CRUISE_SPEED * self.style.speed * self._pace()
        pointing = hand[:, 2]
        for _ in range(steps):
            error = target - self.position
            ahead = float(error @ pointing)
            aside = error - ahead * pointing
            off = float(np.linalg.norm(aside))
            caution = np.clip(1.5 - off / OFF_LINE, SLOWEST_ADVANCE, 1.0)
            forward = caution * np.clip(APPROACH_GAIN * ahead, -highest, highest)
            correction = aside * min(APPROACH_GAIN, highest / max(off, _TINY))
            yield self.action(forward * pointing + correction, self._turn(hand, TURN_SPEED), OPEN)
            if np.linalg.norm(target - self.position) < within:
                return

    def hold(self, steps: int, hand: Matrix | None, grip: float) -> Actions:
        """Stays where the hand is now, so that the fingers can open or close."""
        here = self.position
        for _ in range(steps):
            yield self.toward(here, hand, grip)

    def swing(
        self, pivot: tuple[float, float], hand: Matrix, joint: int, stop: float, *, lead: float, steps: int
    ) -> Actions:
        """Drags a grasped door about its vertical hinge, at ``pivot`` (x, y), until it stands at ``stop``.

        The target runs ``lead`` rad ahead of the door. The hand does not turn with it: once the door has turned
        a little, a finger hooks the handle, which no grip of these fingers would hold.

        Args:
            pivot: x and y of the hinge.
            hand: orientation to keep.
            joint: index of the door's entry in the joint positions.
            stop: angle (rad) at which to stop.
            lead: angle (rad) between the door and its target.
            steps: the most that the move takes.
        """
        hinge = np.array([*pivot, 0.0])
        spoke = self.position - hinge
        positions = self.data.qpos
        start = float(positions[joint])
        direction = math.copysign(1.0, stop - start)
        speed = self._pace()
        for _ in range(steps):
            ahead = rotation(2, positions[joint] - start + direction * lead)
            yield self.toward(hinge + ahead @ spoke, hand, CLOSED, speed=speed)
            if direction * (positions[joint] - stop) > 0:
                return

    def roll(
        self, centre: Vector, hand: Matrix, angle: float, *, turn_speed: float, steps: int, until: Callable[[], bool]
    ) -> Actions:
        """Turns the closed hand at ``centre`` about where it points, from ``hand`` by ``angle`` rad."""
        turned = hand @ rotation(2, angle)
        for _ in range(steps):
            yield self.toward(centre, turned, CLOSED, turn_speed=turn_speed)
            if until():
                return

    def back_off(
        self, offset: Sequence[float], hand: Matrix | None = None, grip: float = OPEN, *, steps: int = 8
    ) -> Actions:
        """Backs off by ``offset`` (m), without slowing down at its end."""
        return self.go(np.add(self.position, offset), hand, grip, within=0.05, steps=steps, through=True)

    def _pace(self) -> float:
        return float(np.exp(self.rng.normal(0.0, PACE_SPREAD)))

    def _pause(self, hand: Matrix | None, grip: float) -> Actions:
        if self.rng.random() < self.style.hesitation:
            yield from self.hold(int(self.rng.integers(1, LONGEST_PAUSE + 1)), hand, grip)
