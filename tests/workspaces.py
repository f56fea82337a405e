"""Claimed folders of the toy experiment with the card of a dataset, for tests that read no episode."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from toy import TOY

from spirl_ray.config import parse_experiment
from spirl_ray.envs import environment
from spirl_ray.episodes.dataset import DatasetCard
from spirl_ray.pipeline.workspace import Trial, Workspace


def workspace(folder: Path, **groups: Any) -> Workspace:
    """The toy experiment in ``folder/out``, with some settings changed: ``train={"batch_size": 9}``."""
    raw = {**TOY, "output": str(folder / "out")}
    for name, values in groups.items():
        raw[name] = {**raw.get(name, {}), **values} if isinstance(values, dict) else values
    made = Workspace(parse_experiment(raw, "test"))
    if not made.dataset.exists():
        made.dataset.mkdir(parents=True)
        spec = environment(made.experiment.environment)
        card = DatasetCard(
            environment=spec.id,
            features=dict(spec.features),
            action_dim=spec.action_dim,
            episodes=1,
            steps=1,
            source="s",
            licence="l",
            attribution="a",
            content_sha256="c",
            files={},
            created_by="test",
        )
        (made.dataset / "card.json").write_text(card.model_dump_json())
    return made


def trial(folder: Path, method: str = "spirl_cl", seed: int = 0, **groups: Any) -> Trial:
    """One method with one seed in such a workspace."""
    return workspace(folder, **groups).trial(method, seed)
