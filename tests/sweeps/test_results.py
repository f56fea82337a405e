"""What a sweep leaves behind, from records without a training."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from matplotlib.figure import Figure
from PIL import Image
from sweep_files import RATES, sweep

from spirl_ray.config import load_experiment
from spirl_ray.files import layout
from spirl_ray.sweeps.ledger import Ledger, TrialRecord
from spirl_ray.sweeps.results import (
    _curve,
    _Scale,
    compared,
    settings,
    write_best,
    write_evaluations,
    write_figure,
    write_results,
)
from spirl_ray.sweeps.search import planned

GRID = {"skills.horizon": {"grid": [3, 10]}, "train.target_divergence": {"grid": [1.0, 5.0]}}


def ledger_of(folder: Path, *trials: tuple[dict[str, Any], Any]) -> Ledger:
    """Finished trials with these values of the metric; a word is a status without a result."""
    ledger = Ledger(folder / "none")
    for number, (parameters, value) in enumerate(trials):
        if isinstance(value, str):
            ledger.records.append(TrialRecord(number, parameters, value, error="it\nbroke"))  # type: ignore[arg-type]
            continue
        result = {
            "deterministic_score": value,
            "deterministic_subtasks": value,
            "env_steps": 400,
            "config_hash": "c0ffee",
            "commit": "abc",
        }
        ledger.records.append(TrialRecord(number, parameters, "finished", result=result))
    return ledger


def test_the_table_has_a_row_for_each_trial_with_its_parameters(tmp_path: Path) -> None:
    chosen = sweep(tmp_path, {**RATES, "methods": {"grid": ["spirl", ["ssp"]]}})
    ledger = ledger_of(
        tmp_path,
        ({"train.actor_lr": 1.23456789e-4, "methods": ["ssp"]}, 2.5),
        ({"train.actor_lr": 2e-4, "methods": "spirl"}, "failed"),
    )
    with write_results(chosen, ledger).open(newline="") as file:
        first, second = csv.DictReader(file)
    assert float(first["train.actor_lr"]) == 1.23456789e-4
    assert (first["trial"], first["status"], first["methods"]) == ("0", "finished", '["ssp"]')
    assert (first["deterministic_subtasks"], first["env_steps"], first["config_hash"]) == ("2.5", "400", "c0ffee")
    assert (second["status"], second["deterministic_subtasks"], second["error"]) == ("failed", "", "it broke")


def test_the_best_is_the_best_mean_over_seeds_and_not_the_luckiest_one(tmp_path: Path) -> None:
    chosen = sweep(tmp_path, {"train.polyak": {"grid": [0.1, 0.2, 0.3]}, "seeds": {"grid": [0, 1]}})
    trials = [
        ({"train.polyak": 0.1, "seeds": 0}, 4.0),
        ({"train.polyak": 0.1, "seeds": 1}, 0.0),
        ({"train.polyak": 0.2, "seeds": 0}, 3.0),
        ({"train.polyak": 0.2, "seeds": 1}, 3.0),
        ({"train.polyak": 0.3, "seeds": 1}, 9.0),
        ({"train.polyak": 0.3, "seeds": 0}, "failed"),
    ]
    ledger = ledger_of(tmp_path, *trials)
    assert [setting.parameters["train.polyak"] for setting in settings(chosen, ledger)] == [0.2, 0.1, 0.3]
    least = sweep(tmp_path, {"train.polyak": {"grid": [0.1]}, "seeds": {"grid": [0, 1]}}, mode="min")
    assert settings(least, ledger)[0].parameters["train.polyak"] == 0.1
    best = write_best(chosen, ledger)
    assert best is not None
    experiment = load_experiment(best)
    assert (experiment.train.polyak, experiment.seeds) == (0.2, (0, 1))


def test_the_best_experiment_is_where_the_trials_are(tmp_path: Path) -> None:
    chosen = sweep(tmp_path, GRID)
    ledger = ledger_of(tmp_path, ({"skills.horizon": 3, "train.target_divergence": 5.0}, 1.0))
    best = write_best(chosen, ledger)
    assert best is not None
    assert load_experiment(best) == chosen.experiment(ledger.records[0].parameters)
    assert load_experiment(best).folder == chosen.base.folder
    assert "deterministic_score 1, trial 0" in best.read_text()


def test_without_a_finished_trial_there_is_no_best_and_no_figure(tmp_path: Path) -> None:
    chosen = sweep(tmp_path, GRID)
    for value in ("failed", "stopped", math.nan):
        ledger = ledger_of(tmp_path, ({"skills.horizon": 3, "train.target_divergence": 5.0}, value))
        assert write_best(chosen, ledger) is None
        assert write_figure(chosen, ledger) is None


@pytest.mark.parametrize(
    "space",
    [
        GRID,
        {"skills.horizon": {"grid": [3, 10]}},
        {"train.actor_lr": {"loguniform": [1e-4, 1e-2]}, "skills.horizon": {"intuniform": [3, 30]}},
        {**GRID, **RATES, "methods": {"choice": ["spirl", ["ssp", "sac"]]}},
        {"seeds": {"grid": [0, 1, 2]}},
        {**GRID, "seeds": {"grid": [0, 1]}},
    ],
    ids=["two grids", "one grid", "two ranges", "four", "seeds", "two and seeds"],
)
def test_every_kind_of_space_has_a_figure(tmp_path: Path, space: dict[str, Any]) -> None:
    chosen = sweep(tmp_path, space, samples=1 if all("grid" in kind for kind in space.values()) else 5)
    trials = [(parameters, float(i)) for i, parameters in enumerate(planned(chosen))]
    path = write_figure(chosen, ledger_of(tmp_path, *trials))
    assert path is not None
    with Image.open(path) as image:
        assert image.size[0] > 600
        assert len(image.convert("RGB").getcolors(10**6) or ()) > 50


def test_beside_the_few_trials_that_asha_lets_finish_is_a_map_of_all_where_they_were_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = sweep(
        tmp_path,
        {**GRID, "seeds": {"grid": [0, 1]}},
        "train.env_steps=900",
        scheduler={"kind": "asha", "grace_steps": 400},
    )
    ledger = Ledger(tmp_path / "none")
    for number, parameters in enumerate(planned(chosen)):
        rows = [
            {"env_steps": steps, "deterministic_score": number + steps / 1000, "skills": "s"} for steps in (0, 410, 800)
        ]
        ended = number >= 6
        result = {"env_steps": 900, "deterministic_score": 40.0} if ended else None
        status = "finished" if ended else "stopped"
        ledger.records.append(TrialRecord(number, parameters, status, rows, result))  # type: ignore[arg-type]
    scores = sorted((one.score, len(one.records)) for one in compared(chosen, ledger))
    assert [count for _, count in scores] == [2, 2, 2, 2]
    assert [score for score, _ in scores] == pytest.approx([0.91, 2.91, 4.91, 6.91])  # trials 0 and 1, 2 and 3, …
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: drawn.append(self))
    assert write_figure(chosen, ledger) is not None
    before, after = drawn[0].axes[:2]
    assert before.get_title(loc="left") == "after 400 steps, 8 trials"
    assert after.get_title(loc="left") == "at the end, 2 trials"
    assert len(before.texts) == 4
    assert before.images[0].get_clim() == after.images[0].get_clim() == pytest.approx((0.91, 40.0))
    with write_evaluations(chosen, ledger).open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [(row["trial"], row["env_steps"]) for row in table[:4]] == [
        ("0", "0"),
        ("0", "410"),
        ("0", "800"),
        ("1", "0"),
    ]
    assert "skills" not in table[0]


def test_a_curve_of_subtasks_starts_at_none(tmp_path: Path) -> None:
    chosen = sweep(tmp_path, {"skills.horizon": {"grid": [3, 10]}})
    ledger = ledger_of(tmp_path, ({"skills.horizon": 3}, 3.9), ({"skills.horizon": 10}, 3.91))
    axes = Figure().subplots()
    _curve(axes, chosen, settings(chosen, ledger), "skills.horizon")
    assert axes.get_ylim()[0] == 0.0
    assert axes.get_ylim()[1] > 4.0  # room for the points


def test_values_have_their_place_on_an_axis(tmp_path: Path) -> None:
    chosen = sweep(tmp_path, {"train.actor_lr": {"loguniform": [1e-4, 1e-2]}, "skills.horizon": {"grid": [10, 3, 30]}})
    listed, ranged = (_Scale(chosen.space[key]) for key in ("skills.horizon", "train.actor_lr"))
    assert listed.labels == ["3", "10", "30"]
    assert [listed.place(value) for value in (10, 3, 30)] == [1, 0, 2]
    assert [listed.share(value) for value in (10, 3, 30)] == [0.5, 0.0, 1.0]
    assert [ranged.place(value) for value in (1e-4, 1.1e-3, 1e-2)] == [0, 3, 5]
    assert ranged.share(1e-3) == pytest.approx(0.5)


def test_the_file_of_a_sweep_is_yaml(tmp_path: Path) -> None:
    from spirl_ray.sweeps.tune_run import reserve

    chosen = sweep(tmp_path, GRID)
    reserve(chosen)
    written = yaml.safe_load((chosen.folder / layout.SWEEP).read_text())
    assert written["base"]["train"]["env_steps"] == 400
    assert written["space"]["skills.horizon"]["grid"] == [3, 10]
