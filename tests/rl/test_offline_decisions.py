"""The demonstrations as decisions: windows, latents, labels, and the folder that holds them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from opened import expert_episodes
from ray.rllib.core.columns import Columns

import spirl_ray.envs as envs
from spirl_ray.config import EnvironmentSettings, TrainSettings
from spirl_ray.config_train import Labels
from spirl_ray.episodes.episode import Episode
from spirl_ray.errors import SpirlError
from spirl_ray.rl.config import method_and_policy
from spirl_ray.rl.offline_decisions import (
    STEPS,
    Encoding,
    Rows,
    judged_rewards,
    make_decisions,
    read_decisions,
    read_offline_card,
    write_card,
    write_part,
)
from spirl_ray.rl.offline_labels import Labeller
from spirl_ray.rl.policy_network import PolicyObserver
from spirl_ray.rl.rewards import rewards_of_demonstrations
from spirl_ray.skills.artifact import load_skills
from spirl_ray.skills.execution import limited
from spirl_ray.skills.flow import FlowCodec

PADS = "spirl/PointPads-v0"
MakeSkills = Callable[..., Path]


def encoding(
    skills: Path, method: str = "spirl_offline", labels: Labels = "environment", env_id: str = PADS, **kwargs: Any
) -> Encoding:
    environment = EnvironmentSettings(id=env_id, kwargs=kwargs)
    found, policy = method_and_policy(environment, str(skills), method, TrainSettings())
    return Encoding(str(skills), policy, environment, found.latent_limit, labels, seed=0)


def demonstrations(count: int = 3) -> list[Episode]:
    return expert_episodes(PADS, count)


def joined(parts: Iterable[Rows]) -> Rows:
    found = list(parts)
    return {name: np.concatenate([part[name] for part in found]) for name in found[0]}


def posterior(skills: Path, episode: Episode, first: int) -> tuple[torch.Tensor, torch.Tensor]:
    model = load_skills(skills)
    last, seen = first + model.spec.horizon, first + model.kind.observed_steps(model.spec.horizon)
    window = {n: torch.from_numpy(episode.observations[n][first:seen])[None] for n in model.spec.features}
    found = model.codec.encode(model.codec.observe(window), torch.from_numpy(episode.actions[first:last])[None])
    return found.mean[0], found.log_std.exp()[0]


@pytest.mark.parametrize(
    ("decoder", "method"),
    [("closed_loop", "spirl_offline"), ("open_loop", "spirl"), ("plan", "spirl_plan"), ("flow", "flow_offline")],
)
def test_every_window_is_a_decision(make_skills: MakeSkills, decoder: str, method: str) -> None:
    skills = make_skills(decoder)
    how = encoding(skills, method)
    episodes = demonstrations()
    rows = make_decisions(how, episodes, 0)
    horizon = load_skills(skills).spec.horizon
    assert len(rows[STEPS]) == sum(episode.length - horizon + 1 for episode in episodes)
    observer, first = PolicyObserver(how.policy, load_skills(skills)), episodes[0]
    for start in (0, 7, first.length - horizon):
        now, then = (
            {name: values[step] for name, values in first.observations.items()} for step in (start, start + horizon)
        )
        np.testing.assert_allclose(rows[Columns.OBS][start], observer(now), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(rows[Columns.NEXT_OBS][start], observer(then), rtol=1e-5, atol=1e-6)
        assert rows[Columns.REWARDS][start] == first.rewards[start : start + horizon].sum()  # all pads are the task
    assert rows[Columns.REWARDS].any()
    assert set(rows[STEPS]) == {horizon}
    # Latents are samples of the posterior: as far from its mean as its deviation says.
    deviations = []
    for start in range(first.length - horizon + 1):
        mean, std = posterior(skills, first, start)
        deviations.append((torch.from_numpy(rows[Columns.ACTIONS][start]) - mean) / std)
    assert torch.stack(deviations).std() == pytest.approx(1.0, abs=0.15)


def test_a_codec_observes_one_step_of_many_windows(make_skills: MakeSkills, monkeypatch: pytest.MonkeyPatch) -> None:
    skills, observe = make_skills("flow"), FlowCodec.observe
    seen: set[int] = set()

    def noted(codec: FlowCodec, observations: Mapping[str, torch.Tensor]) -> torch.Tensor:
        seen.update(value.shape[1] for value in observations.values())
        return observe(codec, observations)

    monkeypatch.setattr(FlowCodec, "observe", noted)
    make_decisions(encoding(skills, "flow_offline"), demonstrations(1), 0)
    assert seen == {1}


def test_other_files_have_other_samples_and_the_same_file_the_same(make_skills: MakeSkills) -> None:
    how, episodes = encoding(make_skills()), demonstrations(1)
    one, other, again = (make_decisions(how, episodes, number)[Columns.ACTIONS] for number in (0, 1, 0))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_the_task_ends_with_its_last_subtask_whatever_the_demonstration_does_then(make_skills: MakeSkills) -> None:
    skills = make_skills()
    episode = demonstrations(1)[0]
    target = episode.metadata["completed"][:2]
    assert len(episode.metadata["completed"]) > 2
    rows = make_decisions(encoding(skills, tasks=target), [episode], 0)
    horizon, end = load_skills(skills).spec.horizon, int(np.flatnonzero(episode.rewards)[1])
    assert len(rows[STEPS]) == end + 1  # a decision may begin in the step that ends the task, not after it
    ends = np.flatnonzero(rows[Columns.TERMINATEDS])
    assert ends.tolist() == list(range(end - horizon + 1, end + 1))
    assert rows[STEPS][ends].tolist() == list(range(horizon, 0, -1))
    assert rows[Columns.REWARDS].max() <= 2
    assert rows[Columns.REWARDS][ends].min() >= 1


def test_recorded_rewards_and_those_to_be_learned(make_skills: MakeSkills) -> None:
    skills, [episode] = make_skills(), demonstrations(1)
    recorded = replace(episode, rewards=np.full(episode.length, 0.5, np.float32), terminated=True, truncated=False)
    rows = make_decisions(encoding(skills, labels="recorded"), [recorded], 0)
    horizon = load_skills(skills).spec.horizon
    assert np.allclose(rows[Columns.REWARDS], 0.5 * horizon)
    assert np.flatnonzero(rows[Columns.TERMINATEDS]).tolist() == [episode.length - horizon]
    rows = make_decisions(encoding(skills, labels="learned"), [recorded], 0)
    assert not rows[Columns.REWARDS].any()
    assert not rows[Columns.TERMINATEDS].any()  # what ended the recorded task need not end this one


def test_in_a_bounded_box_the_decoder_gets_the_latent_of_the_window(make_skills: MakeSkills) -> None:
    skills, episodes = make_skills(), demonstrations(1)
    free = make_decisions(encoding(skills), episodes, 0)[Columns.ACTIONS]
    how = encoding(skills, "supe")
    assert how.latent_limit is not None
    inside = make_decisions(how, episodes, 0)[Columns.ACTIONS]
    decoded = limited(torch.from_numpy(inside), how.latent_limit).numpy()
    most = 0.98 * how.latent_limit
    assert np.abs(free).max() > how.latent_limit  # so that something has to be bounded
    np.testing.assert_allclose(decoded[np.abs(free) < most], free[np.abs(free) < most], atol=1e-4)
    assert np.isfinite(inside).all()


def test_latents_beyond_the_box_are_counted(make_skills: MakeSkills, tmp_path: Path) -> None:
    how = encoding(make_skills(), "supe")
    assert how.latent_limit is not None
    rows = make_decisions(how, demonstrations(2), 0)
    free = make_decisions(replace(how, latent_limit=None), demonstrations(2), 0)[Columns.ACTIONS]
    beyond = (np.abs(free) >= 0.99 * how.latent_limit).any(-1).sum()
    assert beyond
    part = write_part(tmp_path, 0, rows, how.latent_limit)
    assert part["cut"] == beyond
    assert write_part(tmp_path, 0, rows, None)["cut"] == 0
    assert write_card(tmp_path, how, "d" * 64, [part, part]).cut == 2 * beyond


def test_the_latent_of_a_flat_method_is_the_recorded_action(make_skills: MakeSkills) -> None:
    [episode] = demonstrations(1)
    rows = make_decisions(encoding(make_skills("identity"), "rlpd"), [episode], 0)
    count = len(rows[STEPS])
    np.testing.assert_allclose(np.tanh(rows[Columns.ACTIONS]), episode.actions[:count], atol=0.02)


def test_the_labels_of_all_steps_that_count_are_kept(make_skills: MakeSkills, tmp_path: Path) -> None:
    episodes = demonstrations(3)
    target = episodes[0].metadata["completed"][:2]
    how = encoding(make_skills(), tasks=target)
    parts = [make_decisions(how, some, number) for number, some in enumerate((episodes[:2], episodes[2:]))]
    write_card(tmp_path, how, "d" * 64, [write_part(tmp_path, n, rows, None) for n, rows in enumerate(parts)])
    found, label = list(judged_rewards(tmp_path)), Labeller(how.environment, how.labels)
    assert len(found) == 3
    for rewards, episode in zip(found, episodes, strict=True):
        judgement = label(episode)
        np.testing.assert_array_equal(rewards, judgement.rewards[: judgement.end + 1])
    assert found[0].sum() == 2.0
    here = envs.environment(how.environment)
    assert here.judge is not None
    known = list(rewards_of_demonstrations(str(tmp_path / "no dataset"), here, tmp_path))
    assert [values.tolist() for values in known] == [values.tolist() for values in found]
    learned = replace(how, labels="learned")
    write_card(tmp_path, learned, "d" * 64, [write_part(tmp_path, n, rows, None) for n, rows in enumerate(parts)])
    assert not list(rewards_of_demonstrations(str(tmp_path / "no dataset"), here, tmp_path))


def test_images_are_those_that_the_environment_shows(make_skills: MakeSkills) -> None:
    from toy_environments import SPECS

    spec = SPECS["cameras"]
    skills = make_skills(environment=spec.id)
    how = encoding(skills, labels="recorded", env_id=spec.id)
    [episode] = expert_episodes(spec.id, 1)
    rows = make_decisions(how, [episode], 0)
    observer = PolicyObserver(how.policy, load_skills(skills))
    env = envs.make(how.environment)
    shown = env.reset(seed=0)[0]
    env.close()
    # The first images of an episode have none before them, so they are repeated as the environment does.
    first = {}
    for name, feature in spec.features.items():
        if name in episode.observations:
            value = episode.observations[name][0]
            first[name] = np.stack([value] * feature.frames) if feature.is_image else value
        else:
            first[name] = spec.renderers[name]([episode.metadata])(
                np.zeros(1, np.int64), {n: v[:1] for n, v in episode.observations.items() if v.dtype != np.uint8}
            ).repeat(feature.frames, axis=0)
        assert first[name].shape == shown[name].shape
    np.testing.assert_allclose(rows[Columns.OBS][0], observer(first), rtol=1e-4, atol=1e-5)


def test_demonstrations_with_other_objects_than_the_task_are_refused(make_skills: MakeSkills) -> None:
    how = encoding(make_skills(), labels="recorded")
    [episode] = demonstrations(1)
    lamps = {**episode.observations, "lamps": episode.observations["lamps"][:, :3]}
    with pytest.raises(SpirlError, match=r"lamps.*\[4\].*\[3\]"):
        make_decisions(how, [replace(episode, observations=lamps)], 0)


def test_an_environment_without_a_judge_says_what_to_set(make_skills: MakeSkills) -> None:
    how = replace(encoding(make_skills()), environment=EnvironmentSettings(id="spirl/Maze-v0"))
    with pytest.raises(SpirlError) as raised:
        make_decisions(how, demonstrations(1), 0)
    for said in ("train.offline_labels", "spirl/Maze-v0", "interface.judge", "recorded", "learned"):
        assert said in str(raised.value)


def test_a_folder_holds_what_was_made_and_counts_it(make_skills: MakeSkills, tmp_path: Path) -> None:
    how = encoding(make_skills())
    made = [make_decisions(how, [episode], number) for number, episode in enumerate(demonstrations(3))]
    folder = tmp_path / "made"
    with pytest.raises(SpirlError, match=r"decisions\.json"):
        read_offline_card(folder)
    card = write_card(
        folder, how, "d" * 64, [write_part(folder, number, rows, None) for number, rows in enumerate(made)]
    )
    labels = ("judged_rewards", "judged_lengths")
    whole = {name: np.concatenate([rows[name] for rows in made]) for name in made[0] if name not in labels}
    assert read_offline_card(folder) == card
    assert (card.parts, card.decisions) == (3, len(whole[STEPS]))
    assert card.rewarded == np.count_nonzero(whole[Columns.REWARDS])
    found = joined(read_decisions(folder, 10**6))
    assert found.keys() == whole.keys()
    for name, values in whole.items():
        np.testing.assert_array_equal(found[name], values)
    fewer = joined(read_decisions(folder, 20))
    assert 20 <= len(fewer[STEPS]) <= 23  # and one more for each file at most
    (folder / "decisions-00001.safetensors").write_bytes(b"cut")
    with pytest.raises(SpirlError, match=r"decisions-00001\.safetensors"):
        joined(read_decisions(folder, 20))


def test_demonstrations_that_are_all_too_short_are_told(make_skills: MakeSkills, tmp_path: Path) -> None:
    how = encoding(make_skills())
    [episode] = demonstrations(1)
    short = replace(
        episode,
        observations={name: values[:3] for name, values in episode.observations.items()},
        actions=episode.actions[:2],
        rewards=episode.rewards[:2],
    )
    part = write_part(tmp_path, 0, make_decisions(how, [short], 0), None)
    assert part["decisions"] == 0
    with pytest.raises(SpirlError, match=r"skills\.horizon"):
        write_card(tmp_path, how, "d" * 64, [part])


@pytest.mark.parametrize(
    ("text", "said"), [("{", "JSON"), ('{"format_version": 99}', "99"), ('{"format_version": 2}', "decisions")]
)
def test_a_card_that_is_damaged_or_too_new_is_named(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "decisions.json").write_text(text)
    with pytest.raises(SpirlError) as raised:
        read_offline_card(tmp_path)
    assert "decisions.json" in str(raised.value)
    assert said in str(raised.value)
