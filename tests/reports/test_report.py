import csv
import json

import pytest
from reports.made_reports import DECIDING, SCORES, episodes_csv, experiment, report, trial, write_csv

from spirl_ray.envs.metrics import EpisodeMetric, declare, undeclared
from spirl_ray.errors import SpirlError
from spirl_ray.pipeline.results import Finding, Snapshot
from spirl_ray.pipeline.status import duration
from spirl_ray.pipeline.trained import TrainedRecord
from spirl_ray.reports.records import DecidingRecord, PriorRecord, TrialRecord
from spirl_ray.reports.report import write_report


def test_whole_report_has_verdict_curves_tables_and_provenance(whole):
    _, page = whole
    for words in (
        "spirl scores best: subtasks 3.17 of 4 (95% interval 2.50 to 4.00) with its deterministic",
        "and 2.00 of 4 (95% interval 2.00 to 2.00) with sampled actions",
        "500 k primitive environment steps (3 seeds, 6 episodes for each policy)",
        "Next comes without prior with 1.00",
        "The best bare prior, without any reinforcement learning, scores 0.75 of 4",
        "1 h 23 min",
        "target_divergence: 5.0",
        "spirl run kitchen.yaml",
        "CC-BY-4.0",
        "150,000",
        "c0ffee",
    ):
        assert words in page.text
    drawn = [label for label in page.values("svg", "aria-label") if label.startswith(("Deterministic", "Sampled"))]
    assert len(drawn) == 2
    assert "spirl ends at" in drawn[0]


def test_results_csv_has_a_row_for_every_evaluation_point_and_the_final_one(whole):
    files, _ = whole
    with files.csv.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == (
        [
            "method",
            "seed",
            "env_steps",
            "mode",
            "evaluation",
            "episodes",
            *SCORES.names,
            "wall_clock_s",
            "config_hash",
            "commit",
            *DECIDING,
        ]
    )
    assert len(rows) == 6 * (10 + 2)
    assert [row["evaluation"] for row in rows[:12]] == ["training"] * 10 + ["final"] * 2
    assert rows[10] == {
        **{"method": "spirl", "seed": "0", "env_steps": "500000", "mode": "deterministic", "evaluation": "final"},
        **{"episodes": "2", "return": "3", "length": "280", "subtasks": "3", "microwave": "1", "kettle": "1"},
        **{"bottom_burner": "1", "light_switch": "0", "wall_clock_s": "5025.0", "config_hash": "c0ffee"},
        "commit": "abc1234",
        **dict.fromkeys(DECIDING, ""),
    }


def test_results_json_has_the_numbers_of_the_tables(whole):
    files, _ = whole
    numbers = json.loads(files.json.read_text())
    best = numbers["methods"][0]
    assert (best["method"], best["mode"], best["evaluation"]) == ("spirl", "deterministic", "final")
    assert best["mean"] == pytest.approx((3 + 4 + 2.5) / 3)
    assert best["interquartile_mean"] == pytest.approx((0.25 * 2.5 + 3 + 0.25 * 4) / 1.5)
    assert best["mean_interval_95"] == [2.5, 4.0]
    assert [one["metrics"]["subtasks"] for one in best["seeds"]] == [3, 4, 2.5]
    assert numbers["score"] == "subtasks"
    means = numbers["means"][0]
    assert means["episodes"] == 6
    shares = {name: means["means"][name] for name in SCORES.names[3:]}
    assert shares == pytest.approx({"microwave": 1, "kettle": 1, "bottom_burner": 5 / 6, "light_switch": 2 / 6})
    assert numbers["priors"][1]["mean"] == 1


def test_what_decides_is_on_the_page_and_in_both_files(tmp_path):
    findings = (Finding("A latent carries 0.7 nats."), Finding("The latent <hardly> steers.", warning=True))
    deciding = DecidingRecord("spirl", 0, {"latent_nats": 0.7, "expected_value": 182.0}, findings)
    record = experiment(trials=[trial(tmp_path), trial(tmp_path, seed=1)], deciding=[deciding])
    files, page = report(tmp_path / "report", record)
    assert "A latent carries 0.7 nats." in page.text
    assert "Warning: The latent <hardly> steers." in page.text
    assert "latent nats0.7 nats per skillDivergence of the encoder from the skill prior" in page.text
    assert "expected value182" in page.text
    with files.csv.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["seed"], row["latent_nats"], row["expected_value"]) for row in rows} == {
        ("0", "0.7", "182"),
        ("1", "", ""),
    }
    [numbers] = json.loads(files.json.read_text())["deciding"]
    assert numbers["metrics"] == {"latent_nats": 0.7, "expected_value": 182.0}
    assert [finding["warning"] for finding in numbers["findings"]] == [False, True]


def test_experiment_with_nothing_trained_is_a_report_that_says_so(tmp_path):
    files, page = report(tmp_path / "report", experiment())
    for words in (
        "No policy has been trained yet",
        "no rollouts of the bare prior",
        "No videos yet",
        "No skill model yet",
        "No data card",
        "Nothing has been trained yet",
        "Nothing has been measured yet that decides",
    ):
        assert words in page.text
    assert files.csv.read_text().count("\n") == 1
    assert json.loads(files.json.read_text())["methods"] == []


def test_single_seed_has_no_interval_and_the_verdict_warns(tmp_path):
    files, page = report(tmp_path / "report", experiment(trials=[trial(tmp_path)]))
    assert "a single seed" in page.text
    assert "nothing can be said about the spread" in page.text
    assert "one seed, no interval" in page.text
    assert "nan" not in page.text
    assert json.loads(files.json.read_text())["methods"][0]["mean_interval_95"] is None


@pytest.mark.parametrize(("rival", "settled"), [((0, 1), True), ((3, 3), False)])
def test_verdict_says_whether_the_order_of_the_best_two_is_settled(tmp_path, rival, settled):
    trials = [trial(tmp_path, "best", seed, (3, 3 + seed % 2)) for seed in range(4)]
    trials += [trial(tmp_path, "rival", seed, (rival[0], rival[1])) for seed in range(4)]
    _, page = report(tmp_path / "report", experiment(trials=trials))
    assert "Next comes rival" in page.text
    assert ("the order of the two is not settled" in page.text) is not settled


def test_method_without_final_evaluation_is_judged_by_its_last_evaluation(tmp_path):
    _, page = report(tmp_path / "report", experiment(trials=[trial(tmp_path, final_episodes_csv=None)]))
    assert "the final evaluation is still to come" in page.text
    assert "last during training" in page.text


def test_trial_that_has_only_begun_is_no_error(tmp_path):
    begun = TrialRecord("spirl", 0, "c0ffee", "abc1234", 0, float("nan"), metrics_csv=tmp_path / "not-yet.csv")
    _, page = report(tmp_path / "report", experiment(trials=[begun]))
    assert "No policy has been evaluated yet" in page.text
    assert "../not-yet.csv" in page.text


def test_half_a_line_of_a_running_trial_is_left_out(tmp_path):
    running = trial(tmp_path, final_episodes_csv=None)
    with running.evaluations_csv.open("a") as file:
        file.write("600000,deterministic,10,0.0")
    files, _ = report(tmp_path / "report", experiment(trials=[running]))
    assert "600000" not in files.csv.read_text()


def test_malformed_cell_is_named_by_file_line_and_column(tmp_path):
    broken = trial(tmp_path)
    broken.metrics_csv.write_text("env_steps,alpha\n100,0.1\n200,much\n")
    with pytest.raises(SpirlError, match=r"metrics\.csv, line 3, column 'alpha': 'much'"):
        write_report(tmp_path / "report", experiment(trials=[broken]))


def test_missing_column_is_named(tmp_path):
    broken = trial(tmp_path)
    broken.evaluations_csv.write_text("mode,subtasks\nsampled,1\n")
    with pytest.raises(SpirlError, match=r"evaluations\.csv: no column 'env_steps'"):
        write_report(tmp_path / "report", experiment(trials=[broken]))


def test_out_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "report").write_text("a file")
    with pytest.raises(SpirlError, match=r"Cannot write .*report/results\.csv: File exists"):
        write_report(tmp_path / "report", experiment())


def test_report_can_be_written_again_in_place(tmp_path):
    write_report(tmp_path / "report", experiment())
    files = write_report(tmp_path / "report", experiment(name="another name"))
    assert "another name" in files.html.read_text()
    assert sorted(file.name for file in (tmp_path / "report").iterdir()) == [
        *("report.html", "results.csv", "results.json")
    ]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(12.4, "12 s"), (75, "1 min 15 s"), (11520, "3 h 12 min"), (float("nan"), "unknown")],
)
def test_durations_are_readable(seconds, words):
    assert duration(seconds) == words


def test_a_prior_is_scored_by_the_episodes_of_its_own_mode(tmp_path):
    path = episodes_csv(tmp_path / "episodes.csv", deterministic=(4, 4), sampled=(1, 2))
    modes = ("deterministic", "sampled")
    priors = [PriorRecord("closed-loop skills", "none", 0, mode, path) for mode in modes]
    files = write_report(tmp_path / "report", experiment(trials=[], priors=priors))
    found = {row["mode"]: (row["mean"], row["episodes"]) for row in json.loads(files.json.read_text())["priors"]}
    assert found == {"deterministic": (4.0, 2), "sampled": (1.5, 2)}


def test_the_report_shows_the_best_and_the_last_snapshot_and_which_is_published(tmp_path):
    def snapshot(steps, value):
        means = {"episodes": 20, "subtasks": value}
        return Snapshot(env_steps=steps, score=value, deterministic=means, sampled=means)

    trained = TrainedRecord(
        env_steps=500_000,
        decisions=9,
        updates=9,
        wall_clock_s=1.0,
        config_hash="h",
        commit="c",
        publish="best",
        published_env_steps=300_000,
        score="subtasks",
        best=snapshot(300_000, 2.75),
        last=snapshot(500_000, 1.25),
    )
    record = experiment(trials=[trial(tmp_path, trained=trained), trial(tmp_path, "begun")])
    files, page = report(tmp_path / "report", record)
    assert "best300 k2.7520 episodes2.7520 episodespublished" in page.text
    assert "last500 k1.2520 episodes1.2520 episodes" in page.text
    assert "episodespublished" not in page.text.replace("2.7520 episodespublished", "")
    (found,) = json.loads(files.json.read_text())["snapshots"]
    assert (found["publish"], found["best"]["env_steps"], found["last"]["env_steps"]) == ("best", 300_000, 500_000)


def episodes_of(path, **columns):
    count = len(next(iter(columns.values())))
    columns = {"mode": ["deterministic"] * count, "episode": range(count), "seed": range(count), **columns}
    return write_csv(path, columns)


@pytest.mark.parametrize(("success", "name"), [([1, 0, ""], "success"), (["", "", ""], "return")])
def test_an_environment_that_declares_nothing_is_judged_by_success_where_there_is_one(tmp_path, success, name):
    path = episodes_of(tmp_path / "episodes.csv", **{"return": [5, 6, 7], "length": [9, 9, 9], "success": success})
    record = trial(tmp_path, evaluations_csv=None, final_episodes_csv=path)
    files, _ = report(tmp_path / "report", experiment(trials=[record], scores=undeclared()))
    numbers = json.loads(files.json.read_text())
    assert numbers["score"] == name
    assert numbers["methods"][0]["mean"] == {"success": 0.5, "return": 6.0}[name]


def test_the_best_method_is_the_one_with_the_least_where_less_is_better(tmp_path):
    steps = EpisodeMetric(name="energy", meaning="Energy", unit="J", more_is_better=False, of=lambda outcome: 0.0)
    trials = [
        trial(tmp_path, method, final_episodes_csv=episodes_of(tmp_path / f"{method}.csv", energy=values))
        for method, values in (("wasteful", [9, 8]), ("thrifty", [2, 3]))
    ]
    _, page = report(tmp_path / "report", experiment(trials=trials, scores=declare([steps], "energy")))
    assert "thrifty scores best: energy 2.50 J" in page.text
    assert "Next comes wasteful with 8.50" in page.text
