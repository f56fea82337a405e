"""Settings take what is meant, and say in words what is wrong with the rest."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import ValidationError

from spirl_ray.config import Experiment, parse_experiment
from spirl_ray.errors import SpirlError
from spirl_ray.settings import SettingPath, Settings, expanded, in_words, problems_of


def refusal(raw: dict[str, Any]) -> str:
    with pytest.raises(SpirlError) as caught:
        parse_experiment({"name": "x", **raw}, "test")
    return str(caught.value)


@pytest.mark.parametrize(
    ("raw", "found"),
    [
        ({"seeds": 7}, lambda e: e.seeds == (7,)),
        ({"methods": "sac"}, lambda e: e.methods == ("sac",)),
        ({"evaluate": {"modes": "sampled"}}, lambda e: e.evaluate.modes == ("sampled",)),
        ({"evaluate": {"metrics": "length"}}, lambda e: e.evaluate.metrics == ("length",)),
        ({"skills": {"features": "objects"}}, lambda e: e.skills.features == ("objects",)),
        ({"train": {"features": None}}, lambda e: e.train.features is None),
        ({"overrides": {"sac": {"train.features": "a"}}}, lambda e: e.for_method("sac").train.features == ("a",)),
    ],
)
def test_a_single_value_is_a_list_of_one(raw: dict[str, Any], found: Any) -> None:
    assert found(parse_experiment({"name": "x", **raw}, "test"))


def _numbers(settings: type[Settings], place: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], type]]:
    """The places of all settings that are single numbers."""
    found: list[tuple[tuple[str, ...], type]] = []
    for name, field in settings.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Settings):
            found += _numbers(kind, (*place, name))
        found += [((*place, name), one) for one in (int, float) if kind in (one, one | None)]
    return found


NUMBERS = _numbers(Experiment)


def _set(place: tuple[str, ...], value: Any) -> dict[str, Any]:
    for name in reversed(place):
        value = {name: value}
    return value


@pytest.mark.parametrize(("place", "kind"), NUMBERS, ids=[".".join(place) for place, _ in NUMBERS])
def test_no_number_is_endless_or_a_truth_value(place: tuple[str, ...], kind: type) -> None:
    impossible: list[Any] = [float("nan"), float("inf"), -float("inf"), "nan", True, "many", [], {}]
    impossible += [10**30, -(10**30)] if kind is int else []
    for value in impossible:
        message = refusal(_set(place, value))
        assert f"\n  {'.'.join(place)}: " in message, value
        assert not any(word in message for word in ("Input should", "unable to parse", "Value error")), message


@pytest.mark.parametrize("key", ["seeds", "evaluate.seed", "explore.seed", "data.seed"])
def test_seeds_have_32_bits(key: str) -> None:
    place = tuple(key.split("."))
    for value in (-1, 2**32, 0.5):
        assert f"\n  {key}" in refusal(_set(place, value))


@pytest.mark.parametrize(
    "raw",
    [
        {"evaluate": {"seed": 2**32 - 5, "episodes": 6, "prior_episodes": 0}},
        {"evaluate": {"seed": 2**32 - 5, "episodes": 1, "prior_episodes": 6}},
        {"explore": {"seed": 2**32 - 5, "env_steps": 6}},
    ],
)
def test_the_last_of_successive_seeds_has_32_bits_too(raw: dict[str, Any]) -> None:
    assert f"seed {2**32 - 5}" in refusal(raw)
    for group in raw.values():
        group["seed"] -= 1
    parse_experiment({"name": "x", **raw}, "test")


# --- paths ---


def test_a_tilde_is_the_home_folder_in_every_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/of mine")
    experiment = parse_experiment({"name": "x", "output": "~/a~b", "skills": {"artifact": "~"}}, "test")
    assert experiment.output == Path("/home/of mine/a~b")
    assert experiment.skills.artifact == Path("/home/of mine")
    assert parse_experiment({"name": "x", "output": Path("~/a")}, "test").output == Path("/home/of mine/a")


@pytest.mark.parametrize("text", ["~nobody/x", "a/~/b", "a~", "./~", " ~", "a:b", "a\\b", "{a}", "$HOME", "%41"])
def test_every_other_character_of_a_path_is_taken_as_it_is(text: str) -> None:
    assert expanded(text) == Path(text)


@pytest.mark.parametrize("text", ["", "a\0b"])
def test_text_that_cannot_be_a_path_is_refused(text: str) -> None:
    assert "\n  output: " in refusal({"output": text})


def test_a_tilde_without_a_home_folder_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    assert "HOME" in refusal({"output": "~/x"})


# --- words ---


class _Everything(Settings):
    """A setting of every kind."""

    whole: int = 0
    number: float = 0.0
    truth: bool = False
    text: str = ""
    word: Literal["one", "two"] = "one"
    some: tuple[int, ...] = (1,)
    pair: tuple[int, int] = (1, 2)
    names: dict[str, float] | None = None
    path: SettingPath = Path()
    either: str | dict[str, Any] = ""
    group: Experiment | None = None


_VALUES: list[Any] = [
    None,
    True,
    3.5,
    float("inf"),
    "x",
    "\ud800",
    b"x",
    [1],
    [],
    (1, 2, 3),
    {1: 2},
    {"a": "b"},
    {},
    object(),
]


def _label(value: Any) -> str:
    """A name for a value that is the same in every process, so that two can share the tests."""
    return repr(value).partition(" at 0x")[0]


@pytest.mark.parametrize(("name", "value"), list(itertools.product(_Everything.model_fields, _VALUES)), ids=_label)
def test_no_problem_is_told_in_the_words_of_pydantic(name: str, value: Any) -> None:
    try:
        _Everything.model_validate({name: value})
    except ValidationError as error:
        for problem in problems_of(error):
            words = in_words(problem)
            assert words.partition(" (")[0] != problem["msg"], problem["type"]
            assert not any(jargon in words for jargon in ("Input", "valid", "instance", "parse")), words


def test_an_item_that_is_wrong_does_not_make_its_list_too_short() -> None:
    message = refusal({"seeds": ["a"]})
    assert message.count("\n") == 1
    assert "\n  seeds.0: must be a whole number (found 'a')" in message


def test_a_list_without_brackets_is_explained() -> None:
    assert "a list is written [0,1]" in refusal({"seeds": "0,1"})
