"""Offline decisions: the demonstrations as transitions of the high-level policy.

Every window of H steps becomes a decision. Its latent is a sample of the frozen posterior q(z | window), its reward and
its end are what a `Judge` says of the recorded steps (Wilcoxson et al. 2025, SUPE, Section 4; labels of our own).
Windows begin at every offset of an episode, up to the step that ends the task.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import safetensors.numpy
import torch
from numpy.typing import NDArray
from pydantic import Field
from ray.rllib.core.columns import Columns
from safetensors import SafetensorError
from torch import Tensor

import spirl_ray.envs as envs
from spirl_ray.config import EnvironmentSettings, Settings
from spirl_ray.datasets.observed import RecordedObservations
from spirl_ray.envs.judgement import Judgement, judged, recorded_judgement
from spirl_ray.envs.spec import EnvironmentSpec, MakeRenderer
from spirl_ray.episodes.episode import Episode
from spirl_ray.episodes.features import Features
from spirl_ray.errors import SpirlError
from spirl_ray.files import layout
from spirl_ray.files.atomic import write_atomically, write_json
from spirl_ray.files.untrusted import read_artifact_card
from spirl_ray.rl.policy_network import PolicyObserver, PolicySpec
from spirl_ray.skills.artifact import load_skills, read_skill_card
from spirl_ray.skills.execution import unlimited

FORMAT_VERSION = 1
STEPS = "primitive_steps"
"""The column with the length of each decision in primitive steps."""
_AT_A_TIME = 256
"""The observations that are encoded at once, which bounds the memory of images."""
Labels = Literal["environment", "recorded", "learned"]
Rows = dict[str, NDArray[np.float32]]


class OfflineCard(Settings):
    """What is in a folder of offline decisions; it completes the folder."""

    format_version: int = FORMAT_VERSION
    skills: str
    """The SHA-256 of the skills whose encoder gave the latents."""
    policy: PolicySpec
    """What the policy observations hold."""
    latent_limit: float | None
    dataset: str
    """The SHA-256 of the demonstrations' content."""
    parts: int = Field(ge=1)
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

    A judge makes the rewards and ends: the environment's own, or the recording. Labels that are learned during training
    begin as zeros, and end no task.
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
        check_judge(spec, self.labels)
        return spec


def check_judge(spec: EnvironmentSpec, labels: Labels) -> None:
    """Raises `SpirlError` where the environment is to judge the recorded states, and cannot."""
    if labels == "environment" and spec.judge is None:
        raise SpirlError(
            f"train.offline_labels: {spec.id} does not judge recorded states. Name a function in interface.judge "
            "that does, or set train.offline_labels to recorded (the rewards in the data are those of this task) "
            "or learned."
        )


def make_decisions(encoding: Encoding, episodes: Iterable[Episode], number: int) -> Rows:
    """Makes the decisions of all windows of some episodes, in their order.

    Args:
        encoding: how they are made.
        episodes: demonstrations.
        number: number of the file that they come from, for the random samples of latents.

    Returns:
        float32 arrays of one length by column: policy observations "obs" and "new_obs" [n, D], latents "actions"
        [n, Z], and [n] "rewards", "terminateds" and `STEPS`.

    Raises:
        SpirlError: episodes do not hold what the skills or the policy observe, or the judge fails.
    """
    torch.set_num_threads(1)
    spec, make = encoding.spec(), _DecisionMaker(encoding)
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
    if encoding.labels == "recorded":
        return recorded_judgement(episode)
    return Judgement(np.zeros(episode.length, np.float32), np.zeros(episode.length, np.bool_))


class _DecisionMaker:
    """Makes the decisions of one episode after another."""

    def __init__(self, encoding: Encoding) -> None:
        self.skills = load_skills(encoding.skills)
        self.observer = PolicyObserver(encoding.policy, self.skills)
        self.limit = encoding.latent_limit
        self.horizon = self.skills.spec.horizon
        size = self.observer.size
        widths = {Columns.OBS: size, Columns.NEXT_OBS: size, Columns.ACTIONS: self.skills.spec.latent_dim}
        self.empty: Rows = {
            **{name: np.zeros((0, width), np.float32) for name, width in widths.items()},
            **{name: np.zeros(0, np.float32) for name in (Columns.REWARDS, Columns.TERMINATEDS, STEPS)},
        }

    @torch.inference_mode()
    def __call__(
        self,
        episode: Episode,
        judgement: Judgement,
        renderers: Mapping[str, MakeRenderer],
        generator: torch.Generator,
    ) -> Rows:
        end = judgement.end
        starts = np.arange(max(0, min(episode.length - self.horizon, end) + 1))
        if not len(starts):
            return self.empty
        observe = RecordedObservations(episode, self._needed, renderers)
        # The first `end` + 1 steps count; a decision in which the task ends is cut short there.
        counted = np.where(np.arange(episode.length) <= end, judgement.rewards, 0.0)
        total = np.concatenate([[0.0], np.cumsum(counted, dtype=np.float64)])
        last = np.minimum(starts + self.horizon, end + 1)
        observed, features = self._encoded(observe, episode.length + 1)
        columns = {
            Columns.OBS: observed[starts],
            Columns.NEXT_OBS: observed[starts + self.horizon],
            Columns.ACTIONS: self._latents(episode, features, starts, generator),
            Columns.REWARDS: total[last] - total[starts],
            Columns.TERMINATEDS: starts + self.horizon > end,
            STEPS: last - starts,
        }
        return {name: np.asarray(values, np.float32) for name, values in columns.items()}

    @property
    def _needed(self) -> Features:
        """The features that the policy or the skills observe."""
        return {**self.skills.spec.observed, **self.observer.spec.features}

    def _encoded(self, observe: RecordedObservations, count: int) -> tuple[NDArray[np.float32], Tensor | None]:
        """The policy observations [count, D] of the first steps, and what the codec observes there [count, F], if it
        does."""
        policy, features = [], []
        for first in range(0, count, _AT_A_TIME):
            observations = observe(np.arange(first, min(first + _AT_A_TIME, count)))
            policy.append(self.observer.batch(observations).numpy())
            steps = {name: value.unsqueeze(1) for name, value in self.skills.select(observations).items()}
            if self.skills.kind.observes != "nothing" and (found := self.skills.codec.observe(steps)) is not None:
                features.append(found.squeeze(1))
        return np.concatenate(policy), torch.cat(features) if features else None

    def _latents(
        self, episode: Episode, features: Tensor | None, starts: NDArray[np.int64], generator: torch.Generator
    ) -> NDArray[np.float32]:
        """Samples of q(z | window) of the windows that begin at these steps [n]: [n, Z]."""
        steps = starts[:, None] + np.arange(self.horizon)
        observed = steps[:, : self.skills.kind.observed_steps(self.horizon)]
        windows = None if features is None else features[torch.from_numpy(observed)]
        posterior = self.skills.codec.encode(windows, torch.from_numpy(episode.actions[steps]))
        return unlimited(posterior.sample(generator), self.limit).numpy()


# --- folders of decisions ---


def write_part(folder: Path, number: int, rows: Rows) -> dict[str, int]:
    """Writes the decisions of one file of a dataset; returns what the card says of them."""
    write_atomically(folder / layout.decisions_file(number), safetensors.numpy.save(rows))
    rewards, terminated = rows[Columns.REWARDS], rows[Columns.TERMINATEDS]
    return {"decisions": len(rewards), "rewarded": int((rewards != 0).sum()), "terminated": int(terminated.sum())}


def write_card(folder: Path, encoding: Encoding, dataset: str, parts: Sequence[Mapping[str, int]]) -> OfflineCard:
    """Writes the card of a folder, whose parts are there.

    Args:
        folder: the folder.
        encoding: how the decisions were made.
        dataset: SHA-256 of the demonstrations' content.
        parts: what `write_part` has returned, in the order of the files.

    Raises:
        SpirlError: there is no decision.
    """
    counts = {name: sum(part[name] for part in parts) for name in ("decisions", "rewarded", "terminated")}
    if not counts["decisions"]:
        raise SpirlError(
            "The demonstrations have no window of H steps, so they make no decision: lower skills.horizon, or choose a "
            "method without offline decisions."
        )
    card = OfflineCard(
        skills=read_skill_card(Path(encoding.skills)).sha256,
        policy=encoding.policy,
        latent_limit=encoding.latent_limit,
        dataset=dataset,
        parts=len(parts),
        labels=encoding.labels,
        **counts,
    )
    write_json(folder / layout.OFFLINE_CARD, card.model_dump(mode="json"))
    return card


def read_offline_card(folder: Path) -> OfflineCard:
    """Reads the card of a folder of decisions.

    Raises:
        SpirlError: it is missing, damaged, or of another version.
    """
    remedy = "Remove the folder, and spirl train makes it again"
    return read_artifact_card(
        folder / layout.OFFLINE_CARD, OfflineCard, FORMAT_VERSION, kind="card of offline decisions", remedy=remedy
    )


def check_decisions(card: OfflineCard, folder: Path, skills: Path, policy: PolicySpec, limit: float | None) -> None:
    """Compares the card of a folder with the policy that is to learn from it.

    Raises:
        SpirlError: the decisions were made for other skills, another policy, or another box.
    """
    wanted = {"skills": read_skill_card(skills).sha256, "policy": policy, "latent_limit": limit}
    for name, value in wanted.items():
        if getattr(card, name) != value:
            raise SpirlError(
                f"{folder / layout.OFFLINE_CARD}: {name} is not that of this training, so its decisions mean something "
                "else. Make decisions for these skills and this policy, as spirl train does."
            )


def read_decisions(folder: Path, max_rows: int) -> Rows:
    """Reads the decisions of a folder.

    Args:
        folder: the folder.
        max_rows: where there are more decisions, about as many are left out evenly as there are too many.

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
        if card.decisions > max_rows:
            kept = min(count, math.ceil(count * max_rows / card.decisions))
            chosen = np.linspace(0, count, kept, endpoint=False).astype(np.int64)
        for name, values in rows.items():
            parts.setdefault(name, []).append(values[chosen])
    return {name: np.concatenate(values) for name, values in parts.items()}
