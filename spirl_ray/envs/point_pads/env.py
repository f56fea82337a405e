"""A point that visits four pads: a small task that needs no data and no MuJoCo, and in which skills help.

The arena and what stands in it (x to the right, y up, both from -1 to 1)::

            N
         .     #      pillar in the middle, blocks north-east (#) and south-west (#):
      W    [ ]   E    of the six straight lines between pads only N–W and S–E are free
         #     .
            S         the point starts at the south-east dot

The demonstrations visit three of the four pads and the task wants all four, so no demonstration shows the whole task.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from pydantic import Field

from spirl_ray.arguments import Noise, RenderMode, checked
from spirl_ray.envs.judgement import Judgement, judge_subtasks
from spirl_ray.envs.metrics import subtask_scores, subtasks_of
from spirl_ray.envs.spec import EnvironmentSpec, PositionTarget, observation_space
from spirl_ray.episodes.episode import Episode
from spirl_ray.episodes.features import Feature, Observation, stack_observations
from spirl_ray.errors import SpirlError

PADS: dict[str, tuple[float, float]] = {
    "north": (0.0, 0.8),
    "east": (0.8, 0.0),
    "south": (0.0, -0.8),
    "west": (-0.8, 0.0),
}
Tasks = Annotated[tuple[str, ...], subtasks_of(PADS, "pad")]
PAD_RADIUS = 0.1

WALLS = ((-0.25, -0.25, 0.25, 0.25), (0.3, 0.3, 0.48, 0.48), (-0.48, -0.48, -0.3, -0.3))
"""The walls: rectangles as left, bottom, right, top."""

START = (0.6, -0.6)
START_SPREAD = 0.05  # half-width of the uniform start
AGENT_RADIUS = 0.04
GAIN = 0.09  # distance from the sensed position to the target for an action of 1
LAG = 0.8  # part of the way to the target that one step covers
FEATURES = {
    "position": Feature(shape=(2,), role="proprioception"),
    "velocity": Feature(shape=(2,), role="proprioception"),
    "lamps": Feature(shape=(len(PADS),)),
}
Sensed = dict[str, NDArray[np.float32]]


class PointPadsEnv(gymnasium.Env[Sensed, NDArray[np.float32]]):
    """The task of visiting the pads, in any order.

    Observation, float32: the sensed "position" [2], the "velocity" [2] (displacement of the last step over `GAIN`)
    and "lamps" [4], one for each pad (north, east, south, west), 1 once visited.
    Action, float32 [2] in [-1, 1]: target = *sensed* position + 0.09 · action; the point covers 0.8 of the
    way to it and slides along walls.
    Reward: +1 for each target pad visited for the first time.

    Args:
        tasks: names of the target pads.
        position_noise: half-width of the uniform noise on the sensed position.
        render_mode: None or "rgb_array".

    Raises:
        SpirlError: pads are unknown, repeated or missing, the noise is negative, or the render mode is unknown.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 15}  # noqa: RUF012

    @checked
    def __init__(
        self,
        tasks: Tasks = tuple(PADS),
        position_noise: Noise = 0.01,
        render_mode: RenderMode = None,
    ) -> None:
        self.tasks = tasks
        self.position_noise = position_noise
        self.render_mode = render_mode
        self.observation_space = observation_space(FEATURES)
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.position = START
        self._velocity = (0.0, 0.0)
        self._sensed = START
        self._lamps = [0.0] * len(PADS)
        self._completed: tuple[str, ...] = ()
        self._path: list[tuple[float, float]] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Sensed, dict[str, Any]]:
        super().reset(seed=seed)
        offset = self.np_random.uniform(-START_SPREAD, START_SPREAD, 2).tolist()
        self.position = (START[0] + offset[0], START[1] + offset[1])
        self._velocity = (0.0, 0.0)
        self._lamps = [0.0] * len(PADS)
        self._completed = ()
        self._path = [self.position]
        return self._sense(), {"completed": self._completed}

    def step(self, action: NDArray[np.float32]) -> tuple[Sensed, float, bool, bool, dict[str, Any]]:
        """Simulates one step; an action that is not two finite numbers raises `SpirlError`."""
        command = np.asarray(action, dtype=np.float64)
        if command.shape != (2,) or not (math.isfinite(command[0]) and math.isfinite(command[1])):
            raise SpirlError(f"a point pads action is two finite numbers in [-1, 1], not {action!r}")
        x, y = self.position
        right, up = command.tolist()
        moved_x = x + LAG * (_target(self._sensed[0], right) - x)
        moved_y = y + LAG * (_target(self._sensed[1], up) - y)
        if _blocked(moved_x, y):
            moved_x = x
        if _blocked(moved_x, moved_y):
            moved_y = y
        self._velocity = ((moved_x - x) / GAIN, (moved_y - y) / GAIN)
        self.position = (moved_x, moved_y)
        if self.render_mode is not None:
            self._path.append(self.position)
        reward = self._visit()
        done = len(self._completed) == len(self.tasks)
        return self._sense(), reward, done, False, {"completed": self._completed}

    def render(self) -> NDArray[np.uint8] | None:  # type: ignore[override]
        """Renders the arena, uint8 [256, 256, 3]: pads (bright once visited), walls, the path so far and the point."""
        if self.render_mode is None:
            return None
        from PIL import Image, ImageDraw

        size = 256

        def pixel(x: float, y: float) -> tuple[float, float]:
            return (x + 1) / 2 * (size - 1), (1 - y) / 2 * (size - 1)

        def disc(x: float, y: float, radius: float) -> list[tuple[float, float]]:
            return [pixel(x - radius, y + radius), pixel(x + radius, y - radius)]

        image = Image.new("RGB", (size, size), (250, 250, 247))
        draw = ImageDraw.Draw(image)
        draw.rectangle([0, 0, size - 1, size - 1], outline=(70, 70, 75), width=2)
        for left, bottom, right, top in WALLS:
            draw.rectangle([pixel(left, top), pixel(right, bottom)], fill=(70, 70, 75))
        for (pad, (x, y)), lamp in zip(PADS.items(), self._lamps, strict=True):
            fill = (250, 185, 45) if lamp else (226, 226, 222)
            draw.ellipse(disc(x, y, PAD_RADIUS), fill=fill, outline=(120, 120, 120), width=2)
            draw.text(pixel(x, y), pad[0].upper(), fill=(60, 60, 60), anchor="mm")
        if len(self._path) > 1:
            draw.line([pixel(x, y) for x, y in self._path], fill=(70, 130, 200), width=2)
        draw.ellipse(disc(*self.position, AGENT_RADIUS), fill=(200, 50, 50))
        return np.asarray(image, dtype=np.uint8).copy()

    def _visit(self) -> float:
        reward = 0.0
        for index, (pad, centre) in enumerate(PADS.items()):
            if self._lamps[index] or math.dist(self.position, centre) >= PAD_RADIUS:
                continue
            self._lamps[index] = 1.0
            if pad in self.tasks:
                self._completed += (pad,)
                reward += 1.0
        return reward

    def _sense(self) -> Sensed:
        noise = self.np_random.uniform(-self.position_noise, self.position_noise, 2).tolist()
        self._sensed = (self.position[0] + noise[0], self.position[1] + noise[1])
        values = {"position": self._sensed, "velocity": self._velocity, "lamps": self._lamps}
        return {name: np.array(value, dtype=np.float32) for name, value in values.items()}


def _target(sensed: float, command: float) -> float:
    edge = 1.0 - AGENT_RADIUS
    return min(max(sensed + GAIN * min(max(command, -1.0), 1.0), -edge), edge)


def _blocked(x: float, y: float) -> bool:
    return any(
        left - AGENT_RADIUS < x < right + AGENT_RADIUS and bottom - AGENT_RADIUS < y < top + AGENT_RADIUS
        for left, bottom, right, top in WALLS
    )


# Way-points on a ring around the pillar, clockwise from north. The odd ones are the four corners (outside the
# block where there is one); the even ones pass between pillar and pad without touching the pad.
_RING = (
    (0.0, 0.55),
    (0.66, 0.66),
    (0.55, 0.0),
    (0.5, -0.5),
    (0.0, -0.55),
    (-0.66, -0.66),
    (-0.55, 0.0),
    (-0.5, 0.5),
)
_START_NODE = 3
_PAD_NODES = {"north": 0, "east": 2, "south": 4, "west": 6}


@checked
def generate(
    indices: Iterable[int], seed: int, *, noise: Noise = 0.1, pads: Annotated[int, Field(ge=1, le=len(PADS))] = 3
) -> Iterator[Episode]:
    """Generates demonstrations of a scripted expert that visits some pads in random order.

    It follows way-points with a proportional controller; speed, bow of the path and pauses differ from leg to
    leg. An episode depends on (seed, index, noise, pads) alone.

    Args:
        indices: numbers of the episodes.
        seed: seed of the dataset.
        noise: standard deviation of the Gaussian noise on the actions.
        pads: how many different pads an episode visits, 1 to 4. The episode ends there, or (with three pads, in less
            than 1 of 100 episodes) at the time limit.

    Yields:
        Episodes; their positions are the sensed ones, ``metadata["completed"]`` names the visited pads in order.

    Raises:
        SpirlError: ``pads`` or ``noise`` is out of range.
    """
    environment = PointPadsEnv()
    for index in indices:
        yield _demonstration(environment, index, seed, noise, pads)


def _demonstration(environment: PointPadsEnv, index: int, seed: int, noise: float, pads: int) -> Episode:
    rng = np.random.default_rng((seed, index))
    order = rng.permutation(list(PADS))[:pads].tolist()
    observation, info = environment.reset(seed=int(rng.integers(2**31)))
    observations = [observation]
    actions: list[NDArray[np.float32]] = []
    rewards: list[float] = []
    terminated = False
    expert = _expert_actions(environment, order, rng)
    while len(info["completed"]) < pads and len(actions) < SPEC.max_episode_steps:
        action = np.clip(next(expert) + noise * rng.normal(size=2), -1.0, 1.0).astype(np.float32)
        observation, reward, terminated, _, info = environment.step(action)
        observations.append(observation)
        actions.append(action)
        rewards.append(reward)
    return Episode(
        id=f"point-pads-{seed}-{index:06d}",
        observations=stack_observations(observations),
        actions=np.stack(actions),
        rewards=np.array(rewards, dtype=np.float32),
        terminated=terminated,
        truncated=not terminated,
        metadata={"completed": list(info["completed"])},
    )


def _expert_actions(
    environment: PointPadsEnv, order: Sequence[str], rng: np.random.Generator
) -> Iterator[NDArray[np.float64]]:
    """The expert's noise-free actions, each computed from the environment's position at that time."""
    node = _START_NODE
    for pad in order:
        speed = rng.uniform(0.65, 1.0)
        for way_point in _route(node, _PAD_NODES[pad], rng):
            yield from _leg(environment, way_point + rng.uniform(-0.03, 0.03, 2), speed, 0.08, rng)
        yield from _leg(environment, np.array(PADS[pad]), speed, 0.7 * PAD_RADIUS, rng)
        node = _PAD_NODES[pad]
        if rng.random() < 0.3:
            for _ in range(rng.integers(1, 5)):
                yield np.zeros(2)
    while True:
        yield np.zeros(2)


def _route(start: int, end: int, rng: np.random.Generator) -> list[NDArray[np.float64]]:
    """The way-points between two nodes of the ring along the shorter way, or a random one of two equal ways."""
    size = len(_RING)
    clockwise = (end - start) % size
    direction = rng.choice((1, -1)) if 2 * clockwise == size else (1 if 2 * clockwise < size else -1)
    count = clockwise if direction == 1 else size - clockwise
    return [np.array(_RING[(start + direction * step) % size]) for step in range(1, count)]


def _leg(
    environment: PointPadsEnv,
    goal: NDArray[np.float64],
    speed: float,
    radius: float,
    rng: np.random.Generator,
) -> Iterator[NDArray[np.float64]]:
    length = math.dist(environment.position, goal)
    # rad: the heading turns from +bow at the start of the leg to -bow at its end.
    bow = rng.uniform(-0.4, 0.4)
    while (remaining := math.dist(environment.position, goal)) > radius:
        heading = (goal - environment.position) / remaining
        turn = bow * (2 * min(remaining / length, 1.0) - 1)
        cos, sin = math.cos(turn), math.sin(turn)
        pace = min(speed, remaining / GAIN)
        yield pace * np.array([cos * heading[0] - sin * heading[1], sin * heading[0] + cos * heading[1]])


def judge(arguments: Mapping[str, Any], episode: Episode) -> Judgement:
    """Judges recorded lamps as the task with these arguments would have, see `EnvironmentSpec.judge`."""
    tasks = arguments.get("tasks", tuple(PADS))
    lamps = np.asarray(episode.observations["lamps"], np.float32) > 0.5
    return judge_subtasks([lamps[:, index] for index, pad in enumerate(PADS) if pad in tasks])


def render_recorded(
    metadata: Mapping[str, Any], observations: Observation, steps: Sequence[int]
) -> list[NDArray[np.uint8]]:
    """Renders pads and path up to some steps of an episode, see `RenderRecorded`."""
    env = PointPadsEnv(render_mode="rgb_array")
    images = []
    for step in steps:
        env._path = [(float(x), float(y)) for x, y in observations["position"][: step + 1]]
        env.position, env._lamps = env._path[-1], observations["lamps"][step].tolist()
        images.append(env.render())
    return [image for image in images if image is not None]


SPEC = EnvironmentSpec(
    id="spirl/PointPads-v0",
    features=FEATURES,
    action_dim=2,
    max_episode_steps=120,
    metrics=lambda kwargs: subtask_scores(kwargs.get("tasks", tuple(PADS))),
    position_target=PositionTarget(feature="position", positions=(0, 1), gain=(GAIN, GAIN)),
    expert="spirl_ray.envs.point_pads.env:generate",
    render_recorded=render_recorded,
    judge=judge,
)
