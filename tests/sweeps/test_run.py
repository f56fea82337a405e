"""Whole sweeps from Python: what is refused before any work, what a listener hears, what is returned."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sweep_files import write_sweep

from spirl_ray import api
from spirl_ray.cli.jobs import _sweep_to_submit
from spirl_ray.errors import SpirlError
from spirl_ray.pipeline.events import Event
from spirl_ray.sweeps.ledger import Ledger, TrialRecord
from spirl_ray.sweeps.run import SweepListener
from spirl_ray.sweeps.sweep_file import Sweep


@pytest.mark.parametrize("call", [api.sweep, _sweep_to_submit])
def test_a_trial_that_could_not_run_is_refused_before_any_work(tmp_path: Path, call: Callable[..., Any]) -> None:
    path = write_sweep(tmp_path, {"skills.features": {"choice": [None, ["nose"]]}})
    with pytest.raises(SpirlError, match="nose"):
        call(path, [])
    assert not (tmp_path / "out").exists()


class Heard(SweepListener):
    def __init__(self) -> None:
        self.events: list[str] = []
        self.planned: list[tuple[int, int]] = []
        self.statuses: list[str] = []

    def event(self, event: Event) -> None:
        self.events.append(f"{event.stage} {event.happening}")

    def started(self, sweep: Sweep, ledger: Ledger, trials: int, concurrency: int) -> None:
        self.planned.append((trials, concurrency))

    def changed(self, record: TrialRecord) -> None:
        self.statuses.append(record.status)


@pytest.mark.slow
def test_a_sweep_from_python_tells_of_its_trials_and_returns_the_ranked_settings(
    local_ray: None, tmp_path: Path
) -> None:
    path = write_sweep(tmp_path, {"train.fixed_alpha": {"grid": [0.1, 0.5]}})
    heard = Heard()
    result = api.sweep(path, ["concurrency=1", "evaluate.videos=0"], listener=heard)
    assert (heard.events[0], heard.events[-1]) == ("data started", "data finished")
    assert heard.planned == [(2, 1)]
    assert heard.statuses.count("finished") == 2
    assert result.ran
    assert [record.status for record in result.ledger.records] == ["finished", "finished"]
    assert {setting.parameters["train.fixed_alpha"] for setting in result.settings} == {0.1, 0.5}
    assert result.settings[0].score >= result.settings[1].score
    assert {file.name for file in result.files} == {"results.csv", "evaluations.csv", "results.png"}
    assert result.best is not None
    assert result.best.parent == result.folder

    again = api.sweep(path, ["concurrency=2", "evaluate.videos=0"], listener=heard)
    assert (again.ran, again.folder) == (False, result.folder)
    assert len(heard.planned) == 1
