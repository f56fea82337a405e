"""The settings of an environment: how it is made, and how its observations, actions and infos are read."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from spirl_ray.settings import Settings

Numbers = tuple[float, ...]
LONGEST_EPISODE = 1_000_000
"""The largest time limit in primitive steps; an evaluation of longer episodes would seem to hang."""


class EnvSettings(Settings):
    id: str | None = None
    """The id of a registered environment or of Gymnasium (``AdroitHandDoor-v1``), ``module:Id``, or
    ``package.module:callable``. None: there are data alone, from which skills can be learned."""
    kwargs: dict[str, Any] = Field(default_factory=dict)
    """The arguments of the environment's constructor, such as ``tasks``. ``env.tasks`` is short for
    ``env.kwargs.tasks``."""
    max_episode_steps: Annotated[int, Field(ge=1, le=LONGEST_EPISODE)] | None = None
    """The time limit of an episode; None takes the environment's own."""

    @model_validator(mode="before")
    @classmethod
    def _constructor_arguments(cls, raw: Any) -> Any:
        if not isinstance(raw, dict) or not isinstance(raw.get("kwargs", {}), dict):
            return raw
        own = {name: value for name, value in raw.items() if name in cls.model_fields}
        short = {name: value for name, value in raw.items() if name not in cls.model_fields}
        if twice := sorted(set(short) & set(raw.get("kwargs", {}))):
            raise ValueError(f"{twice[0]} is given twice, as env.{twice[0]} and as env.kwargs.{twice[0]}")
        return {**own, "kwargs": {**raw.get("kwargs", {}), **short}}


class ImageSettings(Settings):
    """An image in the observation."""

    key: str
    """The key of the observation that holds it, uint8 [height, width], [height, width, channels] or channels first."""
    size: PositiveInt | tuple[PositiveInt, PositiveInt] | None = None
    """The side, or height and width, to which it is resized; None keeps images of at most 96 pixels a side, and makes
    larger ones 64 x 64."""
    frames: PositiveInt = 1
    """The number of images of successive steps in an observation, the newest last."""
    grey: bool = False
    """True reduces it to one channel."""


class ActionSettings(Settings):
    """The range of the environment's actions that the agent uses; its own actions are in [-1, 1]."""

    low: Numbers | None = None
    """The least value, one for all entries or one for each; None takes the environment's."""
    high: Numbers | None = None


class PositionTargetSettings(Settings):
    """What target-preserving augmentation needs: an action sets ``target = position + gain * action``."""

    feature: str = "observation"
    """The name of the feature that holds the positions."""
    positions: tuple[int | None, ...]
    """The entry that each action moves; null for an action that moves none."""
    gain: Numbers
    """How far an action of 1 (the upper end of its range) moves the target; one for all actions or one for each."""
    objects: tuple[str, ...] = ()
    """The names of features that only get noise."""


class InterfaceSettings(Settings):
    """How the observations, actions, rewards and infos of an environment are read; data without one are read alike.

    Environments that are registered with their features say this themselves.
    """

    imports: tuple[str, ...] = ()
    """Modules that are imported before the environment is made, because they register it with Gymnasium."""
    observation: tuple[str, ...] | None = None
    """The keys that skills, prior and policy observe, in order; nested ones are joined by dots. None: all numbers that
    are no goal."""
    goal: tuple[str, ...] | None = None
    """The keys that policy and critics observe, and skills do not. None: ``desired_goal`` where there is one."""
    images: dict[str, ImageSettings] | None = None
    """The images by feature name; a key alone is short for ``{key: …}``. None: all there are."""
    action: ActionSettings = ActionSettings()
    success: str | None = None
    """What says success: ``info.KEY``, ``terminated``, ``return >= X`` (of the whole episode), or ``none``. None looks
    for success, is_success and goal_achieved in info."""
    reward: Literal["env", "success", "success - 1"] = "env"
    """The environment's own reward, 1 in steps with success and else 0, or 0 and else -1."""
    completed: str | None = None
    """``package.module:function``, which maps an info to the names of the subtasks that have been completed."""
    judge: str | None = None
    """``package.module:function``, which says what the environment would have said of recorded steps: a function from
    the arguments of its constructor and an `Episode` to rewards [T] and ends [T]. Methods that also learn from the
    demonstrations need it, unless ``train.offline_labels`` says otherwise."""
    position_target: PositionTargetSettings | None = None

    @field_validator("images", mode="before")
    @classmethod
    def _keys_alone(cls, raw: Any) -> Any:
        if not isinstance(raw, dict):
            return raw
        return {name: {"key": value} if isinstance(value, str) else value for name, value in raw.items()}


class EnvironmentSettings(EnvSettings):
    """Everything that determines an environment: how it is made, and how it is read."""

    interface: InterfaceSettings = InterfaceSettings()
