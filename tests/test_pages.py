"""What the pages tell a user to write exists: links, settings, commands, files, and the samples run.

`tests/test_code_blocks.py` checks every other block of code.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import typer
from pydantic import BaseModel

from benchmarks import results_page
from spirl_ray.cli.main import app
from spirl_ray.config import Experiment
from spirl_ray.episodes.dataset import read_card
from spirl_ray.errors import SpirlError

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*.md")])
CURRENT = [page for page in PAGES if page.name != "CHANGELOG.md"]
"""Pages about the present; the changelog also names what is gone."""
page = pytest.mark.parametrize("page", CURRENT, ids=lambda page: page.name)


def _code(text: str) -> str:
    """The parts of a page that are set as code, a line for each."""
    fenced = re.findall(r"```\w*\n(.*?)```", text, re.DOTALL)
    indented = re.findall(r"^    (.+)", text, re.MULTILINE)
    quoted = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    return "\n".join([*fenced, *indented, *quoted])


def _settings(model: type[BaseModel] = Experiment, before: str = "") -> Iterator[str]:
    """Dotted keys of the settings; below an open mapping, such as ``env.kwargs``, any key may follow."""
    for name, field in model.model_fields.items():
        yield before + name
        inner = next((kind for kind in (field.annotation, *get_args(field.annotation)) if _is_model(kind)), None)
        if inner is not None:
            yield from _settings(inner, f"{before}{name}.")


def _is_model(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


@page
def test_links_lead_to_files_that_exist(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
    missing = [link for link in links if not (page.parent / link).exists()]
    assert missing == []


@page
def test_settings_that_a_page_names_exist(page: Path) -> None:
    known = set(_settings())
    groups = "data|interface|skills|pretrain|train|evaluate|explore|ray|submit"
    named = re.findall(rf"(?<![\w./-])((?:{groups})\.[a-z_]+)(?![\w(/])", _code(page.read_text()))
    modules = {f"{file.parent.name}.{file.stem}" for file in (ROOT / "spirl_ray").glob("*/*.py")}
    assert [key for key in named if key not in known | modules and not key.endswith((".md", ".safetensors"))] == []


@page
def test_commands_that_a_page_names_exist(page: Path) -> None:
    named = re.findall(r"(?<![\w/.])spirl ([a-z]+)", _code(page.read_text()))
    assert set(named) <= set(typer.main.get_group(app).commands)


@page
def test_modules_that_a_page_names_exist(page: Path) -> None:
    code = _code(page.read_text())
    files = re.findall(r"(?<![\w/])((?:spirl_ray|tests|benchmarks|examples|tune_configs|cluster)/[\w/.]+\.\w+)", code)
    modules = re.findall(r"-m ((?:benchmarks|spirl_ray)[.\w]*)", code)
    files += [name.replace(".", "/") + ".py" for name in modules]
    assert [name for name in files if not any((base / name).exists() for base in (ROOT, ROOT / "spirl_ray"))] == []


def test_results_are_those_of_the_csv_files() -> None:
    readme = results_page.README.read_text()
    assert len(readme.splitlines()) <= 90
    assert readme == results_page.readme(readme), "run python -m benchmarks.results_page"
    assert results_page.PAGE.read_text() == results_page.results_page(), "run python -m benchmarks.results_page"


def test_a_figure_that_is_there_twice_or_not_at_all_is_an_error() -> None:
    with pytest.raises(SpirlError, match=r"maze\.csv: 0 rows"):
        results_page.value("maze", "success", method="none")
    with pytest.raises(SpirlError, match=r"maze\.csv: 3 rows"):
        results_page.value("maze", "success", method="spirl", mode="sampled", steps=500000, episodes=100)


def test_the_sample_of_a_dataset_runs(tmp_path: Path) -> None:
    samples = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "data.md").read_text(), re.DOTALL)
    (script,) = [sample for sample in samples if "DatasetWriter" in sample]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    card = read_card(tmp_path / "data" / "mine")
    assert (card.episodes, card.rewards) == (20, False)
    assert card.actions is not None
    assert card.actions.high == (0.5, 80.0)


def test_the_sample_of_a_function_that_gives_recordings_runs(tmp_path: Path) -> None:
    samples = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "data.md").read_text(), re.DOTALL)
    (sample,) = [sample for sample in samples if "def episodes" in sample]
    defined: dict[str, Any] = {}
    exec(sample, defined)
    arrays: dict[str, Any] = {"q": np.zeros((4, 2)), "rgb": np.zeros((4, 8, 8, 3), np.uint8)}
    arrays |= {"u": np.zeros((3, 2)), "r": np.ones(3)}
    np.savez(tmp_path / "tape_2.npz", succeeded=True, operator="somebody", **arrays)
    (found,) = defined["episodes"]([2], tmp_path)
    assert found["metadata"] == {"operator": "somebody"}
    assert found["terminated"] is True
    assert len(found["observations"]["camera"]) == len(found["actions"]) + 1


def test_the_samples_of_extending_run(tmp_path: Path) -> None:
    samples = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "extending.md").read_text(), re.DOTALL)
    assert len(samples) >= 8
    script = tmp_path / "samples.py"
    script.write_text("\n\n".join([*samples, _USE]))
    done = subprocess.run(
        [sys.executable, script.name],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


_USE = """
from spirl_ray.datasets.opened import open_data
from spirl_ray.datasets.sources import register_source
from spirl_ray.envs import environment as describe, make as make_environment, observed_features, register_environment
from spirl_ray.episodes.validation import check_episode
from spirl_ray.metrics import TRAINING
from spirl_ray.pipeline.kinds import check_kinds
from spirl_ray.pipeline.scores import experiment_scores
from spirl_ray.rl.methods import method_config, register_method, skill_spec
from spirl_ray.rl.policy_network import PolicyNetwork, policy_spec
from spirl_ray.skills.model import SkillModel

register_environment(ENTRY.spec, ENTRY.make)
register_method("my_method", METHOD)
register_source("tapes", KIND.settings, KIND.make)
chosen = {
    "name": "mine",
    "methods": ["my_method"],
    "env": {"id": "mine/Reach-v0", "size": 0.8},
    "skills": {"prior": "bounded", "encoders": {"front": {"kind": "mine", "options": {"outputs": 64}}}},
    "train": {"policy_head": "slow"},
    "evaluate": {"metrics": ["energy"]},
}
tapes = spirl.load_experiment({**chosen, "data": {"sources": [{"type": "tapes", "folder": "."}]}})
folder = spirl.load_experiment({**chosen, "data": {"sources": [{"type": "folder", "path": "data/mine"}]}})
check_kinds(tapes)
assert experiment_scores(tapes).names == ("return", "length", "distance", "energy")
assert TRAINING["train.latent_std_max"].of({"latent_std": torch.tensor([1.0, 2.0])}) == 2.0

env = make_environment("mine/Reach-v0", size=0.8)
assert observed_features(env, ENTRY.spec) == FEATURES
observation, _ = env.reset(seed=0)
assert env.observation_space.contains(observation)
env.step(env.action_space.sample())

zeros = {name: np.zeros((5, *feature.shape), feature.dtype) for name, feature in FEATURES.items()}
np.savez("one.npz", actions=np.zeros((4, 2), np.float32), rewards=np.zeros(4, np.float32), **zeros)
for experiment, number in ((tapes, 1), (folder, 8)):
    source = open_data(experiment.data, experiment.interface, describe(experiment.environment)).source
    episodes = [episode for chunk in source.chunks() for episode in source.read(chunk)]
    assert len(episodes) == number
    assert not any(check_episode(episode, FEATURES, 2) for episode in episodes)

spec = skill_spec(tapes.skills, "my_method", FEATURES, 2)
assert spec.features == ("position", "front")
skills = SkillModel(spec)
encoded = skills.observation_encoder({name: torch.from_numpy(observation[name])[None] for name in spec.features})
assert encoded.shape == (1, 64 + 2)
policy = policy_spec(skills, method_config("my_method", tapes.train, spec), FEATURES)
assert (policy.head, list(policy.features)) == ("slow", ["position", "target"])
PolicyNetwork(policy, skills).start_from(skills)
"""
