"""Skills and policies are published on a hub and loaded from it, with the checks that local folders have."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hub_server import TOKEN, Hub, running_hub
from toy_skills import STATE, save_toy_policy, save_toy_skills, toy_model
from typer.testing import CliRunner, Result

from spirl_ray.cli import main as cli
from spirl_ray.errors import SpirlError
from spirl_ray.files.atomic import write_json
from spirl_ray.files.hub import LIMIT_BYTES, HubPlace
from spirl_ray.policy.policy import load_policy
from spirl_ray.skills.artifact import load_skills

constants = pytest.importorskip("huggingface_hub.constants")
PLACE = "hf://toys/pads"
OBSERVATION = {"state": np.array([0.1, -0.2, 0.3, 0.4], np.float32)}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    with running_hub() as server:
        # Both are made from HF_ENDPOINT when the client is imported.
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + template)
        yield server


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    """A policy in the folder of an experiment, with a report."""
    folder = tmp_path / "run"
    skills = save_toy_skills(folder / "skills" / "toy", toy_model())
    report = folder / "report"
    report.mkdir()
    header = "method,seed,env_steps,mode,evaluation,episodes,return,lamps,wall_clock_s,config_hash,commit"
    rows = [f"spirl_cl,{seed},10,sampled,final,50,1.5,{seed + 2},9,{'abc'},c0ffee" for seed in (0, 1)]
    training = "spirl_cl,0,10,sampled,training,5,9.5,9,9,abc,c0ffee"
    (report / "results.csv").write_text("\n".join([header, *rows, training]) + "\n")
    write_json(report / "results.json", {"score": "lamps"})
    saved = save_toy_policy(folder / "policy" / "toy", skills, STATE)
    versions = {"python": "3.11.7", "ray": "2.60.0"}
    write_json(saved / "provenance.json", {"processes": [{"commit": "c0ffee", "versions": versions}]})
    return saved


def publish(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, ["publish", *map(str, arguments)])


def front_of(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---\n")[1])


def test_a_published_policy_acts_as_the_local_one(hub: Hub, policy: Path) -> None:
    done = publish(policy, PLACE, "--licence", "Apache-2.0", "--private")
    assert done.exit_code == 0, done.output
    names = {"policy.json", "policy.safetensors", "skills/skill.json", "skills/skills.safetensors"}
    assert set(hub.files["toys/pads"]) == {*names, "README.md"}
    assert hub.private == {"toys/pads": True}
    hub.files["toys/pads"]["more.bin"] = b"nobody needs this"
    found = load_policy(PLACE).act(OBSERVATION)
    np.testing.assert_array_equal(found, load_policy(policy).act(OBSERVATION))
    assert set(hub.served) == names
    commit = hub.commit("toys/pads")
    np.testing.assert_array_equal(load_policy(f"{PLACE}@{commit}").act(OBSERVATION), found)


def test_published_skills_are_loaded(hub: Hub, policy: Path) -> None:
    assert publish(policy / "skills", PLACE, "--licence", "mit").exit_code == 0
    assert set(hub.files["toys/pads"]) == {"skill.json", "skills.safetensors", "README.md"}
    model = load_skills(PLACE)
    for name, value in load_skills(policy / "skills").state_dict().items():
        assert (model.state_dict()[name] == value).all()
    assert front_of(hub.files["toys/pads"]["README.md"].decode())["license"] == "mit"


def test_the_card_says_what_the_report_says(policy: Path) -> None:
    done = publish(policy, PLACE, "--licence", "Apache-2.0", "--dry-run")
    assert done.exit_code == 0, done.output
    front = front_of(done.output)
    assert (front["license"], front["library_name"]) == ("apache-2.0", "spirl-ray")
    [result] = front["model-index"][0]["results"]
    assert result["dataset"]["name"] == "spirl/PointPads-v0"
    assert [(metric["type"], metric["value"]) for metric in result["metrics"]] == [("lamps", 2.0), ("lamps", 3.0)]
    for said in (f'load_policy("{PLACE}")', "d" * 64, "c0ffee", "ray 2.60.0", "| 1 | sampled | 50 | 10 | 1.5 | 3 |"):
        assert said in done.output
    assert "9.5" not in done.output
    assert "Intended use" in done.output


def test_without_a_licence_nothing_is_published(hub: Hub, policy: Path) -> None:
    done = publish(policy, PLACE)
    assert (done.exit_code, "--licence" in done.output, hub.files) == (2, True, {})


@pytest.mark.parametrize("place", ["toys/pads", "hf://pads", "hf://toys/pads/more", "hf://../etc", "hf://a/b@"])
def test_a_place_that_is_none_is_refused(place: str) -> None:
    with pytest.raises(SpirlError, match="hf://ORG/NAME"):
        HubPlace.parse(place)


def test_who_may_not_publish_is_told_how_to_log_in(hub: Hub, policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    done = publish(policy, PLACE, "--licence", "mit")
    assert (done.exit_code, "HF_TOKEN" in done.output, "toys/pads" in done.output) == (2, True, True), done.output


def test_what_is_not_there_is_named(hub: Hub, policy: Path) -> None:
    with pytest.raises(SpirlError, match=r"hf://toys/none: there is no such repository"):
        load_skills("hf://toys/none")
    assert publish(policy, PLACE, "--licence", "mit").exit_code == 0
    with pytest.raises(SpirlError, match=r"hf://toys/pads@other: there is no such revision"):
        load_policy(f"{PLACE}@other")
    with pytest.raises(SpirlError, match=r"hf://toys/pads/skill\.json"):
        load_skills(PLACE)


def test_offline_is_one_clear_error_and_the_cache_is_used(hub: Hub, policy: Path) -> None:
    assert publish(policy, PLACE, "--licence", "mit").exit_code == 0
    expected = load_policy(PLACE).act(OBSERVATION)
    url = hub.url
    hub.shutdown()
    hub.server_close()
    np.testing.assert_array_equal(load_policy(PLACE).act(OBSERVATION), expected)
    with pytest.raises(SpirlError, match=rf"hf://toys/new: the hub at {url} cannot be reached.*not in the cache"):
        load_policy("hf://toys/new")
    done = publish(policy, PLACE, "--licence", "mit")
    assert (done.exit_code, done.output.count("Error")) == (2, 1)
    assert f"{url} cannot be reached" in done.output


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("sprung",)


def test_malicious_files_are_refused_as_local_ones_are(
    hub: Hub, policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert publish(policy, PLACE, "--licence", "mit").exit_code == 0
    files = hub.files["toys/pads"]
    good = dict(files)
    files["policy.safetensors"] = pickle.dumps(Bomb()) + b"\0" * 20_000
    with pytest.raises(SpirlError, match=r"hf://toys/pads/policy\.safetensors does not match the SHA-256"):
        load_policy(PLACE)
    files |= good
    files["policy.json"] = json.dumps({**json.loads(good["policy.json"]), "skills": "../elsewhere"}).encode()
    with pytest.raises(SpirlError, match="outside its folder"):
        load_policy(PLACE)
    files |= good
    hub.sizes["policy.safetensors"] = LIMIT_BYTES + 1
    files["README.md"] += b"another commit"
    hub.served.clear()
    with pytest.raises(SpirlError, match=r"policy\.safetensors has 2,147,483,649 bytes; at most"):
        load_policy(PLACE)
    assert hub.served == []
    assert not Path("sprung").exists()


@pytest.mark.slow
def test_the_hub_is_the_one_that_the_environment_names(hub: Hub, policy: Path, tmp_path: Path) -> None:
    assert publish(policy, PLACE, "--licence", "mit").exit_code == 0
    script = f"import spirl_ray; print(spirl_ray.load_skills({'hf://toys/skills'!r}).spec.horizon)"
    hub.files["toys/skills"] = {
        name: (policy / "skills" / name).read_bytes() for name in ("skill.json", "skills.safetensors")
    }
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout.strip()) == (0, "5"), done.stderr
