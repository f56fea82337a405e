"""Keys of skills hold what the skills depend on, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from toy_skills import toy_spec

from spirl_ray.config import PretrainSettings
from spirl_ray.episodes.features import Feature
from spirl_ray.files.fingerprint import fingerprint
from spirl_ray.pipeline.keys import skills_key

CODEC = "toy_policy:Mirror"


def key(decoder: str, **options: Any) -> str:
    return skills_key(toy_spec(decoder, decoder_options=options), PretrainSettings().model_dump(mode="json"), "data", 0)


def test_options_change_the_skills_that_have_them_and_no_others() -> None:
    assert key("closed_loop", steps=4) == key("closed_loop")
    assert key("flow", steps=4) != key("flow")


def test_another_file_or_other_code_of_a_policy_makes_other_skills(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, code = tmp_path / "policy.pt", tmp_path / "its_code.py"
    weights.write_bytes(b"one")
    code.write_text("one = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    before = key("own", codec="its_code:Policy", path=str(weights))
    assert key("own", codec="its_code:Policy", path=str(weights)) == before
    weights.write_bytes(b"two")
    assert (with_weights := key("own", codec="its_code:Policy", path=str(weights))) != before
    code.write_text("two = 2\n")
    assert key("own", codec="its_code:Policy", path=str(weights)) not in (before, with_weights)


def test_files_of_a_folder_and_of_nested_options_are_part_of_the_key(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    (checkpoint / "unet").mkdir(parents=True)
    (weights := checkpoint / "unet" / "weights.pt").write_bytes(b"one")
    options: dict[str, Any] = {"codec": CODEC, "path": str(checkpoint)}
    nested: dict[str, Any] = {"codec": CODEC, "nets": [{"unet": str(weights)}]}
    before = (key("own", **options), key("own", **nested))
    weights.write_bytes(b"other")
    after = (key("own", **options), key("own", **nested))
    assert before[0] != after[0]
    assert before[1] != after[1]
    weights.rename(weights.with_name("renamed.pt"))
    assert key("own", **options) not in (before[0], after[0])


def test_the_weights_that_an_encoder_takes_from_a_file_are_part_of_the_key(tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"

    def found() -> str:
        encoders = {"position": {"kind": "pretrained", "options": {"path": str(weights)}}}
        spec = toy_spec(features={"position": Feature(shape=(2,))}, encoders=encoders)
        return skills_key(spec, PretrainSettings().model_dump(mode="json"), "data", 0)

    without = found()
    weights.write_bytes(b"one")
    first = found()
    weights.write_bytes(b"other")
    assert len({without, first, found()}) == 3


@pytest.mark.parametrize("value", ["", "x" * 5000, "\0", "a\nb"])
def test_options_that_are_no_files_are_only_options(value: str) -> None:
    assert key("own", codec=CODEC, note=value) != key("own", codec=CODEC)


@pytest.mark.parametrize("codec", ["nowhere:Policy", "no.where.Policy", "toy_policy.Mirror:x"])
def test_a_module_that_is_not_there_has_no_code(codec: str) -> None:
    assert key("own", codec=codec)


@pytest.mark.parametrize(
    ("decoder", "changed"), [("open_loop", True), ("flow", True), ("closed_loop", False), ("identity", False)]
)
def test_plans_that_were_not_relabelled_before_have_a_new_key(decoder: str, changed: bool) -> None:
    spec = toy_spec(decoder)
    pretrain = PretrainSettings.model_validate({"augmentation": {"kind": "target_preserving"}}).model_dump(mode="json")
    parts = spec.model_dump(mode="json")
    del parts["settings"]["decoder_options"]
    found = skills_key(spec, pretrain, "data", 0)
    assert found == fingerprint({**parts, "relabelled": 1} if changed else parts, pretrain, "data", 0)
