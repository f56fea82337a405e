"""Franka kitchen as D4RL and SPiRL use it, simulated directly on the scene that gymnasium-robotics ships.

`FrankaKitchen-v1` (gymnasium-robotics 1.4) has D4RL's physics, actuators and goals, but another observation,
other noise and a reward on the noise-free state. This module takes its scene and steps it exactly as it does
(a test compares the two), without the work that D4RL's task does not need.

Sources: Gupta et al. 2019, Relay Policy Learning (arXiv:1910.11956); Fu et al. 2020, D4RL (arXiv:2004.07219),
whose ``kitchen_multitask_v0.py`` and ``franka_config.xml`` fix the constants below.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from spirl_ray.arguments import Noise, RenderMode, RenderSize, checked
from spirl_ray.envs.judgement import Judgement, judge_subtasks
from spirl_ray.envs.metrics import subtask_scores, subtasks_of
from spirl_ray.envs.offscreen import OffscreenCamera, load_mujoco
from spirl_ray.envs.spec import EnvironmentSpec, FromRecordings, PositionTarget, observation_space
from spirl_ray.episodes.episode import Episode
from spirl_ray.episodes.features import Feature, Observation
from spirl_ray.errors import SpirlError

DEFAULT_TASKS = ("microwave", "kettle", "light switch", "slide cabinet")

# Entries of the 30 joint positions (the robot's 9, then the objects' 21) that a subtask is about, and the values that
# solve it.
GOALS: dict[str, tuple[tuple[int, ...], tuple[float, ...]]] = {
    "microwave": ((22,), (-0.75,)),
    "kettle": ((23, 24, 25, 26, 27, 28, 29), (-0.23, 0.75, 1.62, 0.99, 0.0, 0.0, -0.06)),
    "bottom burner": ((11, 12), (-0.88, -0.01)),
    "top burner": ((15, 16), (-0.92, -0.01)),
    "light switch": ((17, 18), (-0.69, -0.05)),
    "slide cabinet": ((19,), (0.37,)),
    "hinge cabinet": ((20, 21), (0.0, 1.45)),
}
Tasks = Annotated[tuple[str, ...], subtasks_of(GOALS, "kitchen subtask")]
SUCCESS_DISTANCE = 0.3
"""The Euclidean distance from its goal within which a subtask is complete, over its own entries (rad and m)."""

ROBOT_DIM, OBJECT_DIM = 9, 21
JOINTS = ROBOT_DIM + OBJECT_DIM
FEATURES = {"robot": Feature(shape=(ROBOT_DIM,), role="proprioception"), "objects": Feature(shape=(OBJECT_DIM,))}
SUBSTEPS = 40  # of 2 ms each: one step is 0.08 s
STEP_SECONDS = 0.08
VELOCITY_AT_FULL_ACTION = 2.0  # rad/s for the arm, m/s for the fingers: all nine actions scale alike
GAIN = VELOCITY_AT_FULL_ACTION * STEP_SECONDS

# Joint limits that a position target is clipped to (franka_config.xml); fingers, the last two, in metres.
TARGET_LOW = np.array([-2.9, -1.8, -2.9, -3.1, -2.9, 0.0, -2.9, 0.0, 0.0])
TARGET_HIGH = np.array([2.9, 1.8, 2.9, 0.0, 2.9, 3.8, 2.9, 0.04, 0.04])

# Half-width of the uniform sensor noise at a noise ratio of 1 (franka_config.xml, in the order of the joints).
# FrankaKitchen-v1 reads the object part one entry too early; D4RL, and so this module, does not.
NOISE_AMPLITUDE = np.array(
    [0.1] * 9 + [0.005] * 2 + [0.0005] * 6 + [0.005] * 3 + [0.1] * 3 + [0.005] * 3 + [0.1] * 3 + [0.005]
)

# fmt: off
INITIAL_POSITIONS = np.array([
    1.48388023e-01, -1.76848573e00, 1.84390296e00, -2.47685760e00, 2.60252026e-01, 7.12533105e-01,
    1.59515394e00, 4.79267505e-02, 3.71350919e-02, -2.66279850e-04, -5.18043486e-05, 3.12877220e-05,
    -4.51199853e-05, -3.90842156e-06, -4.22629655e-05, 6.28065475e-05, 4.04984708e-05, 4.62730939e-04,
    -2.26906415e-04, -4.65501369e-04, -6.44129196e-03, -1.77048263e-03, 1.08009684e-03, -2.69397440e-01,
    3.50383255e-01, 1.61944683e00, 1.00618764e00, 4.06395120e-03, -6.62095997e-03, -2.68278933e-04,
])
# fmt: on


def recorded_features(observations: Mapping[str, NDArray[Any]]) -> Observation:
    """Extracts the features from a recording of ``D4RL/kitchen``.

    Args:
        observations: "observation" [T+1, 59]: robot positions 9, robot velocities 9, object positions 21, object
            velocities 20.

    Returns:
        "robot" float32 [T+1, 9] and "objects" float32 [T+1, 21], the positions.

    Raises:
        SpirlError: the observations are not those of the Franka kitchen.
    """
    array = np.asarray(observations["observation"])
    if array.ndim != 2 or array.shape[1] != 59:
        raise SpirlError(f"kitchen observations must have the shape [T+1, 59], these have {list(array.shape)}")
    return split_joints(np.concatenate([array[:, :9], array[:, 18:39]], axis=1))


def split_joints(positions: NDArray[np.floating]) -> dict[str, NDArray[np.float32]]:
    """Splits joint positions [..., 30] into the features "robot" and "objects", float32 [..., 9] and [..., 21]."""
    robot, objects = np.split(positions.astype(np.float32), [ROBOT_DIM], axis=-1)
    return {"robot": robot, "objects": objects}


def joint_positions(observation: Observation) -> NDArray[np.float32]:
    """Joins the features to joint positions [..., 30], the inverse of `split_joints`."""
    return np.concatenate([observation["robot"], observation["objects"]], axis=-1, dtype=np.float32)


def goal_distance(positions: NDArray[np.floating], task: str) -> NDArray[np.float64]:
    """The distance [...] of joint positions [..., 30] from a subtask's goal, over its own entries (rad and m)."""
    indices, values = GOALS[task]
    difference: NDArray[np.float64] = positions[..., list(indices)] - np.array(values)
    return np.sqrt((difference**2).sum(-1))


def completed_subtasks(observations: Observation) -> list[str]:
    """The subtasks that are completed along the features [T+1, ...] of an episode, in the order of their completion.

    A subtask that is complete at the start is not among them. Those of the same step come in the order of `GOALS`.
    """
    positions = joint_positions(observations)
    firsts: list[tuple[int, str]] = []
    for task in GOALS:
        complete = goal_distance(positions, task) < SUCCESS_DISTANCE
        if complete.any() and not complete[0]:
            firsts.append((int(complete.argmax()), task))
    return [task for _, task in sorted(firsts, key=lambda first: first[0])]


def judge(arguments: Mapping[str, Any], episode: Episode) -> Judgement:
    """Judges recorded positions as a kitchen with these arguments would have, see `EnvironmentSpec.judge`."""
    positions = joint_positions(episode.observations)
    tasks = arguments.get("tasks", DEFAULT_TASKS)
    complete = [goal_distance(positions, task) < SUCCESS_DISTANCE for task in tasks]
    return judge_subtasks(complete, in_order=bool(arguments.get("enforce_order", False)))


def expert_tries(metadata: Mapping[str, Any]) -> Iterator[tuple[str, bool]]:
    """The subtasks that the scripted experts tried for an episode, and whether they solved them.

    They go through a chain in order, and give up at the first subtask that they fail.
    """
    if "failed_attempts" not in metadata:
        return  # an episode from elsewhere, whose "tasks" may be anything
    for completed in (metadata["completed"], *metadata["failed_attempts"]):
        for task in metadata["tasks"]:
            yield task, task in completed
            if task not in completed:
                break


def render_recorded(
    metadata: Mapping[str, Any], observations: Observation, steps: Sequence[int]
) -> list[NDArray[np.uint8]]:
    """Renders the kitchen at some steps of an episode, see `RenderRecorded`."""
    positions = joint_positions(observations)
    env = KitchenEnv(render_mode="rgb_array", render_size=240)
    images = []
    for step in steps:
        env.data.qpos[:] = positions[step]
        env._mujoco.mj_forward(env.model, env.data)
        images.append(env.render())
    env.close()
    return [image for image in images if image is not None]


SPEC = EnvironmentSpec(
    id="spirl/Kitchen-v0",
    features=FEATURES,
    action_dim=ROBOT_DIM,
    max_episode_steps=280,
    metrics=lambda kwargs: subtask_scores(kwargs.get("tasks", DEFAULT_TASKS)),
    position_target=PositionTarget(
        feature="robot",
        positions=tuple(range(ROBOT_DIM)),
        gain=(GAIN,) * ROBOT_DIM,
        objects=("objects",),
    ),
    expert="spirl_ray.envs.kitchen.experts:generate",
    expert_tries=expert_tries,
    render_recorded=render_recorded,
    from_recordings=FromRecordings(("observation",), recorded_features),
    completed=completed_subtasks,
    judge=judge,
)


Sensed = dict[str, NDArray[np.float32]]


class KitchenEnv(gymnasium.Env[Sensed, NDArray[np.float32]]):
    """D4RL's kitchen: a Franka arm that has to bring some of seven objects to their goals, in any order.

    Observation: the noisy joint positions of the robot ("robot", float32 [9]: 7 arm joints in rad, 2 fingers in m)
    and of the objects ("objects", float32 [21], rad or m). The goal is not in it, because it never changes.
    Action, float32 [9] in [-1, 1]: position target = *noisy* robot position + 0.16 · action, held for 0.08 s.
    The fingers have the arm's gain, but their target is clipped to 0–4 cm, so they open or close at once.
    Reward: +1 for each target subtask that is newly complete, judged on the noisy object positions.
    The start is always the same except for the noise.

    Args:
        tasks: names of the target subtasks, see `GOALS`.
        robot_noise: factor on the robot's noise amplitude; 0.1 is ±0.01 rad (and ±1 cm at the fingers).
        object_noise: factor on the objects' noise amplitudes.
        enforce_order: a subtask counts only once all that precede it in ``tasks`` are done.
        render_mode: None or "rgb_array".
        render_size: width and height of a rendered image in pixels.

    Raises:
        SpirlError: unknown, repeated or missing subtasks, a negative noise, an unknown render mode.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 1 / STEP_SECONDS}  # noqa: RUF012

    @checked
    def __init__(
        self,
        tasks: Tasks = DEFAULT_TASKS,
        robot_noise: Noise = 0.1,
        object_noise: Noise = 0.1,
        enforce_order: bool = False,
        render_mode: RenderMode = None,
        render_size: RenderSize = 480,
    ) -> None:
        self.tasks = tasks
        self.enforce_order = enforce_order
        self.render_mode = render_mode
        self.render_size = render_size
        self.observation_space = observation_space(FEATURES)
        self.action_space = spaces.Box(-1.0, 1.0, (ROBOT_DIM,), np.float32)

        self._mujoco = mujoco = load_mujoco()
        self.model = mujoco.MjModel.from_xml_path(str(scene_path()))
        self.data = mujoco.MjData(self.model)
        self._noise = NOISE_AMPLITUDE * np.r_[[robot_noise] * 9, [object_noise] * 21]
        self._sensed = INITIAL_POSITIONS.copy()
        self._completed: tuple[str, ...] = ()
        self._camera: OffscreenCamera | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Sensed, dict[str, Any]]:
        super().reset(seed=seed)
        self._mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:] = INITIAL_POSITIONS
        self._mujoco.mj_forward(self.model, self.data)
        self._completed = ()
        return self._sense(), {"completed": self._completed}

    def step(self, action: NDArray[np.float32]) -> tuple[Sensed, float, bool, bool, dict[str, Any]]:
        """Simulates one step of 0.08 s; an action that is not nine finite numbers raises `SpirlError`."""
        command = np.asarray(action, dtype=np.float64)
        if command.shape != (ROBOT_DIM,) or not np.isfinite(command).all():
            raise SpirlError(f"a kitchen action is {ROBOT_DIM} finite numbers in [-1, 1], not {action!r}")
        velocity = np.clip(command, -1.0, 1.0) * VELOCITY_AT_FULL_ACTION
        target = self._sensed[:ROBOT_DIM] + velocity * STEP_SECONDS
        self.data.ctrl[:] = np.clip(target, TARGET_LOW, TARGET_HIGH)
        self._mujoco.mj_step(self.model, self.data, nstep=SUBSTEPS)
        observation = self._sense()
        newly = self._newly_completed()
        self._completed += newly
        done = len(self._completed) == len(self.tasks)
        return observation, float(len(newly)), done, False, {"completed": self._completed}

    def render(self) -> NDArray[np.uint8] | None:  # type: ignore[override]
        """Renders the kitchen, uint8 [size, size, 3]; raises `SpirlError` where OpenGL does not work."""
        if self.render_mode is None:
            return None
        if self._camera is None:
            # D4RL's camera looks at (-.2, .5, 2) from 2.2 m; further back, a square image shows the cabinets, too.
            camera = self._mujoco.MjvCamera()
            camera.lookat[:] = (-0.2, 0.5, 2.05)
            camera.distance, camera.azimuth, camera.elevation = 2.6, 70.0, -35.0
            self._camera = OffscreenCamera(self.model, self.render_size, self.render_size, camera)
        return self._camera.render(self.data)

    def close(self) -> None:
        if self._camera is not None:
            self._camera.close()
            self._camera = None

    def _sense(self) -> Sensed:
        noise = self._noise * self.np_random.uniform(-1.0, 1.0, JOINTS)
        self._sensed = self.data.qpos + noise
        return split_joints(self._sensed)

    def _newly_completed(self) -> tuple[str, ...]:
        newly: list[str] = []
        for task in self.tasks:
            if task in self._completed:
                continue
            if goal_distance(self._sensed, task) < SUCCESS_DISTANCE:
                newly.append(task)
            elif self.enforce_order:
                break
        return tuple(newly)


def scene_path() -> Path:
    """The path of the MuJoCo scene inside the installed gymnasium-robotics, found without importing it.

    Its import takes long and prints a message about environments that are not used here.
    """
    package = importlib.util.find_spec("gymnasium_robotics")
    if package is None or package.origin is None:
        raise SpirlError("the kitchen's scene comes with gymnasium-robotics, which is not installed")
    path = Path(package.origin).parent / "envs/assets/kitchen_franka/kitchen_assets/kitchen_env_model.xml"
    if not path.is_file():
        raise SpirlError(f"no kitchen scene at {path}; install gymnasium-robotics>=1.4.2,<1.5")
    return path
