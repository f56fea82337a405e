"""Stage 1 on Ray: workers read their shards, into memory or as streams, and train the skill model with Ray Train."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
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
from spirl_ray.skills.batches import MEGABYTE, Batches, PretrainJob, on_device, sent, update_generator
from spirl_ray.skills.checkpoints import RUN, read_checkpoint, report, resume
from spirl_ray.skills.collectives import AveragedGradients
from spirl_ray.skills.encoders import Observations
from spirl_ray.skills.listening import Row, listening
from spirl_ray.skills.measuring import validation_losses, what_latents_decide
from spirl_ray.skills.model import SkillModel


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
    on_row: Callable[[Row], None] | None = None,
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
    trainer = _Trainer(
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
    with listening(queue, on_row):
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


class _Trainer(ray.train.torch.TorchTrainer):
    """Ray's trainer, which leaves Ctrl-C to this program, and so can run in the main thread. In a thread of its own,
    one that still waits would end the process with status 1 once Ray has been shut down."""

    def _register_sigint_handler(self, controller: Any) -> None:
        """Registers none, because Ray's own handler ends the process, and stays when the training is over."""


def _train_worker(config: dict[str, Any]) -> None:
    """Runs one data-parallel worker, and says which node and folder it was where storage fails."""
    attempt: Attempt = config["attempt"]
    require_seen(attempt.folder)
    try:
        _Worker(config["job"], config["in_memory"], config["weights"], attempt).train(config["queue"])
    except OSError as error:  # without a file, where pyarrow raises it
        raise storage_problem(error, attempt.result) from error


class _Worker:
    """One data-parallel worker: its share of the data, its copy of the model, and what trains it, resumed from the last
    checkpoint."""

    def __init__(self, job: PretrainJob, in_memory: bool, weights: dict[str, Tensor], attempt: Attempt) -> None:
        torch.set_num_threads(1)
        # Arrow's own allocator keeps several times what a table takes; this process is for training alone.
        pa.set_memory_pool(pa.system_memory_pool())
        context = ray.train.get_context()
        self.job, self.settings, self.attempt = job, job.settings, attempt
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()
        self.batch_size = math.ceil(job.settings.batch_size / self.world)
        self.batches = Batches(job, _share(job.dataset, self.rank, self.world), self.batch_size, in_memory=in_memory)
        self.augment = augmentation(job.settings.augmentation, job.position_target, job.spec.observed)
        torch.manual_seed(job.seed)
        self.model = SkillModel(job.spec)
        self.model.load_state_dict(weights, strict=False)
        self.model.set_normalisation(*self.batches.statistics(self.device))
        self.model.to(self.device)
        self.learned = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        if not self.learned:  # a frozen policy: one update, which changes nothing, measures it
            self.settings = job.settings.model_copy(update={"updates": 1})
            self.learned = [torch.nn.Parameter(torch.zeros(1, device=self.device))]
            self.model.eval()
        self.optimizer = _optimizer(self.learned, self.settings)
        self.first, self.metrics = resume(self.model, self.optimizer, attempt.result)
        self.gradients = AveragedGradients(self.learned)
        self.warned = False
        self.started = time.perf_counter()

    def train(self, queue: Queue) -> None:
        """Makes the updates that are left, and puts rows of metrics into the queue."""
        settings, last = self.settings, self.settings.updates
        if self.metrics and self.rank == 0:
            # A driver that was killed with the last one may not have written this row.
            queue.put(self.metrics)
        if self.first >= last:
            return
        upcoming = self._inputs(self.first)
        for update in range(self.first, last):
            losses = self._backward(upcoming)
            self.gradients.start()
            done = update + 1
            if done < last:
                upcoming = self._inputs(done)  # while the gradients travel
            self.gradients.wait()
            self._step(update)
            if done % settings.log_every == 0 or done == last:
                self.metrics = self._measured(done, losses)
                if self.rank == 0:
                    queue.put(self.metrics)
            if self._noticed(done) or done % settings.checkpoint_every == 0 or done == last:
                report(self.model, self.optimizer, done, self.metrics, self.attempt if self.rank == 0 else None)

    def _inputs(self, update: int) -> tuple[Observations, Tensor, Tensor, Batch | None]:
        """The arguments of `SkillModel.forward` for an update, on the device."""
        generator = update_generator(self.job.seed, update, self.rank)
        window = self.batches.draw(update, generator)
        perturbed = None if self.augment is None else on_device(self.augment(*window, generator), self.device)
        noise = torch.randn(self.batch_size, self.model.noise_dim, generator=generator)
        return *on_device(window, self.device), sent(noise, self.device), perturbed

    def _backward(self, inputs: tuple[Observations, Tensor, Tensor, Batch | None]) -> dict[str, Tensor]:
        """Computes the losses and their gradients."""
        with autocast(self.device, self.settings.precision):
            losses: dict[str, Tensor] = self.model(*inputs)
        self.gradients.clear()
        if losses["loss"].requires_grad:
            losses["loss"].backward()
        return losses

    def _step(self, update: int) -> None:
        """Changes the parameters by their gradients, at the learning rate of this update."""
        settings, rate = self.settings, self.settings.learning_rate
        clip = settings.warmup_clip if update < settings.warmup_updates else settings.gradient_clip
        torch.nn.utils.clip_grad_norm_(self.learned, clip)
        if settings.cosine_decay:
            rate *= 0.5 * (1.0 + math.cos(math.pi * update / settings.updates))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()

    def _measured(self, done: int, losses: dict[str, Tensor]) -> Row:
        """The row of metrics after so many updates.

        Raises:
            SpirlError: the loss is not finite.
        """
        metrics = {"update": float(done), **{f"train_{name}": float(loss.detach()) for name, loss in losses.items()}}
        if not math.isfinite(metrics["train_loss"]):
            raise SpirlError(f"The loss stopped being finite at update {done}: lower pretrain.learning_rate.")
        metrics |= validation_losses(self.model, self.batches.held, self.device)
        windows = (done - self.first) * self.batch_size * self.world
        metrics["windows_per_s"] = windows / (time.perf_counter() - self.started)
        if done == self.settings.updates:
            metrics |= what_latents_decide(self.model, self.batches, self.device)
        return metrics

    def _noticed(self, done: int) -> bool:
        """True once, where one of our nodes is about to be taken away, so that one more checkpoint is written. All
        workers get the same notice."""
        notice = done % self.settings.log_every == 0 and not self.warned and ray.train.get_preemption_info() is not None
        self.warned = self.warned or notice
        return notice


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context in which matrix products have a precision, ``float32`` or ``bfloat16``; parameters stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def _optimizer(learned: list[torch.nn.Parameter], settings: PretrainSettings) -> torch.optim.Optimizer:
    kind = torch.optim.RAdam if settings.optimizer == "radam" else torch.optim.Adam
    return kind(learned, lr=settings.learning_rate)


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
            f"{workers} training workers need at least as many data files; {job.dataset} has {len(files)}. Lower "
            f"pretrain.workers; or set data.shards to {workers} or more and remove that folder, so that the same "
            "command imports the data again."
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
