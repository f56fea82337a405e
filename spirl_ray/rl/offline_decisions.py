"""Offline decisions: the demonstrations as transitions of the high-level policy.

Every window of H steps becomes a decision. Its latent is a sample of the frozen posterior q(z | window), its reward and
its end are what a `Judge` says of the recorded steps (Wilcoxson et al. 2025, SUPE, Section 4; labels of our own).
Windows begin at every offset of an episode, up to the step that ends the task.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import safetensors.numpy
import torch
from numpy.typing import NDArray
from ray.rllib.core.columns import Columns
from safetensors import SafetensorError

import spirl_ray.envs as envs
from spirl_ray.config import EnvironmentSettings, Settings
from spirl_ray.datasets.observed import RecordedObservations
from spirl_ray.envs.judgement import Judgement, judged, recorded_judgement
from spirl_ray.envs.spec import EnvironmentSpec, MakeRenderer
from spirl_ray.episodes.episode import Episode
from spirl_ray.episodes.features import Features
from spirl_ray.errors import SpirlError
from spirl_ray.files import layout
from spirl_ray.files.atomic import read_json, write_atomically, write_json
from spirl_ray.rl.policy_network import PolicyObserver, PolicySpec
from spirl_ray.rl.replay import PHASE
from spirl_ray.skills.artifact import load_skills
from spirl_ray.skills.decoders import DECODERS
from spirl_ray.skills.execution import unlimited

FORMAT_VERSION = 1
STEPS = "primitive_steps"
"""The column with the length of each decision in primitive steps."""
_AT_A_TIME = 512
"""The windows that are encoded at once, which bounds the memory of images."""
Labels = Literal["environment", "recorded", "learned"]
Rows = dict[str, NDArray[np.float32]]


class OfflineCard(Settings):
    """What is in a folder of offline decisions; it completes the folder."""

    format_version: int = FORMAT_VERSION
    parts: int
    """The number of files."""
    decisions: int
    rewarded: int
    """The number of decisions with a reward other than 0."""
    terminated: int
    """The number of decisions that end the task."""
    labels: Labels


@dataclass(frozen=True)
class Encoding:
    """What makes decisions of episodes; plain values that travel to Ray tasks.

    A judge makes the rewards: the environment's own, or the recording. Labels that are learned during training begin as
    zeros.
    """

    skills: str
    """The folder of the skill artifact."""
    policy: PolicySpec
    environment: EnvironmentSettings
    latent_limit: float | None
    labels: Labels
    seed: int

    def spec(self) -> EnvironmentSpec:
        """The description of the environment.

        Raises:
            SpirlError: it is to judge the recorded states, and cannot.
        """
        spec = envs.environment(self.environment)
        if self.labels == "environment" and spec.judge is None:
            raise SpirlError(
                f"train.offline_labels: {spec.id} does not judge recorded states. Name a function in interface.judge "
                "that does, or set train.offline_labels to recorded (the rewards in the data are those of this task) "
                "or learned."
            )
        return spec


def make_decisions(encoding: Encoding, episodes: Iterable[Episode], number: int) -> Rows:
    """Makes the decisions of all windows of some episodes, in their order.

    Args:
        encoding: how they are made.
        episodes: demonstrations.
        number: number of the file that they come from, for the random samples of latents.

    Returns:
        float32 arrays of one length by column: policy observations "obs" and "new_obs" [n, D], latents "actions"
        [n, Z], and [n] "rewards", "terminateds", `PHASE` and `STEPS`.

    Raises:
        SpirlError: episodes do not hold what the skills or the policy observe, or the judge fails.
    """
    torch.set_num_threads(1)
    spec, make = encoding.spec(), _Maker(encoding)
    generator = torch.Generator().manual_seed((encoding.seed * 1_000_003 + number) % 2**63)
    parts: dict[str, list[NDArray[np.float32]]] = {name: [] for name in make.empty}
    for episode in episodes:
        for name, values in make(episode, _judgement(encoding, spec, episode), spec.renderers, generator).items():
            parts[name].append(values)
    return {name: np.concatenate([make.empty[name], *values]) for name, values in parts.items()}


def _judgement(encoding: Encoding, spec: EnvironmentSpec, episode: Episode) -> Judgement:
    if encoding.labels == "environment":
        assert spec.judge is not None
        return judged(spec.judge, encoding.environment.kwargs, episode)
    found = recorded_judgement(episode)
    return found if encoding.labels == "recorded" else found._replace(rewards=np.zeros_like(found.rewards))


class _Maker:
    """Makes the decisions of one episode after another."""

    def __init__(self, encoding: Encoding) -> None:
        self.skills = load_skills(encoding.skills)
        self.observer = PolicyObserver(encoding.policy, self.skills)
        self.limit = encoding.latent_limit
        self.horizon, self.latent_dim = self.skills.spec.horizon, self.skills.spec.latent_dim
        self.observed = DECODERS[self.skills.spec.decoder].observed_steps(self.horizon)
        wide = {
            Columns.OBS: self.observer.size,
            Columns.NEXT_OBS: self.observer.size,
            Columns.ACTIONS: self.latent_dim,
        }
        narrow = (Columns.REWARDS, Columns.TERMINATEDS, PHASE, STEPS)
        self.empty: Rows = {
            **{name: np.zeros((0, width), np.float32) for name, width in wide.items()},
            **{name: np.zeros(0, np.float32) for name in narrow},
        }

    @torch.inference_mode()
    def __call__(
        self,
        episode: Episode,
        judgement: Judgement,
        renderers: Mapping[str, MakeRenderer],
        generator: torch.Generator,
    ) -> Rows:
        ends = np.flatnonzero(judgement.terminated)
        end = int(ends[0]) if len(ends) else episode.length  # the step that ends the task
        starts = np.arange(max(0, min(episode.length - self.horizon, end) + 1))
        if not len(starts):
            return self.empty
        observe = RecordedObservations(episode, self._needed, renderers)
        # The first `end` + 1 steps count; a decision in which the task ends is cut short there.
        counted = np.where(np.arange(episode.length) <= end, judgement.rewards, 0.0)
        total = np.concatenate([[0.0], np.cumsum(counted, dtype=np.float64)])
        last = np.minimum(starts + self.horizon, end + 1)
        steps = np.arange(episode.length + 1)
        observed = np.concatenate([self.observer.batch(observe(some)).numpy() for some in _pieces(steps)])
        latents = [self._latents(episode, observe, some, generator) for some in _pieces(starts)]
        columns = {
            Columns.OBS: observed[starts],
            Columns.NEXT_OBS: observed[starts + self.horizon],
            Columns.ACTIONS: np.concatenate(latents),
            Columns.REWARDS: total[last] - total[starts],
            Columns.TERMINATEDS: starts + self.horizon > end,
            PHASE: starts / max(1, episode.length),
            STEPS: last - starts,
        }
        return {name: np.asarray(values, np.float32) for name, values in columns.items()}

    @property
    def _needed(self) -> Features:
        """The features that the policy or the skills observe."""
        return {**self.skills.spec.observed, **self.observer.spec.features}

    def _latents(
        self,
        episode: Episode,
        observe: RecordedObservations,
        starts: NDArray[np.int64],
        generator: torch.Generator,
    ) -> NDArray[np.float32]:
        """Samples of q(z | window) of the windows that begin at these steps [n]: [n, Z]."""
        steps = starts[:, None] + np.arange(self.horizon)
        seen = self.skills.select(observe(steps[:, : self.observed].reshape(-1)))
        windows = {name: value.unflatten(0, (len(starts), self.observed)) for name, value in seen.items()}
        posterior = self.skills.codec.encode(
            self.skills.codec.observe(windows), torch.from_numpy(episode.actions[steps])
        )
        noise = torch.randn(posterior.mean.shape, generator=generator)
        return unlimited(posterior.mean + posterior.log_std.exp() * noise, self.limit).numpy()


def _pieces(steps: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    return [steps[first : first + _AT_A_TIME] for first in range(0, len(steps), _AT_A_TIME)]


# --- folders of decisions ---


def write_part(folder: Path, number: int, rows: Rows) -> dict[str, int]:
    """Writes the decisions of one file of a dataset; returns what the card says of them."""
    write_atomically(folder / layout.decisions_file(number), safetensors.numpy.save(rows))
    rewards, terminated = rows[Columns.REWARDS], rows[Columns.TERMINATEDS]
    return {"decisions": len(rewards), "rewarded": int((rewards != 0).sum()), "terminated": int(terminated.sum())}


def write_card(folder: Path, labels: Labels, parts: Sequence[Mapping[str, int]]) -> OfflineCard:
    """Writes the card of a folder, whose parts are there, from what `write_part` has returned.

    Raises:
        SpirlError: there is no decision.
    """
    counts = {name: sum(part[name] for part in parts) for name in ("decisions", "rewarded", "terminated")}
    if not counts["decisions"]:
        raise SpirlError(
            "The demonstrations have no window of H steps, so they make no decision: lower skills.horizon, or choose a "
            "method without offline decisions."
        )
    card = OfflineCard(parts=len(parts), labels=labels, **counts)
    write_json(folder / layout.OFFLINE_CARD, card.model_dump(mode="json"))
    return card


def read_offline_card(folder: Path) -> OfflineCard:
    """Reads the card of a folder of decisions.

    Raises:
        SpirlError: it is missing or damaged.
    """
    if not (folder / layout.OFFLINE_CARD).exists():
        raise SpirlError(f"{folder} holds no offline decisions: {layout.OFFLINE_CARD} is missing. Run spirl train.")
    return OfflineCard.model_validate(read_json(folder / layout.OFFLINE_CARD))


def read_decisions(folder: Path, most: int) -> Rows:
    """Reads the decisions of a folder.

    Args:
        folder: the folder.
        most: if there are more decisions, about as many are left out evenly as there are too many.

    Raises:
        SpirlError: a file is missing or damaged; the message names it.
    """
    card = read_offline_card(folder)
    parts: dict[str, list[NDArray[np.float32]]] = {}
    for number in range(card.parts):
        file = folder / layout.decisions_file(number)
        try:
            rows = safetensors.numpy.load(file.read_bytes())
        except (OSError, SafetensorError, ValueError) as error:
            raise SpirlError(f"{file} cannot be read ({error}). Remove {folder}: it is made again.") from error
        count = len(rows[Columns.REWARDS])
        chosen = np.arange(count)
        if card.decisions > most:
            chosen = np.linspace(0, count, int(count * most / card.decisions), endpoint=False).astype(np.int64)
        for name, values in rows.items():
            parts.setdefault(name, []).append(values[chosen])
    return {name: np.concatenate(values) for name, values in parts.items()}
