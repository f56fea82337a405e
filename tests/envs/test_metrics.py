"""What an environment declares of its episodes, and what counts where it declares nothing."""

from __future__ import annotations

import math
from typing import Any

import pytest

from spirl_ray.config_environment import EnvironmentSettings
from spirl_ray.envs import declared_scores
from spirl_ray.envs.metrics import EpisodeMetric, EpisodeOutcome, declare, subtask_scores, undeclared
from spirl_ray.errors import SpirlError


def outcome(total: float = 0.0, length: int = 10, **info: Any) -> EpisodeOutcome:
    return EpisodeOutcome(total, length, terminated=False, truncated=True, info=info)


def metric(name: str, **changes: Any) -> EpisodeMetric:
    return EpisodeMetric(name=name, meaning="x", **{"of": lambda episode: 1.0, **changes})


@pytest.mark.parametrize(
    ("env_id", "kwargs", "completed", "expected"),
    [
        (
            "spirl/Kitchen-v0",
            {"tasks": ["kettle", "light switch"]},
            ("light switch", "microwave"),
            {"subtasks": 1, "kettle": 0, "light_switch": 1},
        ),
        ("spirl/PointPads-v0", {"tasks": ["east"]}, ("east",), {"subtasks": 1, "east": 1}),
        ("spirl/Maze-v0", {}, ("goal",), {"success": 1}),
        ("spirl/Maze-v0", {}, (), {"success": 0}),
        ("spirl/BlockStacking-v0", {"n_blocks": 3}, ("height 2",), {"tower_height": 2, "height_2": 1, "height_3": 0}),
    ],
)
def test_an_environment_declares_its_metrics_for_its_arguments(
    env_id: str, kwargs: dict[str, Any], completed: tuple[str, ...], expected: dict[str, float]
) -> None:
    scores = declared_scores(EnvironmentSettings(id=env_id, kwargs=kwargs))
    assert scores.of(outcome(3.0, completed=completed)) == {"return": 3.0, "length": 10.0, **expected}
    assert scores.score_in([]).name == next(iter(expected))
    # An info that says nothing of what is complete is one where nothing is.
    assert scores.of(outcome())[next(iter(expected))] == (1.0 if env_id == "spirl/BlockStacking-v0" else 0.0)


@pytest.mark.parametrize(("env_id", "high"), [("spirl/Kitchen-v0", 4.0), ("spirl/BlockStacking-v0", 11.0)])
def test_the_range_of_the_score_is_that_of_the_target(env_id: str, high: float) -> None:
    assert declared_scores(env_id).score_in([]).range[1] == high


@pytest.mark.parametrize(
    ("infos", "score", "mean"),
    [
        ([{}, {}], "return", 4.0),
        ([{"success": True}, {"success": False}], "success", 0.5),
        ([{"is_success": 1.0}, {}], "success", 1.0),
    ],
)
def test_whoever_declares_nothing_is_judged_by_success_or_else_by_the_return(
    infos: list[dict[str, Any]], score: str, mean: float
) -> None:
    scores = undeclared()
    episodes = [scores.of(outcome(total, **info)) for total, info in zip((3.0, 5.0), infos, strict=True)]
    means = scores.mean(episodes)
    assert scores.score_in(episodes).name == scores.score_in([means]).name == score
    assert scores.with_score(means) == {**means, "score": mean}
    assert ("success" in means) is (score == "success")


def test_a_mean_is_over_the_episodes_that_have_a_value() -> None:
    scores = declare([metric("speed")], "speed")
    assert scores.mean([{"speed": 2.0}, {"speed": math.nan}, {}, {"speed": 4.0}]) == {"speed": 3.0}


@pytest.mark.parametrize(
    ("names", "score", "said"),
    [
        (["speed", "speed"], "speed", "'speed'"),
        (["alpha"], "alpha", "'alpha'"),
        (["mode"], "mode", "'mode'"),
        (["score"], "score", "'score'"),
        (["speed"], "height", "'height'"),
    ],
)
def test_names_that_would_be_taken_for_another_column_are_refused(names: list[str], score: str, said: str) -> None:
    with pytest.raises(SpirlError, match=said):
        declare([metric(name) for name in names], score)


def test_a_metric_whose_function_fails_is_named_with_what_the_info_holds() -> None:
    broken = metric("speed", of=lambda episode: episode.info["sped"])
    with pytest.raises(SpirlError, match=r"'speed'.*'sped'.*distance"):
        broken.value(outcome(distance=1.0))


@pytest.mark.parametrize("name", ["Speed", "top speed", "", "2nd"])
def test_a_name_is_fit_for_files_and_gauges(name: str) -> None:
    with pytest.raises(SpirlError, match="letters, digits and underscores"):
        metric(name)


def test_a_subtask_of_any_name_has_a_metric_that_keeps_the_name_as_its_label() -> None:
    scores = subtask_scores(["2. Öfen & Türen"])
    assert scores.metrics[-1].label == "2. Öfen & Türen"
    assert scores.of(outcome(completed=["2. Öfen & Türen"]))[scores.names[-1]] == 1.0
