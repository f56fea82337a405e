"""Stage 1 measures its model by means over the windows of all workers: losses, and what latents decide."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from spirl_ray.datasets.windows import Batch
from spirl_ray.skills.batches import Batches, on_device
from spirl_ray.skills.collectives import sum_over_workers
from spirl_ray.skills.encoders import Observations
from spirl_ray.skills.model import SkillModel
from spirl_ray.skills.steering import error_removed, latent_measures, measures_of

_WINDOWS_AT_A_TIME = 128
"""The number of windows that are measured at once."""


@torch.no_grad()
def validation_losses(model: SkillModel, held: Batch | None, device: torch.device) -> dict[str, float]:
    """The mean losses over the held-out windows of all workers, with the posterior's mean, or with the same noise each
    time where the latent is noise."""
    names = ("loss", "reconstruction", "kl", "prior")
    drawn = torch.zeros(_WINDOWS_AT_A_TIME, model.noise_dim)
    if model.kind.noise:
        drawn.normal_(generator=torch.Generator().manual_seed(0))
    drawn = drawn.to(device)

    def losses(observations: Observations, actions: Tensor) -> dict[str, Tensor]:
        return model(observations, actions, drawn[: len(actions)])

    with _evaluating(model):
        found = _mean_over_workers(held, losses, names, device)
    return {f"validation_{name}": value for name, value in found.items()}


def what_latents_decide(model: SkillModel, batches: Batches, device: torch.device) -> dict[str, float]:
    """The means of `latent_measures` over held-out windows, or over a batch of each worker if there are none."""
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
    windows: Batch | None,
    measure: Callable[[Observations, Tensor], dict[str, Tensor]],
    names: tuple[str, ...],
    device: torch.device,
) -> dict[str, float]:
    """The means of these measures over the windows of all workers; empty where no worker has any."""
    sums = torch.zeros(1 + len(names))
    observations, actions = windows if windows is not None else ({}, torch.empty(0))
    # Not all at once, because the activations of a network for images take far more memory than the images.
    for first in range(0, len(actions), _WINDOWS_AT_A_TIME):
        some = slice(first, first + _WINDOWS_AT_A_TIME)
        part = on_device(({name: value[some] for name, value in observations.items()}, actions[some]), device)
        found = measure(*part)
        sums += len(part[1]) * torch.stack([torch.ones(()), *(found[name].cpu() for name in names)])
    total = sum_over_workers(sums, device)
    if total[0] == 0:
        return {}
    return {name: float(total[1 + i] / total[0]) for i, name in enumerate(names)}
