"""The scripts of ``examples/`` run as a user starts them, at toy size."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

import spirl_ray.envs as envs
from spirl_ray.config import EnvironmentSettings, TrainSettings
from spirl_ray.policy.policy import save_policy
from spirl_ray.rl.methods import method_config
from spirl_ray.rl.policy_network import PolicyNetwork, policy_spec
from spirl_ray.skills.artifact import load_skills

EXAMPLES = Path(__file__).parents[1] / "examples"
PADS = "spirl/PointPads-v0"
STEPS = 30
ON_PADS = ("--environment", PADS, "--arguments", json.dumps({"tasks": ["north"]}), "--max-episode-steps", STEPS)
SMALL = ("--training", json.dumps({"critic_width": 8, "critic_layers": 1, "batch_size": 16, "warmup_decisions": 8}))
MakeSkills = Callable[..., Path]


def run(script: str, *arguments: object) -> list[str]:
    """The lines that a script prints; it must succeed."""
    # Other tests have set Ray's variables in this process, such as RAY_ENABLE_AUTO_CONNECT; a user has not.
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    path = os.pathsep.join([str(EXAMPLES.parent), clean.get("PYTHONPATH", "")])
    # Short, because Ray's socket paths must fit in 107 bytes; patient, for busy machines.
    with tempfile.TemporaryDirectory(prefix="spirl-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        done = subprocess.run(
            [sys.executable, EXAMPLES / script, *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=900,
            env={**clean, "PYTHONPATH": path, "RAY_TMPDIR": folder, "RAY_raylet_start_wait_time_s": "120"},
        )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def test_every_example_is_in_the_list_and_has_a_test() -> None:
    scripts = {path.name for path in EXAMPLES.glob("*.py")}
    assert scripts == set(re.findall(r"`(\w+\.py)`", (EXAMPLES / "README.md").read_text()))
    assert scripts == set(re.findall(r'run\(\s*"(\w+\.py)"', Path(__file__).read_text()))


def test_a_policy_acts(make_skills: MakeSkills, tmp_path: Path) -> None:
    skills = make_skills("closed_loop")
    model = load_skills(skills)
    method = method_config("spirl_cl", TrainSettings(), model.spec)
    spec = policy_spec(model, method, envs.environment(PADS).features)
    save_policy(
        tmp_path / "policy",
        PolicyNetwork(spec, model).state_dict(),
        skills,
        policy=spec,
        environment=EnvironmentSettings(id=PADS, max_episode_steps=STEPS),
        method="spirl_cl",
        seed=0,
        latent_limit=None,
        env_steps=10,
        config_hash="abc",
    )
    printed = run("run_policy.py", tmp_path / "policy", "--episodes", 2)
    assert [re.findall(r"in (\d+) steps", line) for line in printed] == [[str(STEPS)]] * 2


@pytest.mark.slow
def test_rllib_trains_by_its_own_means(make_skills: MakeSkills) -> None:
    printed = run("rllib_native.py", make_skills("closed_loop"), *ON_PADS, *SMALL, "--iterations", 2)
    progress = [re.findall(r"(\d+) decisions, (\d+) updates", line) for line in printed if "iteration" in line]
    assert [int(decisions) for [(decisions, _)] in progress] == [16, 32]
    assert int(progress[-1][0][1]) > 0


@pytest.mark.slow
def test_tune_searches_by_its_own_means(make_skills: MakeSkills, tmp_path: Path) -> None:
    sizes = ("--divergences", 1, 4, "--iterations", 2, "--output", tmp_path / "search")
    printed = run("tune_native.py", make_skills("closed_loop"), *ON_PADS, *SMALL, *sizes)
    found = [re.findall(r"target divergence ([\d.]+): (\d+) updates", line) for line in printed]
    updates = {float(divergence): int(count) for [(divergence, count)] in filter(None, found)}
    assert updates.keys() == {1.0, 4.0}
    assert min(updates.values()) > 0
