"""Offline decisions: the demonstrations as transitions of the high-level policy.

Every window of H steps becomes a decision. Its latent is a sample of the frozen posterior q(z | window), its reward and
its end are what a `Judge` says of the recorded steps (Wilcoxson et al. 2025, SUPE, Section 4; labels of our own).
Windows begin at every offset of an episode, up to the step that ends the task.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.numpy
import torch
from numpy.typing import NDArray
from pydantic import Field
from ray.rllib.core.columns import Columns
from safetensors import SafetensorError
from torch import Tensor

from spirl_ray.config import EnvironmentSettings, Settings
from spirl_ray.config_train import Labels
from spirl_ray.datasets.observed import RecordedObservations
from spirl_ray.envs.judgement import Judgement
from spirl_ray.envs.spec import MakeRenderer
from spirl_ray.episodes.episode import Episode
from spirl_ray.episodes.features import Features
from spirl_ray.errors import SpirlError
from spirl_ray.files import layout
from spirl_ray.files.atomic import write_atomically, write_json
from spirl_ray.files.untrusted import read_artifact_card
from spirl_ray.rl.offline_labels import Labeller
from spirl_ray.rl.policy_network import PolicyObserver, PolicySpec
from spirl_ray.skills.artifact import load_skills, read_skill_card
from spirl_ray.skills.execution import at_limit, unlimited

FORMAT_VERSION = 2
STEPS = "primitive_steps"
"""The column with the length of each decision in primitive steps."""
_AT_A_TIME = 256
"""The observations that are encoded at once, which bounds the memory of images."""
_JUDGED, _LENGTHS = "judged_rewards", "judged_lengths"
"""The arrays of a file with the rewards of all steps that count, and their number in each episode."""
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
    cut: int
    """The number of decisions with a latent beyond the box of ``latent_limit``."""
    labels: Labels


@dataclass(frozen=True)
class Encoding:
    """The settings by which episodes become decisions; they are plain values that travel to Ray tasks."""

    skills: str
    """The folder of the skill artifact."""
    policy: PolicySpec
    environment: EnvironmentSettings
    latent_limit: float | None
    labels: Labels
    seed: int


def make_decisions(encoding: Encoding, episodes: Iterable[Episode], number: int) -> Rows:
    """Makes the decisions of all windows of some episodes, in their order.

    Args:
        encoding: how they are made.
        episodes: demonstrations.
        number: number of the file that they come from, for the random samples of latents.

    Returns:
        float32 arrays of one length by column: policy observations "obs" and "new_obs" [n, D], latents "actions"
        [n, Z], and [n] "rewards", "terminateds" and `STEPS`; besides, the labels of all steps, see `judged_rewards`.

    Raises:
        SpirlError: episodes do not hold what the skills or the policy observe, or the judge fails.
    """
    torch.set_num_threads(1)
    label, make = Labeller(encoding.environment, encoding.labels), _DecisionMaker(encoding)
    generator = torch.Generator().manual_seed((encoding.seed * 1_000_003 + number) % 2**63)
    parts: dict[str, list[NDArray[np.float32]]] = {name: [] for name in make.empty}
    for episode in episodes:
        judgement = label(episode)
        for name, values in make(episode, judgement, label.spec.renderers, generator).items():
            parts[name].append(values)
        parts[_JUDGED].append(judgement.rewards[: judgement.end + 1])
        parts[_LENGTHS].append(np.array([len(parts[_JUDGED][-1])], np.float32))
    return {name: np.concatenate([make.empty[name], *values]) for name, values in parts.items()}


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
            **{
                name: np.zeros(0, np.float32)
                for name in (Columns.REWARDS, Columns.TERMINATEDS, STEPS, _JUDGED, _LENGTHS)
            },
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
            return {}
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
        """Samples of q(z | window) of the windows that begin at these steps [n]: [n, Z]. A flat method's latent is the
        recorded action itself."""
        steps = starts[:, None] + np.arange(self.horizon)
        observed = steps[:, : self.skills.kind.observed_steps(self.horizon)]
        windows = None if features is None else features[torch.from_numpy(observed)]
        posterior = self.skills.codec.encode(windows, torch.from_numpy(episode.actions[steps]))
        latents = posterior.mean if self.skills.kind.flat else posterior.sample(generator)
        return unlimited(latents, self.limit).numpy()


# --- folders of decisions ---


def write_part(folder: Path, number: int, rows: Rows, latent_limit: float | None) -> dict[str, int]:
    """Writes the decisions of one file of a dataset; returns what the card says of them."""
    write_atomically(folder / layout.decisions_file(number), safetensors.numpy.save(rows))
    rewards, terminated = rows[Columns.REWARDS], rows[Columns.TERMINATEDS]
    return {
        "decisions": len(rewards),
        "rewarded": int((rewards != 0).sum()),
        "terminated": int(terminated.sum()),
        "cut": 0 if latent_limit is None else int(at_limit(rows[Columns.ACTIONS]).any(-1).sum()),
    }


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
    counts = {name: sum(part[name] for part in parts) for name in ("decisions", "rewarded", "terminated", "cut")}
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


def read_decisions(folder: Path, max_rows: int) -> Iterator[Rows]:
    """Reads the decisions of a folder, one file after another.

    Args:
        folder: the folder.
        max_rows: where there are more decisions, about as many are left out evenly as there are too many.

    Raises:
        SpirlError: a file is missing or damaged; the message names it.
    """
    card = read_offline_card(folder)
    for number in range(card.parts):
        rows = _read_part(folder, number)
        del rows[_JUDGED], rows[_LENGTHS]
        count = len(rows[Columns.REWARDS])
        if card.decisions > max_rows:
            kept = min(count, math.ceil(count * max_rows / card.decisions))
            chosen = np.linspace(0, count, kept, endpoint=False).astype(np.int64)
            rows = {name: values[chosen] for name, values in rows.items()}
        yield rows


def judged_rewards(folder: Path) -> Iterator[NDArray[np.float32]]:
    """The labels of the steps of each episode up to the one that ends the task [T]; zeros where they are learned.

    Raises:
        SpirlError: as `read_decisions`.
    """
    for number in range(read_offline_card(folder).parts):
        rows = _read_part(folder, number)
        ends = np.cumsum(rows[_LENGTHS].astype(np.int64))
        yield from np.split(rows[_JUDGED], ends[:-1]) if len(ends) else ()


def _read_part(folder: Path, number: int) -> Rows:
    file = folder / layout.decisions_file(number)
    try:
        return safetensors.numpy.load(file.read_bytes())
    except (OSError, SafetensorError, ValueError) as error:
        raise SpirlError(f"{file} cannot be read ({error}). Remove {folder}: it is made again.") from error
