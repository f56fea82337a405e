"""The Python interface: its names, its events, and whole experiments as calls."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from opened import expert_episodes
from toy import TOY
from workspaces import workspace

import spirl_ray as spirl
import spirl_ray.envs as envs
from spirl_ray.episodes.dataset import read_card
from spirl_ray.pipeline.events import Event
from spirl_ray.pipeline.experiment import ExperimentRun
from spirl_ray.pipeline.results import DataResult

POINT_PADS = "spirl/PointPads-v0"


def loaded_after(program: str) -> set[str]:
    """Top-level modules that a new process has imported after a program."""
    listing = "import sys; print(*{name.partition('.')[0] for name in sys.modules})"
    found = subprocess.run([sys.executable, "-c", f"{program}; {listing}"], capture_output=True, text=True, check=True)
    return set(found.stdout.split())


# --- names ---


@pytest.mark.parametrize(
    "program",
    [
        "import spirl_ray",
        "import spirl_ray as spirl; spirl.load_experiment({'name': 'a'})",
        "import spirl_ray as spirl; spirl.run, spirl.pretrain, spirl.train, spirl.evaluate",
        "import spirl_ray.cli.main",
    ],
)
def test_an_import_needs_neither_ray_nor_torch(program: str) -> None:
    assert loaded_after(program) & {"ray", "torch"} == set()


def test_importing_the_package_imports_nothing_else() -> None:
    assert loaded_after("import spirl_ray") & {"pydantic", "yaml", "numpy", "typer"} == set()


def test_every_public_name_is_there() -> None:
    assert set(spirl.__all__) == set(spirl._MODULES)
    for name in spirl.__all__:
        assert callable(getattr(spirl, name))
        assert name in dir(spirl)
    with pytest.raises(AttributeError, match="nonsense"):
        spirl.nonsense  # noqa: B018


def test_the_package_says_that_it_is_typed() -> None:
    assert (Path(spirl.__file__).parent / "py.typed").is_file()
    assert '"py.typed"' in (Path(__file__).parents[1] / "pyproject.toml").read_text()


# --- events ---


def test_a_stage_tells_of_its_start_its_progress_and_its_result(tmp_path: Path) -> None:
    events: list[Event] = []
    made = workspace(tmp_path)
    running = ExperimentRun(made, events.append)
    expected = DataResult(folder=tmp_path, ran=True, episodes=1, steps=2)

    def work(progress: Any) -> DataResult:
        progress(3, 10, metrics={"alpha": 0.5}, scores={"success": 1.0})
        made.on_wait(tmp_path / "other")
        return expected

    assert running.stage("training", work, made.trial("spirl_cl", 7)) is expected
    assert [event.happening for event in events] == ["started", "progress", "waiting", "finished"]
    assert {event.stage for event in events} == {"training"}
    _, progress, waiting, finished = events
    assert (progress.method, progress.seed, progress.done, progress.total) == ("spirl_cl", 7, 3, 10)
    assert (progress.metrics, progress.scores) == ({"alpha": 0.5}, {"success": 1.0})
    assert waiting.folder == tmp_path / "other"
    assert finished.result is expected


def test_a_stage_that_fails_does_not_finish(tmp_path: Path) -> None:
    events: list[Event] = []

    def work(progress: Any) -> DataResult:
        raise spirl.SpirlError("no")

    with pytest.raises(spirl.SpirlError):
        ExperimentRun(workspace(tmp_path), events.append).stage("data", work)
    assert [event.happening for event in events] == ["started"]


# --- errors ---


@pytest.mark.parametrize("call", [spirl.run, spirl.pretrain, spirl.train])
def test_wrong_settings_are_told_before_anything_is_written(tmp_path: Path, call: Any) -> None:
    for changes, named in (
        ({"methods": ["ppo"]}, "ppo"),
        ({"env.colour": "red"}, "colour"),
        ({"skills.features": ["nose"]}, "nose"),
    ):
        with pytest.raises(spirl.SpirlError, match=named):
            call(spirl.load_experiment(TOY, {"output": tmp_path / "out", **changes}))
    assert not (tmp_path / "out").exists()


def test_an_experiment_that_is_not_there_cannot_be_evaluated(tmp_path: Path) -> None:
    with pytest.raises(spirl.SpirlError, match="no experiment"):
        spirl.evaluate(spirl.load_experiment(TOY, {"output": tmp_path / "out"}))


# --- whole experiments ---


@pytest.mark.slow
def test_an_experiment_on_data_of_ones_own_from_arrays_to_a_report(local_ray: None, tmp_path: Path) -> None:
    spec = envs.environment(POINT_PADS)
    with spirl.DatasetWriter(
        tmp_path / "mine", features=spec.features, action_dim=spec.action_dim, environment=POINT_PADS, shards=2
    ) as writer:
        for episode in expert_episodes(POINT_PADS, 6):
            writer.add(
                observations=episode.observations,
                actions=episode.actions,
                rewards=episode.rewards,
                terminated=episode.terminated,
                truncated=episode.truncated,
            )
    changes = {"output": tmp_path / "out", "data": {"sources": [{"type": "folder", "path": str(tmp_path / "mine")}]}}
    experiment = spirl.load_experiment({**TOY, **changes})
    events: list[Event] = []
    result = spirl.run(experiment, on_event=events.append)

    stages = ("data", "skills", "prior", "training", "evaluation", "report")
    assert [event.stage for event in events if event.happening == "finished" and event.stage in stages] == list(stages)
    assert max(event.done for event in events if event.stage == "training") >= 400
    assert result.data is not None
    assert result.data.episodes == 6
    assert read_card(result.data.folder).content_sha256 == read_card(tmp_path / "mine").content_sha256
    [skills], [policy], [evaluation] = result.skills, result.policies, result.evaluations
    assert spirl.load_skills(skills.folder).spec.horizon == 10
    assert policy.env_steps >= 400
    assert policy.published.env_steps in (policy.best.env_steps, policy.last.env_steps)
    assert evaluation.modes["sampled"]["episodes"] == 2
    assert evaluation.mean("sampled") == evaluation.modes["sampled"][evaluation.score]
    assert len(evaluation.episodes_csv.read_text().splitlines()) == 1 + 4
    assert all(video.stat().st_size > 1000 for video in evaluation.videos.values())
    assert evaluation.videos.keys() == evaluation.modes.keys()
    assert "<html" in result.report.html.read_text()
    env = envs.make(POINT_PADS)
    observation, _ = env.reset(seed=0)
    action = spirl.load_policy(policy.folder).act(observation)
    assert env.action_space.contains(action)

    [again] = spirl.train(experiment)
    assert not again.ran
    assert again.folder == policy.folder
    elsewhere = spirl.load_experiment({**TOY, **changes}, {"env.tasks": ["north"]})
    with pytest.raises(spirl.SpirlError, match="no trained policy"):
        spirl.evaluate(elsewhere)
    [there] = spirl.evaluate(elsewhere, trained_as=experiment)
    assert there.ran
    assert there.folder != evaluation.folder
