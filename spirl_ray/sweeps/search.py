"""The search of a sweep: the planned trials, and Tune's searcher and scheduler, which get the known results."""

from __future__ import annotations

import json
import random
from types import SimpleNamespace
from typing import Any

import numpy as np
from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, PopulationBasedTraining, TrialScheduler
from ray.tune.search import BasicVariantGenerator, ConcurrencyLimiter
from ray.tune.search.variant_generator import generate_variants

from spirl_ray.settings import SEEDS
from spirl_ray.sweeps.ledger import Ledger, TrialRecord, distinct
from spirl_ray.sweeps.sweep_file import Dimension, Parameters, Sweep

NUMBER, PARENT = "_number", "_parent"
"""The keys beside the parameters in Tune's config: the trial's number, and the policy that a member's is a copy of."""
_MOST_TRIED = 2000
"""The most trials whose settings are tried before a sweep: a second or two."""
Row = dict[str, Any]


def planned(sweep: Sweep) -> list[Parameters]:
    """The trials of a random or grid search, which depend on nothing but the sweep file.

    More samples only add trials at the end.
    """
    generator = np.random.RandomState(sweep.file.seed)
    trials = []
    for _ in range(sweep.file.samples):
        space = {key: _domain(dimension) for key, dimension in sweep.space.items()}
        for _, config in generate_variants({"config": space}, random_state=generator):
            trials.append(decode(sweep, config["config"]))
    return trials if sweep.file.scheduler.kind == "pbt" else distinct(trials)


def check_planned(sweep: Sweep) -> None:
    """Makes the experiment of every planned trial, because values that are possible alone may not fit together.

    A searcher that chooses by results plans nothing; of it, some draws from the space are tried.

    Raises:
        SpirlError: the settings of a trial are impossible; the message names the trial's values.
    """
    for parameters in planned(sweep)[:_MOST_TRIED]:
        for method in (experiment := sweep.experiment(parameters)).methods:
            experiment.for_method(method)


def _domain(dimension: Dimension) -> Any:
    """The dimension in Tune's terms; values of grids and choices are JSON, so that lists can be values, too."""
    if dimension.grid is not None:
        return tune.grid_search([json.dumps(value) for value in dimension.grid])
    if dimension.choice is not None:
        return tune.choice([json.dumps(value) for value in dimension.choice])
    if dimension.uniform is not None:
        return tune.uniform(*dimension.uniform)
    if dimension.loguniform is not None:
        return tune.loguniform(*dimension.loguniform)
    assert dimension.intuniform is not None
    return tune.randint(dimension.intuniform[0], dimension.intuniform[1] + 1)


def _encode(sweep: Sweep, parameters: Parameters) -> Row:
    return {
        key: json.dumps(value) if sweep.space[key].values is not None else value for key, value in parameters.items()
    }


def decode(sweep: Sweep, config: Row) -> Parameters:
    """The parameters in a config of Tune, as plain values of Python."""
    found: Parameters = {}
    for key, dimension in sweep.space.items():
        value = config[key]
        if dimension.values is not None:
            found[key] = json.loads(value)
        else:
            found[key] = int(value) if dimension.intuniform is not None else float(value)
    return found


def remaining(sweep: Sweep, ledger: Ledger) -> int:
    """The number of trials that have not ended."""
    ended = sum(record.ended for record in ledger.records)
    if sweep.file.search == "optuna":
        return max(len(ledger.records) - ended, sweep.file.samples - ended)
    if sweep.file.scheduler.kind == "pbt":
        return sweep.file.samples - ended
    return sum(not ledger.has_ended(parameters) for parameters in planned(sweep))


def searcher(sweep: Sweep, ledger: Ledger, concurrency: int) -> tuple[Any, Row, int]:
    """The searcher, the space, and the number of samples for the trials that have not ended, 0 when all have.

    Raises:
        SpirlError: the searcher's package is not installed.
    """
    if sweep.file.search == "optuna":
        proposing, samples = _optuna(sweep, ledger)
        return ConcurrencyLimiter(proposing, concurrency), {}, samples
    population = sweep.file.scheduler.kind == "pbt"
    waiting = []
    for number, parameters in enumerate(planned(sweep)):
        record = ledger.member(number, parameters) if population else ledger.record_of(parameters)
        if not record.ended:
            parent = record.newest.get("parent")
            waiting.append({NUMBER: record.number, PARENT: parent, **_encode(sweep, record.parameters)})
    if not waiting:
        return None, {}, 0
    # A population starts as a whole, because a member that waits for another to end cannot be compared with it.
    limit = 0 if population else concurrency
    search = BasicVariantGenerator(points_to_evaluate=waiting, max_concurrent=limit)
    return search, dict.fromkeys(waiting[0]), len(waiting)


def _optuna(sweep: Sweep, ledger: Ledger) -> tuple[Any, int]:
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    ended = [record for record in ledger.records if record.ended]
    open_ = [record for record in ledger.records if not record.ended]
    space = {key: _domain(dimension) for key, dimension in sweep.space.items()}
    metric = sweep.file.metric
    search = OptunaSearch(
        space,
        metric=metric,
        mode=sweep.file.mode,
        # Interrupted and failed trials come first, with the parameters that they had.
        points_to_evaluate=[_encode(sweep, record.parameters) for record in open_],
        # A sampler with the old seed would draw the same parameters again.
        seed=(sweep.file.seed + len(ended)) % SEEDS,
    )
    for record in ended:
        if metric in record.newest:
            search.add_evaluated_point(_encode(sweep, record.parameters), record.newest[metric])
    return search, remaining(sweep, ledger)


def scheduler(sweep: Sweep, ledger: Ledger) -> TrialScheduler:
    """Makes Tune's scheduler for a sweep, and passes the reports of ended trials to it."""
    file, settings = sweep.file, sweep.file.scheduler
    if settings.kind == "asha":
        asha = AsyncHyperBandScheduler(
            time_attr="env_steps",
            metric=file.metric,
            mode=file.mode,
            grace_period=settings.grace_steps,
            reduction_factor=settings.reduction,
            max_t=max(experiment.train.env_steps for experiment in sweep.examples()),
            stop_last_trials=False,  # the last report is the final evaluation, after which there is nothing to stop
        )
        for record in ledger.records:
            if record.ended:
                _tell(asha, record)
        return asha
    if settings.kind == "pbt":
        random.seed(file.seed)
        return PopulationBasedTraining(
            time_attr="env_steps",
            metric=file.metric,
            mode=file.mode,
            perturbation_interval=settings.perturb_every,
            quantile_fraction=settings.quantile,
            resample_probability=settings.resample,
            hyperparam_mutations={
                key: [json.dumps(value) for value in dimension.values]
                if dimension.values is not None
                else _domain(dimension)
                for key, dimension in sweep.space.items()
            },
            custom_explore_fn=_Within(sweep.space),
            log_config=False,
            require_attrs=False,
        )
    return FIFOScheduler()


def _tell(scheduler: AsyncHyperBandScheduler, record: TrialRecord) -> None:
    """Passes the reports of an ended trial to a scheduler; its decisions about that trial are ignored."""
    trial: Any = SimpleNamespace(trial_id=f"ended-{record.number}")
    scheduler.on_trial_add(None, trial)
    for row in [*record.reports, *([record.result] if record.result else [])]:
        scheduler.on_trial_result(None, trial, row)


class _Within:
    """Keeps the values that population based training draws from a range inside the range."""

    def __init__(self, space: dict[str, Dimension]) -> None:
        self.ranges = {key: dimension for key, dimension in space.items() if dimension.values is None}

    def __call__(self, config: Row) -> Row:
        for key, dimension in self.ranges.items():
            low, high = dimension.bounds
            config[key] = type(low)(min(high, max(low, config[key])))
        return config
