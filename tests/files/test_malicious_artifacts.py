"""A corpus of artifacts and datasets made to harm: each is refused in words, and none of them gets to run anything."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from toy_skills import STATE, save_toy_policy, save_toy_skills, toy_model

from spirl_ray.episodes.dataset import dataset_files, read_card, read_episodes
from spirl_ray.episodes.table import episodes_to_table
from spirl_ray.errors import SpirlError
from spirl_ray.policy.policy import load_policy
from spirl_ray.skills.artifact import load_skills

ENVIRONMENT = "spirl/PointPads-v0"


@pytest.fixture
def trap(tmp_path: Path) -> Iterator[Path]:
    """A folder that exists once something of an artifact has run."""
    sprung = tmp_path / "sprung"
    yield sprung
    assert not sprung.exists()


@pytest.fixture
def skills(tmp_path: Path) -> Path:
    model = toy_model(horizon=3, latent_dim=2, width=8, decoder_layers=1, prior_layers=1)
    return save_toy_skills(tmp_path / "skills", model, ENVIRONMENT)


@pytest.fixture
def policy(tmp_path: Path, skills: Path) -> Path:
    return save_toy_policy(tmp_path / "policy", skills, STATE)


class Bomb:
    """Unpickling it makes the folder of the trap."""

    def __init__(self, trap: Path) -> None:
        self.trap = trap

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trap),)


def edit(card: Path, **changes: Any) -> None:
    card.write_text(json.dumps({**json.loads(card.read_text()), **changes}))


def put(folder: Path, kind: str, data: bytes) -> None:
    """Replaces the tensors, and says their right hash in the card: whoever changes one can change the other."""
    (folder / f"{kind}.safetensors").write_bytes(data)
    edit(folder / f"{'skill' if kind == 'skills' else kind}.json", sha256=hashlib.sha256(data).hexdigest())


def padded(data: bytes) -> bytes:
    """As long as real tensors, so that it is not its length that gives it away."""
    return data + b"\0" * 20_000


def pickled(trap: Path) -> bytes:
    return padded(pickle.dumps(Bomb(trap)))


def torch_archive(trap: Path, folder: Path) -> bytes:
    torch.save({"weight": Bomb(trap)}, folder / "archive")
    return padded((folder / "archive").read_bytes())


def header(length: int, text: bytes = b"{}") -> bytes:
    return padded(struct.pack("<Q", length) + text)


def tensors_outside() -> bytes:
    """A header whose tensor lies beyond the file's end."""
    text = json.dumps({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    return header(len(text), text)


Attack = Callable[[Path, Path], None]
TENSOR_ATTACKS: dict[str, tuple[Callable[[Path, Path], bytes], str]] = {
    "pickle": (lambda folder, trap: pickled(trap), "does not hold the tensors"),
    "torch archive": (lambda folder, trap: torch_archive(trap, folder), "does not hold the tensors"),
    "header as long as the address space": (lambda folder, trap: header(2**63 - 1), "does not hold the tensors"),
    "header longer than the file": (lambda folder, trap: header(10**6), "does not hold the tensors"),
    "header that is a bomb of brackets": (lambda folder, trap: header(10_000, b"[" * 10_000), "does not hold"),
    "tensor beyond the file's end": (lambda folder, trap: tensors_outside(), "does not hold the tensors"),
    "nothing": (lambda folder, trap: b"", "does not hold the tensors"),
    "far too much": (lambda folder, trap: b"\0" * 3_000_000, "such a file has at most"),
}


@pytest.mark.parametrize("attack", TENSOR_ATTACKS)
def test_files_in_place_of_tensors_are_refused(skills: Path, policy: Path, trap: Path, attack: str) -> None:
    make, message = TENSOR_ATTACKS[attack]
    put(skills, "skills", make(skills, trap))
    with pytest.raises(SpirlError, match=rf"skills\.safetensors.* {message}"):
        load_skills(skills)
    put(policy, "policy", make(policy, trap))
    with pytest.raises(SpirlError, match=rf"policy\.safetensors.* {message}"):
        load_policy(policy)


def test_tensors_with_another_hash_are_refused(skills: Path, policy: Path) -> None:
    for folder, kind, load in ((skills, "skills", load_skills), (policy, "policy", load_policy)):
        file = folder / f"{kind}.safetensors"
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
        with pytest.raises(SpirlError, match=r"does not match the SHA-256"):
            load(folder)


def link_elsewhere(file: Path) -> None:
    target = file.with_name(f"kept-{file.name}")
    file.rename(target)
    file.symlink_to(target)


@pytest.mark.parametrize("name", ["skill.json", "skills.safetensors"])
def test_links_in_a_skill_artifact_are_not_followed(skills: Path, name: str) -> None:
    link_elsewhere(skills / name)
    with pytest.raises(SpirlError, match=rf"{name} is a symbolic link"):
        load_skills(skills)


@pytest.mark.parametrize("name", ["policy.json", "policy.safetensors"])
def test_links_in_a_policy_artifact_are_not_followed(policy: Path, name: str) -> None:
    link_elsewhere(policy / name)
    with pytest.raises(SpirlError, match=rf"{name} is a symbolic link"):
        load_policy(policy)


def test_an_endless_device_or_pipe_is_not_read(skills: Path) -> None:
    (skills / "skill.json").unlink()
    (skills / "skill.json").symlink_to("/dev/zero")
    with pytest.raises(SpirlError, match="symbolic link"):
        load_skills(skills)
    (skills / "skill.json").unlink()
    os.mkfifo(skills / "skill.json")
    with pytest.raises(SpirlError, match="not a plain file"):
        load_skills(skills)


@pytest.mark.parametrize("path", ["../skills", "/etc", "skills/../../skills", "elsewhere"])
def test_a_policy_that_points_outside_its_folder_is_refused(policy: Path, skills: Path, path: str) -> None:
    (policy / "elsewhere").symlink_to(skills)
    edit(policy / "policy.json", skills=path)
    with pytest.raises(SpirlError, match="outside"):
        load_policy(policy)


CARDS: dict[str, tuple[bytes, str]] = {
    "deep": (b'{"format_version":' + b"[" * 200_000, "not valid JSON"),
    "long": (b'{"a": "' + b"x" * (17 * 2**20) + b'"}', "such a file has at most"),
    "number with a million digits": (b'{"format_version": ' + b"9" * 1_000_000 + b"}", "not valid JSON"),
    "pickle": (pickle.dumps({"format_version": 1}), "not valid JSON"),
    "list": (b"[]", "must hold a JSON object"),
}


@pytest.mark.parametrize("card", CARDS)
def test_cards_that_are_none_are_refused(skills: Path, policy: Path, dataset: Path, card: str) -> None:
    data, message = CARDS[card]
    loads: list[tuple[Path, Callable[[Path], Any]]] = [
        (skills / "skill.json", load_skills),
        (policy / "policy.json", load_policy),
        (dataset / "card.json", read_card),
    ]
    for file, load in loads:
        file.write_bytes(data)
        with pytest.raises(SpirlError, match=rf"{file.name} .*{message}"):
            load(file.parent)


@pytest.mark.parametrize(
    "changes",
    [
        {"data_features": {"state": {"shape": [2**40]}}},
        {"data_features": {"state": {"shape": [2**62, 2**62]}}, "action_dim": 2**62},
        {"data_features": {"state": {"shape": [2**20, 2**20, 3], "role": "image", "frames": 2**40}}},
        {"latent_dim": 10**15},
        {"settings": {"width": 2**31}},
    ],
)
def test_a_card_of_a_giant_takes_no_memory(skills: Path, changes: dict[str, Any]) -> None:
    spec = json.loads((skills / "skill.json").read_text())["spec"]
    settings = {**spec["settings"], **changes.pop("settings", {})}
    edit(skills / "skill.json", spec={**spec, **changes, "settings": settings})
    with pytest.raises(SpirlError, match=r"that its card describes|describes an impossible model|settings\.width"):
        load_skills(skills)


def test_a_policy_card_of_a_giant_takes_no_memory(policy: Path) -> None:
    spec = json.loads((policy / "policy.json").read_text())["policy"]
    edit(policy / "policy.json", policy={**spec, "features": {"state": {"shape": [2**40]}}})
    with pytest.raises(SpirlError, match=r"that its card describes|describes an impossible model|settings\.width"):
        load_policy(policy)


def test_a_policy_that_wants_images_that_its_skills_do_not_observe_is_refused(policy: Path) -> None:
    spec = json.loads((policy / "policy.json").read_text())["policy"]
    features = {**spec["features"], "camera": {"shape": [8, 8, 1], "role": "image"}}
    edit(policy / "policy.json", policy={**spec, "features": features})
    with pytest.raises(SpirlError, match=r"policy\.json: .*'camera'"):
        load_policy(policy)


def test_a_card_of_endless_layers_is_refused(skills: Path) -> None:
    spec = json.loads((skills / "skill.json").read_text())["spec"]
    edit(skills / "skill.json", spec={**spec, "settings": {**spec["settings"], "prior_layers": 10**9}})
    with pytest.raises(SpirlError, match=r"not a skill card: spec\.settings\.prior_layers"):
        load_skills(skills)


# --- datasets ---


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    folder = tmp_path / "dataset"
    folder.mkdir()
    write_table(folder, episodes_to_table([], STATE, 2))
    return folder


def test_a_class_that_a_card_names_is_not_imported(
    skills: Path, trap: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sprung_module.py").write_text(f"import os\nos.mkdir({str(trap)!r})\n")
    monkeypatch.syspath_prepend(tmp_path)
    spec = json.loads((skills / "skill.json").read_text())["spec"]
    spec |= {"decoder": "own", "settings": {**spec["settings"], "decoder_options": {"codec": "sprung_module:Codec"}}}
    edit(skills / "skill.json", spec=spec)
    with pytest.raises(SpirlError, match="SPIRL_TRUSTED_CODECS=sprung_module:Codec"):
        load_skills(skills)


def write_table(folder: Path, table: pa.Table) -> None:
    file = folder / "episodes.parquet"
    pq.write_table(table, file)
    data = file.read_bytes()
    entry = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data), "rows": table.num_rows}
    card = {
        "format_version": 2,
        "environment": ENVIRONMENT,
        "features": {name: feature.model_dump(mode="json") for name, feature in STATE.items()},
        "action_dim": 2,
        "episodes": 0,
        "steps": 0,
        "source": "somebody",
        "licence": "none",
        "attribution": "",
        "content_sha256": "",
        "files": {file.name: entry},
        "created_by": "somebody",
    }
    (folder / "card.json").write_text(json.dumps(card))


@pytest.mark.parametrize("name", ["../skills/skill.json", "/etc/passwd", ".hidden", "a/b.parquet", ".."])
def test_names_in_a_dataset_card_cannot_leave_the_folder(dataset: Path, name: str) -> None:
    edit(dataset / "card.json", files={name: {"sha256": "", "bytes": 0, "rows": 0}})
    with pytest.raises(SpirlError, match="is not a plain file name"):
        dataset_files(dataset)


@pytest.mark.parametrize("name", ["card.json", "episodes.parquet"])
def test_links_in_a_dataset_are_not_followed(dataset: Path, name: str) -> None:
    link_elsewhere(dataset / name)
    with pytest.raises(SpirlError, match=rf"{name}:? is a symbolic link"):
        list(read_episodes(dataset))


@pytest.mark.parametrize("kind", ["pickle", "zip"])
def test_other_formats_in_place_of_parquet_are_refused(dataset: Path, trap: Path, kind: str) -> None:
    file = dataset / "episodes.parquet"
    if kind == "pickle":
        file.write_bytes(pickled(trap))
    else:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("../../escaped", "x")
    with pytest.raises(SpirlError, match=r"episodes\.parquet: not readable as Parquet"):
        list(read_episodes(dataset))


def test_a_column_of_pickles_is_refused_before_it_is_read(dataset: Path, trap: Path) -> None:
    """Ray Data registers an Arrow type whose values are unpickled when they are looked at."""
    table = episodes_to_table([], STATE, 2)
    field = pa.field(
        "bonus",
        pa.large_binary(),
        metadata={"ARROW:extension:name": "ray.data.arrow_pickled_object", "ARROW:extension:metadata": ""},
    )
    write_table(dataset, table.append_column(field, pa.array([], pa.large_binary())))
    with pytest.raises(SpirlError, match="column 'bonus' does not belong"):
        list(read_episodes(dataset))
