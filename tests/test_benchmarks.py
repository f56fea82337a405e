"""The benchmarks run from end to end; what they measure on a busy machine is not looked at."""

from __future__ import annotations

import csv
import itertools
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from ray import cloudpickle

from benchmarks import collect, experts, frame_storage, gpu, recovery_sweep, reward_scale, streaming
from benchmarks.collect import shared_settings
from benchmarks.curves import draw_curves
from benchmarks.scale import captured_updates, predict
from benchmarks.speed import append_row
from spirl_ray.config import Experiment, load_experiment
from spirl_ray.datasets.preview import preview_data
from spirl_ray.envs import environment
from spirl_ray.episodes.dataset import Episode, read_episodes
from spirl_ray.errors import SpirlError
from spirl_ray.files.atomic import read_json
from spirl_ray.files.tables import read_csv, write_csv

ROOT = Path(__file__).parents[1]
LONG = pytest.mark.skipif("SPIRL_TEST_LONG" not in os.environ, reason="takes minutes: set SPIRL_TEST_LONG=1 to run it")
RATIOS = (
    "stage1_pipeline_over_loop",
    "stage1_two_workers",
    "stage2_algorithm_over_loop",
    "stage2_update_over_0_1",
    "stage2_ten_critics_over_0_1",
    "stage2_ten_critics_all_over_0_1",
    "stage2_one_update_a_call_over_16",
    "stage2_two_learners",
    "stage2_round_over_max",
)
OTHERS = (
    "stage1_windows_per_s",
    "stage1_share_of_peak",
    "stage1_startup_s",
    "stage2_updates_per_s",
    "stage2_share_of_peak",
    "matrix_peak_gflops",
)


@LONG
@pytest.mark.slow
def test_quick_run_ends_with_one_json_object_and_appends_a_row(tmp_path: Path) -> None:
    table = tmp_path / "speed.csv"
    folder = tempfile.mkdtemp(prefix="spirl-", dir="/tmp")  # short: Ray's socket paths must fit in 107 bytes
    try:
        finished = subprocess.run(
            [sys.executable, "-m", "benchmarks.speed", "--quick", "--out", str(table)],
            cwd=ROOT,
            env={**os.environ, "RAY_TMPDIR": folder},
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    assert finished.returncode == 0, finished.stderr[-3000:]
    values = json.loads(finished.stdout.splitlines()[-1])
    assert not set(RATIOS + OTHERS) - set(values)
    for name, value in values.items():
        if name.startswith("stage1_two_workers") and (os.cpu_count() or 1) < 2:
            assert value is None
        else:
            assert isinstance(value, float), name
            assert math.isfinite(value), name
            assert value >= 0.0, name
    assert 0.0 < values["stage1_share_of_peak"] < 1.0
    assert 0.0 < values["stage2_share_of_peak"] < 1.0
    assert values["stage2_round_over_max"] > 0.0
    with table.open(newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert float(row["stage1_windows_per_s"]) == pytest.approx(values["stage1_windows_per_s"], rel=1e-3)
    assert row["plan"] == "quick"
    assert row["commit"]
    assert row["version_ray"]


@pytest.mark.slow
def test_the_benchmark_of_a_card_runs_on_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "new" / "gpu.csv"
    assert gpu.main(["--device", "cpu", "--quick", "--out", str(table)]) == 0
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    ways = {(row["what"], row["way"], row["batch"], row["critics"]) for row in rows}
    assert {("stage2", way, "16", count) for way in ("loop", "plain") for count in ("2", "10")} <= ways
    assert {("stage1", way, "128", "") for way in ("float32", "bfloat16")} <= ways
    assert all(float(row["per_s"]) > 0.0 for row in rows if row["what"].startswith("stage"))
    losses = [float(row["loss"]) for row in rows if row["what"] == "loss"]
    assert len(losses) == 20
    assert losses[:10] == pytest.approx(losses[10:], rel=0.05)
    assert {row["device"] for row in rows} == {"cpu"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_the_benchmark_of_a_card_says_that_there_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--device", "cuda"]) == 2
    assert "--device cpu" in capsys.readouterr().err


def test_rows_are_appended_under_one_header(tmp_path: Path) -> None:
    table = tmp_path / "deep" / "speed.csv"
    append_row(table, {"rate": 1.5, "missing": None}, quick=True)
    append_row(table, {"rate": 2.5, "missing": None}, quick=False)
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["plan"], row["rate"], row["missing"]) for row in rows] == [("quick", "1.5", ""), ("full", "2.5", "")]


def test_table_with_other_columns_is_left_alone(tmp_path: Path) -> None:
    table = tmp_path / "speed.csv"
    table.write_text("something,else\n1,2\n", encoding="utf-8")
    with pytest.raises(SpirlError, match="other columns"):
        append_row(table, {"rate": 1.0}, quick=True)
    assert table.read_text(encoding="utf-8") == "something,else\n1,2\n"


def test_folders_of_the_machine_are_left_out_of_a_published_config() -> None:
    source = {"type": "minari", "id": "D4RL/kitchen/complete-v2", "root": "/home/somebody/minari"}
    experiment = load_experiment({"name": "x", "output": "/home/somebody/out", "data": {"sources": [source]}})
    settings = shared_settings(experiment)
    assert "somebody" not in str(settings)
    assert settings["data"]["sources"] == [{"type": "minari", "id": "D4RL/kitchen/complete-v2"}]
    assert load_experiment(settings).train == experiment.train


def test_experts_are_counted_by_what_their_episodes_say(monkeypatch: pytest.MonkeyPatch) -> None:
    def generate(indices: Iterable[int], seed: int, *, tasks: list[str], keep_failures: bool) -> Iterator[Episode]:
        assert keep_failures, "a second attempt would hide the failure of the first"
        assert sorted(tasks) == ["kettle", "microwave"]
        for index in indices:
            states, actions = {"state": np.zeros((4, 30), np.float32)}, np.zeros((3, 9), np.float32)
            solved = {"solved": index % 4 != 0}
            yield Episode(str(index), states, actions, np.zeros(3, np.float32), False, True, solved)

    monkeypatch.setattr(experts.kitchen_experts, "generate", generate)
    row = experts.kitchen(["microwave", "kettle"], 8)
    assert (row["attempts"], row["solved"], row["rate"], row["steps_mean"]) == (8, 6, 0.75, 3.0)


def test_prediction_names_the_slowest_part() -> None:
    measured = {
        "runner_s": 1.0,
        "driver_s": 0.02,
        "update_s": 0.01,
        "decisions_per_fragment": 32.0,
        "steps_per_fragment": 320.0,
        "sample_bytes": 2e4,
        "weight_bytes": 4e5,
    }
    few, many = predict(measured, 10, learns=False), predict(measured, 100, learns=False)
    assert (few["bottleneck"], few["env_steps_per_s"]) == ("env runners", 3200.0)
    assert (many["bottleneck"], many["env_steps_per_s"]) == ("driver", 16000.0)
    assert many["mbytes_per_s"] == pytest.approx(50 * 0.42)
    learning = predict(measured, 10, learns=True)
    assert learning["bottleneck"] == "learner"
    assert learning["env_steps_per_s"] == pytest.approx(320.0 / 0.34)
    fast = predict(measured, 100, learns=True, updates_per_s=960.0)
    assert (fast["bottleneck"], fast["env_steps_per_s"]) == ("learner", 9600.0)


def test_the_rate_of_captured_updates_is_found_in_the_file_of_a_card(tmp_path: Path) -> None:
    table = tmp_path / "gpu.csv"
    row = {"what": "stage2", "way": "plain", "batch": 256, "critics": 2, "updates_a_call": 16, "per_s": 60.0}
    write_csv(table, [row, {**row, "way": "graph", "per_s": 900.0}, {**row, "way": "graph", "critics": 10}])
    assert captured_updates(table) == 900.0
    write_csv(table, [row])
    with pytest.raises(SpirlError, match=r"benchmarks\.gpu"):
        captured_updates(table)


def clips(count: int, size: int) -> list[Episode]:
    """Episodes of smooth frames that change from step to step."""
    axis, episodes = np.arange(size), []
    for number in range(count):
        frames = np.stack([(axis[:, None, None] + 2 * axis[:, None] + 3 * step) % 200 for step in range(16)])
        frames = np.repeat(frames, 3, axis=3).astype(np.uint8) + np.uint8(20 * number)
        observations = {"robot": np.full((16, 9), number, np.float32), "front": frames}
        actions = np.zeros((15, 9), np.float32)
        episodes.append(Episode(str(number), observations, actions, np.zeros(15, np.float32), False, True))
    return episodes


@pytest.mark.parametrize("name", frame_storage.WAYS)
def test_every_way_to_store_frames_gives_them_back(name: str) -> None:
    episodes = clips(2, 64)
    row, found = frame_storage.measure_once(frame_storage.WAYS[name], episodes)
    for written, read in zip(episodes, found, strict=True):
        difference = np.abs(written.observations["front"].astype(int) - read.observations["front"])
        assert difference.mean() < 3 if name == "mp4" else not difference.any()
        np.testing.assert_array_equal(written.observations["robot"], read.observations["robot"])
    assert all(math.isfinite(value) and value >= 0 for value in row.values())


def test_data_to_stream_have_the_size_that_was_asked_for(tmp_path: Path) -> None:
    size = 5.5 * clips(1, 64)[0].nbytes
    streaming.write_dataset(clips(2, 64), tmp_path / "data", size)
    episodes = list(read_episodes(tmp_path / "data"))
    assert len(episodes) == 6
    assert sum(episode.nbytes for episode in episodes) >= size
    frames = [episode.observations["front"] for episode in episodes]
    assert not any(np.array_equal(one, other) for one, other in itertools.combinations(frames, 2))


@LONG
@pytest.mark.slow
def test_streaming_is_compared_with_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, local_ray: None) -> None:
    monkeypatch.setattr(streaming, "clips", clips)
    cloudpickle.register_pickle_by_value(streaming)  # Ray's workers cannot import it
    try:
        row = streaming.measure(tmp_path, 0.01, 4.0, 100, 1)
    finally:
        cloudpickle.unregister_pickle_by_value(streaming)
    assert row["streamed_passes"] > 1
    for name in ("ratio", "cpu_ratio", "memory_peak_mb", "streamed_peak_mb", "model_peak_mb", "streamed_thread_ms"):
        assert math.isfinite(row[name])
        assert row[name] > 0


@pytest.mark.parametrize(("env_id", "least"), [(reward_scale.MAZE, 1.0), (reward_scale.PENDULUM, -2000.0)])
def test_demonstrations_for_the_scale_of_rewards_can_be_read_and_reach_the_goal(
    env_id: str, least: float, tmp_path: Path
) -> None:
    reward_scale.record(env_id, tmp_path / "data.npz", 3)
    chosen = reward_scale.experiment(env_id, tmp_path / "data.npz", tmp_path / "run", "auto")
    found = preview_data(chosen.data, chosen.interface, environment(chosen.environment))
    assert found.problem is None
    assert found.episodes == found.looked_at == 3
    rewards = np.load(tmp_path / "data.npz")["rewards"]
    assert rewards.sum() / 3 >= least


def test_a_sweep_has_recovered_when_every_stage_that_ran_is_further_or_complete(tmp_path: Path) -> None:
    skills, policy = tmp_path / "skills" / "a", tmp_path / "policy" / "b"
    before = {skills: 500.0, policy: 3000.0}
    lowest = dict(before)

    def recovered(**found: float) -> bool:
        folders = {"skills": skills, "policy": policy}
        return recovery_sweep._all_further({folders[name]: steps for name, steps in found.items()}, before, lowest)

    assert not recovered(skills=600, policy=3000)  # one of them stands still
    assert not recovered(skills=400, policy=4000)
    assert not recovered(skills=600)  # the rows of the other one cannot be read at this moment
    assert recovered(skills=600, policy=4000)
    assert lowest == {skills: 400.0, policy: 3000.0}
    policy.mkdir(parents=True)
    (policy / "trained.json").touch()
    assert recovered(skills=600)


def test_curves_have_a_panel_for_each_task_and_a_line_for_each_method_and_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[plt.Figure] = []
    monkeypatch.setattr(plt, "close", drawn.append)
    rows = [
        {"task": task, "method": method, "seed": 0, "env_steps": steps, "mode": mode, "evaluation": which, "success": 1}
        for task in ("a", "b")
        for method in ("spirl", "flow")
        for mode in ("deterministic", "sampled")
        for steps, which in ((0, "training"), (1000, "training"), (1000, "final"))
    ]
    draw_curves(rows, tmp_path / "curves.png", panel="task", score="success", label="success")
    monkeypatch.undo()
    panels = drawn[0].axes
    assert [axis.get_title() for axis in panels] == ["a", "b"]
    assert [len(axis.lines) for axis in panels] == [4, 4]
    assert all(list(np.asarray(line.get_xdata())) == [0.0, 1.0] for axis in panels for line in axis.lines)
    assert len(drawn[0].legends[0].get_texts()) == 4  # each method and mode is named once
    assert (tmp_path / "curves.png").stat().st_size > 0
    plt.close(drawn[0])


def test_a_result_file_keeps_the_config_of_every_training_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collect, "RESULTS", tmp_path)

    def found() -> list[tuple[list[str], int]]:
        configs = read_json(tmp_path / "tasks.json")["configs"]
        return [(one["config_hashes"], one["config"]["train"]["env_steps"]) for one in configs]

    def shorter(steps: int) -> Experiment:
        return load_experiment("quickstart", [f"train.env_steps={steps}"])

    def rows(hashes: str) -> list[dict[str, Any]]:
        return [{"config_hash": one} for one in hashes]

    collect.add_origin("tasks", shorter(100), rows("ab"), rows("ab"))
    collect.add_origin("tasks", shorter(200), rows("c"), rows("abc"))
    assert found() == [(["a", "b"], 100), (["c"], 200)]
    collect.add_origin("tasks", shorter(300), rows("b"), rows("bc"))  # b was made again, and a has been replaced
    assert found() == [(["c"], 200), (["b"], 300)]
    collect.write_origin("tasks", shorter(100))  # a file of one call
    collect.add_origin("tasks", shorter(200), rows("c"), rows("abc"))
    assert found() == [(["a", "b"], 100), (["c"], 200)]


def test_each_of_several_tasks_keeps_its_own_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rows(experiment: Experiment, fixed: dict[str, Any], columns: tuple[str, ...]) -> list[dict[str, Any]]:
        steps = experiment.train.env_steps
        return [{"method": "spirl", **fixed, "seed": 0, "config_hash": f"h{steps}"}] if steps > 1 else []

    trained: list[int] = []
    monkeypatch.setattr(collect, "RESULTS", tmp_path / "benchmarks" / "results")
    monkeypatch.setattr(collect, "evaluation_rows", rows)
    monkeypatch.setattr(collect, "draw_curves", lambda *_, **__: None)
    monkeypatch.setattr(collect.api, "run", lambda one: trained.append(one.train.env_steps))
    tasks = [(f"of {n}", load_experiment("quickstart", [f"train.env_steps={n}"])) for n in (1, 2, 3)]
    for run in (False, True):
        collect.collect_tasks("all", "few", tasks, (), panel="task", score="score", label="score", run=run)
    assert trained == [1, 2, 3]
    found = read_json(collect.RESULTS / "few.json")["configs"]
    assert [(one["config_hashes"], one["config"]["train"]["env_steps"]) for one in found] == [(["h2"], 2), (["h3"], 3)]
    assert [row.cells["task"] for row in read_csv(collect.RESULTS / "all.csv")] == ["of 2", "of 3"]
