"""The maze of the paper: a velocity-limited point in a layout of walls and doors, with an image from above.

Training layouts are small and random, the target layout is large and fixed; a policy that has learned to move along
corridors in one finds its way in the other. Physics as in D4RL's maze (Fu et al. 2020, arXiv:2004.07219).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from pydantic import Field

from spirl_ray.arguments import RenderMode, checked
from spirl_ray.envs.maze import layout as maze_layout
from spirl_ray.envs.maze.layout import VIEW_SIZE, Cell, Layout, LayoutViews
from spirl_ray.envs.metrics import EpisodeMetric, declare
from spirl_ray.envs.offscreen import load_mujoco
from spirl_ray.envs.spec import EnvironmentSpec, FloorPlan, Renderer, observation_space
from spirl_ray.episodes.features import Array, Feature, Observation
from spirl_ray.errors import SpirlError
from spirl_ray.settings import Seed

FEATURES = {
    "position": Feature(shape=(2,)),
    "velocity": Feature(shape=(2,), role="proprioception"),
    "view": Feature(shape=(VIEW_SIZE, VIEW_SIZE, 1), role="image", frames=2, stored=False),
}
TARGET_LAYOUT = 209
"""The seed of the target: its 40 × 40 layout has, like the paper's, a shortest path of 34 cells from start to goal.

Of the eleven such seeds below 400 it is the median by how often a bare skill prior reaches the goal, in 5 % of the
episodes."""
TARGET_SIZE = 40
TARGET_START = (10, 24)
TARGET_GOAL = (18, 8)
STEP_SECONDS = 0.01
MAX_SPEED = 5.0  # cells/s, along each axis
START_SPREAD = 0.1  # cells, half-width of the uniform start about the cell's centre
AGENT_RADIUS = 0.1
WALL_HALF_HEIGHT = 0.1

_SCENE = """
<mujoco>
  <option timestep="{step}" gravity="0 0 0" integrator="Euler"/>
  <visual><headlight ambient="1 1 1" diffuse="0 0 0" specular="0 0 0"/><quality shadowsize="0"/></visual>
  <default><geom condim="1" density="1000" margin="0.002"/></default>
  <worldbody>
    <geom type="plane" size="{extent} {extent} 1" pos="0 0 -{height}" rgba="1 1 1 1" contype="0" conaffinity="0"/>
    {walls}
    <body name="agent">
      <joint name="x" type="slide" axis="1 0 0" damping="1"/>
      <joint name="y" type="slide" axis="0 1 0" damping="1"/>
      <geom type="sphere" size="{radius}" rgba="0.8 0.2 0.2 1"/>
      <camera name="above" pos="0 0 {camera}" fovy="45"/>
    </body>
  </worldbody>
  <actuator>
    <motor joint="x" gear="100" ctrlrange="-1 1" ctrllimited="true"/>
    <motor joint="y" gear="100" ctrlrange="-1 1" ctrllimited="true"/>
  </actuator>
</mujoco>
"""
_WALL = '<geom type="box" pos="{x} {y} 0" size="{half_x} {half_y} {height}" rgba="0 0 0 1"/>'


def scene_xml(walls: Layout) -> str:
    """Returns MuJoCo's XML of a layout; positions are as in `spirl_ray.envs.maze.layout`, in cells."""
    last = len(walls) - 1
    # Everything beyond the border is wall, as in the views.
    around = [
        (-3, -3, last + 3, -1),
        (-3, last + 1, last + 3, last + 3),
        (-3, 0, -1, last),
        (last + 1, 0, last + 3, last),
    ]
    boxes = [
        _WALL.format(
            x=(first_i + last_i) / 2,
            y=(first_j + last_j) / 2,
            half_x=(last_i - first_i + 1) / 2,
            half_y=(last_j - first_j + 1) / 2,
            height=WALL_HALF_HEIGHT,
        )
        for first_i, first_j, last_i, last_j in maze_layout.wall_rectangles(walls) + around
    ]
    return _SCENE.format(
        step=STEP_SECONDS,
        extent=2 * len(walls),
        walls="\n    ".join(boxes),
        radius=AGENT_RADIUS,
        height=WALL_HALF_HEIGHT,
        camera=WALL_HALF_HEIGHT + 5.0,
    )


class MazeEnv(gymnasium.Env[dict[str, Array], NDArray[np.float32]]):
    """The task of reaching a goal and staying there; an episode ends by its time limit alone.

    Observation: "position" float32 [2] (cells), "velocity" float32 [2] (cells/s), and "view" uint8 [2, 32, 32, 1], two
    images of what is around the agent (`spirl_ray.envs.maze.layout.LayoutViews`), of the step before and of now.
    Action, float32 [2] in [-1, 1]: force along x and y; the speed along each axis is held to 5 cells/s.
    Reward: 1 for each step within ``goal_radius`` of the goal. ``info["completed"]`` is ("goal",) from then on.

    Args:
        layout_seed: seed of the layout.
        size: side of the layout inside its border, in cells.
        start: cell (i, j), both from 1 to ``size``; None draws a free cell for each episode.
        goal: cell (i, j), as ``start``.
        goal_radius: distance from the goal, in cells, that counts as reached.
        render_mode: None or "rgb_array".

    Raises:
        SpirlError: a start or goal that is outside, in a wall or cut off, or an invalid radius or mode.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 100}  # noqa: RUF012

    @checked
    def __init__(
        self,
        layout_seed: Seed = TARGET_LAYOUT,
        size: maze_layout.Size = TARGET_SIZE,
        start: Cell | None = TARGET_START,
        goal: Cell | None = TARGET_GOAL,
        goal_radius: Annotated[float, Field(gt=0.0, le=maze_layout.LARGEST)] = 2.0,
        render_mode: RenderMode = None,
    ) -> None:
        self.walls = maze_layout.layout(layout_seed, size)
        self.render_mode = render_mode
        self.goal_radius = goal_radius
        self.fixed_start = None if start is None else _checked_cell("start", start, self.walls, layout_seed)
        self.fixed_goal = None if goal is None else _checked_cell("goal", goal, self.walls, layout_seed)
        if (
            self.fixed_start
            and self.fixed_goal
            and maze_layout.distances(self.walls, self.fixed_goal)[self.fixed_start] < 0
        ):
            raise SpirlError(
                f"maze goal {self.fixed_goal} cannot be reached from start {self.fixed_start} in layout {layout_seed}: "
                "walls cut it off. Choose another start or goal"
            )
        self._free = maze_layout.free_cells(self.walls)
        mujoco = load_mujoco()
        self._step_physics = mujoco.mj_step
        self._reset_physics = mujoco.mj_resetData
        self.model = mujoco.MjModel.from_xml_string(scene_xml(self.walls))
        self.data = mujoco.MjData(self.model)
        self._views = LayoutViews([self.walls])
        self._view = np.zeros((VIEW_SIZE, VIEW_SIZE, 1), np.uint8)
        self.goal: Cell = self.fixed_goal or TARGET_GOAL
        self._completed: tuple[str, ...] = ()
        self._path: list[tuple[float, float]] = []
        self.observation_space = observation_space(FEATURES)
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Array], dict[str, Any]]:
        super().reset(seed=seed)
        start = self.fixed_start or self._draw_cell()
        self.goal = self.fixed_goal or self._draw_cell()
        self._reset_physics(self.model, self.data)
        self.data.qpos[:] = start + self.np_random.uniform(-START_SPREAD, START_SPREAD, 2)
        self._completed = ()
        self._path = [self._position()]
        state = self._state()
        self._view = self._render_view(state)
        return self._observe(state), {"completed": self._completed}

    def step(self, action: NDArray[np.float32]) -> tuple[dict[str, Array], float, bool, bool, dict[str, Any]]:
        """Simulates one step of 0.01 s; an action that is not two finite numbers raises `SpirlError`."""
        state = self.advance(action)
        reward = 0.0
        if np.hypot(state[0] - self.goal[0], state[1] - self.goal[1]) < self.goal_radius:
            reward, self._completed = 1.0, ("goal",)
        if self.render_mode is not None:
            self._path.append(self._position())
        return self._observe(state), reward, False, False, {"completed": self._completed}

    def advance(self, action: NDArray[np.float32]) -> NDArray[np.float32]:
        """Simulates the physics alone and returns position and velocity, float32 [4], after one step."""
        command = np.asarray(action, dtype=np.float64)
        if command.shape != (2,) or not np.isfinite(command).all():
            raise SpirlError(f"a maze action is two finite numbers in [-1, 1], not {action!r}")
        np.clip(self.data.qvel, -MAX_SPEED, MAX_SPEED, out=self.data.qvel)
        self.data.ctrl[:] = command
        self._step_physics(self.model, self.data)
        return self._state()

    def render(self) -> NDArray[np.uint8] | None:  # type: ignore[override]
        """Renders the layout and the path so far, uint8 [512, 512, 3]: start green, goal gold, agent red."""
        if self.render_mode is None:
            return None
        from PIL import Image, ImageDraw

        size, cells = 512, len(self.walls)
        scale = size / cells
        grey = np.where(self.walls.T[::-1], 70, 248).astype(np.uint8)
        image = Image.fromarray(grey).resize((size, size), Image.Resampling.NEAREST).convert("RGB")
        draw = ImageDraw.Draw(image)

        def pixel(position: Sequence[float]) -> tuple[float, float]:
            return (position[0] + 0.5) * scale, size - (position[1] + 0.5) * scale

        def disc(position: Sequence[float], radius: float) -> list[float]:
            x, y = pixel(position)
            return [x - radius, y - radius, x + radius, y + radius]

        draw.ellipse(disc(self.goal, self.goal_radius * scale), fill=(255, 226, 150), outline=(225, 165, 30), width=2)
        if len(self._path) > 1:
            draw.line([pixel(position) for position in self._path], fill=(70, 130, 200), width=2)
        draw.ellipse(disc(self._path[0], 5), fill=(60, 160, 80))
        draw.ellipse(disc(self._position(), 5), fill=(200, 50, 50))
        return np.asarray(image, dtype=np.uint8).copy()

    def _draw_cell(self) -> Cell:
        i, j = self._free[int(self.np_random.integers(len(self._free)))]
        return int(i), int(j)

    def _position(self) -> tuple[float, float]:
        return float(self.data.qpos[0]), float(self.data.qpos[1])

    def _state(self) -> NDArray[np.float32]:
        return np.concatenate([self.data.qpos, self.data.qvel], dtype=np.float32, casting="same_kind")

    def _render_view(self, state: NDArray[np.float32]) -> NDArray[np.uint8]:
        return self._views(np.zeros(1, np.int64), state[None, :2])[0, ..., None]

    def _observe(self, state: NDArray[np.float32]) -> dict[str, Array]:
        before, self._view = self._view, self._render_view(state)
        return {"position": state[:2], "velocity": state[2:], "view": np.stack([before, self._view])}


def _checked_cell(name: str, cell: Cell, walls: Layout, seed: int) -> Cell:
    size = len(walls) - 2
    i, j = cell
    if not (1 <= i <= size and 1 <= j <= size):
        raise SpirlError(f"maze {name} ({i}, {j}) is outside the layout: both go from 1 to {size}")
    if walls[i, j]:
        cells = maze_layout.free_cells(walls)
        near = cells[np.abs(cells - (i, j)).sum(1).argmin()]
        raise SpirlError(
            f"maze {name} ({i}, {j}) is inside a wall of layout {seed}; the nearest free cell is ({near[0]}, {near[1]})"
        )
    return i, j


def view_renderer(metadata: Sequence[Mapping[str, Any]]) -> Renderer:
    """Makes the renderer of the views of episodes from their layouts and positions, see `Renderer`."""
    views = LayoutViews([stored_layout(episode) for episode in metadata])
    return lambda episodes, observation: views(episodes, np.asarray(observation["position"], np.float32))[..., None]


def stored_layout(metadata: Mapping[str, Any]) -> Layout:
    """The layout that is stored in an episode's metadata.

    Raises:
        SpirlError: the metadata hold no layout.
    """
    try:
        side = int(metadata["size"]) + 2
        bits = np.unpackbits(np.frombuffer(bytes.fromhex(metadata["layout"]), np.uint8), count=side * side)
        return bits.reshape(side, side).astype(bool)
    except (KeyError, ValueError, TypeError) as error:
        raise SpirlError(f"a maze episode's metadata must hold its layout: {type(error).__name__}: {error}") from error


def render_recorded(
    metadata: Mapping[str, Any], observations: Observation, steps: Sequence[int]
) -> list[NDArray[np.uint8]]:
    """Renders the layout with the path up to some steps of an episode, see `RenderRecorded`."""
    positions = observations["position"]
    env = MazeEnv(metadata["layout_seed"], metadata["size"], metadata["start"], metadata["goal"], 0.5, "rgb_array")
    images = []
    for step in steps:
        env._path = [(float(x), float(y)) for x, y in positions[: step + 1]]
        env.data.qpos[:] = positions[step]
        images.append(env.render())
    return [image for image in images if image is not None]


def floor_plan(env: gymnasium.Env[Any, Any]) -> FloorPlan:
    """The walls, start and goal of a maze that has been made."""
    maze = env.unwrapped
    assert isinstance(maze, MazeEnv)
    return FloorPlan("position", maze.walls, maze.fixed_start, maze.fixed_goal, maze.goal_radius)


SUCCESS = EpisodeMetric(
    name="success",
    meaning="1 where the episode has reached the goal, else 0",
    range=(0.0, 1.0),
    more_is_better=True,
    of=lambda outcome: float("goal" in outcome.info.get("completed", ())),
)
SPEC = EnvironmentSpec(
    id="spirl/Maze-v0",
    features=FEATURES,
    action_dim=2,
    max_episode_steps=2000,
    metrics=lambda kwargs: declare([SUCCESS], "success"),
    expert="spirl_ray.envs.maze.expert:generate",
    renderers={"view": view_renderer},
    render_recorded=render_recorded,
    floor_plan=floor_plan,
)
