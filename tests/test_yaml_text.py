"""YAML is read as people mean it: no key is lost, numbers are numbers, text is text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sweep_files import RATES, sweep

from spirl_ray.config import Experiment, load_experiment
from spirl_ray.config_file import to_yaml
from spirl_ray.errors import SpirlError
from spirl_ray.sweeps.sweep_file import load_sweep
from spirl_ray.yaml_text import dump_yaml, load_yaml


def write(folder: Path, text: str) -> Path:
    path = folder / "experiment.yaml"
    path.write_text(f"name: test\n{text}", encoding="utf-8")
    return path


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(SpirlError) as caught:
        load_experiment(path, overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "key", "lines"),
    [
        ("seeds: 1\ntrain: {env_steps: 1}\nseeds: 2\n", "seeds", (2, 4)),
        ("train: {env_steps: 1}\nskills: {}\n'train':\n  batch_size: 1\n", "train", (2, 4)),
        ("pretrain:\n  augmentation:\n    kind: none\n    kind: none\n", "pretrain.augmentation.kind", (4, 5)),
        ("env:\n  kwargs:\n    goals: [{x: 1,\n      x: 2}]\n", "env.kwargs.goals.0.x", (4, 5)),
        ("overrides:\n  sac:\n    train.polyak: 1\n    train: {polyak: 0.5}\n", "overrides.sac.train.polyak", (4, 5)),
        ("env:\n  kwargs: {a: {1: 2,\n    0x1: 3}}\n", "env.kwargs.a.1", (3, 4)),
    ],
)
def test_a_key_that_is_given_twice_is_refused_with_both_lines(
    tmp_path: Path, text: str, key: str, lines: tuple[int, int]
) -> None:
    message = refusal(write(tmp_path, text))
    assert f"{key} is given twice, in line {lines[0]} and in line {lines[1]}" in message
    assert "experiment.yaml" in message


def test_a_key_that_is_given_twice_is_refused_in_sweeps_and_their_bases_and_in_set(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text("name: s\nbase: {name: b}\nspace:\n  train.polyak: {grid: [1]}\n  train.polyak: {grid: [2]}\n")
    with pytest.raises(SpirlError, match=r"sweep\.yaml: space\.train\.polyak is given twice, in line 4 and in line 5"):
        load_sweep(path)
    write(tmp_path, "seeds: 1\nseeds: 2\n")
    path.write_text("name: s\nbase: experiment.yaml\nspace: {seeds: {grid: 1}}\n")
    with pytest.raises(SpirlError, match=r"experiment\.yaml: seeds is given twice, in line 2 and in line 3"):
        load_sweep(path)
    assert "polyak is given twice" in refusal(write(tmp_path, ""), "train={polyak: 1, polyak: 0.5}")


def test_merged_keys_and_dotted_keys_of_other_settings_are_no_repetition(tmp_path: Path) -> None:
    text = (
        "env:\n  kwargs:\n    one: &one {a: 1, b: 2}\n    two: {<<: *one, b: 3}\n"
        "overrides: {sac: {train.polyak: 1, train.batch_size: 2, train: {critic_width: 3}}}\n"
    )
    found = load_experiment(write(tmp_path, text))
    assert found.env.kwargs["two"] == {"a": 1, "b": 3}
    train = found.for_method("sac").train
    assert (train.polyak, train.batch_size, train.critic_width) == (1.0, 2, 3)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-2", 0.01),
        ("-1E3", -1000.0),
        ("5.", 5.0),
        (".5e1", 5.0),
        ("1_000", 1000),
        ("010", 10),
        ("08", 8),
        ("0x1F", 31),
        ("+.inf", float("inf")),
        ("1:30", "1:30"),
        ("2024-01-31", "2024-01-31"),
        ("2024-13-45", "2024-13-45"),
        ("1e", "1e"),
        ("1.2.3", "1.2.3"),
        ("true", True),
        ("null", None),
        ("'1e-2'", "1e-2"),
    ],
)
def test_values_are_what_is_meant_also_where_no_type_is_declared(tmp_path: Path, text: str, value: Any) -> None:
    assert load_yaml(text, "here") == value
    experiment = load_experiment(write(tmp_path, f"env: {{kwargs: {{x: {text}}}}}\n"))
    assert experiment.env.kwargs["x"] == value
    assert type(experiment.env.kwargs["x"]) is type(value)
    assert load_experiment(write(tmp_path, ""), [f"env.x={text}"]).env.kwargs["x"] == value


@pytest.mark.parametrize("text", ["2024", "010", "1e-2", "no", "2024-01-31", "a b", "ünï", "lr=0.1", "a#b", "~x"])
def test_a_setting_that_is_text_is_the_text_that_was_written(tmp_path: Path, text: str) -> None:
    experiment = load_experiment(
        write(tmp_path, f"output: {text}\nevaluate:\n  score: {text}\nskills:\n  features: {text}\n")
    )
    assert (experiment.output, experiment.evaluate.score, experiment.skills.features) == (Path(text), text, (text,))
    experiment = load_experiment(write(tmp_path, ""), [f"output={text}", f"skills.features=[{text}]"])
    assert (experiment.output, experiment.skills.features) == (Path(text), (text,))


@pytest.mark.parametrize(
    "text", ["a #b", "a?b", "#b", "[a]", "{a}", "a: b", "@a", "*a", "%a", "!a", "- a", "'a", "a,b"]
)
def test_a_path_after_set_is_taken_as_it_is(tmp_path: Path, text: str) -> None:
    assert load_experiment(write(tmp_path, ""), [f"output={text}"]).output == Path(text)
    assert load_experiment(write(tmp_path, ""), [f"env.note='{text.replace(chr(39), chr(39) * 2)}'"]).env.kwargs == {
        "note": text
    }


def test_quotes_around_a_value_after_set_are_not_part_of_it(tmp_path: Path) -> None:
    found = load_experiment(write(tmp_path, ""), ["output='a #b'", 'evaluate.score="x"', "train.features=[a, 'b #c']"])
    assert (found.output, found.evaluate.score, found.train.features) == (Path("a #b"), "x", ("a", "b #c"))


def test_nothing_after_set_is_cut_off_as_a_comment(tmp_path: Path) -> None:
    assert load_experiment(write(tmp_path, ""), ["env.note=a #b"]).env.kwargs == {"note": "a #b"}
    assert "train.env_steps: must be a whole number (found '5 #b')" in refusal(
        write(tmp_path, ""), "train.env_steps=5 #b"
    )


@pytest.mark.parametrize("text", ["null", ""])
def test_null_after_set_is_the_default(tmp_path: Path, text: str) -> None:
    assert load_experiment(write(tmp_path, "output: x\n"), [f"output={text}"]).output is None


@pytest.mark.parametrize("value", ["1e5", "010", "08", "0o17", "1:30", "2024-01-31", "no", "null", "a #b", ".5", "1_0"])
def test_text_that_looks_like_something_else_comes_back_as_text(tmp_path: Path, value: str) -> None:
    assert load_yaml(dump_yaml({"x": [value]}), "here") == {"x": [value]}
    experiment = Experiment.model_validate({"name": "1e5", "env": {"kwargs": {"x": value}}})
    (tmp_path / "back.yaml").write_text(to_yaml(experiment), encoding="utf-8")
    assert load_experiment(tmp_path / "back.yaml") == experiment


@pytest.mark.parametrize(
    "text", ["x: " + "9" * 5000, "x: " + "[" * 5000, "x: \0", "? [a]\n: 1", "a: b: c", "a: 1\n---\nb: 2"]
)
def test_what_cannot_be_read_is_said_with_the_file(tmp_path: Path, text: str) -> None:
    assert "experiment.yaml is not valid YAML: " in refusal(write(tmp_path, text))


def test_numbers_in_a_sweep_are_numbers(tmp_path: Path) -> None:
    assert sweep(tmp_path, RATES).space
    (tmp_path / "e.yaml").write_text(
        "name: s\nbase: {name: b, env: {id: spirl/PointPads-v0}}\nspace: {train.actor_lr: {grid: [1e-2, 3e-4]}}\n"
    )
    assert load_sweep(tmp_path / "e.yaml").space["train.actor_lr"].grid == (0.01, 0.0003)
