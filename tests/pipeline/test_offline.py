"""The demonstrations a second time, from a config to a policy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from toy import TOY
from workspaces import trial as toy_trial

from spirl_ray.config import parse_experiment
from spirl_ray.errors import SpirlError
from spirl_ray.files.tables import read_csv
from spirl_ray.pipeline import stages
from spirl_ray.pipeline.offline import offline_decisions
from spirl_ray.pipeline.results import Finding
from spirl_ray.pipeline.workspace import Trial, Workspace
from spirl_ray.rl.offline_decisions import read_decisions, read_offline_card


def prepared(folder: Path, *methods: str, **changes: Any) -> list[Trial]:
    """The trials of a toy experiment whose dataset is there."""
    raw = {**TOY, "methods": list(methods), "output": str(folder / "out"), "evaluate": {**TOY["evaluate"], "videos": 0}}
    for name, values in changes.items():
        raw[name] = {**raw.get(name, {}), **values}
    workspace = Workspace(parse_experiment(raw, "test"))
    workspace.reserve()
    stages.prepare_data(workspace)
    return workspace.trials()


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_presets_with_offline_decisions_learn_from_both(tmp_path: Path) -> None:
    many = {"critics": 3, "critics_in_minimum": 2, "critic_layer_norm": True, "updates_per_decision": 2.0}
    many |= {"offline_updates": 30}
    trials = prepared(tmp_path, "spirl_offline", "supe", "rlpd", "flow_offline", train=many)
    told: list[Finding] = []

    def tell(done: float, total: float, *, findings: Sequence[Finding] = (), **newest: Any) -> None:
        told.extend(findings)

    for trial in trials:
        stages.train_skills(trial)
        result = stages.train(trial, tell)
        assert result.updates > 30
        assert trial.offline is not None
        card = read_offline_card(trial.offline)
        assert (card.parts, card.labels) == (2, "environment")  # one for each file of the dataset
        assert 0 < card.rewarded < card.decisions
        [finding] = [f for f in result.findings if f"{card.decisions:,} offline decisions" in f.text]
        assert not finding.warning
        assert finding in told
        [alone] = [f for f in result.findings if "30 updates on offline decisions alone" in f.text]
        assert alone in told
        told.clear()
        steps = [row.whole_number("env_steps") for row in read_csv(trial.policy / "evaluations.csv")]
        assert len(set(steps)) == 3  # before, after the updates without a step, and at the end
    names = {trial.offline.name for trial in trials if trial.offline is not None}
    assert len(names) == 4


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_labels_are_made_once_for_each_target(tmp_path: Path) -> None:
    [trial] = prepared(tmp_path, "spirl_offline")
    stages.train_skills(trial)
    folder = offline_decisions(trial)
    assert folder is not None
    made = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    left = folder.with_name(f".{folder.name}.partial-{'x' * 8}-1")  # of a process on another host
    left.mkdir()
    assert offline_decisions(trial) == folder
    assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == made
    [other] = prepared(tmp_path, "spirl_offline", env={"tasks": ["north"]})
    assert other.skills == trial.skills
    elsewhere = offline_decisions(other)
    assert elsewhere is not None
    assert elsewhere != folder
    most = max(part["rewards"].max() for part in read_decisions(elsewhere, 10**6))
    assert most == 1 < read_offline_card(folder).rewarded


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_a_damaged_file_is_named_and_leaves_no_folder(tmp_path: Path) -> None:
    [trial] = prepared(tmp_path, "spirl_offline")
    stages.train_skills(trial)
    damaged = next(trial.workspace.dataset.glob("*.parquet"))
    damaged.write_bytes(damaged.read_bytes()[:-100])
    with pytest.raises(SpirlError) as raised:
        offline_decisions(trial)
    assert damaged.name in str(raised.value)
    assert trial.offline is not None
    assert not trial.offline.exists()


def test_a_method_without_offline_decisions_makes_none(tmp_path: Path) -> None:
    assert toy_trial(tmp_path).offline is None
    assert offline_decisions(toy_trial(tmp_path)) is None
    assert toy_trial(tmp_path, train={"offline_fraction": 0.5}).offline is not None
    assert toy_trial(tmp_path, "spirl_offline", train={"offline_fraction": 0.0}).offline is None


def test_what_determines_the_labels_is_in_the_key_of_decisions_and_policy(tmp_path: Path) -> None:
    def keys(method: str = "spirl_offline", **groups: Any) -> tuple[str, str]:
        found = toy_trial(tmp_path, method, **groups)
        assert found.offline is not None
        return found.offline.name, found.policy.name

    first = keys()
    for changed in ({"env": {"tasks": ["north"]}}, {"train": {"offline_labels": "recorded"}}):
        assert not {*keys(**changed)} & {*first}
    other_observations = {
        "policy_init": "scratch",
        "policy_head": "mixture",
        "features": ["position"],
        "latent_limit": 3.0,
    }
    for name, chosen in other_observations.items():
        assert not {*keys(train={name: chosen})} & {*first}
    plain, bounded = (keys(method="rlpd", train={"regulariser": kind}) for kind in ("preset", "prior"))
    assert plain[0] != bounded[0]  # with a prior, policy observations hold its parameters
    for setting, value in (("target_divergence", 3.0), ("offline_fraction", 0.25), ("offline_updates", 100)):
        decisions, policy = keys(train={setting: value})
        assert decisions == first[0]
        assert policy != first[1]


def test_skills_without_demonstrations_have_no_offline_decisions(tmp_path: Path, make_skills: Any) -> None:
    raw = {**TOY, "methods": ["spirl_offline"], "output": str(tmp_path / "out"), "data": {}}
    raw["skills"] = {"artifact": str(make_skills())}
    trial = Workspace(parse_experiment(raw, "test")).trial("spirl_offline", 0)
    with pytest.raises(SpirlError, match=r"data\.sources"):
        _ = trial.offline


def test_a_corrected_judge_makes_other_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = tmp_path / "code"
    code.mkdir()
    monkeypatch.syspath_prepend(str(code))

    def key(text: str) -> str:
        (code / "my_judge.py").write_text(text)
        env, interface = {"id": "spirl/Maze-v0"}, {"judge": "my_judge:judge"}
        found = toy_trial(tmp_path, "spirl_offline", env=env, interface=interface).offline
        assert found is not None
        return found.name

    first = "def judge(arguments, episode): return episode.rewards, [False] * episode.length\n"
    assert key(first) == key(first)
    assert key(first) != key(first.replace("False", "True"))


def test_settings_without_an_effect_are_in_no_key(tmp_path: Path) -> None:
    for method in ("spirl_cl", "spirl_offline"):
        plain = toy_trial(tmp_path, method).policy
        assert toy_trial(tmp_path, method, train={"novelty_bonus": 3.0}).policy == plain
        assert toy_trial(tmp_path, method, train={"policy_polyak": 0.01}).policy != plain
        assert toy_trial(tmp_path, method, train={"policy_value": "minimum"}).policy == plain
        assert toy_trial(tmp_path, method, train={"policy_value": "mean"}).policy != plain
        assert toy_trial(tmp_path, method, train={"policy_value": "mean", "critics": 1}).policy == (
            toy_trial(tmp_path, method, train={"critics": 1}).policy
        )
    assert toy_trial(tmp_path, train={"offline_labels": "recorded"}).policy == toy_trial(tmp_path).policy
    bonus = [toy_trial(tmp_path, "supe", train={"offline_labels": "learned", "novelty_bonus": n}) for n in (0.1, 3.0)]
    assert bonus[0].offline == bonus[1].offline
    assert bonus[0].policy != bonus[1].policy
