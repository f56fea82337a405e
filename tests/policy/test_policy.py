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
from toy_skills import METHODS

import spirl_ray.envs as envs
from spirl_ray.config import EnvironmentSettings, TrainSettings
from spirl_ray.errors import SpirlError
from spirl_ray.files.layout import POLICY_CARD, POLICY_TENSORS
from spirl_ray.policy.policy import load_policy, prior_policy, save_policy
from spirl_ray.rl.methods import method_config
from spirl_ray.rl.policy_network import PolicyNetwork, PolicyObserver, policy_spec
from spirl_ray.skills.artifact import load_skills
from spirl_ray.skills.execution import SkillExecution

POINT_PADS = "spirl/PointPads-v0"
HORIZON = 4
FEATURES = envs.environment(POINT_PADS).features
MakeSkills = Callable[..., Path]
Observation = dict[str, np.ndarray]


def observation(number: int) -> Observation:
    rng = np.random.default_rng(number)
    return {name: rng.normal(size=feature.shape).astype(np.float32) for name, feature in FEATURES.items()}


def saved(folder: Path, skills: Path, **card: Any) -> Callable[[Observation], Any]:
    """Writes a policy with random weights; returns what gives its distribution."""
    torch.manual_seed(5)
    model = load_skills(skills)
    method = method_config(METHODS[model.spec.decoder], TrainSettings(policy_init="scratch"), model.spec)
    spec = policy_spec(model, method, FEATURES)
    network, observer = PolicyNetwork(spec, model), PolicyObserver(spec, model)
    fields = {
        "environment": EnvironmentSettings(id=POINT_PADS),
        "method": "spirl_cl",
        "seed": 0,
        "latent_limit": None,
        "env_steps": 10,
        "config_hash": "abc",
    }
    save_policy(folder, network.state_dict(), skills, policy=spec, **fields | card)
    return lambda seen: network(torch.from_numpy(observer(seen)).unsqueeze(0))


def actions(policy: Any, count: int = 3 * HORIZON) -> np.ndarray:
    return np.stack([policy.act(observation(i)) for i in range(count)])


@pytest.mark.parametrize("limit", [None, 2.0])
@pytest.mark.parametrize("decoder", ["closed_loop", "open_loop", "identity", "plan", "flow"])
def test_loaded_policy_acts_like_network_and_decoder(
    make_skills: MakeSkills, tmp_path: Path, decoder: str, limit: float | None
) -> None:
    skills = make_skills(decoder)
    network = saved(tmp_path / "policy", skills, latent_limit=limit)
    execution = SkillExecution(load_skills(skills), limit)
    expected = []
    while len(expected) < 3 * HORIZON:
        execution.begin(network(observation(len(expected))).mean[0].detach().numpy())
        while not execution.finished:
            expected.append(execution.action(observation(len(expected))))
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
given = { ({name: value.tolist() for name, value in observation(0).items()}) }
seen = {{name: numpy.array(value, numpy.float32) for name, value in given.items()}}
print(*load_policy({str(tmp_path / "policy")!r}).act(seen).tolist())
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
    seen = observation(0)
    execution = SkillExecution(model)
    rows = {name: torch.from_numpy(value)[None] for name, value in seen.items()}
    execution.begin(model.prior_distribution(rows).mode()[0].numpy())
    found = prior_policy(skills, deterministic=True).act(seen)
    np.testing.assert_array_equal(found, execution.action(seen))


@pytest.mark.parametrize("outside", ["../skills", "/tmp/skills", "skills/../../other"])
def test_card_that_points_outside_its_folder_is_refused(make_skills: MakeSkills, tmp_path: Path, outside: str) -> None:
    saved(tmp_path / "policy", make_skills())
    card = tmp_path / "policy" / POLICY_CARD
    card.write_text(json.dumps(json.loads(card.read_text()) | {"skills": outside}))
    with pytest.raises(SpirlError, match="outside its folder"):
        load_policy(tmp_path / "policy")


@pytest.mark.parametrize("name", [POLICY_TENSORS, "skills/skills.safetensors"])
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
    card = tmp_path / "policy" / POLICY_CARD
    card.write_text(json.dumps(json.loads(card.read_text()) | change))
    with pytest.raises(SpirlError, match=r"policy\.json"):
        load_policy(tmp_path / "policy")


def test_a_card_of_version_1_is_refused_with_what_to_do(make_skills: MakeSkills, tmp_path: Path) -> None:
    saved(tmp_path / "policy", make_skills())
    card = tmp_path / "policy" / POLICY_CARD
    card.write_text(json.dumps(json.loads(card.read_text()) | {"format_version": 1}))
    with pytest.raises(SpirlError, match=r"policy\.json has format version 1; this program reads 3\..*spirl train"):
        load_policy(tmp_path / "policy")


def test_objects_in_a_card_need_their_agent(make_skills: MakeSkills, tmp_path: Path) -> None:
    saved(tmp_path / "policy", make_skills())
    card = tmp_path / "policy" / POLICY_CARD
    raw = json.loads(card.read_text())
    objects = {"shape": [5, 3], "objects": {"agent": "nobody", "up": 2, "size": 0.1}}
    raw["policy"]["features"]["things"] = objects
    card.write_text(json.dumps(raw))
    with pytest.raises(SpirlError, match=r"'things' .*'nobody'"):
        load_policy(tmp_path / "policy")


def test_observation_without_a_feature_is_refused(make_skills: MakeSkills, tmp_path: Path) -> None:
    saved(tmp_path / "policy", make_skills())
    seen = observation(0)
    del seen["lamps"]
    with pytest.raises(SpirlError, match="lacks the feature 'lamps'"):
        load_policy(tmp_path / "policy").act(seen)
