"""Block stacking: build a tower, as high as possible, with a gripper whose camera shows what is near it.

Demonstrations have five blocks, the target has eleven, so a policy that has learned to pick up a block and to put it
on others can build higher towers than were ever demonstrated. Task and numbers as in Pertsch et al. 2020
(arXiv:2010.11944).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from pydantic import Field

from spirl_ray.arguments import RenderMode, RenderSize, checked
from spirl_ray.envs.blocks.world import (
    BLOCK_HALF,
    BLOCK_SIDE,
    DENSITIES,
    MOST_BLOCKS,
    OBSERVATION_LIMIT,
    STEP_SECONDS,
    BlockWorld,
    Touches,
)
from spirl_ray.envs.metrics import EpisodeMetric, Scores, declare, subtask_metrics
from spirl_ray.envs.offscreen import OffscreenCamera
from spirl_ray.envs.spec import EnvironmentSpec, observation_space
from spirl_ray.episodes.features import Array, Feature, Features, ObjectSet, Observation

Reward = Literal["dense", "sparse"]

DATA_BLOCKS, TARGET_BLOCKS = 5, 11
DATA_STEPS, TARGET_STEPS = 250, 1000
SPACING = 0.2  # m between blocks at the start
WIDEST_ROW = 2.0  # m; more than eleven blocks stand closer together
PLACE_SPREAD = 0.01  # m, half-width of the uniform displacement of each block at the start
HAND_SPREAD = 0.1  # m, likewise of the hand
HAND_START = 0.35  # m

VIEW_SIZE = 32
RENDER_ASPECT = 5 / 3  # width over height

GRASP_STEPS = 5
"""A block counts as lifted or delivered once it has been grasped for this many steps in a row."""
LIFT_CLEARANCE = 0.02  # m below a block that is lifted
HEIGHT_WEIGHT = {"dense": 50.0, "sparse": 1.0}  # per metre
LIFTED_REWARD, DELIVERED_REWARD = 1.0, 2.0
STANDING_STEPS = 5
"""A tower is complete once it has stood for this many steps."""


def subtasks(n_blocks: int) -> tuple[str, ...]:
    """The names of the towers that can be built: "height 2", "height 3" and so on."""
    return tuple(f"height {height}" for height in range(2, n_blocks + 1))


@dataclass(frozen=True)
class Progress:
    """The state of the building at one moment."""

    tower: int
    """The number of blocks in the highest tower that stands on its own; 1 where no block is on another."""
    lifted: int
    """The number of blocks that the gripper carries."""
    delivered: int
    """The number of blocks that the gripper has put onto others."""

    def reward(self, kind: Reward) -> float:
        """The reward of one step; a height is the distance by which a tower's highest block has been lifted."""
        reward = HEIGHT_WEIGHT[kind] * BLOCK_SIDE * (self.tower - 1)
        if kind == "dense":
            reward += LIFTED_REWARD * self.lifted + DELIVERED_REWARD * self.delivered
        return reward


class Building:
    """The progress of an episode: which blocks the gripper has carried, and which towers have stood."""

    def __init__(self, n_blocks: int) -> None:
        self._grasped_for = [0] * n_blocks
        self._carried = [False] * n_blocks
        self._towers: deque[int] = deque(maxlen=STANDING_STEPS)
        self.highest = 1
        """The number of blocks of the highest tower that has stood so far for `STANDING_STEPS`."""

    def follow(self, touches: Touches, heights: NDArray[np.float64]) -> Progress:
        """Takes in the result of one step; ``heights`` [n] (m) are those of the blocks' centres."""
        lifted = delivered = 0
        for block, grasped in enumerate(touches.grasped):
            self._grasped_for[block] = self._grasped_for[block] + 1 if grasped else 0
            enough = self._grasped_for[block] >= GRASP_STEPS
            if enough:
                self._carried[block] = True
            elif touches.levels[block] == 1:
                self._carried[block] = False
            high = heights[block] - BLOCK_HALF > LIFT_CLEARANCE
            lifted += enough and touches.free[block] and bool(high)
            delivered += self._carried[block] and touches.levels[block] > 1
        tower = max(1, *touches.levels)
        self._towers.append(tower)
        if len(self._towers) == STANDING_STEPS:
            self.highest = max(self.highest, min(self._towers))
        return Progress(tower, lifted, delivered)


def features(n_blocks: int, camera: bool = True) -> Features:
    """The features of an observation, see `BlockStackingEnv`."""
    numbers = {
        "hand": Feature(shape=(3,)),
        "gripper": Feature(shape=(6,), role="proprioception"),
        "blocks": Feature(shape=(n_blocks, 3), objects=ObjectSet(agent="hand", up=2, size=BLOCK_SIDE)),
    }
    image = Feature(shape=(VIEW_SIZE, VIEW_SIZE, 1), role="image", frames=2)
    return {**numbers, "camera": image} if camera else numbers


class BlockStackingEnv(gymnasium.Env[dict[str, Array], NDArray[np.float32]]):
    """The task of building a high tower; an episode ends by its time limit alone.

    Observation: "hand", "gripper" and "blocks" (`BlockWorld.observe`), and "camera" uint8 [2, 32, 32, 1], grey images
    of the step before and of now, from a camera that moves with the hand.
    Action, float32 [3] in [-1, 1]: velocity along y and z, 1 is 0.05 m a step; then the grip, above 0.5 closed, below
    -0.5 open and half open between, where magnitudes from 0.3 to 0.7 keep the grip of the step before.
    Reward: see `Progress.reward`. ``info["completed"]`` names the heights of towers that have stood, and
    ``info["tower_height"]`` is the height of the present one in blocks.

    Args:
        n_blocks: 1 to 20.
        reward: "dense" or "sparse" (the height alone).
        camera: False leaves the images out of the observation, and needs no OpenGL.
        render_mode: None or "rgb_array".
        render_width: width of a rendered image in pixels.

    Raises:
        SpirlError: an argument out of range; from `reset` on, images are wanted and OpenGL does not work.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 1 / STEP_SECONDS}  # noqa: RUF012

    @checked
    def __init__(
        self,
        n_blocks: Annotated[int, Field(ge=1, le=MOST_BLOCKS)] = TARGET_BLOCKS,
        reward: Reward = "dense",
        camera: bool = True,
        render_mode: RenderMode = None,
        render_width: RenderSize = 640,
    ) -> None:
        self.world = BlockWorld(n_blocks)
        self.reward_kind = reward
        self.camera = camera
        self.render_mode = render_mode
        self.render_width = render_width
        self._agent_camera: AgentCamera | None = None
        self._scene_camera: OffscreenCamera | None = None
        self._image = np.zeros((VIEW_SIZE, VIEW_SIZE, 1), np.uint8)
        self._building = Building(n_blocks)
        self.observation_space = observation_space(features(n_blocks, camera), OBSERVATION_LIMIT)
        self.action_space = spaces.Box(-1.0, 1.0, (3,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Array], dict[str, Any]]:
        super().reset(seed=seed)
        n = self.world.n_blocks
        row = SPACING * (n - 1)
        middle = np.linspace(-0.5, 0.5, n) * min(row, WIDEST_ROW) if n > 1 else np.zeros(1)
        places = middle + self.np_random.uniform(-PLACE_SPREAD, PLACE_SPREAD, n)
        hand = (float(self.np_random.uniform(-HAND_SPREAD, HAND_SPREAD)), HAND_START)
        self.world.arrange([(y, BLOCK_HALF) for y in places], hand, self.np_random.choice(DENSITIES, n))
        self._building = Building(n)
        if self.camera:
            self._image = self._agent_image()
        return self._observe(), self._info(self._follow())

    def step(self, action: NDArray[np.float32]) -> tuple[dict[str, Array], float, bool, bool, dict[str, Any]]:
        """One step of 0.1 s; raises `SpirlError` for an action that is not three finite numbers."""
        self.world.advance(action)
        progress = self._follow()
        return self._observe(), progress.reward(self.reward_kind), False, False, self._info(progress)

    def render(self) -> NDArray[np.uint8] | None:  # type: ignore[override]
        """Renders the scene from the front, uint8 [height, width, 3]; heavier blocks are darker.

        Raises:
            SpirlError: OpenGL does not work here.
        """
        if self.render_mode is None:
            return None
        if self._scene_camera is None:
            height = round(self.render_width / RENDER_ASPECT)
            self._scene_camera = OffscreenCamera(self.world.model, self.render_width, height, "scene")
        with self.world.tinted():
            return self._scene_camera.render(self.world.data)

    def close(self) -> None:
        for camera in (self._agent_camera, self._scene_camera):
            if camera is not None:
                camera.close()
        self._agent_camera = self._scene_camera = None

    def _follow(self) -> Progress:
        return self._building.follow(self.world.touches(), self.world.positions[:, 2])

    def _info(self, progress: Progress) -> dict[str, Any]:
        return {"completed": subtasks(self._building.highest), "tower_height": progress.tower}

    def _agent_image(self) -> NDArray[np.uint8]:
        if self._agent_camera is None:
            self._agent_camera = AgentCamera(self.world)
        return self._agent_camera.image()

    def _observe(self) -> dict[str, Array]:
        numbers = self.world.observe()
        if not self.camera:
            return {**numbers}
        before, self._image = self._image, self._agent_image()
        return {**numbers, "camera": np.stack([before, self._image])}


class AgentCamera:
    """The camera that moves with the hand; raises `SpirlError` where OpenGL does not work."""

    def __init__(self, world: BlockWorld) -> None:
        self._world = world
        # Before a black sky, white blocks stand out.
        self._camera = OffscreenCamera(world.model, VIEW_SIZE, VIEW_SIZE, "agent", sky=False)

    def image(self) -> NDArray[np.uint8]:
        """Renders what is below the hand now, grey uint8 [32, 32, 1]."""
        return self._camera.render(self._world.data).mean(axis=-1, keepdims=True).astype(np.uint8)

    def close(self) -> None:
        self._camera.close()


def render_recorded(
    metadata: Mapping[str, Any], observations: Observation, steps: Sequence[int]
) -> list[NDArray[np.uint8]]:
    """Renders the scene at some steps of an episode, see `RenderRecorded`."""
    env = BlockStackingEnv(observations["blocks"].shape[1], camera=False, render_mode="rgb_array", render_width=400)
    images = []
    for step in steps:
        env.world.show({name: values[step] for name, values in observations.items()})
        images.append(env.render())
    env.close()
    return [image for image in images if image is not None]


def scores(n_blocks: int) -> Scores:
    """The metrics of an episode: the highest tower that has stood, and for each height whether one has."""
    height = EpisodeMetric(
        name="tower_height",
        meaning="Height in blocks of the highest tower that has stood for half a second in the episode",
        unit="blocks",
        range=(1.0, float(n_blocks)),
        more_is_better=True,
        of=lambda outcome: 1 + len(outcome.info.get("completed", ())),
    )
    return declare([height, *subtask_metrics(subtasks(n_blocks))], "tower_height")


SPEC = EnvironmentSpec(
    id="spirl/BlockStacking-v0",
    features=features(DATA_BLOCKS),
    action_dim=3,
    max_episode_steps=TARGET_STEPS,
    metrics=lambda kwargs: scores(kwargs.get("n_blocks", TARGET_BLOCKS)),
    expert="spirl_ray.envs.blocks.expert:generate",
    render_recorded=render_recorded,
)
