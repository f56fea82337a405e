"""Any folder name works for the output of stage 1: Ray reads some names as columns, URIs or patterns."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from opened import generated

from spirl_ray.config import PretrainSettings, SkillSettings
from spirl_ray.datasets.importing import import_dataset
from spirl_ray.datasets.shard import Shard
from spirl_ray.envs import environment
from spirl_ray.episodes.dataset import dataset_files, episode_index, read_card
from spirl_ray.rl.methods import skill_spec
from spirl_ray.skills.artifact import read_skill_card
from spirl_ray.skills.batches import PretrainJob
from spirl_ray.skills.pretrain import pretrain

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]

PADS = "spirl/PointPads-v0"
NAMES = [
    "lr=0.1",
    "episode_id=7",
    "a?b",
    "a#b",
    "a b",
    "a%41b",
    "%zz",
    "a:b",
    "s3:",
    "a\\b",
    "*",
    "[ab]",
    "{a,b}",
    "ünï 漢字",
    "~",
    ".hidden",
    "_private",
    "a;b&c",
    "'q\"",
    "x.parquet",
]


def test_stage_1_reads_from_folders_of_any_name(tmp_path: Path) -> None:
    """One read for all names; each file holds another episode."""
    import_dataset(generated(PADS, len(NAMES)), tmp_path / "data", environment=PADS, shards=len(NAMES))
    files = []
    for name, file in zip(NAMES, dataset_files(tmp_path / "data"), strict=True):
        (tmp_path / name).mkdir()
        files.append(shutil.copy(file, tmp_path / name / "episodes.parquet"))
    card = read_card(tmp_path / "data")
    shard = Shard.of(card, [str(file) for file in files], ())
    ids = [entry.id for entry in episode_index(tmp_path / "data")]
    assert sorted(episode.id for episode in shard.read(shard.training, card.features)) == sorted(ids)


def test_data_and_skills_can_be_in_folders_of_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "lr=0.1 a?b#c%41" / "{ü}*[x]:y"
    temporary = tmp_path / "tmp #?%41"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    import_dataset(generated(PADS, 4), folder / "data", environment=PADS, shards=2)
    spec = environment(PADS)
    small = SkillSettings(horizon=5, latent_dim=2, width=8, decoder_layers=1, prior_layers=1)
    job = PretrainJob(
        dataset=str(folder / "data"),
        spec=skill_spec(small, "spirl_cl", spec.features, spec.action_dim),
        settings=PretrainSettings(updates=4, batch_size=8, log_every=2, checkpoint_every=2),
        seed=0,
        validation=frozenset(),
        in_memory_limit_mb=100.0,
    )
    pretrain(job, folder / "skills")
    assert read_skill_card(folder / "skills").seed == 0
