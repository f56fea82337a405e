"""What a learner reaches on a card: ``python -m benchmarks.gpu [--device cuda] [--quick] [--out gpu.csv]``.

It needs no data, no Ray cluster and no simulator, and takes a few minutes. A row of the CSV is one measurement at the
kitchen's sizes (``spirl_cl``), on one card (or, with ``--device cpu``, on one core):

- ``stage2``: updates/s of prior-regularised SAC by batch size and number of critics. ``loop`` is the learner of
  version 0.1 as a plain PyTorch loop with separate critics and one fixed batch; ``plain``, ``graph`` and ``compiled``
  (a graph of compiled losses) are the learner of this package, which draws its batches from its replay, several updates
  in a call. ``over_loop`` is the ratio of the rates, which are measured one after the other.
- ``equality``: the largest relative difference of the critics' loss between plain and captured updates, over 100
  updates from the same seed, and of the parameters after them.
- ``stage1``: windows/s of the skill model by batch size and precision, on fixed noise.
- ``loss``: the loss of stage 1 in float32 and bfloat16, by update, on windows of smooth random motions.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.learners import BareLoop, kitchen_training, make_learner, random_skills
from benchmarks.pretraining_speed import BATCH, kitchen_skills
from spirl_ray.files.tables import write_csv
from spirl_ray.pipeline.provenance import commit, hardware, versions
from spirl_ray.rl.learner import SkillPriorSACLearner
from spirl_ray.skills.model import SkillModel
from spirl_ray.skills.pretrain import autocast

TARGET = 2.0
EQUAL_UPDATES = 100
Row = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """The amount of measurement."""

    seconds: float = 2.0
    """The time of one measurement."""
    warm_calls: int = 8
    """The calls before it, in which graphs are captured and losses compiled."""
    batches: tuple[int, ...] = (256, 1024)
    updates: int = 2000
    """The updates of stage 1 of which losses are compared."""
    compiles: bool = True


QUICK = Plan(seconds=0.05, warm_calls=1, batches=(16,), updates=10, compiles=False)


def rate(work: Callable[[], int], seconds: float) -> float:
    """How often a second something is done; ``work`` says how often it has just done it."""
    done, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        done += work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    return done / elapsed


def stage2(skills: Path, device: torch.device, plan: Plan) -> list[Row]:
    """Updates/s by batch size, number of critics and way."""
    rows = []
    for batch in plan.batches:
        for critics in (2, 10):
            train = kitchen_training().model_copy(update={"batch_size": batch, "critics": critics})
            learner = make_learner(skills, train, device)
            loop = BareLoop(learner.networks, learner.replay.sample(batch), train, TARGET)
            ways: dict[tuple[str, int], Callable[[], int]] = {("loop", 1): partial(_steps, loop)}
            settings = {"plain": {"cuda_graph": False}}
            if device.type == "cuda":
                settings["graph"] = {"cuda_graph": True}
                if plan.compiles and batch == plan.batches[0]:
                    settings["compiled"] = {"cuda_graph": True, "compile": True}
            for name, changes in settings.items():
                each = make_learner(skills, train.model_copy(update=changes), device)
                for count in (1, 16) if name != "compiled" else (16,):
                    ways[name, count] = partial(_learn, each, count)
            found = {}
            for way, work in ways.items():
                for _ in range(plan.warm_calls):
                    work()
                found[way] = rate(work, plan.seconds)
                rows.append(
                    {
                        "what": "stage2",
                        "way": way[0],
                        "batch": batch,
                        "critics": critics,
                        "updates_a_call": way[1],
                        "per_s": found[way],
                        "over_loop": found[way] / found["loop", 1],
                    }
                )
                print(rows[-1], flush=True)
    return rows


def _steps(loop: BareLoop) -> int:
    for _ in range(16):
        loop.step()
    return 16


def _learn(learner: SkillPriorSACLearner, count: int) -> int:
    learner.learn(count, 1.0)
    return count


def equality(skills: Path, device: torch.device) -> list[Row]:
    """The difference between plain and captured updates from the same seed."""
    losses, parameters = [], []
    for graph in (False, True):
        torch.manual_seed(0)
        train = kitchen_training().model_copy(update={"cuda_graph": graph})
        learner = make_learner(skills, train, device)
        losses.append(torch.tensor([learner.learn(1, 1.0)["critic_loss"] for _ in range(EQUAL_UPDATES)]))
        parameters.append(torch.cat([value.detach().flatten().cpu() for value in learner.networks.parameters()]))
    row = {
        "what": "equality",
        "way": "graph",
        "batch": 256,
        "critics": 2,
        "difference": _difference(*losses),
        "parameters_difference": float((parameters[0] - parameters[1]).abs().max()),
    }
    print(row, flush=True)
    return [row]


def _difference(first: Tensor, second: Tensor) -> float:
    return float(((first - second).abs() / first.abs()).max())


def motions(count: int, spec: Any, seed: int) -> tuple[dict[str, Tensor], Tensor]:
    """Windows of smooth random motions: states that integrate their actions, which are sums of sines."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.arange(spec.horizon) / spec.horizon
    frequency, phase = (torch.rand(count, 1, spec.action_dim, generator=generator) * 6.0 for _ in range(2))
    actions = torch.sin(frequency * steps[None, :, None] + phase)
    observations = {}
    for name, feature in spec.observed.items():
        mixing = torch.randn(spec.action_dim, feature.size, generator=torch.Generator().manual_seed(len(name)))
        observations[name] = (actions.cumsum(1) @ mixing / spec.horizon).unflatten(-1, feature.shape)
    return observations, actions


def stage1(device: torch.device, plan: Plan) -> list[Row]:
    """Windows/s by batch size and precision, and the loss by update in both precisions."""
    rows: list[Row] = []
    for batch in (BATCH, 8 * BATCH):
        for precision in ("float32", "bfloat16"):
            step = _pretraining(device, precision, batch)
            for number in range(plan.warm_calls):
                step(number)
            per_s = batch * rate(partial(_four, step), plan.seconds)
            rows.append({"what": "stage1", "way": precision, "batch": batch, "per_s": per_s})
            print(rows[-1], flush=True)
    for precision in ("float32", "bfloat16"):
        step, losses = _pretraining(device, precision, BATCH), []
        for number in range(plan.updates):
            loss = step(number)
            if (number + 1) % (plan.updates // 10) == 0:
                losses.append((number + 1, float(loss)))
        rows += [{"what": "loss", "way": precision, "batch": BATCH, "update": at, "loss": loss} for at, loss in losses]
        print(precision, losses, flush=True)
    return rows


def _four(step: Callable[[int], Tensor]) -> int:
    for number in range(4):
        step(number)
    return 4


def _pretraining(device: torch.device, precision: str, batch: int) -> Callable[[int], Tensor]:
    """A function that makes one update of stage 1 and returns its loss."""
    torch.manual_seed(0)
    spec = kitchen_skills()
    model = SkillModel(spec).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    held = [motions(batch, spec, seed) for seed in range(16)]
    noise = torch.randn(16, batch, spec.latent_dim)
    given = [
        ({name: value.to(device) for name, value in observations.items()}, actions.to(device), drawn.to(device))
        for (observations, actions), drawn in zip(held, noise, strict=True)
    ]

    def step(number: int) -> Tensor:
        with autocast(device, precision):
            loss = model(*given[number % len(given)])["loss"]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def measure(device: torch.device, plan: Plan) -> list[Row]:
    """Measures everything."""
    torch.set_num_threads(1)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        skills = random_skills(Path(folder) / "skills")
        rows = [
            *(equality(skills, device) if device.type == "cuda" else []),
            *stage2(skills, device, plan),
        ]
    rows += stage1(device, plan)
    print(f"{time.perf_counter() - started:.0f} s", flush=True)
    return rows


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cuda", "cpu"), default=default)
    parser.add_argument("--quick", action="store_true", help="a smoke run: the numbers mean nothing")
    parser.add_argument("--out", type=Path, help="CSV file to write")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("There is no CUDA device here: pass --device cpu.", file=sys.stderr)
        return 2
    rows = measure(torch.device(options.device), QUICK if options.quick else Plan())
    columns = list(dict.fromkeys(name for row in rows for name in row))
    about = {
        "device": options.device,
        **{f"hardware_{name}": value for name, value in hardware().items()},
        **{f"version_{name}": value for name, value in versions().items() if name in ("python", "torch", "ray")},
        "commit": commit(),
    }
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_csv(options.out, [{name: _cell(row.get(name, "")) for name in columns} | about for row in rows])
    return 0


def _cell(value: Any) -> Any:
    return f"{value:.5g}" if isinstance(value, float) else value


if __name__ == "__main__":
    sys.exit(main())
