"""Frames of the kitchen for benchmarks that need images as a robot's camera gives them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from spirl_ray.envs.kitchen import experts
from spirl_ray.envs.kitchen.env import KitchenEnv, joint_positions
from spirl_ray.episodes.episode import Episode
from spirl_ray.episodes.features import Feature, Features

Frames = NDArray[np.uint8]
ACTION_DIM = 9


def features(size: int) -> Features:
    """A robot of 9 numbers and an RGB camera."""
    return {
        "robot": Feature(shape=(9,), role="proprioception"),
        "front": Feature(shape=(size, size, 3), role="image"),
    }


def clips(count: int, size: int) -> list[Episode]:
    """Renders demonstrations of the scripted expert, with the features of `features`.

    Raises:
        SpirlError: OpenGL does not work here.
    """
    env = KitchenEnv(render_mode="rgb_array", render_size=size)
    rendered = []
    for demonstration in experts.generate(range(count), 0, keep_failures=True):
        if demonstration is None:
            continue
        frames = []
        for positions in joint_positions(demonstration.observations):
            env.data.qpos[:] = positions
            env._mujoco.mj_forward(env.model, env.data)
            frames.append(env.render())
        rendered.append(_episode(demonstration, np.stack([frame for frame in frames if frame is not None])))
    env.close()
    return rendered


def _episode(demonstration: Episode, frames: Frames) -> Episode:
    return Episode(
        id=demonstration.id,
        observations={"robot": demonstration.observations["robot"], "front": frames},
        actions=demonstration.actions,
        rewards=demonstration.rewards,
        terminated=demonstration.terminated,
        truncated=demonstration.truncated,
    )
