"""The physics of block stacking: a gripper without an arm, cubes on a table, and what rests on what.

Positions are metres from the middle of the table's top: x towards the camera, y to its right, z up. The gripper moves
in the plane x = 0. Numbers follow the block stacking of Pertsch et al. 2020 (arXiv:2010.11944), the scene is our own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spirl_ray.envs.offscreen import load_mujoco
from spirl_ray.episodes.features import Observation
from spirl_ray.errors import SpirlError

Array = NDArray[np.float64]

BLOCK_HALF = 0.04
BLOCK_SIDE = 2 * BLOCK_HALF
DENSITIES = (200.0, 500.0, 1000.0, 3000.0, 5000.0)
"""kg/m³; each block draws one for each episode."""
TABLE_HALF = (0.6, 1.2, 0.4)
MOST_BLOCKS = 20
"""The greatest number of blocks that fit on the table with a finger's width between them."""

OBSERVATION_LIMIT = 2.0
"""The bound to which observed numbers are clipped, on either side of 0."""

TIP_BELOW_HAND = 0.13
"""The distance (m) from the hand, whose position is observed, down to the grasping point between the fingertips."""
SUBSTEPS = 50  # of 2 ms
STEP_SECONDS = 0.1
STEP_METRES = 0.05
"""The distance (m) that an action of 1 moves the hand in one step: 500 N against a damping of 1000 N s/m."""
FINGER_TRAVEL = 0.035  # m of each finger, from closed to open
CLOSED_HALF_GAP = 0.03  # m from the middle to a closed finger; a block stops it before
HAND_LOW, HAND_HIGH = 0.155, 1.3  # m
REACH = 1.1  # m to either side
_HOLD_GAIN = 10.0  # command for 1 m or 1 rad away from the plane of motion

LEVELS = (-1.0, 0.0, 1.0)
"""The levels of the grip: open, half open, closed."""
_LEVEL_THRESHOLD = 0.5
_LEVEL_HOLD = (0.3, 0.7)
"""The magnitudes between which a grip command keeps the level of the step before."""
_RESTS_ABOVE = 1.5 * BLOCK_HALF
"""A block that touches another rests on it if its centre is higher by more than this (m)."""

_LIGHTEST, _HEAVIEST = np.array([1.0, 0.98, 0.9, 1.0]), np.array([0.2, 0.35, 0.6, 1.0])

_SCENE = """
<mujoco model="block stacking">
  <compiler angle="radian" autolimits="true"/>
  <option timestep="0.002" impratio="20" cone="elliptic"><flag sleep="enable"/></option>
  <visual>
    <headlight ambient="0.25 0.25 0.25" diffuse="0.45 0.45 0.45" specular="0 0 0"/>
    <map znear="0.02" zfar="12"/>
  </visual>
  <statistic center="0 0 0.3" extent="1"/>
  <default>
    <geom condim="4" friction="1 0.005 0.0001"/>
    <default class="bound"><geom type="plane" size="2 2 1" contype="0" group="4" rgba="0 0 0 0"/></default>
    <default class="robot">
      <geom type="box" contype="0" rgba="0.3 0.35 0.42 1"/>
      <joint damping="1000"/>
      <default class="finger">
        <geom size="0.012 0.006 0.05" mass="0.05"/>
        <joint type="slide" damping="100" armature="0.1" range="0 {travel}"/>
        <default class="tip">
          <geom size="0.02 0.008 0.02" mass="0.05" friction="30 0.005 0.0001" rgba="0.85 0.25 0.2 1"/>
        </default>
      </default>
    </default>
  </default>
  <asset>
    <texture type="skybox" builtin="gradient" rgb1="0.62 0.68 0.74" rgb2="0.36 0.4 0.46" width="64" height="64"/>
  </asset>
  <worldbody>
    <light pos="1.5 -1 3" dir="-0.45 0.3 -1" diffuse="0.5 0.5 0.5" specular="0 0 0" directional="true"/>
    <geom type="box" size="{table_x} {table_y} {table_z}" pos="0 0 -{table_z}" contype="0" conaffinity="0"
          rgba="0.45 0.33 0.22 1"/>
    <geom name="table" class="bound"/>
    <geom class="bound" pos="-{table_x} 0 0" zaxis="1 0 0"/>
    <geom class="bound" pos="{table_x} 0 0" zaxis="-1 0 0"/>
    <geom class="bound" pos="0 -{table_y} 0" zaxis="0 1 0"/>
    <geom class="bound" pos="0 {table_y} 0" zaxis="0 -1 0"/>
    <camera name="scene" pos="2.7 0 0.85" xyaxes="0 1 0 -0.15 0 1" fovy="29"/>
    <body name="carriage" gravcomp="1" childclass="robot">
      <inertial pos="0 0 0" mass="0.5" diaginertia="0.01 0.01 0.01"/>
      <joint name="x" type="slide" axis="1 0 0"/>
      <joint name="y" type="slide" axis="0 1 0" range="-{reach} {reach}"/>
      <joint name="z" type="slide" axis="0 0 1" range="{low} {high}"/>
      <camera name="agent" pos="0.6 0 -0.1" xyaxes="0 1 0 -0.1 0 0.6" fovy="45"/>
      <body name="hand" gravcomp="1">
        <joint name="angle" type="hinge" axis="0 0 1"/>
        <geom size="0.03 0.085 0.015" mass="0.5"/>
        <geom type="cylinder" size="0.02 0.05" pos="0 0 0.06" mass="0.1"/>
        <body name="left" gravcomp="1" pos="0 -{gap} 0" childclass="finger">
          <joint name="left" axis="0 -1 0"/>
          <geom pos="0 -0.012 -0.065"/>
          <geom name="left" class="tip" pos="0 -0.008 -{tip}"/>
        </body>
        <body name="right" gravcomp="1" pos="0 {gap} 0" childclass="finger">
          <joint name="right" axis="0 1 0"/>
          <geom pos="0 0.012 -0.065"/>
          <geom name="right" class="tip" pos="0 0.008 -{tip}"/>
        </body>
      </body>
    </body>
    {blocks}
  </worldbody>
  <actuator>
    <motor joint="x" gear="500" ctrlrange="-1 1"/>
    <motor joint="y" gear="500" ctrlrange="-1 1"/>
    <motor joint="z" gear="500" ctrlrange="-1 1"/>
    <motor joint="angle" gear="500" ctrlrange="-1 1"/>
    <position joint="left" kp="10000" gear="2" forcerange="-20 20" ctrlrange="0 {opening}"/>
    <position joint="right" kp="10000" gear="2" forcerange="-20 20" ctrlrange="0 {opening}"/>
  </actuator>
</mujoco>
"""
_BLOCK = (
    '<body name="block{i}" pos="0 0 {half}"><freejoint/>'
    '<geom name="block{i}" type="box" size="{half} {half} {half}" density="1000" rgba="1 1 1 1"/></body>'
)
_JOINTS = 6  # of the robot: x, y, z, angle, left, right


def scene_xml(n_blocks: int) -> str:
    """Returns MuJoCo's XML of the scene with blocks on the table, not yet arranged."""
    return _SCENE.format(
        travel=FINGER_TRAVEL,
        opening=2 * FINGER_TRAVEL,
        gap=CLOSED_HALF_GAP,
        tip=TIP_BELOW_HAND,
        table_x=TABLE_HALF[0],
        table_y=TABLE_HALF[1],
        table_z=TABLE_HALF[2],
        reach=REACH,
        low=HAND_LOW,
        high=HAND_HIGH,
        blocks="\n    ".join(_BLOCK.format(i=i, half=BLOCK_HALF) for i in range(n_blocks)),
    )


@dataclass(frozen=True)
class Touches:
    """The contacts of the blocks at one moment."""

    grasped: tuple[bool, ...]
    """True for each block that both fingertips touch."""
    levels: tuple[int, ...]
    """The level of each block in its tower: 1 on the table, 2 on a block of level 1 and so on; 0 where nothing but the
    gripper holds it.

    A grasped block is at level 0, because it has not been let go of.
    """
    free: tuple[bool, ...]
    """True for each block that touches neither the table nor another block."""


class BlockWorld:
    """The simulated blocks and gripper; a number of blocks outside 1 to `MOST_BLOCKS` raises `SpirlError`.

    Blocks that rest and that nothing awake touches sleep: MuJoCo's steps leave them out.
    """

    def __init__(self, n_blocks: int) -> None:
        if isinstance(n_blocks, bool) or not isinstance(n_blocks, int) or not 1 <= n_blocks <= MOST_BLOCKS:
            raise SpirlError(f"block stacking has 1 to {MOST_BLOCKS} blocks, not {n_blocks!r}")
        self._mujoco = mujoco = load_mujoco()
        self.n_blocks = n_blocks
        self.model = mujoco.MjModel.from_xml_string(scene_xml(n_blocks))
        self.data = mujoco.MjData(self.model)
        geoms = {name: self.model.geom(name).id for name in ("table", "left", "right")}
        self._table, self._left, self._right = geoms["table"], geoms["left"], geoms["right"]
        self._blocks = np.array([self.model.geom(f"block{i}").id for i in range(n_blocks)])
        self._bodies = self.model.geom_bodyid[self._blocks]
        self._number = {int(geom): i for i, geom in enumerate(self._blocks)}
        self._level = LEVELS[0]

    def arrange(
        self, blocks: Sequence[Sequence[float]], hand: tuple[float, float], densities: ArrayLike | None = None
    ) -> None:
        """Puts everything to rest at given places.

        Args:
            blocks: y and z (m) of each block's centre.
            hand: y and z (m); the fingers are open.
            densities: kg/m³ of each block; None is 1000.
        """
        model, data = self.model, self.data
        each = np.full(self.n_blocks, 1000.0) if densities is None else np.asarray(densities, np.float64)
        masses = each * BLOCK_SIDE**3
        model.body_mass[self._bodies] = masses
        model.body_inertia[self._bodies] = (masses * BLOCK_SIDE**2 / 6)[:, None]
        self._mujoco.mj_setConst(model, data)
        self._mujoco.mj_resetData(model, data)
        data.qpos[1:3] = hand
        data.qpos[4:_JOINTS] = FINGER_TRAVEL
        poses = data.qpos[_JOINTS:].reshape(self.n_blocks, 7)
        poses[:] = (0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0)
        poses[:, 1:3] = blocks
        self._level = LEVELS[0]
        self._mujoco.mj_forward(model, data)

    def advance(self, action: NDArray[np.floating]) -> None:
        """Simulates one step of 0.1 s; an action that is not three finite numbers raises `SpirlError`."""
        command = np.asarray(action, dtype=np.float64)
        if command.shape != (3,) or not np.isfinite(command).all():
            raise SpirlError(f"a block stacking action is three finite numbers in [-1, 1], not {action!r}")
        self._level = grip_level(float(command[2]), self._level)
        x, _, _, angle = self.data.qpos[:4]
        self.data.ctrl[:4] = np.clip((-_HOLD_GAIN * x, command[0], command[1], -_HOLD_GAIN * angle), -1.0, 1.0)
        self.data.ctrl[4:] = FINGER_TRAVEL * (1.0 - self._level)
        self._mujoco.mj_step(self.model, self.data, nstep=SUBSTEPS)

    @property
    def hand(self) -> Array:
        """The position [3] of the hand (m)."""
        return self.data.qpos[:3].copy()

    @property
    def positions(self) -> Array:
        """The centres [n, 3] of the blocks (m)."""
        return self.data.qpos[_JOINTS:].reshape(self.n_blocks, 7)[:, :3].copy()

    def observe(self) -> dict[str, NDArray[np.float32]]:
        """Observes the world in numbers, float32, clipped to ±2.

        "hand" [3] is its position (m); "gripper" [6] is its place along the table (y, m), its velocity (3, m/s), angle
        (rad) and opening (0 closed, 1 open); "blocks" [n, 3] are the positions of the blocks' centres (m).
        """
        data = self.data
        opening = data.qpos[4:_JOINTS].mean() / FINGER_TRAVEL
        gripper = np.concatenate([data.qpos[1:2], data.qvel[:3], data.qpos[3:4], (opening,)])
        found = {"hand": data.qpos[:3], "gripper": gripper, "blocks": self.positions}
        return {
            name: np.clip(values, -OBSERVATION_LIMIT, OBSERVATION_LIMIT).astype(np.float32)
            for name, values in found.items()
        }

    def show(self, observation: Observation) -> None:
        """Puts everything where an observation has it, and upright, because observations hold no orientations."""
        data, (hand, gripper, blocks) = self.data, (observation[name] for name in ("hand", "gripper", "blocks"))
        data.qpos[:3], data.qpos[3], data.qpos[4:_JOINTS] = hand, gripper[4], gripper[5] * FINGER_TRAVEL
        poses = data.qpos[_JOINTS:].reshape(self.n_blocks, 7)
        poses[:] = (0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0)
        poses[:, :3] = blocks
        self._mujoco.mj_forward(self.model, data)

    @contextmanager
    def tinted(self) -> Iterator[None]:
        """Colours the blocks by weight within the context, the heavier the bluer, so that people see where one ends."""
        shares = np.log(self.model.body_mass[self._bodies] / BLOCK_SIDE**3 / DENSITIES[0])
        shares = np.clip(shares / np.log(DENSITIES[-1] / DENSITIES[0]), 0.0, 1.0)[:, None]
        self.model.geom_rgba[self._blocks] = (1 - shares) * _LIGHTEST + shares * _HEAVIEST
        try:
            yield
        finally:
            self.model.geom_rgba[self._blocks] = 1.0

    def _contacts(self) -> NDArray[np.int32]:
        """The contacts as pairs [n, 2] of geometries, also between sleeping blocks, which MuJoCo's steps leave out."""
        if self.data.ntree_awake < self.model.ntree:
            flags = self.model.opt.enableflags
            self.model.opt.enableflags = flags & ~int(self._mujoco.mjtEnableBit.mjENBL_SLEEP)
            self._mujoco.mj_collision(self.model, self.data)
            self.model.opt.enableflags = flags
        return self.data.contact.geom[: self.data.ncon]

    def touches(self) -> Touches:
        """The contacts of the blocks now."""
        pairs = self._contacts()
        heights = self.positions[:, 2]
        fingers: list[set[int]] = [set() for _ in range(self.n_blocks)]
        below: list[set[int]] = [set() for _ in range(self.n_blocks)]
        on_table, free = [False] * self.n_blocks, [True] * self.n_blocks
        for first, second in pairs.tolist():
            one, other = self._number.get(first), self._number.get(second)
            if one is not None and other is not None:
                free[one] = free[other] = False
                lower, upper = (one, other) if heights[one] < heights[other] else (other, one)
                if heights[upper] - heights[lower] > _RESTS_ABOVE:
                    below[upper].add(lower)
                continue
            block, geom = (one, second) if one is not None else (other, first)
            assert block is not None  # nothing but blocks can touch
            if geom in (self._left, self._right):
                fingers[block].add(geom)
            elif geom == self._table:
                on_table[block], free[block] = True, False
        grasped = tuple(len(touching) == 2 for touching in fingers)
        levels = [0] * self.n_blocks
        for block in np.argsort(heights).tolist():
            under = [levels[lower] for lower in below[block] if levels[lower]]
            if not grasped[block]:
                levels[block] = 1 + max(under) if under else int(on_table[block])
        return Touches(grasped, tuple(levels), tuple(free))


def grip_level(command: float, before: float) -> float:
    """The one of the three `LEVELS` that a grip command asks for, given the level of the step before."""
    size = abs(command)
    if _LEVEL_HOLD[0] <= size <= _LEVEL_HOLD[1]:
        return before
    return float(np.sign(command)) if size > _LEVEL_THRESHOLD else 0.0
