"""The config as users of RLlib and Tune write it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.rllib.env.env_context import EnvContext
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner

from spirl_ray.config import EnvironmentSettings, TrainSettings
from spirl_ray.errors import SpirlError
from spirl_ray.rl.algorithm import SkillPriorSACConfig
from spirl_ray.rl.config import SKILL_ENV, _stream

PADS = "spirl/PointPads-v0"
SMALL: dict[str, Any] = {"critic_width": 8, "critic_layers": 1, "batch_size": 16, "warmup_decisions": 8}
HORIZON = 4
MakeSkills = Callable[..., Path]


def test_one_settings_model_holds_every_argument_with_its_default() -> None:
    config = SkillPriorSACConfig().training(target_divergence=2.0, discount=0.9)
    assert config.settings == TrainSettings(target_divergence=2.0, discount=0.9)
    assert config.training(target_divergence=3.0).settings == TrainSettings(target_divergence=3.0, discount=0.9)


@pytest.mark.parametrize("setting", ["env_steps", "env_runners", "evaluate_every", "offline_labels"])
def test_what_runs_the_learner_is_rllibs_to_set(setting: str) -> None:
    with pytest.raises(TypeError, match=setting):
        SkillPriorSACConfig().training(**{setting: 1})


def test_an_impossible_value_is_named() -> None:
    with pytest.raises(SpirlError, match="polyak"):
        SkillPriorSACConfig().training(polyak=2.0).settings  # noqa: B018


def test_an_impossible_way_to_read_the_environment_is_named(make_skills: MakeSkills) -> None:
    config = SkillPriorSACConfig().skills(make_skills()).environment(PADS).reading(reward="much")
    with pytest.raises(SpirlError, match=r"interface\.reward"):
        config.validate()


def test_rllibs_own_names_mean_the_same_settings() -> None:
    config = SkillPriorSACConfig().training(gamma=0.9, train_batch_size_per_learner=64, grad_clip=1.0)
    assert (config.settings.discount, config.settings.batch_size, config.grad_clip) == (0.9, 64, 1.0)


def test_one_learning_rate_for_everything_is_refused() -> None:
    with pytest.raises(SpirlError, match="actor_lr, critic_lr and alpha_lr"):
        SkillPriorSACConfig().training(lr=1e-4)


def test_the_environment_is_wrapped_once(make_skills: MakeSkills) -> None:
    skills = make_skills("open_loop")
    config = SkillPriorSACConfig().skills(skills).environment(PADS, env_config={"tasks": ["north"]})
    config.reading(max_episode_steps=30)
    for _ in range(2):
        config.validate()
        assert config.env == SKILL_ENV
        wanted = EnvironmentSettings(id=PADS, kwargs={"tasks": ["north"]}, max_episode_steps=30)
        assert EnvironmentSettings.model_validate(config.env_config["environment"]) == wanted
    assert config.method["name"] == "spirl"
    assert list(config.policy.features) == ["position", "velocity", "lamps"]


def test_a_config_without_skills_says_what_is_missing() -> None:
    with pytest.raises(SpirlError, match=r"call \.skills\(FOLDER\)"):
        SkillPriorSACConfig().environment(PADS).validate()


def test_skills_of_another_environment_are_refused_before_anything_starts(make_skills: MakeSkills) -> None:
    config = SkillPriorSACConfig().skills(make_skills()).environment("spirl/Kitchen-v0")
    with pytest.raises(SpirlError, match=r"skills in .* and spirl/Kitchen-v0 do not fit"):
        config.validate()


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_users_of_rllib_build_and_train_it(make_skills: MakeSkills) -> None:
    config = (
        SkillPriorSACConfig()
        .skills(make_skills("closed_loop"))
        .environment(PADS)
        .reading(max_episode_steps=30)
        .env_runners(num_env_runners=0, num_envs_per_env_runner=2, rollout_fragment_length=8)
        .training(**SMALL)
    )
    algorithm = config.build_algo()
    try:
        algorithm.train()
        result = algorithm.train()
    finally:
        algorithm.stop()
    assert algorithm.counters["updates"] > 0
    assert result["skills"]["decisions"] == 32


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_users_of_tune_search_its_settings(make_skills: MakeSkills, tmp_path: Path) -> None:
    from ray import tune

    from spirl_ray.rl.algorithm import SkillPriorSAC

    config = (
        SkillPriorSACConfig()
        .skills(make_skills("closed_loop"))
        .environment(PADS)
        .reading(max_episode_steps=30)
        .env_runners(num_env_runners=0, num_envs_per_env_runner=2, rollout_fragment_length=8)
        .training(**{**SMALL, "target_divergence": tune.grid_search([1.0, 4.0])})
    )
    results = tune.Tuner(
        SkillPriorSAC,
        param_space=config,
        run_config=tune.RunConfig(name="t", storage_path=str(tmp_path), stop={"training_iteration": 2}, verbose=0),
    ).fit()
    assert not results.errors
    found = {result.config["train"]["target_divergence"]: result.metrics["skills"]["updates"] for result in results}
    assert found.keys() == {1.0, 4.0}
    assert min(found.values()) > 0


def starts(skills: Path, seed: int, env_runner: int) -> list[tuple[float, ...]]:
    """The first policy observation of four episodes in each of the two environments of an env runner, as RLlib makes
    and seeds them."""
    config = SkillPriorSACConfig().skills(skills).environment(PADS).training(**SMALL).reading(max_episode_steps=HORIZON)
    config.env_runners(num_env_runners=2, num_envs_per_env_runner=2).debugging(seed=seed)
    config.validate()
    runner = SingleAgentEnvRunner(config=config, worker_index=env_runner)
    pieces = runner.sample(num_timesteps=8, random_actions=True)
    runner.stop()
    return [tuple(episode.get_observations(0).tolist()) for episode in pieces if len(episode)]


@pytest.mark.filterwarnings("ignore:.*Overriding environment")
def test_no_two_environments_of_a_training_or_of_the_next_seed_draw_the_same_episodes(make_skills: MakeSkills) -> None:
    skills = make_skills()
    drawn = {(seed, runner): starts(skills, seed, runner) for seed in (0, 1) for runner in (1, 2)}
    assert all(len(each) >= 8 for each in drawn.values())
    together = [start for each in drawn.values() for start in each]
    assert len(set(together)) == len(together)
    assert starts(skills, 1, 2) == drawn[1, 2]


def test_a_restarted_env_runner_does_not_repeat_its_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    restarted = SimpleNamespace(get_actor_id=lambda: "1f", was_current_actor_reconstructed=True)
    context = EnvContext({}, worker_index=3)
    assert [_stream(context), _stream(context)] == [(3, 0), (3, 1)]
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: restarted)
    first, again = _stream(EnvContext({}, worker_index=3)), _stream(EnvContext({}, worker_index=3))
    assert first[:2] == again[:2] == (3, 0)
    assert first != again
