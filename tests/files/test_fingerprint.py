"""Keys of results are made of plain data, and are the same everywhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from spirl_ray.config import SkillSettings, TrainSettings
from spirl_ray.files.fingerprint import fingerprint


def test_fingerprints_are_equal_for_equal_settings_and_differ_otherwise() -> None:
    base = fingerprint(SkillSettings(), "data", 1)
    assert len(base) == 10
    assert fingerprint(SkillSettings(width=128), "data", 1) == base
    others = [
        fingerprint(SkillSettings(width=127), "data", 1),
        fingerprint(SkillSettings(), "date", 1),
        fingerprint(SkillSettings(), "data", 2),
        fingerprint(SkillSettings(), "data"),
        fingerprint("data", SkillSettings(), 1),
    ]
    assert len({base, *others}) == 6


def test_fingerprints_do_not_depend_on_the_order_of_keys() -> None:
    assert fingerprint({"a": 1, "b": (2, 3)}) == fingerprint({"b": [2, 3], "a": 1})


def test_fingerprints_are_the_same_in_every_process() -> None:
    program = (
        "from pathlib import Path; from spirl_ray.config import TrainSettings; "
        "from spirl_ray.files.fingerprint import fingerprint; "
        "print(fingerprint(TrainSettings(alpha_lr=1e-3), {'a': Path('p')}))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert found == {fingerprint(TrainSettings(alpha_lr=1e-3), {"a": Path("p")})}


@pytest.mark.parametrize("part", [object(), SkillSettings, {"a": {1, 2}}, [b"bytes"], {1: "a"}])
def test_what_has_no_plain_form_is_refused_rather_than_hashed_by_its_repr(part: object) -> None:
    with pytest.raises(TypeError):
        fingerprint(part)


def test_a_key_of_plain_data_is_what_it_was() -> None:
    assert fingerprint("a", {"b": [1, 2.5, None, True]}) == "6c214e5ab5"
