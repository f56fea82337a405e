from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import spirl_ray.envs as envs
from spirl_ray.errors import SpirlError
from spirl_ray.policy.policy import CARD, TENSORS, load_policy, prior_policy, save_policy
from spirl_ray.rl.policy_network import SkillPolicy
from spirl_ray.skills.artifact import load_skills
from spirl_ray.skills.execution import SkillExecution

POINT_PADS = "spirl/PointPads-v0"
HORIZON = 4
STATE_DIM = envs.environment(POINT_PADS).state_dim
MakeSkills = Callable[..., Path]


def observation(number: int) -> np.ndarray:
    return np.random.default_rng(number).normal(size=STATE_DIM + 2).astype(np.float32)


def saved(folder: Path, skills: Path, **card: Any) -> SkillPolicy:
    """Writes a policy with random weights; returns its network."""
    torch.manual_seed(5)
    network = SkillPolicy(load_skills(skills))
    fields = {
        "environment": POINT_PADS,
        "env_kwargs": {},
        "method": "spirl_cl",
        "seed": 0,
        "latent_limit": None,
        "env_steps": 10,
        "config_hash": "abc",
    }
    save_policy(folder, network.state_dict(), skills, **fields | card)
    return network


def actions(policy: Any, count: int = 3 * HORIZON) -> np.ndarray:
    return np.stack([policy.act(observation(i)) for i in range(count)])


@pytest.mark.parametrize("limit", [None, 2.0])
@pytest.mark.parametrize("decoder", ["closed_loop", "open_loop", "identity"])
def test_loaded_policy_acts_like_network_and_decoder(
    make_skills: MakeSkills, tmp_path: Path, decoder: str, limit: float | None
) -> None:
    skills = make_skills(decoder)
    network = saved(tmp_path / "policy", skills, latent_limit=limit)
    execution = SkillExecution(load_skills(skills), limit)
    expected = []
    while len(expected) < 3 * HORIZON:
        state = observation(len(expected))[:STATE_DIM]
        execution.begin(network(torch.from_numpy(state)[None]).mean[0].detach().numpy())
        while not execution.finished:
            expected.append(execution.action(observation(len(expected))[:STATE_DIM]))
    np.testing.assert_array_equal(actions(load_policy(tmp_path / "policy")), np.stack(expected))


def test_policy_folder_is_complete_without_the_skills_it_came_from(make_skills: MakeSkills, tmp_path: Path) -> None:
    skills = make_skills()
    saved(tmp_path / "policy", skills)
    before = actions(load_policy(tmp_path / "policy"))
    for file in skills.iterdir():
        file.unlink()
    (tmp_path / "policy").rename(tmp_path / "elsewhere")
    np.testing.assert_array_equal(actions(load_policy(tmp_path / "elsewhere")), before)


def test_policy_acts_without_ray(make_skills: MakeSkills, tmp_path: Path) -> None:
    saved(tmp_path / "policy", make_skills())
    script = f"""
import sys
sys.modules["ray"] = None
import numpy
from spirl_ray.policy.policy import load_policy
state = numpy.array({observation(0).tolist()}, numpy.float32)
print(*load_policy({str(tmp_path / "policy")!r}).act(state).tolist())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = [float(word) for word in done.stdout.split()]
    assert found == pytest.approx(load_policy(tmp_path / "policy").act(observation(0)).tolist(), abs=1e-6)


def test_sampled_policy_varies_with_its_seed_and_the_deterministic_one_does_not(
    make_skills: MakeSkills, tmp_path: Path
) -> None:
    saved(tmp_path / "policy", make_skills())

    def acted(seed: int, deterministic: bool) -> np.ndarray:
        return actions(load_policy(tmp_path / "policy", deterministic=deterministic, seed=seed))

    np.testing.assert_array_equal(acted(0, True), acted(1, True))
    np.testing.assert_array_equal(acted(0, False), acted(0, False))
    assert not np.array_equal(acted(0, False), acted(1, False))
    assert not np.array_equal(acted(0, False), acted(0, True))


def test_reset_forgets_the_running_skill_and_restarts_the_sampling(make_skills: MakeSkills, tmp_path: Path) -> None:
    saved(tmp_path / "policy", make_skills("open_loop"))
    policy = load_policy(tmp_path / "policy", deterministic=False, seed=3)
    first = actions(policy, HORIZON)
    unseeded = policy.act(observation(0))
    policy.reset(3)
    np.testing.assert_array_equal(actions(policy, HORIZON), first)
    policy.act(observation(0))
    policy.act(observation(1))
    policy.reset(3)
    np.testing.assert_array_equal(policy.act(observation(0)), first[0])
    assert not np.array_equal(unseeded, first[0])


def test_bare_prior_acts_by_its_mode(make_skills: MakeSkills) -> None:
    skills = make_skills("closed_loop", "mixture")
    model = load_skills(skills)
    state = observation(0)[:STATE_DIM]
    execution = SkillExecution(model)
    execution.begin(model.prior_distribution(torch.from_numpy(state)[None]).mode()[0].numpy())
    found = prior_policy(skills, POINT_PADS, deterministic=True).act(state)
    np.testing.assert_array_equal(found, execution.action(state))


@pytest.mark.parametrize("outside", ["../skills", "/tmp/skills", "skills/../../other"])
def test_card_that_points_outside_its_folder_is_refused(make_skills: MakeSkills, tmp_path: Path, outside: str) -> None:
    saved(tmp_path / "policy", make_skills())
    card = tmp_path / "policy" / CARD
    card.write_text(json.dumps(json.loads(card.read_text()) | {"skills": outside}))
    with pytest.raises(SpirlError, match="outside its folder"):
        load_policy(tmp_path / "policy")


@pytest.mark.parametrize("name", [TENSORS, "skills/skills.safetensors"])
def test_flipped_byte_is_refused(make_skills: MakeSkills, tmp_path: Path, name: str) -> None:
    saved(tmp_path / "policy", make_skills())
    file = tmp_path / "policy" / name
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    with pytest.raises(SpirlError, match="SHA-256"):
        load_policy(tmp_path / "policy")


@pytest.mark.parametrize("change", [{"format_version": 99}, {"unknown": 1}, {"sha256": 3}])
def test_card_of_another_shape_is_refused(make_skills: MakeSkills, tmp_path: Path, change: dict[str, Any]) -> None:
    saved(tmp_path / "policy", make_skills())
    card = tmp_path / "policy" / CARD
    card.write_text(json.dumps(json.loads(card.read_text()) | change))
    with pytest.raises(SpirlError, match=r"policy\.json"):
        load_policy(tmp_path / "policy")


def test_observation_of_another_environment_is_refused(make_skills: MakeSkills, tmp_path: Path) -> None:
    saved(tmp_path / "policy", make_skills())
    with pytest.raises(SpirlError, match=f"needs {STATE_DIM} entries"):
        load_policy(tmp_path / "policy").act(np.zeros(STATE_DIM - 1, np.float32))
