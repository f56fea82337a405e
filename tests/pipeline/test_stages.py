"""Stages that go on where they stopped; the rollouts themselves are stubs here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from workspaces import trial, workspace

from spirl_ray.config import EnvironmentSettings
from spirl_ray.envs import declared_scores
from spirl_ray.errors import SpirlError
from spirl_ray.pipeline import stages as pipeline
from spirl_ray.pipeline.events import silent
from spirl_ray.pipeline.results import EvaluationResult
from spirl_ray.pipeline.rollouts import EpisodeRow, RolloutPlan
from spirl_ray.pipeline.stages import check_files

ENV = EnvironmentSettings(id="spirl/PointPads-v0")
PLAN = RolloutPlan("agent", ENV, "deterministic")


class Rollouts:
    """Stands for Ray: notes what was asked for, and can stop after a number of tasks."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tasks: int = 1000) -> None:
        self.asked: list[tuple[str, int]] = []
        self.recorded: list[str] = []
        self.tasks = tasks
        for name in ("start_rollouts", "start_video", "gather_rollouts"):
            monkeypatch.setattr(pipeline, name, getattr(self, name))

    def start_rollouts(self, plan: RolloutPlan, episodes: Any) -> list[Any]:
        return [[(plan.mode, number)] for number in episodes]

    def start_video(self, plan: RolloutPlan, episodes: int, video: Path, fps: int) -> list[Any]:
        video.parent.mkdir(parents=True, exist_ok=True)
        video.write_text("video")
        self.recorded.append(plan.mode)
        return []

    def gather_rollouts(self, references: list[Any], on_rows: Any = None) -> list[EpisodeRow]:
        for task in references:
            if task and not self.tasks:
                raise KeyboardInterrupt
            self.tasks -= len(task)
            self.asked += task
            if on_rows:
                on_rows(
                    [EpisodeRow(mode, number, number, {"return": 1.0, "success": number % 2}) for mode, number in task]
                )
        return []


def evaluate(folder: Path, *, videos: bool = False, **settings: Any) -> EvaluationResult:
    """Three episodes in each mode; videos of one of them where they are asked for."""
    return pipeline._run_episodes(trial(folder, evaluate=settings), PLAN, folder / "episodes", 3, silent, videos=videos)


def test_an_evaluation_that_was_stopped_runs_only_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Rollouts(monkeypatch, tasks=4)
    with pytest.raises(KeyboardInterrupt):
        evaluate(tmp_path)
    assert not (tmp_path / "episodes" / "summary.json").exists()
    second = Rollouts(monkeypatch)
    found = evaluate(tmp_path)
    assert first.asked + second.asked == [(mode, i) for mode in ("deterministic", "sampled") for i in range(3)]
    assert found.score == "success"
    assert found.modes["sampled"] == {"episodes": 3, "return": 1.0, "success": pytest.approx(1 / 3)}
    assert sorted(path.name for path in found.folder.iterdir()) == ["episodes.csv", "summary.json"]


def test_a_finished_evaluation_is_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Rollouts(monkeypatch)
    first = evaluate(tmp_path)
    again = Rollouts(monkeypatch)
    assert evaluate(tmp_path) == replace(first, ran=False)
    assert again.asked == []


def test_another_score_needs_no_other_episodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Rollouts(monkeypatch)
    assert evaluate(tmp_path).score == "success"
    scores = declared_scores(ENV).adding([], "return")
    found = pipeline._run_episodes(
        trial(tmp_path), replace(PLAN, scores=scores), tmp_path / "episodes", 3, silent, videos=False
    )
    assert (found.ran, found.score) == (False, "return")


def test_videos_asked_for_later_are_recorded_without_running_the_episodes_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Rollouts(monkeypatch)
    evaluate(tmp_path)
    later = Rollouts(monkeypatch)
    recorded = evaluate(tmp_path, videos=True)
    assert recorded.ran
    assert recorded.videos.keys() == {"deterministic", "sampled"}
    assert not evaluate(tmp_path, videos=True).ran
    assert (later.asked, later.recorded) == ([], ["deterministic", "sampled"])
    evaluate(tmp_path, videos=True, video_fps=10)
    assert later.recorded == ["deterministic", "sampled"] * 2


def test_an_environment_that_cannot_be_rendered_has_no_videos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rollouts = Rollouts(monkeypatch)
    monkeypatch.setattr("spirl_ray.pipeline.stages.render_problem", lambda env: "no screen" if env == ENV else None)
    found = evaluate(tmp_path, videos=True)
    assert (found.ran, found.no_videos, found.videos) == (True, "no screen", {})
    assert rollouts.asked
    assert rollouts.recorded == []


def test_data_files_are_compared_with_their_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from spirl_ray.episodes.dataset import FileEntry, read_card
    from spirl_ray.episodes.validation import file_digest

    dataset = workspace(tmp_path).dataset
    file = dataset / "episodes-00000-of-00001.parquet"
    file.write_bytes(b"some rows")
    entry = FileEntry(sha256=file_digest(file), bytes=9, rows=1)
    card = read_card(dataset).model_copy(update={"files": {file.name: entry}})
    (dataset / "card.json").write_text(card.model_dump_json())
    check_files(dataset)
    for content, said in ((b"some row", "has 8 bytes"), (b"some r0ws", "SHA-256")):
        file.write_bytes(content)
        with pytest.raises(SpirlError, match=said):
            check_files(dataset)
