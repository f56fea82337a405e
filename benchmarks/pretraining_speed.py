"""Speed of stage 1: the Ray pipeline against the same model in a bare loop, and two workers against one."""

from __future__ import annotations

import math
import statistics
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from spirl_ray.config import AugmentationSettings, PretrainSettings, SkillSettings
from spirl_ray.datasets.importing import import_dataset
from spirl_ray.datasets.opened import OpenedData
from spirl_ray.datasets.sources import Chunk, Description, Identity
from spirl_ray.envs import environment
from spirl_ray.episodes.episode import Episode
from spirl_ray.rl.methods import skill_spec
from spirl_ray.skills.batches import PretrainJob
from spirl_ray.skills.encoders import Observations
from spirl_ray.skills.model import SkillModel
from spirl_ray.skills.pretrain import held_out, pretrain
from spirl_ray.skills.spec import SkillSpec

ENVIRONMENT = "spirl/Kitchen-v0"
BATCH = 128
"""The number of windows per worker and update."""
_SHARDS = 2
_WARM_UPDATES = 50


@dataclass(frozen=True)
class PretrainingPlan:
    """The amount of measurement."""

    rounds: int = 3
    """The number of alternations of bare loop, one worker, two workers."""
    updates: int = 500
    """The number of measured updates of one pipeline, after the first 50."""
    loop_updates: int = 150
    """The number of measured updates of the bare loop in each alternation."""
    episodes: int = 19
    steps: int = 200


@dataclass(frozen=True)
class RandomEpisodes:
    """An `EpisodeSource` of noise in the shape of the kitchen's demonstrations."""

    episodes: int
    steps: int

    def chunks(self) -> list[Chunk]:
        return [(index,) for index in range(self.episodes)]

    def read(self, chunk: Chunk) -> Iterator[Episode]:
        spec = environment(ENVIRONMENT)
        for index in chunk:
            rng = np.random.default_rng(index)
            yield Episode(
                id=f"noise-{index}",
                observations={
                    name: rng.standard_normal((self.steps + 1, *feature.shape)).astype(np.float32)
                    for name, feature in spec.features.items()
                },
                actions=rng.uniform(-1.0, 1.0, (self.steps, spec.action_dim)).astype(np.float32),
                rewards=np.zeros(self.steps, np.float32),
                terminated=False,
                truncated=True,
            )

    def description(self) -> Description:
        return Description(f"noise episodes={self.episodes} steps={self.steps}", "Apache-2.0", "benchmark")

    def identity(self) -> Identity:
        return Identity("noise", {"episodes": self.episodes, "steps": self.steps})

    @property
    def attempts(self) -> int:
        return 0


def kitchen_skills() -> SkillSpec:
    """The closed-loop skill model of the kitchen at its default sizes."""
    spec = environment(ENVIRONMENT)
    return skill_spec(SkillSettings(), "spirl_cl", spec.features, spec.action_dim)


def measure_pretraining(folder: Path, plan: PretrainingPlan, cores: int) -> dict[str, float | None]:
    """Windows per second and their ratios; ``cores`` < 2 leaves the two-worker ratios None.

    A ratio is the median over rounds, and both its sides were measured within one round: the machine's speed drifts.
    """
    dataset = folder / "data"
    spec = environment(ENVIRONMENT)
    data = OpenedData(RandomEpisodes(plan.episodes, plan.steps), spec, dict(spec.features), rewards=True)
    import_dataset(data, dataset, environment=ENVIRONMENT, shards=_SHARDS)
    pipeline_to_loop, two_to_one, strong_to_one = [], [], []
    loops, ones, twos, startups = [], [], [], []
    for number in range(plan.rounds):
        before = bare_loop(plan.loop_updates)
        one, startup = _pipeline(dataset, folder / f"one-{number}", plan, workers=1, batch=BATCH)
        loop = 0.5 * (before + bare_loop(plan.loop_updates))
        pipeline_to_loop.append(one / loop)
        loops.append(loop)
        ones.append(one)
        startups.append(startup)
        if cores < 2:
            continue
        two, _ = _pipeline(dataset, folder / f"two-{number}", plan, workers=2, batch=2 * BATCH)
        two_to_one.append(two / one)
        twos.append(two)
        if number == 0:
            strong, _ = _pipeline(dataset, folder / "strong", plan, workers=2, batch=BATCH)
            strong_to_one.append(strong / one)
    return {
        "stage1_pipeline_over_loop": statistics.median(pipeline_to_loop),
        "stage1_two_workers": _median(two_to_one),
        "stage1_two_workers_same_batch": _median(strong_to_one),
        "stage1_windows_per_s": statistics.median(ones),
        "stage1_two_workers_windows_per_s": _median(twos),
        "stage1_loop_windows_per_s": statistics.median(loops),
        "stage1_startup_s": statistics.median(startups),
        "stage1_update_gflop": update_flops() / 1e9,
    }


def _median(values: list[float]) -> float | None:
    return statistics.median(values) if values else None


def _settings(updates: int, *, workers: int, batch: int) -> PretrainSettings:
    """The settings of the kitchen's demonstrations, logged and saved as often as by default."""
    return PretrainSettings(
        updates=updates,
        batch_size=batch,
        optimizer="adam",
        cosine_decay=True,
        warmup_updates=0,
        augmentation=AugmentationSettings(kind="target_preserving"),
        workers=workers,
        log_every=_WARM_UPDATES,
    )


def _pipeline(dataset: Path, out: Path, plan: PretrainingPlan, *, workers: int, batch: int) -> tuple[float, float]:
    """Measures windows/s from update 50 on, and the seconds from the call to the first update.

    The worker's own clock counts: a row has windows/s since the first update, so windows divided by it is the time.
    """
    settings = _settings(_WARM_UPDATES + plan.updates, workers=workers, batch=batch)
    target = environment(ENVIRONMENT).position_target
    held = held_out(dataset, 0.1, 0)
    job = PretrainJob(str(dataset), kitchen_skills(), settings, 0, held, 2048.0, position_target=target)
    rows: list[tuple[float, dict[str, float]]] = []
    called = time.perf_counter()
    pretrain(job, out, on_row=lambda row: rows.append((time.perf_counter(), row)))
    per_update = workers * math.ceil(batch / workers)
    windows = [per_update * row["update"] for _, row in rows]
    elapsed = [count / row["windows_per_s"] for count, (_, row) in zip(windows, rows, strict=True)]
    steady = (windows[-1] - windows[0]) / (elapsed[-1] - elapsed[0])
    return steady, rows[0][0] - called - elapsed[0]


def bare_loop(updates: int) -> float:
    """Measures windows/s of forward, backward and optimiser on one fixed batch, with nothing around them."""
    model, batch = _model_and_batch()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def step() -> None:
        loss = model(*batch)["loss"]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    for _ in range(10):
        step()
    started = time.perf_counter()
    for _ in range(updates):
        step()
    return updates * BATCH / (time.perf_counter() - started)


def update_flops() -> int:
    """Floating-point operations of the matrix products of one update, forward and backward.

    The counter does not know oneDNN's fused LSTM, so it counts the unfused one, which has the same products.
    """
    model, batch = _model_and_batch()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.backends.mkldnn.flags(enabled=False), FlopCounterMode(display=False) as counter:
            model(*batch)["loss"].backward()
    return counter.get_total_flops()


def _model_and_batch() -> tuple[SkillModel, tuple[Observations, torch.Tensor, torch.Tensor]]:
    spec = kitchen_skills()
    observations = {name: torch.randn(BATCH, spec.horizon, *feature.shape) for name, feature in spec.observed.items()}
    actions = torch.rand(BATCH, spec.horizon, spec.action_dim) * 2.0 - 1.0
    return SkillModel(spec), (observations, actions, torch.randn(BATCH, spec.latent_dim))
