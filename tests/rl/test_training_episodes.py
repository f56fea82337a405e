"""Training episodes that arrive in pieces."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from spirl_ray.envs import declared_scores
from spirl_ray.rl.skill_env import LAST_INFO
from spirl_ray.rl.training_episodes import TrainingEpisodes


def piece(name: str, *rewards: float, ends: bool = False) -> Any:
    """A piece of an episode with decisions of four steps."""
    info = {"primitive_steps": 4, LAST_INFO: [{"subtasks": 1.0}]}
    return SimpleNamespace(
        id_=name,
        get_infos=lambda: [{}, *([info] * len(rewards))],
        get_rewards=lambda: list(rewards),
        is_done=ends,
        is_terminated=ends,
        is_truncated=False,
    )


def test_pieces_make_whole_episodes() -> None:
    episodes = TrainingEpisodes(declared_scores("spirl/PointPads-v0"))
    assert episodes.add([piece("a", 1.0, 2.0), piece("b", 5.0)]) == (12, 0)
    assert episodes.mean() == {}
    assert episodes.add([piece("a", 3.0, ends=True)]) == (4, 1)
    assert (episodes.mean()["return"], episodes.mean()["length"]) == (6.0, 12.0)


def test_running_episodes_start_anew_when_restored() -> None:
    episodes = TrainingEpisodes(declared_scores("spirl/PointPads-v0"))
    episodes.add([piece("a", 1.0)])
    episodes.restore([{"return": 8.0}])
    episodes.add([piece("a", 2.0, ends=True)])
    assert [one["return"] for one in episodes.recent] == [8.0, 2.0]
