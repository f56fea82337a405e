"""Stage 1 on Ray: in memory and streamed, with one worker and two, unbroken and resumed."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray.train
import torch
from ray import cloudpickle
from ray.train import TrainingFailedError
from ray.util.queue import Queue
from skills.pads_job import HORIZON, PADS, UPDATES, make_job

from spirl_ray.datasets.windows import Batch
from spirl_ray.envs import environment
from spirl_ray.episodes.dataset import dataset_files, episode_index, read_card, read_episodes
from spirl_ray.errors import SpirlError
from spirl_ray.files.attempts import Attempt
from spirl_ray.metrics import deciding_metrics
from spirl_ray.skills import pretrain as pretrain_module
from spirl_ray.skills.artifact import load_skills, read_skill_card
from spirl_ray.skills.batches import Batches, PretrainJob
from spirl_ray.skills.listening import listening
from spirl_ray.skills.pretrain import pretrain

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]

LOST_AT = 12

# Ray's workers cannot import this file.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


def observed_worker(log: Path, lose_at: int | None, config: dict[str, Any]) -> None:
    """The training worker itself; it notes updates and streamed passes, and may be killed at an update, once."""

    def note(text: str) -> None:
        with log.open("a") as file:
            file.write(text + "\n")

    from spirl_ray.skills import batches, pretrain

    numbers, stream = pretrain.update_generator, batches.Batches._stream_from

    def noted_numbers(seed: int, update: int, rank: int) -> torch.Generator:
        lost = log.with_suffix(".lost")
        if update == lose_at and not lost.exists():
            lost.touch()  # at once, before Ray Train has noted the last checkpoint
            os.kill(os.getpid(), signal.SIGKILL)
        note(f"update {update} {rank}")
        return numbers(seed, update, rank)

    def noted_stream(own: Batches, update: int) -> Iterator[Batch]:
        note(f"stream {update}")
        return stream(own, update)

    pretrain.update_generator = noted_numbers
    batches.Batches._stream_from = noted_stream  # type: ignore[method-assign]
    try:
        pretrain._train_worker(config)
    finally:
        pretrain.update_generator = numbers
        batches.Batches._stream_from = stream  # type: ignore[method-assign]


@pytest.fixture
def observe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Calls ``observe(lose_at)`` before `pretrain` to have a log of what its workers do."""
    log = tmp_path / "workers.log"

    def start(lose_at: int | None = None) -> Path:
        monkeypatch.setattr(pretrain_module, "_train_worker", partial(observed_worker, log, lose_at))
        return log

    return start


def updates_in(log: Path, rank: int = 0) -> list[int]:
    words = [line.split() for line in log.read_text().splitlines()]
    return [int(line[1]) for line in words if line[0] == "update" and int(line[2]) == rank]


def same_tensors(one: Path, other: Path) -> bool:
    first, second = load_skills(one).state_dict(), load_skills(other).state_dict()
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def unbroken(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, float]]]:
    """One worker from start to end: the artifact's folder and the rows that it reported."""
    out, rows = tmp_path_factory.mktemp("unbroken"), []
    handler = signal.getsignal(signal.SIGINT)
    pretrain(make_job(dataset), out, on_row=rows.append)
    assert signal.getsignal(signal.SIGINT) is handler  # Ctrl-C stays with the caller
    return out, rows


def training_values(job: PretrainJob, feature: str) -> np.ndarray:
    kept = [episode for episode in read_episodes(job.dataset) if episode.id not in job.validation]
    return np.concatenate([episode.observations[feature][:-1] for episode in kept]).astype(np.float64)


def check_normalisation(out: Path, job: PretrainJob) -> None:
    model = load_skills(out)
    for name in environment(PADS).features:
        values = training_values(job, name)
        np.testing.assert_allclose(model.statistics.mean[name], values.mean(0), atol=1e-6)
        np.testing.assert_allclose(model.statistics.std[name], np.maximum(values.std(0), 0.05), atol=1e-6)
    encoder = model.observation_encoder.encoder("lamps")
    assert torch.equal(encoder.mean, model.statistics.mean["lamps"])  # type: ignore[arg-type]


# --- whole runs ---


def test_one_worker_leaves_an_artifact_and_reports_on_the_way(
    dataset: Path, unbroken: tuple[Path, list[dict[str, float]]]
) -> None:
    out, rows = unbroken
    card = read_skill_card(out)
    assert (card.environment, card.seed) == (PADS, 3)
    assert card.dataset_sha256 == read_card(dataset).content_sha256
    assert card.pretrain["augmentation"]["kind"] == "target_preserving"
    # A set: on a machine so busy that Ray gives a worker up, its replacement repeats rows.
    assert sorted({row["update"] for row in rows}) == [5.0, 10.0, 15.0, 20.0]
    assert card.metrics == rows[-1]
    assert np.isfinite([row["validation_loss"] for row in rows]).all()
    deciding = {row.name for row in deciding_metrics("pretrain")}
    assert deciding <= rows[-1].keys()
    assert deciding.isdisjoint(rows[0])
    assert card.metrics["error_removed"] == pytest.approx(
        1.0 - card.metrics["error_posterior"] / card.metrics["error_prior_mean"]
    )
    # Held-out windows with the posterior's mean: half of the squared error is the reconstruction loss.
    assert card.metrics["error_posterior"] == pytest.approx(2.0 * card.metrics["validation_reconstruction"], rel=1e-4)
    check_normalisation(out, make_job(dataset))


def test_a_lost_worker_is_replaced_and_the_result_is_that_of_an_unbroken_run(
    dataset: Path, unbroken: tuple[Path, Any], observe: Any, tmp_path: Path
) -> None:
    log = observe(lose_at=LOST_AT)
    pretrain(make_job(dataset, max_failures=1), tmp_path / "out")
    assert updates_in(log) == [*range(LOST_AT), *range(10, UPDATES)]
    assert "stream" not in log.read_text()  # within the limit nothing is streamed
    assert same_tensors(tmp_path / "out", unbroken[0])


def test_a_run_that_broke_off_goes_on_when_called_again_and_a_finished_one_has_nothing_to_do(
    dataset: Path, unbroken: tuple[Path, Any], observe: Any, tmp_path: Path
) -> None:
    log, job, out = observe(lose_at=LOST_AT), make_job(dataset, max_failures=0), tmp_path / "out"
    with pytest.raises(TrainingFailedError):
        pretrain(job, out)
    assert not (out / "skill.json").exists()
    log.unlink()
    pretrain(job, out)
    assert updates_in(log) == [*range(10, UPDATES)]
    assert same_tensors(out, unbroken[0])
    log.unlink()
    metrics = pretrain(job, out)
    assert not log.exists()
    assert metrics["update"] == UPDATES
    assert same_tensors(out, unbroken[0])


def test_two_workers_train_one_model_on_all_of_the_data(dataset: Path, observe: Any, tmp_path: Path) -> None:
    job, log = make_job(dataset, workers=2), observe()
    metrics = pretrain(job, tmp_path / "out")
    assert updates_in(log, rank=0) == updates_in(log, rank=1) == [*range(UPDATES)]
    assert np.isfinite(list(metrics.values())).all()
    check_normalisation(tmp_path / "out", job)


def test_what_latents_decide_is_measured_on_the_training_data_where_nothing_is_held_out(
    dataset: Path, tmp_path: Path
) -> None:
    metrics = pretrain(make_job(dataset, held=0, workers=2, updates=2), tmp_path / "out")
    assert {row.name for row in deciding_metrics("pretrain")} <= metrics.keys()
    assert metrics["latent_nats"] > 0.0
    assert "validation_loss" not in metrics


def overtaken_worker(out: Path, config: dict[str, Any]) -> None:
    Attempt.begin(out)
    pretrain_module._train_worker(config)


def test_an_overlapping_attempt_takes_over_and_the_older_one_saves_nothing_more(
    dataset: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr(pretrain_module, "_train_worker", partial(overtaken_worker, out))
    with pytest.raises(TrainingFailedError, match="attempt 2 at this result has begun"):
        pretrain(make_job(dataset, max_failures=0), out)
    assert not list(out.glob("ray_train/checkpoint_*/*"))
    assert not (out / "skill.json").exists()


def warned_worker(log: Path, config: dict[str, Any]) -> None:
    """A worker that is told of its node's end, and notes when it saves."""
    from spirl_ray.skills import pretrain

    report = pretrain.report

    def noted(model: Any, optimizer: Any, update: int, *rest: Any) -> None:
        with log.open("a") as file:
            file.write(f"{update}\n")
        report(model, optimizer, update, *rest)

    pretrain.report = noted
    ray.train.get_preemption_info = lambda: object()
    try:
        pretrain._train_worker(config)
    finally:
        pretrain.report = report


def test_a_notice_of_preemption_leads_to_one_checkpoint_more(
    dataset: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    log = tmp_path / "saved"
    monkeypatch.setattr(pretrain_module, "_train_worker", partial(warned_worker, log))
    pretrain(make_job(dataset, checkpoint_every=UPDATES), tmp_path / "out")
    assert log.read_text().split() == ["5", str(UPDATES)]


def test_data_beyond_the_limit_is_streamed(dataset: Path, observe: Any, tmp_path: Path) -> None:
    job, log = make_job(dataset, limit_mb=0.01, batch_size=128), observe()
    metrics = pretrain(job, tmp_path / "out")
    assert [line for line in log.read_text().splitlines() if line.startswith("stream")] == ["stream 0"]
    assert np.isfinite(list(metrics.values())).all()
    check_normalisation(tmp_path / "out", job)


def test_what_the_listener_raises_is_not_lost() -> None:
    heard: list[float] = []

    def full(row: dict[str, float]) -> None:
        heard.append(row["update"])
        raise SpirlError("Cannot write metrics.csv: No space left on device.")

    queue = Queue(actor_options={"num_cpus": 0})
    with pytest.raises(SpirlError, match="No space left"), listening(queue, full):
        queue.put_nowait_batch([{"update": 1.0}, {"update": 2.0}])
    assert heard == [1.0]


# --- requests that cannot work, said before a worker starts ---


def refusal(job: PretrainJob, out: Path) -> str:
    with pytest.raises(SpirlError) as caught:
        pretrain(job, out)
    assert not out.exists()
    return str(caught.value)


def test_more_workers_than_files_are_refused(dataset: Path, tmp_path: Path) -> None:
    message = refusal(make_job(dataset, workers=4), tmp_path / "out")
    assert "4 training workers need at least as many data files" in message
    assert "has 3. Lower pretrain.workers; or set data.shards to 4" in message


def test_a_horizon_beyond_all_episodes_is_refused(dataset: Path, tmp_path: Path) -> None:
    longest = max(entry.length for entry in episode_index(dataset))
    message = refusal(make_job(dataset, horizon=longest + 1, held=0), tmp_path / "out")
    assert f"is {longest + 1} steps long" in message
    assert f"the longest has {longest}). Lower skills.horizon" in message


def test_a_worker_without_a_window_is_refused(dataset: Path, tmp_path: Path) -> None:
    job = make_job(dataset, workers=3)
    second = dataset_files(dataset)[1]
    held = frozenset(entry.id for entry in episode_index(dataset) if entry.file == second)
    message = refusal(dataclasses.replace(job, validation=held), tmp_path / "out")
    assert f"Training worker 2 of 3 would have no episode of {HORIZON} steps" in message


def test_augmentation_without_a_position_target_is_refused(dataset: Path, tmp_path: Path) -> None:
    message = refusal(dataclasses.replace(make_job(dataset), position_target=None), tmp_path / "out")
    assert "pretrain.augmentation.kind: target_preserving" in message
    assert "interface.position_target, or use none" in message
