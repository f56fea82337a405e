"""Experiments of which tests make reports, and a parser of the pages."""

import csv
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np

from spirl_ray.envs.metrics import subtask_scores
from spirl_ray.metrics import deciding_metrics
from spirl_ray.pipeline.video import VideoWriter
from spirl_ray.reports.records import ExperimentRecord, PriorRecord, SkillRecord, TrialRecord
from spirl_ray.reports.report import write_report

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
    return PriorRecord("closed-loop", "none", seed, "sampled", path)


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
