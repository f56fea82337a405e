"""Which trials a sweep runs, and what a continued one knows of those before. No Ray is started."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import pytest
from sweep_files import RATES, sweep

from spirl_ray.errors import SpirlError
from spirl_ray.sweeps.ledger import Ledger, TrialRecord, distinct
from spirl_ray.sweeps.search import NUMBER, PARENT, check_planned, decode, planned, remaining, scheduler, searcher
from spirl_ray.sweeps.trackers import check_packages, needed_modules
from spirl_ray.sweeps.tune_run import cpus_of_a_trial, reserve


def report(steps: int, value: float, **more: Any) -> dict[str, Any]:
    return {"env_steps": steps, "deterministic_score": value, **more}


def test_a_grid_is_every_combination_once(tmp_path: Path) -> None:
    chosen = sweep(tmp_path, {"skills.horizon": {"grid": [3, 10]}, "train.target_divergence": {"grid": [1.0, 5.0]}})
    found = {(trial["skills.horizon"], trial["train.target_divergence"]) for trial in planned(chosen)}
    assert found == {(3, 1.0), (3, 5.0), (10, 1.0), (10, 5.0)}
    assert len(planned(chosen)) == 4


def test_ranges_are_drawn_within_their_ends_and_the_same_each_time(tmp_path: Path) -> None:
    space = {**RATES, "skills.horizon": {"intuniform": [3, 5]}, "skills.beta": {"uniform": [0.1, 0.2]}}
    trials = planned(sweep(tmp_path, space, samples=60))
    assert {trial["skills.horizon"] for trial in trials} == {3, 4, 5}
    assert all(0.1 <= trial["skills.beta"] <= 0.2 and 1e-4 <= trial["train.actor_lr"] <= 1e-3 for trial in trials)
    assert planned(sweep(tmp_path, space, samples=60)) == trials
    assert planned(sweep(tmp_path, space, samples=60, seed=1)) != trials


def test_more_samples_come_after_those_that_were_there(tmp_path: Path) -> None:
    space = {**RATES, "skills.horizon": {"grid": [3, 10]}}
    few, many = planned(sweep(tmp_path, space, samples=2)), planned(sweep(tmp_path, space, samples=5))
    assert (len(few), len(many)) == (4, 10)
    assert many[:4] == few


def test_the_same_choice_is_one_trial(tmp_path: Path) -> None:
    assert len(planned(sweep(tmp_path, {"train.polyak": {"choice": [0.1, 0.2]}}, samples=20))) == 2
    assert distinct([{"a": 1}, {"a": 2}, {"a": 1}]) == [{"a": 1}, {"a": 2}]


def test_lists_are_values_of_a_choice(tmp_path: Path) -> None:
    chosen = sweep(tmp_path, {"methods": {"grid": ["spirl", ["ssp", "sac"]]}})
    assert [trial["methods"] for trial in planned(chosen)] == ["spirl", ["ssp", "sac"]]
    _, space, _ = searcher(chosen, Ledger(tmp_path / "trials"), 1)
    assert set(space) == {"methods", NUMBER, PARENT}


def test_only_trials_that_have_not_ended_are_run_again(tmp_path: Path) -> None:
    chosen = sweep(tmp_path, {"skills.horizon": {"grid": [3, 4, 5, 6]}})
    ledger = Ledger(tmp_path / "trials")
    for trial, status in zip(planned(chosen), ("finished", "failed", "running", "stopped"), strict=True):
        record = ledger.record_of(trial)
        record.status = status  # type: ignore[assignment]
        ledger.save(record)
    again = Ledger(tmp_path / "trials")
    search, _, samples = searcher(chosen, again, 1)
    assert search.max_concurrent == 1
    assert remaining(chosen, again) == samples == 2
    assert [(point[NUMBER], decode(chosen, point)) for point in search._points_to_evaluate] == [
        (1, {"skills.horizon": 4}),
        (2, {"skills.horizon": 5}),
    ]
    for record in again.records:
        record.status = "finished"
    assert remaining(chosen, again) == searcher(chosen, again, 1)[2] == 0


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    (tmp_path / "0000.json").write_text('{"numbr": 0}')
    with pytest.raises(SpirlError, match=r"0000\.json is not the record of a trial"):
        Ledger(tmp_path)


def test_a_continued_asha_stops_by_what_ended_trials_reported(tmp_path: Path) -> None:
    base = {"kind": "asha", "grace_steps": 400, "reduction": 2.0}
    chosen = sweep(tmp_path, RATES, "train.env_steps=2000", samples=9, scheduler=base)
    ledger = Ledger(tmp_path / "trials")
    for number, value in enumerate((1.0, 2.0, 3.0)):
        ledger.records.append(TrialRecord(number, {"train.actor_lr": 0.1 + number}, "stopped", [report(400, value)]))
    trial: Any = type("Trial", (), {"trial_id": "new"})
    for known, decision in ((ledger, "STOP"), (Ledger(tmp_path / "none"), "CONTINUE")):
        asha = scheduler(chosen, known)
        asha.on_trial_add(None, trial)
        assert asha.on_trial_result(None, trial, report(400, 0.5)) == decision


def test_what_a_population_makes_of_a_range_stays_inside(tmp_path: Path) -> None:
    chosen = sweep(tmp_path, RATES, "train.env_steps=2000", samples=2, scheduler={"kind": "pbt", "perturb_every": 400})
    pbt: Any = scheduler(chosen, Ledger(tmp_path / "trials"))
    random.seed(0)
    for start in (1e-4, 1e-3):
        for _ in range(20):
            donor = type("Trial", (), {"config": {"train.actor_lr": start, NUMBER: 1}})
            config, _ = pbt._get_new_config(None, donor)
            assert 1e-4 <= config["train.actor_lr"] <= 1e-3


def test_a_continued_population_goes_on_with_its_newest_parameters_and_policies(tmp_path: Path) -> None:
    chosen = sweep(tmp_path, RATES, "train.env_steps=2000", samples=2, scheduler={"kind": "pbt", "perturb_every": 400})
    ledger = Ledger(tmp_path / "trials")
    record = ledger.member(1, {"train.actor_lr": 5e-4})
    record.reports.append(report(400, 1.0, parent="abc"))
    search, _, samples = searcher(chosen, ledger, 2)
    assert samples == 2
    assert search.max_concurrent == 0
    assert search._points_to_evaluate[1] == {NUMBER: 1, PARENT: "abc", "train.actor_lr": 5e-4}


def test_a_package_that_a_sweep_needs_is_missed_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = sweep(tmp_path, {"train.actor_lr": {"choice": [1e-4, 1e-3]}}, search="optuna", samples=2)
    assert needed_modules(asked) == ["optuna"]
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(SpirlError, match=r"search needs the package optuna.*spirl-ray\[sweep\]"):
        check_packages(asked)


def test_a_continued_optuna_search_knows_the_results_and_begins_with_what_is_open(tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna")
    chosen = sweep(tmp_path, {**RATES, "methods": {"choice": ["spirl", ["ssp"]]}}, search="optuna", samples=10)
    ledger = Ledger(tmp_path / "trials")
    done = {"train.actor_lr": 2e-4, "methods": ["ssp"]}
    ledger.records = [
        TrialRecord(0, done, "finished", result=report(400, 2.0)),
        TrialRecord(1, {"train.actor_lr": 3e-4, "methods": "spirl"}, "running"),
    ]
    limited, _, samples = searcher(chosen, ledger, 1)
    search = limited.searcher
    assert samples == remaining(chosen, ledger) == 9
    [known] = search._ot_study.get_trials(states=[optuna.trial.TrialState.COMPLETE])
    assert known.value == 2.0
    assert decode(chosen, known.params) == done
    assert decode(chosen, search.suggest("first")) == ledger.records[1].parameters
    assert decode(chosen, search.suggest("second")) not in (done, ledger.records[1].parameters)


def test_the_cpus_of_a_trial_are_its_driver_and_its_workers(tmp_path: Path) -> None:
    assert cpus_of_a_trial(sweep(tmp_path, RATES)) == 2.0
    assert cpus_of_a_trial(sweep(tmp_path, {"train.env_runners": {"grid": [1, 4]}}, resources={"cpus": 0.5})) == 4.5
    assert cpus_of_a_trial(sweep(tmp_path, RATES, "pretrain.workers=2")) == 3.0


def test_a_sweep_says_what_it_is_and_leaves_another_of_its_name_alone(tmp_path: Path) -> None:
    one = sweep(tmp_path, RATES)
    assert reserve(one) == []
    before = (one.folder / "sweep.yaml").read_text()
    other = sweep(tmp_path, RATES, seed=1)
    assert reserve(other) == [one.folder]
    assert reserve(sweep(tmp_path, RATES)) == [other.folder]
    assert (one.folder / "sweep.yaml").read_text() == before


def test_planned_trials_are_made_before_any_is_trained(tmp_path: Path) -> None:
    space = {"train.fixed_alpha": {"grid": [0.05, 0.5]}, "train.alpha_min": {"grid": [0.0, 0.1]}}
    with pytest.raises(SpirlError, match=r"alpha_min=0\.1, train\.fixed_alpha=0\.05"):
        check_planned(sweep(tmp_path, space))
    check_planned(sweep(tmp_path, {**space, "train.fixed_alpha": {"grid": [0.1, 0.5]}}))
