"""An import lists the episodes that are wrong, and leaves them out on request."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from made_source import good, load_all, made, some_bad, with_nan
from ray import cloudpickle

from spirl_ray.datasets.importing import import_dataset
from spirl_ray.episodes.episode import Episode
from spirl_ray.episodes.validation import validate_dataset
from spirl_ray.errors import SpirlError

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]

# Ray's workers cannot import this file.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


def test_bad_episodes_are_listed_and_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(SpirlError) as caught:
        import_dataset(made(6, some_bad), tmp_path / "out", environment="spirl/Test-v0", shards=2)
    lines = str(caught.value).splitlines()
    assert "skip_bad" in lines[0]
    assert lines[1:] == [
        "  made: e002: place: row 1, column 0 is nan (1 such values)",
        "  made: e005: place: row 1, column 0 is nan (1 such values)",
    ]
    assert list(tmp_path.iterdir()) == []


def test_a_long_list_of_bad_episodes_is_cut_at_ten(tmp_path: Path) -> None:
    with pytest.raises(SpirlError) as caught:
        import_dataset(made(15, with_nan), tmp_path / "out", environment="spirl/Test-v0", shards=2)
    lines = str(caught.value).splitlines()
    assert [line.split(": ")[1] for line in lines[1:11]] == [f"e{n:03d}" for n in range(10)]
    assert lines[11].strip() == "and 5 or more"


def test_bad_episodes_are_left_out_on_request(tmp_path: Path) -> None:
    report = import_dataset(made(6, some_bad), tmp_path / "out", environment="spirl/Test-v0", shards=6, skip_bad=True)
    assert [problem.episode for problem in report.skipped] == ["e002", "e005"]
    assert (report.card.episodes, len(report.card.files), report.missing) == (4, 4, 0)
    assert sorted(load_all(tmp_path / "out")) == ["e000", "e001", "e003", "e004"]
    assert validate_dataset(tmp_path / "out") == []


def test_episodes_that_the_source_refuses_are_left_out_on_request(tmp_path: Path) -> None:
    def refused(index: int) -> Episode:
        if index in (2, 5):
            raise SpirlError(f"tape {index} is torn")
        return good(index)

    with pytest.raises(SpirlError, match="tape 2 is torn"):
        import_dataset(made(7, refused), tmp_path / "no", environment="spirl/Test-v0", shards=1)
    report = import_dataset(made(7, refused), tmp_path / "out", environment="spirl/Test-v0", shards=1, skip_bad=True)
    assert [str(problem) for problem in report.skipped] == [
        "made: number 2: tape 2 is torn",
        "made: number 5: tape 5 is torn",
    ]
    assert (report.card.episodes, report.missing) == (5, 0)
    assert sorted(load_all(tmp_path / "out")) == ["e000", "e001", "e003", "e004", "e006"]


def test_nothing_but_bad_episodes_is_an_error_even_so(tmp_path: Path) -> None:
    with pytest.raises(SpirlError, match="at least one must be good"):
        import_dataset(made(2, with_nan), tmp_path / "out", environment="spirl/Test-v0", skip_bad=True)
    assert list(tmp_path.iterdir()) == []
