import base64
import csv
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import imageio_ffmpeg
import numpy as np
import pytest

from spirl_ray.envs.metrics import EpisodeMetric, declare, subtask_scores, undeclared
from spirl_ray.errors import SpirlError
from spirl_ray.metrics import deciding_metrics
from spirl_ray.pipeline.results import Finding
from spirl_ray.pipeline.video import VideoWriter
from spirl_ray.reports.records import DecidingRecord, ExperimentRecord, PriorRecord, SkillRecord, TrialRecord
from spirl_ray.reports.report import duration, write_report

SUBTASKS = ("microwave", "kettle", "bottom burner", "light switch")
SCORES = subtask_scores(SUBTASKS)
DECIDING = [row.name for stage in ("pretrain", "train") for row in deciding_metrics(stage)]
VOID = {"meta", "link", "br", "img", "input", "hr", "path", "use", "rect"}


def write_csv(path, columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path


def episodes_csv(path, **subtasks_by_mode):
    rows = [(mode, count) for mode, counts in subtasks_by_mode.items() for count in counts]
    columns = {
        "mode": [mode for mode, _ in rows],
        "episode": range(len(rows)),
        "seed": range(len(rows)),
        "return": [count for _, count in rows],
        "length": [280] * len(rows),
        "subtasks": [count for _, count in rows],
    }
    for index, name in enumerate(SCORES.names[3:]):
        columns[name] = [float(count > index) for _, count in rows]
    return write_csv(path, columns)


def video_file(path):
    with VideoWriter(path, fps=10) as video:
        for step in range(5):
            video.add(np.full((64, 96, 3), 120, np.uint8), f"step {step}")
    return path


def trial(folder, method="spirl", seed=0, subtasks=(3, 3, 4, 2), **changes):
    steps = np.arange(1, 6) * 100_000
    evaluations = {
        "env_steps": np.repeat(steps, 2),
        "mode": ["deterministic", "sampled"] * 5,
        "episodes": [10] * 10,
        "subtasks": np.linspace(0, 2, 10) + seed / 10,
        "return": np.linspace(0, 2, 10),
        "wall_clock_s": np.repeat(steps / 100, 2),
    }
    metrics = {
        "env_steps": np.arange(1, 21) * 25_000,
        "divergence": np.linspace(9, 5, 20),
        "divergence_p50": np.linspace(8, 4, 20),
        "divergence_phase_0": [""] * 20,
        "alpha": np.geomspace(0.1, 0.001, 20),
        "q_mean": np.linspace(0, 10, 20),
        "subtasks": np.linspace(0, 1, 20),
    }
    folder = folder / f"{len(method)}-{seed}"
    record = TrialRecord(
        method=method,
        seed=seed,
        config_hash="c0ffee",
        commit="abc1234",
        env_steps=500_000,
        wall_clock_s=5025.0,
        metrics_csv=write_csv(folder / "metrics.csv", metrics),
        evaluations_csv=write_csv(folder / "evaluations.csv", evaluations),
        final_episodes_csv=episodes_csv(folder / "episodes.csv", deterministic=subtasks, sampled=(2, 2)),
    )
    return replace(record, **changes)


def prior(folder, seed=0, subtasks=(0, 1, 1, 0)):
    path = episodes_csv(folder / f"prior-{seed}.csv", sampled=subtasks)
    return PriorRecord(f"prior {seed}", "closed-loop", "none", seed, "sampled", path)


def experiment(**changes):
    record = ExperimentRecord(
        name="kitchen",
        environment="spirl/Kitchen-v0",
        scores=SCORES,
        config_yaml="rl:\n  target_divergence: 5.0\n",
        commands=["spirl run kitchen.yaml"],
        versions={"ray": "2.60.0"},
        hardware={"cpu": "2 cores"},
    )
    return replace(record, **changes)


def whole_experiment(folder):
    trials = [trial(folder, seed=seed, subtasks=counts) for seed, counts in enumerate([(3, 3), (4, 4), (2, 3)])]
    trials += [trial(folder, method="without prior", seed=seed, subtasks=(1, seed)) for seed in range(3)]
    losses = {"update": [100, 200, 300], "train_loss": [3, 2, 1], "validation_loss": [3.1, "", 1.2]}
    skill = SkillRecord(
        "closed-loop",
        folder,
        write_csv(folder / "skills.csv", losses),
        {"latent_dim": 10, "updates": 150_000},
    )
    return experiment(
        trials=trials,
        priors=[prior(folder, 0), prior(folder, 1, (1, 1))],
        skills=[skill],
        data_card={"episodes": 601, "licence": "CC-BY-4.0"},
    )


class Page(HTMLParser):
    """The text, the attributes and the unclosed tags of a page."""

    def __init__(self, html):
        super().__init__()
        self.attributes, self.open, self.words = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.attributes += [(tag, name, value) for name, value in attributes]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.attributes += [(tag, name, value) for name, value in attributes]

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self):
        return " ".join("".join(self.words).split())

    def values(self, tag, name):
        return [value for t, n, value in self.attributes if (t, n) == (tag, name)]


def report(out, record, **options):
    files = write_report(out, record, **options)
    page = Page(files.html.read_text(encoding="utf-8"))
    assert page.open == []
    return files, page


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Files and page of the report of a whole experiment with one video."""
    folder = tmp_path_factory.mktemp("experiment")
    record = whole_experiment(folder)
    record.trials[0].videos.append(video_file(folder / "episode.mp4"))
    return report(folder / "report", record)


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


def test_names_are_escaped(tmp_path):
    hostile = '<script>alert("x")</script> & $x_1$'
    record = experiment(
        name=hostile,
        environment=hostile,
        scores=subtask_scores([hostile]),
        config_yaml=hostile,
        commands=[hostile],
        versions={hostile: hostile},
        data_card={hostile: {hostile: hostile}},
        trials=[trial(tmp_path, method=hostile)],
        priors=[replace(prior(tmp_path), label=hostile, skill_label=hostile, augmentation=hostile)],
        skills=[SkillRecord(hostile, tmp_path, None, {hostile: hostile})],
    )
    files, page = report(tmp_path / "report", record)
    assert "<script" not in files.html.read_text()
    assert hostile in page.text


def test_page_asks_the_network_for_nothing(whole):
    files, page = whole
    html = files.html.read_text()
    assert "http" not in html
    assert "//" not in re.sub(r"base64,[^\"]*", "", html)
    addresses = [v for _, name, v in page.attributes if name in ("src", "href", "xlink:href")]
    assert addresses
    assert all(address.startswith(("#", "data:")) for address in addresses)
    assert all("#" in url for url in re.findall(r"url\([^)]*\)", html))


def test_references_inside_drawings_lead_somewhere(whole):
    _, page = whole
    ids = {value for _, name, value in page.attributes if name == "id"}
    links = [value for _, name, value in page.attributes if name in ("href", "xlink:href")]
    assert {link[1:] for link in links if link.startswith("#")} <= ids
    clips = [value for _, name, value in page.attributes if name == "clip-path"]
    assert clips
    assert {re.fullmatch(r"url\(#(.*)\)", clip)[1] for clip in clips} <= ids


def test_embedded_video_is_the_file_and_decodes(tmp_path):
    path = video_file(tmp_path / "episode.mp4")
    _, page = report(tmp_path / "report", experiment(trials=[trial(tmp_path, videos=[path])]))
    (source,) = page.values("video", "src")
    data = base64.b64decode(source.removeprefix("data:video/mp4;base64,"))
    assert data == path.read_bytes()
    (tmp_path / "again.mp4").write_bytes(data)
    assert imageio_ffmpeg.count_frames_and_secs(str(tmp_path / "again.mp4"))[0] == 5
    assert "spirl · seed 0 · episode" in page.text


def test_films_of_the_data_stand_after_those_of_the_agents(tmp_path):
    films = [video_file(tmp_path / f"{name}.mp4") for name in ("episode", "demonstrations")]
    record = experiment(trials=[trial(tmp_path, videos=films[:1])], demonstrations=films[1:])
    _, page = report(tmp_path / "report", record)
    assert len(page.values("video", "src")) == 2
    assert page.text.index("spirl · seed 0 · episode") < page.text.index("demonstrations")


def test_videos_beyond_the_limit_are_linked_by_relative_path(tmp_path):
    first, second = (video_file(tmp_path / "run 1" / f"{name}.mp4") for name in ("first", "second"))
    record = experiment(trials=[trial(tmp_path, videos=[first, second])])
    one_fits = round(1.5 * 4 / 3 * first.stat().st_size)
    _, page = report(tmp_path / "report", record, video_limit_bytes=one_fits)
    embedded, linked = page.values("video", "src")
    assert embedded.startswith("data:video/mp4;base64,")
    assert linked == "../run%201/second.mp4"
    assert linked in page.values("a", "href")


def test_video_that_is_gone_is_said(tmp_path):
    record = experiment(trials=[trial(tmp_path, videos=[tmp_path / "gone.mp4"])])
    _, page = report(tmp_path / "report", record)
    assert "This video is not there." in page.text
    assert page.values("video", "src") == []


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
    priors = [PriorRecord("closed-loop skills", "closed-loop skills", "none", 0, mode, path) for mode in modes]
    files = write_report(tmp_path / "report", experiment(trials=[], priors=priors))
    found = {row["mode"]: (row["mean"], row["episodes"]) for row in json.loads(files.json.read_text())["priors"]}
    assert found == {"deterministic": (4.0, 2), "sampled": (1.5, 2)}


def test_the_report_shows_the_best_and_the_last_snapshot_and_which_is_published(tmp_path):
    def snapshot(steps, value):
        modes = {mode: {"episodes": 20, "subtasks": value} for mode in ("deterministic", "sampled")}
        return {"env_steps": steps, "score": value, **modes}

    selection = {"publish": "best", "best": snapshot(300_000, 2.75), "last": snapshot(500_000, 1.25)}
    record = experiment(trials=[trial(tmp_path, selection=selection), trial(tmp_path, "begun")])
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
