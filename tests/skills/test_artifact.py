"""The skill artifact comes back bit for bit, without Ray; anything else in its place is refused in words."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_skills import STATE, save_toy_skills, toy_model, toy_spec

from spirl_ray.episodes.actions import ActionRange
from spirl_ray.episodes.features import Feature
from spirl_ray.errors import SpirlError
from spirl_ray.files.atomic import read_json, write_atomically
from spirl_ray.files.layout import SKILL_CARD, SKILL_TENSORS
from spirl_ray.skills.artifact import check_fit, load_skills, read_skill_card
from spirl_ray.skills.model import SkillModel

ENVIRONMENT = "spirl/PointPads-v0"


def make_model(decoder: str = "closed_loop", **settings: Any) -> SkillModel:
    return toy_model(decoder, **{"width": 8, "decoder_layers": 1, "prior_layers": 1, **settings})


save = save_toy_skills


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    save(tmp_path / "skills", make_model())
    return tmp_path / "skills"


def edit_card(folder: Path, **changes: Any) -> None:
    card = json.loads((folder / SKILL_CARD).read_text())
    (folder / SKILL_CARD).write_text(json.dumps({**card, **changes}))


@pytest.mark.parametrize("prior", ["gaussian", "mixture", "flow"])
@pytest.mark.parametrize("decoder", ["open_loop", "closed_loop", "identity", "plan", "flow"])
def test_round_trip_is_bit_equal(tmp_path: Path, decoder: str, prior: str) -> None:
    model = make_model(decoder, prior=prior, target_kl=0.5 if prior == "flow" else None)
    save(tmp_path, model)
    loaded = load_skills(tmp_path)
    assert loaded.spec == model.spec
    state = loaded.state_dict()
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_saving_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        save(tmp_path / name, make_model())
    for file in (SKILL_CARD, SKILL_TENSORS):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_the_card_says_what_the_tensors_are(artifact: Path) -> None:
    card = read_skill_card(artifact)
    assert (card.environment, card.dataset_sha256, card.seed) == (ENVIRONMENT, "d" * 64, 7)
    assert card.normalisation.keys() == {"state"}
    assert card.normalisation["state"].mean == pytest.approx([-1.0, 0.0, 1.0, 2.0])
    assert card.normalisation["state"].std == pytest.approx([0.8, 0.7, 0.8, 0.9])
    assert card.sha256 == hashlib.sha256((artifact / SKILL_TENSORS).read_bytes()).hexdigest()
    assert sorted(file.name for file in artifact.iterdir()) == [SKILL_CARD, SKILL_TENSORS]


def test_loads_where_ray_gymnasium_and_mujoco_cannot_be_imported(artifact: Path) -> None:
    program = """
import sys
for name in ("ray", "gymnasium", "gymnasium_robotics", "mujoco", "minari", "pyarrow", "scipy", "matplotlib"):
    sys.modules[name] = None
import numpy, torch
from spirl_ray.skills.artifact import load_skills
from spirl_ray.skills.execution import SkillExecution
execution = SkillExecution(load_skills(sys.argv[1]))
execution.begin(numpy.ones(3, "float32"))
print(execution.action({"state": numpy.ones(4, "float32")}).tolist())
"""
    plain = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}  # without the toy environments, a plugin
    command = [sys.executable, "-c", program, str(artifact)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=plain)
    assert done.returncode == 0, done.stderr
    here = load_skills(artifact).decode({"state": torch.ones(1, 1, 4)}, torch.ones(1, 3))[0, 0].clamp(-1, 1)
    assert json.loads(done.stdout) == pytest.approx(here.tolist(), abs=1e-6)


def test_a_flipped_byte_is_named_by_file(artifact: Path) -> None:
    data = bytearray((artifact / SKILL_TENSORS).read_bytes())
    data[-5] ^= 1
    (artifact / SKILL_TENSORS).write_bytes(data)
    with pytest.raises(SpirlError, match=rf"{SKILL_TENSORS} does not match the SHA-256 in its card"):
        load_skills(artifact)


def test_skills_fit_whatever_has_their_features_and_actions() -> None:
    spec = toy_spec()
    check_fit(spec, {**STATE, "more": Feature(shape=(2,))}, 2, None, "skills and environment")
    doubled = ActionRange(low=(-2.0, -1.0), high=(2.0, 1.0))
    for features, action_dim, actions, said in (
        ({"other": Feature(shape=(4,))}, 2, None, r"'state'.* other"),
        ({"state": Feature(shape=(5,))}, 2, None, r"'state' .*\[5\].*\[4\]"),
        (STATE, 3, None, "actions have 3 .* 2"),
        (STATE, 2, doubled, r"\[-2, 2\], \[-1, 1\].*2 actions in \[-1, 1\].*interface\.action"),
    ):
        with pytest.raises(SpirlError, match=f"skills and environment do not fit: .*{said}"):
            check_fit(spec, features, action_dim, actions, "skills and environment")
    check_fit(spec.model_copy(update={"actions": doubled}), STATE, 2, doubled, "skills and environment")


@pytest.mark.parametrize("version", [None, 1, 3, "2"])
def test_another_format_is_refused(artifact: Path, version: object) -> None:
    edit_card(artifact, format_version=version)
    with pytest.raises(SpirlError, match=rf"{SKILL_CARD} .*version {version!r}; this program reads 2.*pretrain"):
        load_skills(artifact)


def test_a_card_without_a_format_is_refused(artifact: Path) -> None:
    (artifact / SKILL_CARD).write_text("{}")
    with pytest.raises(SpirlError, match="has format version None"):
        load_skills(artifact)


@pytest.mark.parametrize("file", [SKILL_CARD, SKILL_TENSORS])
def test_a_missing_file_is_named(artifact: Path, file: str) -> None:
    (artifact / file).unlink()
    with pytest.raises(SpirlError, match=rf"Cannot read .*{file}: No such file"):
        load_skills(artifact)


def test_a_pickle_in_place_of_safetensors_is_refused_and_not_run(artifact: Path, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "sprung"),)

    data = pickle.dumps(Trap())
    (artifact / SKILL_TENSORS).write_bytes(data)
    edit_card(artifact, sha256=hashlib.sha256(data).hexdigest())
    with pytest.raises(SpirlError, match=f"{SKILL_TENSORS} does not hold the tensors that its card describes"):
        load_skills(artifact)
    assert not (tmp_path / "sprung").exists()


def test_tensors_of_another_shape_are_refused(artifact: Path, tmp_path: Path) -> None:
    save(tmp_path / "wider", make_model(width=16))
    data = (tmp_path / "wider" / SKILL_TENSORS).read_bytes()
    (artifact / SKILL_TENSORS).write_bytes(data)
    edit_card(artifact, sha256=hashlib.sha256(data).hexdigest())
    with pytest.raises(SpirlError, match=f"{SKILL_TENSORS} does not hold the tensors that its card describes"):
        load_skills(artifact)


@pytest.mark.parametrize("content", ['{"format_version": 1, "spec"', "", "\udc80"])
def test_a_card_that_is_no_json_is_refused(artifact: Path, content: str) -> None:
    (artifact / SKILL_CARD).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(SpirlError, match=f"{SKILL_CARD} is not valid JSON"):
        load_skills(artifact)


def test_a_card_that_is_no_object_is_refused(artifact: Path) -> None:
    (artifact / SKILL_CARD).write_text("[1]")
    with pytest.raises(SpirlError, match="must hold a JSON object"):
        read_json(artifact / SKILL_CARD)


@pytest.mark.parametrize("changes", [{"surprise": 1}, {"spec": {"decoder": "magic"}}, {"sha256": None}])
def test_a_card_with_wrong_fields_is_refused(artifact: Path, changes: dict[str, Any]) -> None:
    edit_card(artifact, **changes)
    with pytest.raises(SpirlError, match=rf"{SKILL_CARD} is not a skill card.*{next(iter(changes))}"):
        load_skills(artifact)


def test_a_card_with_impossible_dimensions_is_refused(artifact: Path) -> None:
    card = json.loads((artifact / SKILL_CARD).read_text())
    edit_card(artifact, spec={**card["spec"], "action_dim": -1})
    with pytest.raises(SpirlError, match="is not a skill card"):
        load_skills(artifact)


def test_a_write_that_fails_leaves_the_old_file_and_no_partial_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "card.json"
    write_atomically(file, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SpirlError, match=r"Cannot write .*card\.json: No space left on device"):
        write_atomically(file, b"new")
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]
