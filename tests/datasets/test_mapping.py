"""Recordings become episodes: features by name, actions in [-1, 1], with or without an environment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import spirl_ray as spirl
import spirl_ray.envs as envs
from spirl_ray.config import DataSettings
from spirl_ray.config_environment import EnvironmentSettings, InterfaceSettings
from spirl_ray.datasets.opened import DATA_ALONE, OpenedData, open_data
from spirl_ray.datasets.preview import preview_data
from spirl_ray.episodes.actions import ActionRange
from spirl_ray.episodes.episode import Episode
from spirl_ray.errors import SpirlError

OWN = ActionRange(low=(-1.0, -5.0), high=(3.0, 5.0))  # of foreign:Drift
T = 6


def recorded(number: int = 0, **changes: Any) -> dict[str, Any]:
    """The arrays of one recorded episode of `foreign.Drift`."""
    rng = np.random.default_rng(number)
    return {
        "observations": rng.normal(size=(T + 1, 4)),
        "actions": rng.uniform(OWN.low, OWN.high, (T, 2)),
        "rewards": np.arange(T, dtype=np.float64),
        **changes,
    }


def folder(path: Path, *episodes: dict[str, Any]) -> Path:
    path.mkdir()
    for number, arrays in enumerate(episodes):
        np.savez(path / f"{number}.npz", **{k: v for k, v in arrays.items() if v is not None})
    return path


def opened(
    path: Path,
    env: str | None = "foreign:Drift",
    *,
    columns: dict[str, Any] | None = None,
    interface: dict[str, Any] | None = None,
    **data: Any,
) -> OpenedData:
    reading = InterfaceSettings.model_validate(interface or {})
    spec = None if env is None else envs.environment(EnvironmentSettings(id=env, interface=reading))
    source = {"type": "npz", "path": str(path), "layout": "episodes", "columns": columns or {}}
    return open_data(DataSettings.model_validate({"sources": [source], **data}), reading, spec)


def episodes(data: OpenedData) -> list[Episode]:
    return [episode for chunk in data.source.chunks() for episode in data.source.read(chunk)]


def test_features_are_found_and_actions_are_rescaled(tmp_path: Path) -> None:
    arrays = recorded()
    data = opened(folder(tmp_path / "made", arrays))
    (episode,) = episodes(data)
    np.testing.assert_array_equal(episode.observations["observation"], arrays["observations"].astype(np.float32))
    assert data.actions == OWN
    np.testing.assert_allclose(OWN.restored(episode.actions), arrays["actions"], atol=1e-5)
    assert np.abs(episode.actions).max() <= 1.0
    np.testing.assert_array_equal(episode.rewards, arrays["rewards"])
    assert data.rewards


def test_data_need_no_rewards(tmp_path: Path) -> None:
    data = opened(folder(tmp_path / "made", recorded(rewards=None)))
    assert not data.rewards
    assert not episodes(data)[0].rewards.any()


def test_columns_name_and_join_keys(tmp_path: Path) -> None:
    arrays = recorded(observations=None)
    rng = np.random.default_rng(1)
    place, angle = rng.normal(size=(T + 1, 3)), rng.normal(size=(T + 1,))
    arrays |= {"observations.place": place, "observations.angle": angle}
    made = folder(tmp_path / "made", arrays)
    with pytest.raises(SpirlError, match=r"(?s)'observation' \[4\].*columns.*place"):
        opened(made)
    keys = sorted(opened(made, None).spec.keys.values())
    joined = [next(key for key in keys if name in key) for name in ("place", "angle")]
    (episode,) = episodes(opened(made, columns={"observation": joined}))
    expected = np.concatenate([place, angle[:, None]], axis=1)
    np.testing.assert_allclose(np.asarray(episode.observations["observation"], np.float64), expected, atol=1e-6)


def test_both_flags_mean_that_the_task_ended_the_episode(tmp_path: Path) -> None:
    (episode,) = episodes(opened(folder(tmp_path / "made", recorded(terminated=True, truncated=True))))
    assert (episode.terminated, episode.truncated) == (True, False)


def test_a_goal_may_be_missing_and_images_take_the_size_of_the_environment(tmp_path: Path) -> None:
    arrays = recorded(observations=None)
    arrays |= {
        "observations.arm.joints": np.zeros((T + 1, 2, 2)),
        "observations.arm.grip": np.zeros((T + 1, 3)),
        "observations.camera": np.full((T + 1, 240, 320, 3), 7, np.uint8),
    }
    data = opened(folder(tmp_path / "made", arrays), "foreign:Nested")
    assert set(data.features) == {"arm_joints", "arm_grip", "camera"}
    (episode,) = episodes(data)
    assert episode.observations["camera"].shape == (T + 1, 64, 64, 3)
    assert episode.observations["camera"].min() == episode.observations["camera"].max() == 7


def test_data_alone_say_what_they_hold(tmp_path: Path) -> None:
    arrays = recorded(actions=np.random.default_rng(0).uniform(-1, 1, (T, 2)))
    data = opened(folder(tmp_path / "made", arrays), None)
    assert data.spec.id == DATA_ALONE
    assert [feature.shape for feature in data.features.values()] == [(4,)]
    assert data.actions is None
    ranged = opened(tmp_path / "made", None, interface={"action": {"low": -2, "high": [2, 4]}})
    assert ranged.actions == ActionRange(low=(-2.0, -2.0), high=(2.0, 4.0))


def test_actions_outside_are_clipped_or_give_the_range(tmp_path: Path) -> None:
    arrays = recorded()
    arrays["actions"][2] = [9.0, 1.0]
    made = folder(tmp_path / "made", arrays)
    clipped = episodes(opened(made, actions_outside="clip"))[0].actions
    assert clipped[2, 0] == 1.0
    data = opened(made, actions_outside="rescale")
    low, high = arrays["actions"].min(0), arrays["actions"].max(0)
    assert data.actions is not None
    np.testing.assert_allclose([data.actions.low, data.actions.high], [low, high])
    rescaled = episodes(data)[0].actions
    np.testing.assert_allclose([rescaled.min(), rescaled.max()], [-1.0, 1.0], atol=1e-6)


def test_several_sources_become_one(tmp_path: Path) -> None:
    first, second = folder(tmp_path / "a", recorded(0), recorded(1)), folder(tmp_path / "b", recorded(2, rewards=None))
    sources = [{"type": "npz", "path": str(path), "layout": "episodes"} for path in (first, second)]
    spec = envs.environment("foreign:Drift")
    data = open_data(DataSettings.model_validate({"sources": sources}), InterfaceSettings(), spec)
    assert len(episodes(data)) == 3
    assert not data.rewards


def test_a_dataset_written_in_other_units_fits_an_environment_of_these_units(tmp_path: Path) -> None:
    ends = list(zip(OWN.low, OWN.high, strict=True))
    with spirl.DatasetWriter(
        tmp_path / "mine", features={"observation": {"shape": (4,)}}, action_dim=2, actions=ends
    ) as writer:
        arrays = recorded()
        writer.add(observations={"observation": arrays["observations"]}, actions=arrays["actions"])
    source = {"sources": [{"type": "folder", "path": str(tmp_path / "mine")}]}
    settings = DataSettings.model_validate(source)
    data = open_data(settings, InterfaceSettings(), envs.environment("foreign:Drift"))
    assert data.actions == OWN
    assert not data.rewards
    np.testing.assert_allclose(OWN.restored(episodes(data)[0].actions), arrays["actions"], atol=1e-5)
    other = EnvironmentSettings(id="foreign:Drift", interface=InterfaceSettings.model_validate({"action": {"low": 0}}))
    with pytest.raises(SpirlError, match=r"(?s)\[-1, 3\].*\[0, 3\].*interface\.action"):
        open_data(settings, InterfaceSettings(), envs.environment(other))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"observations": np.zeros((T + 1, 5))}, ["observation", "5", "4", "columns"]),
        ({"actions": np.zeros((T, 3))}, ["actions", "3", "2"]),
        ({"actions": np.full((T, 2), 4.0)}, ["row 0, column 0 is 4", "[-1, 3]"]),
        ({"observations": np.full((T + 1, 4), np.nan)}, ["observation", "row 0, column 0", "nan"]),
    ],
)
def test_a_preview_says_what_an_import_would_refuse(tmp_path: Path, changes: dict[str, Any], named: list[str]) -> None:
    made = folder(tmp_path / "made", recorded(), recorded(1, **changes))
    # The layout is that of the first file.
    only = (
        folder(tmp_path / "only", recorded(1, **changes)) if "actions" in changes or "observations" in changes else made
    )
    source = {"type": "npz", "path": str(only), "layout": "episodes"}
    data = DataSettings.model_validate({"sources": [source]})
    found = preview_data(data, InterfaceSettings(), envs.environment("foreign:Drift"))
    assert found.problem is not None
    for name in named:
        assert name in found.problem
    assert found.sources[0].keys


def test_a_preview_of_good_data_shows_lengths_and_ranges(tmp_path: Path) -> None:
    arrays = recorded()
    source = {"type": "npz", "path": str(folder(tmp_path / "made", arrays)), "layout": "episodes"}
    data = DataSettings.model_validate({"sources": [source]})
    found = preview_data(data, InterfaceSettings(), envs.environment("foreign:Drift"))
    assert (found.problem, found.looked_at, found.episodes, found.lengths) == (None, 1, 1, [T])
    assert found.low is not None
    np.testing.assert_allclose(found.low, arrays["actions"].min(0), atol=1e-5)
