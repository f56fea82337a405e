"""Scripted experts of the Franka kitchen, and the play data that they make: several subtasks in succession.

Each subtask has one expert, a sequence of moves (`spirl_ray.envs.kitchen.arm`) that reads the physics without
noise. Its actions go through `KitchenEnv.step`: noise, observations and completion are the environment's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from spirl_ray.arguments import Noise, checked
from spirl_ray.envs.kitchen.arm import CLOSED, OPEN, Actions, Arm, Matrix, Style, Vector
from spirl_ray.envs.kitchen.env import (
    GOALS,
    ROBOT_DIM,
    SPEC,
    KitchenEnv,
    Sensed,
    Tasks,
    goal_distance,
)
from spirl_ray.episodes.episode import Episode
from spirl_ray.episodes.features import stack_observations

CHAIN_LENGTH = 4
HELD_OUT = frozenset({"microwave", "kettle", "bottom burner", "light switch"})
"""The paper's target. Play data contain each of these subtasks, but never all of them in one episode."""
ATTEMPTS = 4  # at a chain, each from its start
TRIES = 2  # at a subtask within an attempt

# Entries of the joint positions: metres of the slide door, radians of the doors with hinges.
SLIDE_DOOR, HINGE_DOOR, MICROWAVE_DOOR = 19, 21, 22
KETTLE = slice(23, 26)  # its position

# Points (m) are where the hand is, 4 cm behind its fingertips; pivots are (x, y).
MICROWAVE_HANDLE = np.array([-0.643, 0.510, 1.83])
MICROWAVE_PIVOT = (-1.128, 0.455)
KETTLE_POST = np.array([-0.092, 0.0, 0.175])  # of the handle's left side, from the kettle's own position
KETTLE_GOAL = (-0.332, 0.68)  # x and y of the hand that holds the kettle by its post
KNOBS = {"bottom burner": np.array([-0.256, 0.612, 2.216]), "top burner": np.array([-0.256, 0.612, 2.340])}
LIGHT_SWITCH = np.array([-0.30, 0.60, 2.29])  # beside the lever, to its right
SLIDE_HANDLE = np.array([-0.108, 0.585, 2.57])  # of the closed door
SLIDE_END = np.array([0.28, 0.58, 2.57])
HINGE_HANDLE = np.array([-0.526, 0.575, 2.57])
HINGE_PIVOT = (-0.224, 0.710)

GRASP_ANGLE = 0.25  # rad by which the hand may be misaligned when it starts to approach
KNOB_ANGLE = 0.15
DOOR_AJAR = 0.6  # rad from which the open hinge door is an obstacle
COUNTER_HEIGHT = 2.08  # m; below it, the hand is between counter and burners
COUNTER_TASKS = ("microwave", "kettle")
UNDER_DOOR_TASKS = ("light switch", "bottom burner", "top burner")


def _microwave(arm: Arm, hand: Matrix) -> Actions:
    """Grasp the door's upright bar and pull it along the door's arc."""
    bar = np.add(MICROWAVE_HANDLE, (0.0, 0.0, arm.rng.uniform(-0.02, 0.03)))
    yield from arm.via(arm.near(bar, 0.012, (0.04, -0.18, 0.07)), hand, within=0.06, align=GRASP_ANGLE)
    yield from arm.insert(arm.near(bar, 0.003), hand)
    yield from arm.hold(3, hand, CLOSED)
    stop = arm.rng.uniform(-0.8, -0.6)
    yield from arm.swing(MICROWAVE_PIVOT, hand, MICROWAVE_DOOR, stop, lead=0.2, steps=30)
    yield from arm.hold(2, None, OPEN)
    yield from arm.back_off([0.12, -0.03, 0.0])


def _kettle(arm: Arm, hand: Matrix) -> Actions:
    """Carry the kettle by its handle's left post; at the right one, the elbow would hit the robot's pedestal."""
    post = np.add(arm.data.qpos[KETTLE] + KETTLE_POST, (0.0, 0.0, arm.rng.uniform(-0.02, 0.02)))
    yield from arm.via(arm.near(post - 0.16 * hand[:, 2], 0.012), hand, within=0.05, align=GRASP_ANGLE)
    yield from arm.insert(arm.near(post, 0.004), hand)
    yield from arm.hold(3, hand, CLOSED)
    lift = np.array([0.0, 0.0, arm.rng.uniform(0.03, 0.07)])
    goal = np.array([*KETTLE_GOAL, post[2]])
    yield from arm.go(arm.position + lift + (0.0, 0.08, 0.0), hand, CLOSED, within=0.04, steps=10, through=True)
    yield from arm.go(goal + lift, hand, CLOSED, within=0.06, steps=20, through=True)
    yield from arm.go(goal, hand, CLOSED, within=0.03, steps=6)
    yield from arm.hold(3, hand, OPEN)
    # Straight back first: a hand that rises takes the handle along.
    yield from arm.back_off([0.0, -0.2, 0.01], hand, steps=12)


def _burner(task: str) -> Callable[[Arm, Matrix], Actions]:
    def turn(arm: Arm, hand: Matrix) -> Actions:
        """Close the fingers on the knob's upright bar and roll the hand."""
        knob = KNOBS[task]
        yield from arm.via(arm.near(knob, 0.008, (0.0, -0.10, 0.01)), hand, within=0.04, align=KNOB_ANGLE)
        yield from arm.insert(arm.near(knob, 0.003), hand)
        yield from arm.hold(2, hand, CLOSED)
        enough = arm.rng.uniform(0.1, 0.22)
        yield from arm.roll(
            knob, hand, 1.5, turn_speed=1.2, steps=25, until=lambda: bool(goal_distance(arm.data.qpos, task) < enough)
        )
        yield from arm.hold(2, None, OPEN)
        yield from arm.back_off([0.0, -0.1, 0.0])

    return turn


def _light_switch(arm: Arm, hand: Matrix) -> Actions:
    """Sweep the closed hand to the left, across the lever."""
    yield from arm.via(arm.near(LIGHT_SWITCH, 0.01, (0.0, -0.10, 0.0)), hand, CLOSED, within=0.05, align=GRASP_ANGLE)
    yield from arm.go(arm.near(LIGHT_SWITCH, 0.005), hand, CLOSED, within=0.03, steps=15)
    enough = arm.rng.uniform(0.1, 0.25)
    yield from arm.go(
        arm.near(LIGHT_SWITCH, 0.005, (-0.22, 0.0, 0.0)),
        hand,
        CLOSED,
        steps=20,
        through=True,
        until=lambda: bool(goal_distance(arm.data.qpos, "light switch") < enough),
    )
    yield from arm.back_off([0.02, -0.12, 0.0], hand, CLOSED)


def _slide_cabinet(arm: Arm, hand: Matrix) -> Actions:
    """Push the handle to the right: with the fist on its left, or from between the fingers."""
    doors = arm.data.qpos
    blocked = doors[HINGE_DOOR] > DOOR_AJAR
    if blocked:
        yield from _close_hinge_door(arm, hand)
    handle = np.add(SLIDE_HANDLE, (doors[SLIDE_DOOR], 0.0, 0.0))
    if blocked or arm.rng.random() < 0.5:
        yield from arm.via(arm.near(handle, 0.008, (0.01, -0.125, -0.01)), hand, within=0.05, align=GRASP_ANGLE)
        yield from arm.insert(arm.near(handle, 0.004), hand)
    else:
        beside = np.add(handle, (-0.08, -0.005, 0.0))
        yield from arm.via(arm.near(beside, 0.01, (-0.04, -0.11, -0.03)), hand, CLOSED, within=0.05, align=GRASP_ANGLE)
        yield from arm.go(arm.near(beside, 0.006), hand, CLOSED, within=0.03, steps=15)
    stop = arm.rng.uniform(0.12, 0.38)
    yield from arm.go(
        arm.near(SLIDE_END, 0.005),
        None,
        CLOSED,
        within=0.03,
        steps=25,
        through=True,
        until=lambda: bool(doors[SLIDE_DOOR] > stop),
    )
    yield from arm.back_off([-0.05, -0.12, -0.03], grip=CLOSED)


def _close_hinge_door(arm: Arm, hand: Matrix) -> Actions:
    """Sweep the open hinge door back, from its right side, until the slide door's handle can be reached."""
    if arm.position[0] < -0.2:  # left of the door, or below it
        yield from arm.via(arm.near([-0.06, 0.30, 2.30], 0.01), None, CLOSED, within=0.1)
    yield from arm.via(arm.near([-0.04, 0.36, 2.55], 0.005), hand, CLOSED, within=0.06, steps=15)
    for corner in ([-0.40, 0.40, 2.55], [-0.48, 0.50, 2.55]):
        yield from arm.go(
            arm.near(corner, 0.005),
            hand,
            CLOSED,
            within=0.06,
            steps=15,
            through=True,
            until=lambda: bool(arm.data.qpos[HINGE_DOOR] < 0.9 * DOOR_AJAR),
        )
    yield from arm.via(np.array([-0.36, 0.38, 2.55]), hand, CLOSED, steps=8)


def _hinge_cabinet(arm: Arm, hand: Matrix) -> Actions:
    """Grasp the right door's bar and take it round in one arc."""
    yield from arm.via(arm.near(HINGE_HANDLE, 0.01, (0.016, -0.115, 0.0)), hand, within=0.05, align=GRASP_ANGLE)
    yield from arm.insert(arm.near(HINGE_HANDLE, 0.004), hand)
    yield from arm.hold(3, hand, CLOSED)
    stop = arm.rng.uniform(1.2, 1.35)
    yield from arm.swing(HINGE_PIVOT, hand, HINGE_DOOR, stop, lead=0.3, steps=45)
    yield from arm.hold(3, None, OPEN)
    yield from arm.back_off([0.02, -0.16, 0.0], steps=10)


@dataclass(frozen=True, eq=False)
class Expert:
    """The way in which one subtask is solved, once the arm is near."""

    moves: Callable[[Arm, Matrix], Actions]
    """A function from the arm and the hand's orientation to the actions."""
    posture: Vector
    """The posture [7] (rad) of the arm at work; joint 6 stays clear of its stop at 2.11."""
    pitch: float
    """The pitch of the hand (rad)."""
    yaw: tuple[float, float] = (0.0, 0.0)
    """The range (rad) from which the yaw of the hand is drawn."""


EXPERTS = {
    "microwave": Expert(_microwave, np.array([-0.9, -1.70, 1.85, -1.6, 0.3, 1.0, 1.6]), -0.3, (0.2, 0.4)),
    "kettle": Expert(_kettle, np.array([-1.1, -1.70, 2.10, -2.2, 0.4, 1.8, 1.5]), -0.3, (-0.2, 0.4)),
    "bottom burner": Expert(_burner("bottom burner"), np.array([-1.3, -0.85, 1.55, -2.3, 0.0, 1.9, 0.9]), -0.22),
    "top burner": Expert(_burner("top burner"), np.array([-1.1, -0.65, 1.35, -2.2, 0.0, 1.7, 0.7]), -0.22),
    "light switch": Expert(_light_switch, np.array([-1.2, -1.00, 1.47, -2.2, 0.1, 1.7, 1.0]), -0.1),
    "slide cabinet": Expert(_slide_cabinet, np.array([-0.9, -0.65, 1.00, -2.3, 0.0, 1.6, 0.7]), -0.1),
    "hinge cabinet": Expert(_hinge_cabinet, np.array([-1.4, -0.90, 1.47, -1.3, 0.0, 1.1, 0.9]), -0.1),
}


def solve(arm: Arm, task: str) -> Actions:
    """Moves from wherever the arm is to a subtask and tries it once."""
    expert = EXPERTS[task]
    arm.posture = expert.posture
    door_open = arm.data.qpos[HINGE_DOOR] > DOOR_AJAR
    # A level hand keeps the wrist below the open door.
    pitch = 0.0 if door_open and task in KNOBS else expert.pitch
    yield from _transit(arm, task, arm.hand(expert.pitch, float(np.mean(expert.yaw))))
    yield from expert.moves(arm, arm.hand(pitch, arm.rng.uniform(*expert.yaw)))


def _transit(arm: Arm, task: str, hand: Matrix) -> Actions:
    """Moves past way-points between counter and wall, and under the hinge cabinet's open door."""
    x, y, z = arm.position
    above = z >= COUNTER_HEIGHT
    if not above and task not in COUNTER_TASKS:
        if y > 0.45:  # under the hood: out before up
            yield from arm.via(arm.near([x, 0.40, 1.98], 0.015), within=0.08)
        yield from arm.via(arm.near([-0.38, 0.37, 2.12], 0.02), hand, within=0.08)
    elif above and task in COUNTER_TASKS:
        yield from arm.via(arm.near([min(x, -0.25), 0.38, 2.2], 0.02), within=0.12)
        yield from arm.via(arm.near([-0.46, 0.22, 1.98], 0.02), hand, within=0.08)
    elif arm.data.qpos[HINGE_DOOR] > DOOR_AJAR and z > 2.38 and task in UNDER_DOOR_TASKS:
        yield from arm.via(arm.near([x - 0.05, 0.32, 2.27], 0.015), hand)
    elif above and y > 0.48:  # away from the wall
        yield from arm.via(arm.near([x, 0.44, z], 0.01), within=0.05, steps=8)


# --- episodes ---


@checked
def generate(
    indices: Iterable[int],
    seed: int,
    *,
    tasks: Tasks | None = None,
    action_noise: Noise = 0.05,
    keep_failures: bool = False,
) -> Iterator[Episode | None]:
    """Generates demonstrations of chains of subtasks, one for each index.

    A chain that fails is tried again with another style and other noise, a few times. An episode ends when the
    arm has backed off from its last subtask, or at the environment's time limit.

    Args:
        indices: numbers of the episodes.
        seed: seed of the dataset; an episode depends on (seed, index, options) alone.
        tasks: the chain. None draws four different subtasks in random order for each episode; an episode in which
            all of `HELD_OUT` are completed is then neither drawn nor kept.
        action_noise: standard deviation of the Gaussian noise on the actions. It is part of the recorded actions.
        keep_failures: yield the first attempt even if it failed, instead of trying again.

    Yields:
        Episodes with the environment's noisy observations, its rewards for all seven subtasks, and the executed
        actions; None for a chain that failed in every attempt. ``metadata``: "tasks" (the chain), "completed" (all
        seven subtasks count, in order), "solved" (True where the chain is among them), "failed_attempts" (what the
        attempts before this one completed), "environment_seed" (seed of the reset, after which the actions replayed
        give the same observations).

    Raises:
        SpirlError: subtasks are unknown or repeated, or the noise is negative.
    """
    return _episodes(indices, seed, tasks, action_noise, keep_failures)


def _episodes(
    indices: Iterable[int], seed: int, tasks: tuple[str, ...] | None, action_noise: float, keep_failures: bool
) -> Iterator[Episode | None]:
    env = KitchenEnv(tasks=tuple(GOALS))
    for index in indices:
        name = f"kitchen-{seed}-{index:06d}"
        chain = _draw_chain(np.random.default_rng((seed, index))) if tasks is None else tasks
        found = None
        failed: list[tuple[str, ...]] = []
        # Counted from 1, because numpy treats (seed, index, 0) as (seed, index).
        for attempt in range(1, ATTEMPTS + 1):
            recording = _demonstrate(env, chain, np.random.default_rng((seed, index, attempt)), action_noise)
            held_out = tasks is None and set(recording.completed) >= HELD_OUT
            if (recording.solved or keep_failures) and not held_out:
                found = recording.episode(name, failed)
                break
            if not recording.solved:
                failed.append(recording.completed)
        yield found


def _draw_chain(rng: np.random.Generator) -> tuple[str, ...]:
    while True:
        chain = tuple(rng.permutation(list(GOALS))[:CHAIN_LENGTH].tolist())
        if not set(chain) >= HELD_OUT:
            return chain


@dataclass
class _Recording:
    """An episode that is being recorded."""

    env: KitchenEnv
    chain: tuple[str, ...]
    environment_seed: int
    observations: list[Sensed] = field(default_factory=list)
    actions: list[NDArray[np.float32]] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    completed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        observation, _ = self.env.reset(seed=self.environment_seed)
        self.observations.append(observation)

    def step(self, action: Vector) -> None:
        executed = np.clip(action, -1.0, 1.0).astype(np.float32)
        observation, reward, _, _, info = self.env.step(executed)
        self.observations.append(observation)
        self.actions.append(executed)
        self.rewards.append(reward)
        self.completed = info["completed"]

    @property
    def full(self) -> bool:
        return len(self.actions) >= SPEC.max_episode_steps

    @property
    def solved(self) -> bool:
        return set(self.chain) <= set(self.completed)

    def episode(self, name: str, failed_attempts: Sequence[tuple[str, ...]]) -> Episode:
        return Episode(
            id=name,
            observations=stack_observations(self.observations),
            actions=np.stack(self.actions),
            rewards=np.array(self.rewards, np.float32),
            terminated=False,
            truncated=True,
            metadata={
                "tasks": list(self.chain),
                "completed": list(self.completed),
                "solved": self.solved,
                "failed_attempts": [list(completed) for completed in failed_attempts],
                "environment_seed": self.environment_seed,
            },
        )


def _demonstrate(env: KitchenEnv, chain: tuple[str, ...], rng: np.random.Generator, action_noise: float) -> _Recording:
    """One attempt at a chain; it ends early at a subtask that is not complete after `TRIES` tries."""
    recording = _Recording(env, chain, int(rng.integers(2**31)))
    arm = Arm(env.model, env.data, Style.draw(rng), rng)
    for task in chain:
        for _ in range(TRIES):
            for action in solve(arm, task):
                recording.step(action + rng.normal(0.0, action_noise, ROBOT_DIM))
                if recording.full:
                    return recording
            if task in recording.completed:
                break
        else:
            break
    return recording
