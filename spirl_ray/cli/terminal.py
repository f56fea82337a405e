"""The output of the command line: stages with their progress, tables, files, the next command.

On a terminal there are bars; in a pipe or a log file whole lines, which are never wrapped.
"""

from __future__ import annotations

import codecs
import io
import os
import shlex
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from spirl_ray.metrics import training_metrics
from spirl_ray.pipeline.events import Event, Stage
from spirl_ray.pipeline.results import (
    DataResult,
    EvaluationResult,
    ExplorationResult,
    Finding,
    ReportResult,
    SkillsResult,
    StageResult,
    TrainingResult,
)
from spirl_ray.pipeline.status import Pace, duration, number

_FILE_WIDTH = 160
"""The width in characters of tables that are not printed on a terminal."""
_SECONDS_BETWEEN_LINES = 60.0
_REPLACE = "spirl.replace"
_PLAIN = {"…": "...", "·": "-", "–": "-", "—": "-", "×": "x", "±": "+-", "→": "->", "≥": ">=", "≤": "<=", "✓": "ok"}
"""What stands for a character that cannot be shown; for all others it is a question mark."""
console = Console(highlight=False, soft_wrap=True)


def interactive() -> bool:
    """True where a person watches a terminal that can move its cursor. Colours alone (FORCE_COLOR) do not make one."""
    return console.file.isatty() and console.is_terminal and not console.is_dumb_terminal


def show_what_can_be_shown() -> None:
    """Lets stdout and stderr replace the characters that a terminal or file cannot show, instead of failing."""
    codecs.register_error(_REPLACE, _replaced)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_REPLACE)


def _replaced(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_PLAIN.get(one, "?") for one in error.object[error.start : error.end]), error.end


def error_console() -> Console:
    """A console for messages on stderr, wherever that points to now."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def say_waiting(what: Path | str | None) -> None:
    """Prints what is waited for: the result that another process works on, or resources of the cluster in words."""
    text = what if isinstance(what, str) else f"another process that works on {shown(what or Path())} …"
    console.print(f"[yellow]waiting[/yellow] for {escape(text)}")


class StageDisplay:
    """Shows the events of an experiment: a bar for the running stage, and lines for its result.

    Without a terminal, it prints a line at every tenth of a stage, or once a minute. It is a context manager, because a
    stage that fails leaves its bar.
    """

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._tenth, self._time = 0, 0.0
        self._pace = Pace()

    def __enter__(self) -> StageDisplay:
        return self

    def __exit__(self, *error: object) -> None:
        self._close()

    def __call__(self, event: Event) -> None:
        if event.happening == "waiting":
            say_waiting(event.folder if event.resources is None else event.resources)
        elif event.happening == "noted":
            print_findings(event.findings)
        elif event.happening == "started":
            self._open(_title(event))
        elif event.happening == "progress":
            self._show(event)
        elif event.result is not None:
            self._close()
            _print_result(_title(event), event.result)

    def _open(self, title: str) -> None:
        self._close()
        self._tenth, self._time, self._pace = 0, time.monotonic(), Pace()
        one_line, rest = Column(no_wrap=True), Column(no_wrap=True, overflow="ellipsis")
        self._bar = Progress(
            TextColumn("{task.description}", markup=False, table_column=one_line),
            BarColumn(bar_width=20),
            TextColumn("{task.percentage:>3.0f} %", table_column=one_line),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            TextColumn("{task.fields[brief]}", style="dim", markup=False, table_column=rest),
            console=console,
            transient=True,
            disable=not interactive(),
        )
        self._bar.add_task(title, total=None, left="", brief="starting")
        self._bar.start()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _show(self, event: Event) -> None:
        print_findings(event.findings)
        total = event.total or 1.0
        done, text = min(event.done, total), _line({**_brief(event.metrics), **event.scores})
        tenth, now = int(10 * done / total), time.monotonic()
        seconds = self._pace.left(event.done, event.total, now)
        left = "" if not seconds else f"{duration(seconds)} left"
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, total=total, left=left, brief=text)
        if not interactive() and (tenth > self._tenth or now - self._time > _SECONDS_BETWEEN_LINES):
            self._tenth, self._time = tenth, now
            text = "  ".join(filter(None, (text, left)))
            console.print(f"  {_title(event)}: {100 * done / total:.0f} %  {text}".rstrip(), markup=False)


_TITLES: dict[Stage, str] = {
    "data": "Data",
    "demonstrations": "Video of the data",
    "skills": "Skills for {}",
    "prior": "Bare prior of {}",
    "exploration": "Exploration",
    "training": "Training {}",
    "evaluation": "Evaluating {}",
    "report": "Report",
}


def stage_title(stage: Stage, method: str | None, seed: int | None) -> str:
    """The title of a stage, of one method with one seed where it has them."""
    return _TITLES[stage].format(f"{method}, seed {seed}")


def _title(event: Event) -> str:
    return "" if event.stage is None else stage_title(event.stage, event.method, event.seed)


def _print_result(title: str, result: StageResult) -> None:
    if isinstance(result, DataResult):
        for problem in result.skipped:
            console.print(f"[yellow]left out[/yellow] {escape(problem)}")
    text = escape(_line(_numbers_of(result)))
    if not result.ran:
        console.print(f"[dim]there already  {escape(title)}  {text}\n      {escape(shown(result.folder))}[/dim]")
    else:
        console.print(f"[green]done[/green]  {escape(title)}  [dim]{text}[/dim]".rstrip())
        if isinstance(result, ReportResult):
            for file in (result.html, result.csv, result.json):
                console.print(f"      {escape(shown(file))}")
        else:
            console.print(f"      {escape(shown(result.folder))}: {escape(_listing(result.folder))}")
    if isinstance(result, SkillsResult | TrainingResult):
        # Those of a training have been shown while it ran.
        shown_now = isinstance(result, SkillsResult) and result.ran
        print_findings([finding for finding in result.findings if finding.warning or shown_now])
    if isinstance(result, EvaluationResult) and result.no_videos is not None:
        console.print(f"      no video: {escape(result.no_videos)}")
    if isinstance(result, ExplorationResult):
        print_exploration(result.rows)


def print_findings(findings: Iterable[Finding]) -> None:
    """Prints what decides whether stage 2 can learn, a line for each finding."""
    for finding in findings:
        style = "[yellow]warning[/yellow] " if finding.warning else ""
        console.print(f"      {style}{escape(finding.text)}")


def _numbers_of(result: StageResult) -> dict[str, float]:
    """The numbers that are shown in the line of a result, by their names there."""
    if isinstance(result, DataResult):
        found: dict[str, float] = {"episodes": result.episodes, "steps": result.steps}
        if result.skipped:
            found["left out"] = len(result.skipped)
        if result.expert_success is not None:
            found["share of the expert's attempts"] = result.expert_success
        return found
    if isinstance(result, SkillsResult):
        return _brief(result.metrics)
    if isinstance(result, TrainingResult):
        steps = _brief({"env_steps": result.env_steps, "updates": result.updates, "decisions": result.decisions})
        return {**steps, **_scores(result.score, result.published.modes)}
    if isinstance(result, EvaluationResult):
        return _scores(result.score, result.modes)
    return {}


def _scores(score: str, modes: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    label = score.replace("_", " ")
    return {f"{label}, {mode}": means[score] for mode, means in modes.items() if score in means}


def _listing(folder: Path) -> str:
    """The names in a folder; Parquet files are counted."""
    entries = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    tables = [path for path in entries if path.suffix == ".parquet"]
    names = [f"{path.name}/" if path.is_dir() else path.name for path in entries if path not in tables]
    return ", ".join(names + ([f"{len(tables)} Parquet files"] if tables else []))


def _brief(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics of training that are shown in a line, by their brief names in the table of metrics."""
    names = {metric.name: metric.brief for stage in ("pretrain", "train") for metric in training_metrics(stage)}
    return {name: metrics[key] for key, name in {**names, "steps": "steps"}.items() if name and key in metrics}


def _line(values: Mapping[str, float]) -> str:
    return " · ".join(f"{name} {number(value)}" for name, value in values.items())


def print_scores(title: str, results: Sequence[EvaluationResult]) -> None:
    """Prints the score and the other metrics of every agent, by mode."""
    rows = [
        (f"{result.method}, seed {result.seed}", mode, result.score, means)
        for result in results
        for mode, means in result.modes.items()
    ]
    scores = dict.fromkeys(score for _, _, score, _ in rows)
    columns = list(dict.fromkeys([*scores, *(metric for *_, means in rows for metric in means)]))
    table = Table("agent", "mode", *(column.replace("_", " ") for column in columns), title=title)
    for name, mode, _, means in rows:
        table.add_row(name, mode, *(_cell(means.get(column)) for column in columns))
    print_table(table)


def _cell(value: float | None) -> str:
    return "" if value is None else str(value) if isinstance(value, int) else f"{value:.2f}"


def print_exploration(rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints what each explorer has covered; the last column compares the skill prior with it."""
    table = Table("explorer", "coverage", "cells an episode", "reached the goal", "skill prior covers")
    for row in rows:
        table.add_row(
            row["explorer"],
            f"{100 * row['coverage']:.1f} %",
            f"{row['cells_per_episode']:.1f}",
            f"{100 * row['reached_goal']:.1f} %",
            f"{row['prior_over_this']:.2f} x",
        )
    print_table(table)


def print_table(table: Table) -> None:
    """Prints a table, which is wide where there is no terminal."""
    if interactive():
        console.print(table, soft_wrap=False)
    else:
        # print(width=…) cannot go beyond the width of the console itself.
        Console(file=console.file, highlight=False, width=_FILE_WIDTH).print(table)


def print_next(command: Sequence[str], why: str) -> None:
    """Prints the command that comes next, ready to paste."""
    console.print(f"[bold]Next:[/bold] {escape(shlex.join(command))}  [dim]({why})[/dim]")


def shown(path: Path) -> str:
    """The text of a path, relative to the working folder if that is shorter; not to the root, where that would look
    like another path."""
    relative = os.path.relpath(path)
    return relative if len(relative) < len(str(path)) and Path.cwd() != Path("/") else str(path)
