"""Stage 1 on Ray: workers read their shards, into memory or as streams, and train the skill model with Ray Train."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray.train
import ray.train.torch
import torch
from pyarrow.fs import LocalFileSystem
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from torch import Tensor

from spirl_ray import __version__
from spirl_ray.config import PretrainSettings
from spirl_ray.datasets.windows import Batch, step_bytes
from spirl_ray.episodes.dataset import dataset_files, episode_index, read_card
from spirl_ray.errors import SpirlError
from spirl_ray.files.attempts import Attempt
from spirl_ray.files.shared import require_seen, storage_problem
from spirl_ray.skills.artifact import save_skills
from spirl_ray.skills.augmentation import augmentation
from spirl_ray.skills.batches import MEGABYTE, Batches, PretrainJob, update_generator
from spirl_ray.skills.checkpoints import RUN, read_checkpoint, report, resume
from spirl_ray.skills.collectives import AveragedGradients, sum_over_workers
from spirl_ray.skills.decoders import NoiseCodec
from spirl_ray.skills.encoders import Observations
from spirl_ray.skills.model import SkillModel
from spirl_ray.skills.steering import error_removed, latent_measures, measures_of

_LISTEN_S = 0.5
_WINDOWS_AT_A_TIME = 128
"""The number of windows that are measured at once."""
Rows = dict[str, float]


def held_out(dataset: Path, fraction: float, seed: int) -> frozenset[str]:
    """The ids of the episodes that are held out for validation: a random share, at least one if the share is not 0."""
    ids = sorted(entry.id for entry in episode_index(dataset))
    if fraction == 0.0 or len(ids) < 2:
        return frozenset()
    count = min(len(ids) - 1, max(1, round(fraction * len(ids))))
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed)).tolist()
    return frozenset(ids[i] for i in order[:count])


def pretrain(
    job: PretrainJob,
    out: Path,
    *,
    in_memory: bool | None = None,
    on_row: Callable[[Rows], None] | None = None,
) -> dict[str, float]:
    """Trains skills and prior, and writes the skill artifact to ``out``.

    A killed worker is replaced and resumes from the last checkpoint; a killed driver resumes when it is called again
    with the same ``out``.

    Args:
        job: the skill model, its settings and its dataset.
        out: folder of the artifact; ``out/ray_train`` holds the checkpoints.
        in_memory: forces draining (True) or streaming (False) instead of choosing by size.
        on_row: called in the driver with each row of metrics.

    Returns:
        The final metrics.

    Raises:
        SpirlError: the data or the environment does not fit the settings.
    """
    if not hasattr(ray.train, "get_preemption_info"):
        raise SpirlError(
            "The first version of Ray Train has been imported, because RAY_TRAIN_V2_ENABLED was 0, and stage 1 needs "
            "the second. Unset that variable."
        )
    workers = job.settings.workers
    card = read_card(job.dataset)
    # Impossible settings raise here, because a worker that raises is restarted ``max_failures`` times.
    _check_shares(job)
    augmentation(job.settings.augmentation, job.position_target, job.spec.observed)
    model = SkillModel(job.spec)
    weights = model.load_pretrained()  # here, because other nodes need not have the files
    if in_memory is None:
        step = step_bytes(job.spec.observed, card.features, card.action_dim)
        in_memory = _largest_share(job) * step <= job.in_memory_limit_mb * MEGABYTE
    # On the driver's node, because the loss of another node must not end it.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    queue = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
    trainer = ray.train.torch.TorchTrainer(
        _train_worker,
        train_loop_config={
            "job": job,
            "in_memory": in_memory,
            "queue": queue,
            "weights": weights,
            "attempt": Attempt.begin(out),
        },
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=job.settings.use_gpu,
            resources_per_worker={"CPU": 1, **({"GPU": 1} if job.settings.use_gpu else {})},
        ),
        run_config=RunConfig(
            name=RUN,
            # With a file system, Ray Train takes the path as it is; alone, it would be read as a URI.
            storage_path=str(out.absolute()),
            storage_filesystem=LocalFileSystem(),
            failure_config=FailureConfig(max_failures=job.settings.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    )
    with _listening(queue, on_row):
        result = trainer.fit()
    assert result.checkpoint is not None
    state = read_checkpoint(result.checkpoint)
    model.load_state_dict(state["model"])
    metrics = dict(state["metrics"])
    save_skills(
        out,
        model,
        environment=card.environment,
        dataset_sha256=card.content_sha256,
        pretrain=job.settings.model_dump(mode="json"),
        seed=job.seed,
        metrics=metrics,
        package_version=__version__,
    )
    return metrics


def _train_worker(config: dict[str, Any]) -> None:
    """Runs one data-parallel worker, and says which node and folder it was where storage fails."""
    attempt: Attempt = config["attempt"]
    require_seen(attempt.folder)
    try:
        _train(**config)
    except OSError as error:  # without a file, where pyarrow raises it
        raise storage_problem(error, attempt.result) from error


def _train(job: PretrainJob, in_memory: bool, queue: Queue, weights: dict[str, Tensor], attempt: Attempt) -> None:
    """Resumes, reads or streams the shard, updates, validates, reports."""
    torch.set_num_threads(1)
    # Arrow's own allocator keeps several times what a table takes; this process is for training alone.
    pa.set_memory_pool(pa.system_memory_pool())
    settings, spec = job.settings, job.spec
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    batch_size = math.ceil(settings.batch_size / world)
    batches = Batches(job, _share(job.dataset, rank, world), batch_size, in_memory=in_memory)
    augment = augmentation(job.settings.augmentation, job.position_target, job.spec.observed)
    torch.manual_seed(job.seed)
    model = SkillModel(spec)
    model.load_state_dict(weights, strict=False)
    model.set_normalisation(*batches.statistics(device))
    model.to(device)
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not learned:  # a frozen policy: one update, which changes nothing, measures it
        settings = settings.model_copy(update={"updates": 1})
        learned = [torch.nn.Parameter(torch.zeros(1, device=device))]
        model.eval()
    optimizer = _optimizer(learned, settings)
    first, metrics = resume(model, optimizer, attempt.result)
    if metrics and rank == 0:
        # A driver that was killed with the last one may not have written this row.
        queue.put(metrics)
    gradients = AveragedGradients(learned)
    warned = False

    def inputs(update: int) -> tuple[Observations, Tensor, Tensor, tuple[Observations, Tensor] | None]:
        generator = update_generator(job.seed, update, rank)
        observations, actions = batches.draw(update, generator)
        perturbed = None
        if augment is not None:
            moved, relabelled = augment(observations, actions, generator)
            perturbed = (_to(moved, device), _sent(relabelled, device))
        noise = torch.randn(batch_size, model.noise_dim, generator=generator)
        return _to(observations, device), _sent(actions, device), _sent(noise, device), perturbed

    started, windows = time.perf_counter(), 0
    upcoming = inputs(first) if first < settings.updates else None
    for update in range(first, settings.updates):
        assert upcoming is not None
        with autocast(device, settings.precision):
            losses = model(*upcoming)
        gradients.clear()
        if losses["loss"].requires_grad:
            losses["loss"].backward()
        gradients.start()
        if update + 1 < settings.updates:
            upcoming = inputs(update + 1)  # while the gradients travel
        gradients.wait()
        if update < settings.warmup_updates:
            torch.nn.utils.clip_grad_norm_(learned, settings.warmup_clip)
        _set_rate(optimizer, settings, update)
        optimizer.step()
        windows += batch_size * world
        done = update + 1
        if done % settings.log_every == 0 or done == settings.updates:
            metrics = {"update": float(done), **{f"train_{k}": float(v.detach()) for k, v in losses.items()}}
            if not math.isfinite(metrics["train_loss"]):
                raise SpirlError(f"The loss stopped being finite at update {done}: lower pretrain.learning_rate.")
            metrics |= _validate(model, batches.held, device)
            metrics["windows_per_s"] = windows / (time.perf_counter() - started)
            if done == settings.updates:
                metrics |= _steering(model, batches, device)
            if rank == 0:
                queue.put(metrics)
        # One of our nodes is about to be taken away, so one more checkpoint is written. All workers get the same
        # notice.
        notice = done % settings.log_every == 0 and not warned and ray.train.get_preemption_info() is not None
        warned = warned or notice
        if done % settings.checkpoint_every == 0 or done == settings.updates or notice:
            report(model, optimizer, done, metrics, attempt if rank == 0 else None)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context in which matrix products have a precision, ``float32`` or ``bfloat16``; parameters stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def _to(observations: Observations, device: torch.device) -> Observations:
    return {name: _sent(value, device) for name, value in observations.items()}


def _sent(values: Tensor, device: torch.device) -> Tensor:
    """The values on the device; a copy to a GPU is made from pinned memory, beside what the GPU computes."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


def _share(dataset: str, rank: int, world: int) -> list[str]:
    """The files that a worker reads."""
    return dataset_files(dataset)[rank::world]


def _largest_share(job: PretrainJob) -> int:
    """The number of steps that the training worker with most of them has."""
    workers, steps = job.settings.workers, Counter[str]()
    for entry in episode_index(job.dataset):
        steps[entry.file] += entry.length
    return max(sum(steps[file] for file in _share(job.dataset, rank, workers)) for rank in range(workers))


def _check_shares(job: PretrainJob) -> None:
    """Raises `SpirlError` unless every worker has a window to train on."""
    workers, files = job.settings.workers, dataset_files(job.dataset)
    if workers > len(files):
        raise SpirlError(
            f"{workers} training workers need at least as many data files; {job.dataset} has {len(files)}. "
            "Set data.shards higher and import again, or lower pretrain.workers."
        )
    training = [entry for entry in episode_index(job.dataset) if entry.id not in job.validation]
    used = {entry.file for entry in training if entry.length >= job.spec.horizon}
    if not used:
        raise SpirlError(
            f"No episode of {job.dataset} is {job.spec.horizon} steps long, which is one skill (the longest has "
            f"{max((entry.length for entry in training), default=0)}). Lower skills.horizon, or import longer episodes."
        )
    for rank in range(workers):
        if used.isdisjoint(_share(job.dataset, rank, workers)):
            raise SpirlError(
                f"Training worker {rank + 1} of {workers} would have no episode of {job.spec.horizon} steps or more: "
                f"{job.dataset} has too few for so many workers. Lower pretrain.workers or data.validation_fraction."
            )


def _optimizer(learned: list[torch.nn.Parameter], settings: PretrainSettings) -> torch.optim.Optimizer:
    kind = torch.optim.RAdam if settings.optimizer == "radam" else torch.optim.Adam
    return kind(learned, lr=settings.learning_rate)


def _set_rate(optimizer: torch.optim.Optimizer, settings: PretrainSettings, update: int) -> None:
    rate = settings.learning_rate
    if settings.cosine_decay:
        rate *= 0.5 * (1.0 + math.cos(math.pi * update / settings.updates))
    for group in optimizer.param_groups:
        group["lr"] = rate


@torch.no_grad()
def _validate(model: SkillModel, held: Batch | None, device: torch.device) -> dict[str, float]:
    """The mean losses over the held-out windows of all workers, with the posterior's mean, or with the same noise each
    time where the latent is noise."""
    names = ("loss", "reconstruction", "kl", "prior")
    drawn = torch.zeros(_WINDOWS_AT_A_TIME, model.noise_dim)
    if isinstance(model.codec, NoiseCodec):
        drawn.normal_(generator=torch.Generator().manual_seed(0))
    drawn = drawn.to(device)

    def losses(observations: Observations, actions: Tensor) -> dict[str, Tensor]:
        return model(observations, actions, drawn[: len(actions)])

    with _evaluating(model):
        found = _mean_over_workers(held, losses, names, device)
    return {f"validation_{name}": value for name, value in found.items()}


def _steering(model: SkillModel, batches: Batches, device: torch.device) -> dict[str, float]:
    """What latents decide (`latent_measures`), on held-out windows, or on a batch of each worker if there are none."""
    names = measures_of(model)
    torch.manual_seed(batches.job.seed)  # nothing else is drawn after the last update

    def measures(observations: Observations, actions: Tensor) -> dict[str, Tensor]:
        return latent_measures(model, observations, actions)

    with _evaluating(model):
        found = _mean_over_workers(batches.held, measures, names, device)
        if not found:
            drawn = batches.draw(batches.job.settings.updates, torch.Generator().manual_seed(batches.job.seed))
            found = _mean_over_workers(drawn, measures, names, device)
    if "error_posterior" in found:
        found["error_removed"] = error_removed(found)
    return found


@contextlib.contextmanager
def _evaluating(model: SkillModel) -> Iterator[None]:
    """Keeps a model in evaluation mode, in which nothing of a user's network moves either."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _mean_over_workers(
    window: Batch | None,
    measure: Callable[[Observations, Tensor], dict[str, Tensor]],
    names: tuple[str, ...],
    device: torch.device,
) -> dict[str, float]:
    """The means of these measures over the windows of all workers; empty where no worker has any."""
    sums = torch.zeros(1 + len(names))
    observations, actions = window if window is not None else ({}, torch.empty(0))
    # Not all at once, because the activations of a network for images take far more memory than the images.
    for first in range(0, len(actions), _WINDOWS_AT_A_TIME):
        some = slice(first, first + _WINDOWS_AT_A_TIME)
        acted = actions[some].to(device)
        found = measure(_to({name: value[some] for name, value in observations.items()}, device), acted)
        sums += len(acted) * torch.stack([torch.ones(()), *(found[name].cpu() for name in names)])
    total = sum_over_workers(sums, device)
    if total[0] == 0:
        return {}
    return {name: float(total[1 + i] / total[0]) for i, name in enumerate(names)}


@contextlib.contextmanager
def _listening(queue: Queue, on_row: Callable[[Rows], None] | None) -> Iterator[None]:
    """Passes the workers' metrics to ``on_row`` while the trainer runs; an error that it raises is raised again at the
    end."""
    finished = threading.Event()
    errors: list[Exception] = []

    def drain() -> None:
        last = False
        while not last and ray.is_initialized():
            last = finished.wait(_LISTEN_S)
            for row in _waiting_rows(queue):
                if on_row is not None and not errors:
                    try:
                        on_row(row)
                    except Exception as error:
                        errors.append(error)

    thread = threading.Thread(target=drain, daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join(timeout=60.0)
        queue.shutdown(force=True)
    if errors:
        raise errors[0]


def _waiting_rows(queue: Queue) -> Iterator[Rows]:
    """The rows that are in the queue now; none where it, or Ray, has ended meanwhile, as after Ctrl-C."""
    with contextlib.suppress(Exception):
        for _ in range(queue.qsize()):  # asking an empty queue is a failed task in the dashboard
            yield queue.get_nowait()
