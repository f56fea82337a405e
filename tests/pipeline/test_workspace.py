"""An experiment's folder: who may use it, what shares a result, what a changed setting leads to."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy import TOY
from toy_skills import save_toy_policy, save_toy_skills, toy_model
from workspaces import trial

from spirl_ray.config import (
    DataSettings,
    EnvironmentSettings,
    EnvSettings,
    EvaluateSettings,
    InterfaceSettings,
    PretrainSettings,
    SkillSettings,
    SourceSettings,
    TrainSettings,
    parse_experiment,
)
from spirl_ray.datasets.generated import GeneratedSettings, GeneratedSource
from spirl_ray.datasets.opened import OpenedData
from spirl_ray.datasets.sources import SourceKind
from spirl_ray.envs import environment
from spirl_ray.episodes.features import Feature
from spirl_ray.episodes.writer import DatasetWriter
from spirl_ray.errors import SpirlError
from spirl_ray.pipeline.workspace import Trial, Workspace
from spirl_ray.rl.methods import METHODS, Method, MethodConfig
from spirl_ray.skills.spec import SkillSpec


def fresh(folder: Path, **changes: Any) -> Workspace:
    return Workspace(parse_experiment({**TOY, "output": str(folder / "out"), **changes}, "test"))


def test_recorded_and_generated_data_alone_or_together_are_three_datasets(tmp_path: Path, minari_root: Path) -> None:
    human = {"type": "minari", "id": "D4RL/kitchen/complete-v2", "root": str(minari_root)}
    ours, env = {"type": "generated", "episodes": 6}, {"id": "spirl/Kitchen-v0"}
    made = [fresh(tmp_path, env=env, data={"sources": chosen}) for chosen in ([ours], [human], [ours, human])]
    assert len({each.dataset for each in made}) == 3
    assert [each.dataset.name.rpartition("-")[0] for each in made] == [
        "generated-6",
        "D4RL-kitchen-complete-v2",
        "generated-6-D4RL-kitchen-complete-v2",
    ]
    more = fresh(tmp_path, env=env, data={"sources": [{**ours, "episodes": 12}, human]})
    assert more.dataset != made[2].dataset


def test_an_imported_dataset_serves_without_its_files_and_not_in_place_of_other_ones(tmp_path: Path) -> None:
    recorded = tmp_path / "recorded"
    recorded.mkdir()
    np.savez(recorded / "a.npz", observations=np.zeros((5, 3)), actions=np.zeros((4, 2)))
    changes = {"env": {}, "data": {"sources": [{"type": "npz", "path": str(recorded)}]}}
    made = fresh(tmp_path, **changes)
    made.dataset.mkdir(parents=True)
    (made.dataset / "card.json").write_text("{}")
    made.remember_import()
    (recorded / "a.npz").write_text("these are no demonstrations")
    with pytest.raises(SpirlError, match=r"a\.npz"):
        _ = fresh(tmp_path, **changes).dataset
    (recorded / "a.npz").unlink()
    assert fresh(tmp_path, **changes).dataset == made.dataset
    recorded.rmdir()
    assert fresh(tmp_path, **changes).dataset == made.dataset


@pytest.mark.parametrize(("kind", "missing"), [("minari", "id"), ("folder", "path")])
def test_recorded_data_need_a_name(tmp_path: Path, kind: str, missing: str) -> None:
    made = fresh(tmp_path, data={"sources": [*TOY["data"]["sources"], {"type": kind}]})
    with pytest.raises(SpirlError, match=rf"data\.sources\.1 \({kind}\)(?s:.*){missing}: is missing"):
        _ = made.data


def test_no_source_says_what_to_write(tmp_path: Path) -> None:
    with pytest.raises(SpirlError, match=r"data\.sources names no source"):
        _ = fresh(tmp_path, data={}).data


def generating(**options: Any) -> dict[str, Any]:
    """The data settings of the toy experiment, with some options of its source changed."""
    (source,) = TOY["data"]["sources"]
    return {"sources": [{**source, **options}]}


def test_a_folder_is_reserved_once_and_by_one_experiment(tmp_path: Path) -> None:
    fresh(tmp_path).reserve()
    fresh(tmp_path, seeds=[1]).reserve()
    before = (tmp_path / "out" / "experiment.json").read_bytes()
    for changes in ({"name": "other"}, {"env": {"id": "spirl/Kitchen-v0"}}):
        with pytest.raises(SpirlError, match="belongs to the experiment 'toy'"):
            fresh(tmp_path, **changes).reserve()
    assert (tmp_path / "out" / "experiment.json").read_bytes() == before


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    with pytest.raises(SpirlError, match="is not empty"):
        fresh(tmp_path).reserve()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]


def test_a_claim_does_not_trip_over_another_process_that_claims_now(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".experiment.json.partial-1").write_text("{")
    fresh(tmp_path).reserve()
    assert json.loads((tmp_path / "out" / "experiment.json").read_text())["name"] == "toy"


def test_a_second_process_says_that_it_waits(tmp_path: Path) -> None:
    waited: list[Path] = []
    first = fresh(tmp_path)
    second = Workspace(first.experiment, waited.append)
    target, entered = tmp_path / "out" / "data" / "x", threading.Event()

    def work() -> None:
        with second.locked(target):
            entered.set()

    with first.locked(target):
        thread = threading.Thread(target=work)
        thread.start()
        assert not entered.wait(0.3)
        assert waited == [target]
    assert entered.wait(10)
    thread.join()


def test_a_lock_that_cannot_be_made_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SpirlError, match="Cannot write"), fresh(tmp_path).locked(tmp_path / "file" / "x"):
        pass


def test_an_error_in_locked_work_is_its_own(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="elsewhere"), fresh(tmp_path).locked(tmp_path / "x"):
        raise OSError("elsewhere")


@pytest.mark.parametrize(
    "group", [{"train": {"env_steps": 9}}, {"evaluate": {"episodes": 9}}, {"train": {"checkpoint_every": 9}}]
)
def test_how_long_and_how_often_do_not_change_what_is_trained(tmp_path: Path, group: dict[str, Any]) -> None:
    assert trial(tmp_path, **group).policy == trial(tmp_path).policy


def test_a_change_redoes_what_depends_on_it_and_no_more(tmp_path: Path) -> None:
    one = trial(tmp_path)
    trained = trial(tmp_path, train={"batch_size": 9})
    assert trained.policy != one.policy
    assert (trained.skills, trained.prior_rollouts) == (one.skills, one.prior_rollouts)
    pretrained = trial(tmp_path, pretrain={"updates": 9})
    assert pretrained.workspace.dataset == one.workspace.dataset
    assert len({pretrained.skills, one.skills}) == len({pretrained.policy, one.policy}) == 2
    looked = trial(tmp_path, evaluate={"episodes": 9})
    assert (looked.policy, looked.prior_rollouts) == (one.policy, one.prior_rollouts)
    assert looked.evaluation != one.evaluation
    assert trial(tmp_path, data=generating(episodes=7)).workspace.dataset != one.workspace.dataset


def test_position_targets_belong_to_skills_that_are_augmented(tmp_path: Path) -> None:
    def of(gain: float, kind: str) -> Trial:
        target = {"feature": "position", "positions": [0, 1], "gain": gain}
        interface = InterfaceSettings.model_validate({"position_target": target})
        own = trial(tmp_path, pretrain={"augmentation": {"kind": kind}})
        return replace(own, experiment=own.experiment.model_copy(update={"interface": interface}))

    assert of(0.1, "target_preserving").skills_key != of(0.2, "target_preserving").skills_key
    assert of(0.1, "none").skills_key == of(0.2, "none").skills_key


def test_what_an_agent_does_not_notice_changes_no_policy(tmp_path: Path) -> None:
    one = trial(tmp_path)
    for name, value in (("judge", "json:loads"), ("imports", ("math",))):
        interface = one.experiment.interface.model_copy(update={name: value})
        other = replace(one, experiment=one.experiment.model_copy(update={"interface": interface}))
        assert (other.policy, other.prior_rollouts, other.evaluation) == (
            one.policy,
            one.prior_rollouts,
            one.evaluation,
        )


def test_a_saved_policy_of_a_method_that_learns_from_demonstrations_needs_none(tmp_path: Path) -> None:
    features = environment("spirl/PointPads-v0").features
    skills = save_toy_skills(tmp_path / "skills", toy_model(features=features))
    save_toy_policy(tmp_path / "policy", skills, features)
    experiment = parse_experiment(
        {
            "name": "toy",
            "output": str(tmp_path / "out"),
            "env": {"id": "spirl/PointPads-v0"},
            "methods": ["spirl_offline"],
        }
        | {"skills": {"artifact": str(skills)}},
        "test",
    )
    saved = replace(Workspace(experiment).trials()[0], saved=tmp_path / "policy")
    assert saved.config_hash == json.loads((tmp_path / "policy" / "policy.json").read_text())["config_hash"]
    assert saved.evaluation.parent == tmp_path / "out" / "evaluation"


def test_the_names_of_many_sources_fit_into_a_folder_name(tmp_path: Path) -> None:
    sources = []
    for number in range(4):
        name = f"{number}-" + "x" * 80
        with DatasetWriter(tmp_path / name, features={"state": Feature(shape=(2,))}, action_dim=1) as writer:
            writer.add(observations={"state": np.full((3, 2), number)}, actions=np.zeros((2, 1)))
        sources.append({"type": "folder", "path": str(tmp_path / name)})
    name = fresh(tmp_path, env={}, data={"sources": sources}).dataset.name
    assert len(name) < 140
    assert name.startswith("folder-0-xxx")


def test_names_of_classes_and_files_and_texts_for_people_change_no_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def keys() -> list[str]:
        one = trial(tmp_path)
        exploration = one.workspace.exploration([one.skills])
        found = [one.workspace.dataset, exploration, one.skills, one.policy, one.prior_rollouts, one.evaluation]
        return [folder.name for folder in found]

    before = keys()
    assert before == keys()
    settings = (EnvSettings, SkillSettings, PretrainSettings, TrainSettings, EvaluateSettings, DataSettings)
    reading = (EnvironmentSettings, InterfaceSettings, SourceSettings, GeneratedSettings, SourceKind, OpenedData)
    kinds = (*settings, *reading, SkillSpec, MethodConfig, Feature, Method, GeneratedSource, Trial)
    names = {kind: (kind.__name__, kind.__qualname__, kind.__module__) for kind in kinds}
    described = replace(METHODS["spirl_cl"], summary="in other words")
    monkeypatch.setitem(METHODS._entries, "spirl_cl", described)
    try:
        for kind in kinds:
            kind.__name__, kind.__qualname__, kind.__module__ = "Renamed", "Renamed", "spirl_ray.elsewhere"
        assert keys() == before
    finally:
        for kind, given in names.items():
            kind.__name__, kind.__qualname__, kind.__module__ = given


def test_keys_are_made_of_settings(tmp_path: Path) -> None:
    one = trial(tmp_path)
    assert trial(tmp_path, train={"reward_scale": 0.1}).policy != one.policy
    assert trial(tmp_path, env={"kwargs": {"tasks": ["north"]}}).policy != one.policy
    assert trial(tmp_path, env={"max_episode_steps": 9}).policy != one.policy
    assert trial(tmp_path, env={"max_episode_steps": 9}).skills == one.skills
    assert trial(tmp_path, data=generating(seed=1)).workspace.dataset != one.workspace.dataset
    assert trial(tmp_path, data=generating(options={"pads": 2})).workspace.dataset != one.workspace.dataset


def test_methods_with_the_same_decoder_share_their_skills(tmp_path: Path) -> None:
    assert trial(tmp_path, "spirl").skills == trial(tmp_path, "ssp").skills
    assert trial(tmp_path, "spirl").skills != trial(tmp_path, "spirl_cl").skills
    assert trial(tmp_path, "sac", 1).skills != trial(tmp_path, "sac", 0).skills


def test_only_methods_that_use_a_prior_have_one(tmp_path: Path) -> None:
    having = [m for m in ("spirl", "spirl_cl", "ssp", "flat_prior", "bc_sac", "sac") if trial(tmp_path, m).has_prior]
    assert having == ["spirl", "spirl_cl", "flat_prior", "bc_sac"]


def test_a_policy_that_was_trained_further_is_evaluated_anew(tmp_path: Path) -> None:
    one = trial(tmp_path)
    features = environment("spirl/PointPads-v0").features
    save_toy_policy(one.policy, save_toy_skills(tmp_path / "skills", toy_model(features=features)), features)
    before = one.evaluation
    assert before == trial(tmp_path, train={"env_steps": 9}).evaluation
    card = json.loads((one.policy / "policy.json").read_text())
    (one.policy / "policy.json").write_text(json.dumps({**card, "sha256": "second"}))
    assert one.evaluation != before


def test_a_folder_that_goes_away_with_a_job_is_refused(tmp_path: Path) -> None:
    output = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_1" / "runs"
    with pytest.raises(SpirlError, match=r"Ray removes when the job ends.*--set output=/shared/folder"):
        Workspace(parse_experiment({"name": "toy", "output": str(output)}, "test")).reserve()
    assert not output.exists()
