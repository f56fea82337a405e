"""Arguments of our environments and experts: whatever a config can hold, a value works or is refused in one message."""

from __future__ import annotations

import contextlib
import math
import pkgutil
from collections.abc import Iterator
from typing import Annotated, Any

import pytest
from pydantic import Field

import spirl_ray.envs as envs
from spirl_ray.arguments import checked, checked_arguments
from spirl_ray.config_environment import EnvironmentSettings
from spirl_ray.datasets.generated import GeneratedSource
from spirl_ray.errors import SpirlError

OURS = ["spirl/BlockStacking-v0", "spirl/Kitchen-v0", "spirl/Maze-v0", "spirl/PointPads-v0"]
VALUES: list[Any] = [
    None, "abc", "1e-2", -1, 0, 2.5, 10**12, True, math.nan, math.inf, [], [1], ["kettle"], "kettle", {"a": 1}
]  # fmt: skip


def arguments_of(env_id: str) -> list[str]:
    entry = envs.ENVIRONMENTS[env_id]
    return sorted(envs.parameters(envs._creator(entry))[0])


@contextlib.contextmanager
def refused_by_name(name: str) -> Iterator[None]:
    """A block in which nothing else is raised than a refusal that names the argument."""
    try:
        yield
    except SpirlError as error:
        if name not in str(error):
            raise


def pairs(kind: str) -> list[tuple[str, str]]:
    if kind == "environment":
        return [(env_id, name) for env_id in OURS for name in arguments_of(env_id)]
    experts = ((env_id, pkgutil.resolve_name(str(envs.environment(env_id).expert))) for env_id in OURS)
    return [(env_id, name) for env_id, made in experts for name in sorted(envs.parameters(made)[0] - {"indices"})]


@pytest.mark.parametrize(("env_id", "name"), pairs("environment"))
def test_any_value_of_an_argument_makes_an_environment_or_is_refused(env_id: str, name: str) -> None:
    for value in VALUES:
        settings = EnvironmentSettings(id=env_id, kwargs={name: value})
        with refused_by_name(name):
            made = envs.make(settings)
            made.reset(seed=0)
            assert envs.declared_scores(settings).names
            made.close()


@pytest.mark.parametrize(("env_id", "name"), pairs("expert"))
def test_any_value_of_an_option_gives_an_expert_or_is_refused(env_id: str, name: str) -> None:
    for value in VALUES:
        with refused_by_name(name):
            source = GeneratedSource(env_id, str(envs.environment(env_id).expert), 1, kwargs={name: value})
            assert list(source.read(())) == []


def test_one_name_is_a_list_of_one_for_all_who_read_it() -> None:
    settings = EnvironmentSettings(id="spirl/PointPads-v0", kwargs={"tasks": "north"})
    assert envs.declared_scores(settings).names == ("return", "length", "subtasks", "north")
    made: Any = envs.make(settings).unwrapped
    assert made.tasks == ("north",)


def test_the_render_mode_is_the_programs() -> None:
    settings = EnvironmentSettings(id="spirl/PointPads-v0", kwargs={"render_mode": "rgb_array"})
    with pytest.raises(SpirlError, match=r"env\.kwargs.*no argument 'render_mode'; it takes position_noise, tasks"):
        envs.make(settings, render_mode="rgb_array")


@checked
def reach(steps: int, *, speed: Annotated[float, Field(gt=0.0)] = 1.0, names: tuple[str, ...] = ()) -> Iterator[str]:
    return iter([f"{steps} {speed}", *names])


def test_a_checked_function_gets_what_its_annotations_say() -> None:
    assert list(reach(2)) == ["2 1.0"]
    assert list(reach(2, speed="5e-1", names="one")) == ["2 0.5", "one"]  # type: ignore[arg-type]
    with pytest.raises(SpirlError, match=r"reach: speed must be above 0.*found 0"):
        reach(2, speed=0)
    with pytest.raises(TypeError, match="steps"):
        reach()  # type: ignore[call-arg]


def test_arguments_of_others_are_checked_by_name_alone() -> None:
    def plain(speed: float, *rest: int) -> float:
        return speed

    assert checked_arguments(plain, {"speed": "fast"}, "here") == {"speed": "fast"}
    with pytest.raises(SpirlError, match="here takes no argument 'rest'; it takes speed"):
        checked_arguments(plain, {"rest": 1}, "here")
    assert checked_arguments(lambda **_: None, {"any": 1}, "here") == {"any": 1}
