"""The names of the files and folders of an experiment: the place of each.

::

    EXPERIMENT                      marks the folder of an experiment
    DATA/name-key/                  a dataset: DATASET_CARD and Parquet files
    DEMONSTRATIONS/name-key/        DEMONSTRATIONS_VIDEO of a dataset
    SKILLS/decoder-key/             skills: SKILL_CARD, SKILL_TENSORS, METRICS; what a tracker has of them
    OFFLINE/decoder-key/            the demonstrations as decisions: OFFLINE_CARD and a file for each of the dataset
    PRIOR/decoder-key/              episodes of a bare prior, files as in EVALUATION
    POLICIES/method-key/            a policy: POLICY_CARD, POLICY_TENSORS, SKILLS/, and its training: METRICS,
                                    EVALUATIONS, TRAINED, REWARDS, PROVENANCE, TENSORBOARD/,
                                    ATTEMPTS/; what a tracker has of it
      CHECKPOINTS/step-N/             what training resumes from
      SNAPSHOTS/step-N/               the policy after N steps, with its evaluations
    EVALUATION/method-key/          EPISODES, SUMMARY, VIDEOS/
    EXPLORATION/key/                EXPLORATION_FIGURE, EXPLORATION_TABLE, SUMMARY
    SWEEPS/name-key/                SWEEP, SWEEP_SIGN, TRIALS/, SWEEP_RESULTS, EVALUATIONS,
                                    SWEEP_FIGURE, BEST
    REPORTS/                        REPORT, REPORT_TABLE, REPORT_NUMBERS
    STATUS/                         PLAN, and how far each stage is

Code that reads or writes one of them takes its name from here. In this project, JSON files are written last and
complete the files beside them.
"""

from __future__ import annotations

from pathlib import Path

# --- the experiment's folder ---

EXPERIMENT = "experiment.json"
"""Marks the folder of an experiment and holds its name, its environment and the version of this layout."""
DATA = "data"
"""Folder of the datasets."""
DEMONSTRATIONS = "demonstrations"
"""Folder of the videos of datasets."""
SKILLS = "skills"
"""Folder of the skills that an experiment has trained, and of the copy of its skills in a policy's folder."""
PRIOR = "prior"
"""Folder of the episodes in which a bare prior acts."""
OFFLINE = "offline_decisions"
"""Folder of the demonstrations as decisions of stage 2."""
POLICIES = "policy"
"""Folder of the policies and their trainings."""
EVALUATION = "evaluation"
"""Folder of the final evaluations."""
EXPLORATION = "exploration"
"""Folder of the explorations."""
SWEEPS = "sweeps"
"""Folder of the sweeps."""
REPORTS = "report"
"""Folder of the report."""
REPORT = "report.html"
"""The report, one page that needs no other file but videos that are too large for it."""
REPORT_TABLE = "results.csv"
"""The evaluations of all policies, a row for each."""
REPORT_NUMBERS = "results.json"
"""The numbers in the tables of the report."""

STATUS = "status"
"""Folder of what the commands of an experiment say of their progress, a file for each stage."""
PLAN = "plan.json"
"""The stages of the newest command, in the folder of the status."""

# --- datasets ---

DATASET_CARD = "card.json"
"""Describes a dataset and completes it: features, counts, source, licence, hashes of the files."""
IMPORTS = "imported.json"
"""The datasets of an experiment by the settings of their sources, by which they are found without these."""
DEMONSTRATIONS_VIDEO = "demonstrations.mp4"
"""Some episodes of a dataset."""


def episodes_file(number: int, count: int) -> str:
    """The name of one of a dataset's ``count`` Parquet files."""
    return f"episodes-{number:05d}-of-{count:05d}.parquet"


OFFLINE_CARD = "decisions.json"
"""Describes offline decisions and completes them."""


def decisions_file(number: int) -> str:
    """The name of the file with the decisions of one of a dataset's files."""
    return f"decisions-{number:05d}.safetensors"


# --- skills and policies ---

SKILL_CARD = "skill.json"
"""Describes trained skills and completes them."""
SKILL_TENSORS = "skills.safetensors"
"""The parameters of the skill model."""
POLICY_CARD = "policy.json"
"""Describes a policy and completes it."""
POLICY_TENSORS = "policy.safetensors"
"""The parameters of the policy network."""
SKILL_FILES = (SKILL_CARD, SKILL_TENSORS)
"""The files that trained skills consist of."""
POLICY_FILES = (POLICY_CARD, POLICY_TENSORS, *(f"{SKILLS}/{name}" for name in SKILL_FILES))
"""The files that a policy consists of."""
EXPORT_CARD = "export.json"
"""Describes an exported policy: its graphs, features, H, limits and normalisation."""
EXPORT_POLICY = "policy.onnx"
"""The graph of pi(z | s)."""
EXPORT_DECODER = "decoder.onnx"
"""The graph of the skill decoder."""

# --- training ---

METRICS = "metrics.csv"
"""The metrics of a training (of skills or of a policy), a row now and then."""
EVALUATIONS = "evaluations.csv"
"""The evaluations of the snapshots during training, a row for each snapshot and mode."""
TRAINED = "trained.json"
"""The record of a trained policy: for how many steps it was trained, and which snapshot was published."""
REWARDS = "rewards.json"
"""The numbers about rewards that decide whether a policy can learn, before its first update and again at its end."""
PROVENANCE = "provenance.json"
"""The processes that trained a policy: commit, versions and hardware of each."""
TENSORBOARD = "tensorboard"
"""Folder of the files that TensorBoard reads."""
ATTEMPTS = "attempts"
"""Folder with an empty file for each process that has begun to work on a result."""
CHECKPOINTS = "checkpoints"
"""Folder of the states that a training can resume from, a folder for each; see `step_folder`."""
CHECKPOINT_STATE = "state.json"
"""The numbers and the structure of a checkpoint; completes it."""
CHECKPOINT_TENSORS = "state.safetensors"
"""The arrays and tensors of a checkpoint."""
ORIGIN = "origin.json"
"""The policy and trial of a population that wrote the checkpoint from which a policy was continued."""
SNAPSHOTS = "snapshots"
"""Folder of the policy as it was during training, a folder for each snapshot; see `step_folder`."""
_STEP = "step-"


def step_folder(parent: Path, env_steps: int, offline_updates: int = 0) -> Path:
    """The folder of the checkpoint or snapshot after this many environment steps; its names sort by steps.

    Updates on offline decisions alone come without a step, so a checkpoint among them has their number in its name,
    too.
    """
    return parent / (f"{_STEP}{env_steps:012d}" + (f"-{offline_updates:012d}" if offline_updates else ""))


def step_folders(parent: Path) -> list[Path]:
    """The folders of existing checkpoints or snapshots, by rising environment steps."""
    return sorted(parent.glob(f"{_STEP}*"))


def steps_of(folder: Path) -> int:
    """The environment steps that a folder of `step_folder` is named after."""
    return int(folder.name.removeprefix(_STEP).partition("-")[0])


_SNAPSHOT_EVALUATION = "evaluation-"


def snapshot_evaluation(mode: str) -> str:
    """The name of the file with a snapshot's evaluation in a mode."""
    return f"{_SNAPSHOT_EVALUATION}{mode}.json"


def is_snapshot_evaluation(name: str) -> bool:
    """True where a file in a snapshot's folder holds an evaluation; the other files are the policy."""
    return name.startswith(_SNAPSHOT_EVALUATION)


# --- episodes of an agent ---

EPISODES = "episodes.csv"
"""The episodes of a finished evaluation, a row for each."""
EPISODES_SO_FAR = "episodes-so-far.csv"
"""The episodes of an evaluation that has not finished."""
SUMMARY = "summary.json"
"""The means of an evaluation or the results of an exploration; completes them."""
VIDEOS = "videos"
"""Folder of an evaluation's videos, one for each mode."""
VIDEO_SETTINGS = "videos.json"
"""The length and speed of the videos beside it; completes them."""


def video(evaluation: Path, mode: str) -> Path:
    """The video of an evaluation's episodes in a mode."""
    return evaluation / VIDEOS / f"{mode}.mp4"


EXPLORATION_FIGURE = "exploration.png"
"""The figure of where each explorer got, drawn into the floor plan."""
EXPLORATION_TABLE = "coverage.csv"
"""The table of how much of the floor each explorer has visited."""

# --- sweeps ---

SWEEP = "sweep.yaml"
"""The search of a sweep, with its base experiment in full."""
TRIALS = "trials"
"""Folder of the records of a sweep's trials."""
SWEEP_RESULTS = "results.csv"
"""The trials of a sweep, a row for each."""
SWEEP_FIGURE = "results.png"
"""The results of a sweep by its parameters."""
SWEEP_SIGN = "running.json"
"""What the process of a sweep says of itself."""
BEST = "best.yaml"
"""The experiment of the best setting that a sweep has found."""


def trial_record(number: int) -> str:
    """The name of the record of a sweep's trial."""
    return f"{number:04d}.json"


# --- trackers ---


def tracked(tracker: str) -> str:
    """The name of the file, in the folder of a policy or of skills, that says what a tracker has of it."""
    return f"tracked-{tracker}.json"


# --- jobs on a cluster ---

JOB_CONFIG = "experiment.yaml"
"""The resolved settings of an experiment, in the working folder of a job."""
