"""A sweep's file: what it refuses, what its trials are, when it is another sweep."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sweep_files import RATES, sweep
from toy import TOY

from spirl_ray.errors import SpirlError
from spirl_ray.sweeps.sweep_file import Sweep, SweepFile, load_sweep


def refusal(folder: Path, space: dict[str, Any], *overrides: str, **changes: Any) -> str:
    with pytest.raises(SpirlError) as found:
        sweep(folder, space, *overrides, **changes)
    return str(found.value)


def test_a_trial_is_the_base_with_its_parameters(tmp_path: Path) -> None:
    space = {
        "skills.horizon": {"grid": [3, 10]},
        "methods": {"grid": ["spirl", ["ssp", "sac"]]},
        "seeds": {"grid": [4]},
    }
    chosen = sweep(tmp_path, space)
    one = chosen.experiment({"skills.horizon": 3, "methods": "spirl", "seeds": 4})
    assert (one.skills.horizon, one.methods, one.seeds) == (3, ("spirl",), (4,))
    assert one.skills.latent_dim == TOY["skills"]["latent_dim"]
    assert chosen.experiment({"methods": ["ssp", "sac"]}).methods == ("ssp", "sac")


def test_constructor_arguments_of_the_environment_can_be_searched(tmp_path: Path) -> None:
    chosen = sweep(tmp_path, {"env.position_noise": {"grid": [0.0, 0.1]}})
    assert chosen.experiment({"env.position_noise": 0.1}).env.kwargs == {"position_noise": 0.1}


def test_options_of_a_source_can_be_searched(tmp_path: Path) -> None:
    chosen = sweep(tmp_path, {"data.sources.0.episodes": {"grid": [3, 6]}})
    (source,) = chosen.experiment({"data.sources.0.episodes": 3}).data.sources
    assert source.model_extra == {"episodes": 3}


def test_set_changes_the_sweep_or_its_base(tmp_path: Path) -> None:
    chosen = sweep(tmp_path, RATES, "samples=7", "train.batch_size=9", "scheduler.kind=none")
    assert (chosen.file.samples, chosen.base.train.batch_size) == (7, 9)


def test_the_base_may_stand_in_the_file(tmp_path: Path) -> None:
    chosen = sweep(tmp_path, RATES, "train.batch_size=9", base={**TOY, "name": "inline"})
    assert (chosen.base.name, chosen.base.train.batch_size) == ("inline", 9)


def test_a_sweep_may_change_its_base(tmp_path: Path) -> None:
    changes = {"train.env_steps": 77, "name": "shorter", "skills": {"width": 9}}
    chosen = sweep(tmp_path, RATES, "train.env_steps=88", changes=changes)
    assert (chosen.base.name, chosen.base.train.env_steps, chosen.base.skills.width) == ("shorter", 88, 9)
    assert chosen.base.skills.latent_dim == TOY["skills"]["latent_dim"]
    assert "trian: unknown key" in refusal(tmp_path, RATES, changes={"trian.x": 1})


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({}, "space"),
        ({"train.actor_rate": {"grid": [1.0]}}, "train.actor_rate: unknown key"),
        ({"train.actor_lr": {"grid": ["fast"]}}, "train.actor_lr"),
        ({"train.actor_lr": {"uniform": [-1.0, 1.0]}}, "train.actor_lr"),
        ({"train.actor_lr": {"gird": [1.0]}}, "kinds are grid, choice"),
        ({"train": {"actor_lr": {"grid": [1.0]}}}, "Keys have dots"),
        ({"train.actor_lr": 0.1}, "write {grid: […]}"),
        ({"train.actor_lr": {"grid": []}}, "space.train.actor_lr.grid"),
        ({"train.actor_lr": {"grid": [0.1], "choice": [0.1]}}, "exactly one of grid"),
        ({"train.actor_lr": {"uniform": [2.0, 1.0]}}, "must be below the second"),
        ({"train.actor_lr": {"loguniform": [0.0, 1.0]}}, "above 0"),
        ({"train.actor_lr": {"grid": [0.1, 0.1]}}, "train.actor_lr"),
        ({"output": {"grid": ["a", "b"]}}, "output cannot be searched: all trials share one folder"),
        ({"env.id": {"grid": ["spirl/Maze-v0"]}}, "env.id cannot be searched"),
        ({"train.env_steps": {"grid": [100, 200]}}, "train.env_steps cannot be searched"),
        ({"train.publish": {"grid": ["best", "last"]}}, "train.publish cannot be searched"),
        ({"evaluate.episodes": {"grid": [1, 2]}}, "evaluate.episodes cannot be searched"),
        ({"ray.num_cpus": {"grid": [1, 2]}}, "ray.num_cpus cannot be searched"),
        (
            {"env.kwargs": {"grid": [{"tasks": "north"}]}, "env.kwargs.tasks": {"grid": ["east"]}},
            "env.kwargs.tasks",
        ),
    ],
)
def test_a_space_that_makes_no_sense_is_refused_before_anything_runs(
    tmp_path: Path, space: dict[str, Any], said: str
) -> None:
    assert said in refusal(tmp_path, space)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"nmae": "x"}, "nmae: unknown key. Known here: base, changes, concurrency"),
        ({"base": "nowhere.yaml"}, "Cannot read the config file nowhere.yaml"),
        ({"base": {"name": "x", "trian": {}}}, "trian: unknown key"),
        ({"search": "optuna", "space": {"train.actor_lr": {"grid": [0.1]}}}, "train.actor_lr"),
        ({"samples": 3, "space": {"train.actor_lr": {"grid": [0.1]}}}, "would repeat it"),
        ({"heat_map": ["train.actor_lr", "skills.horizon"]}, "skills.horizon is not in the space"),
        ({"heat_map": ["train.actor_lr", "seeds"]}, "seeds is averaged over"),
        ({"scheduler": {"kind": "pbt"}, "samples": 2, "space": {"skills.horizon": {"choice": [3]}}}, "while training"),
        ({"scheduler": {"kind": "pbt"}}, "needs 2 members"),
        ({"scheduler": {"kind": "pbt"}, "samples": 4, "concurrency": 2}, "train at the same time"),
        ({"scheduler": {"kind": "asha", "grace_steps": 1}}, "scheduler.grace_steps 1 must be at least"),
        ({"scheduler": {"kind": "asha", "grace_steps": 400}}, "below train.env_steps (400)"),
        ({"scheduler": {"kind": "asha", "grace_steps": 201}}, "the first comparison (400) below train.env_steps (400)"),
        ({"metric": "sampled_subtasks", "base": {**TOY, "evaluate": {"modes": ["deterministic"]}}}, "evaluate.modes"),
        ({"metric": "deterministic_tower_height"}, ": deterministic_score, deterministic_return"),
        ({"metric": "subtasks"}, "unknown metric 'subtasks'"),
        ({"scheduler": {"kind": "asha"}, "base": {**TOY, "seeds": [0, 1]}}, "one method with one seed"),
        ({"trackers": {"wandb": {"project": "p"}}}, 'changes: {tracking: {"wandb": {"project": "p"}}}'),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    given = {"space": RATES, **changes}
    assert said in refusal(tmp_path, **given)


def test_a_changed_file_is_another_sweep_but_not_one_that_goes_on_or_runs_elsewhere(tmp_path: Path) -> None:
    one = sweep(tmp_path, RATES)
    for changes in ({"samples": 9}, {"concurrency": 3}, {"max_failures": 5}, {"resources": {"cpus": 2}}):
        assert sweep(tmp_path, RATES, **changes).folder == one.folder
    for override in ("ray.num_cpus=7", "tracking.mlflow={}"):
        assert sweep(tmp_path, RATES, override).folder == one.folder
    longer = {**TOY, "train": {"env_steps": 9000, "evaluate_every": 300}}
    others = [
        sweep(tmp_path, {"train.actor_lr": {"loguniform": [1e-4, 2e-3]}}),
        sweep(tmp_path, RATES, seed=1),
        sweep(tmp_path, RATES, metric="sampled_subtasks"),
        sweep(tmp_path, RATES, "train.env_steps=500"),
        sweep(tmp_path, RATES, base=longer),
        sweep(tmp_path, RATES, base=longer, scheduler={"kind": "asha", "grace_steps": 399}),
    ]
    assert len({other.key for other in others} | {one.key}) == 7


@pytest.fixture
def own_judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file of the user's own, in a folder where no process would look for it."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "lab").mkdir()
    file = tmp_path / "lab" / "lab_judge.py"
    file.write_text("def judge(arguments, episode): return episode.rewards, [False] * episode.length\n")
    yield file
    sys.modules.pop("lab_judge", None)


def judged(folder: Path, judge: Path) -> Sweep:
    base = {**TOY, "env": {"id": "spirl/Maze-v0"}, "interface": {"judge": "lab_judge:judge"}}
    return sweep(folder, RATES, base={**base, "submit": {"ship": [str(judge)]}})


def test_the_base_may_name_code_of_the_users_that_it_ships(tmp_path: Path, own_judge: Path) -> None:
    assert judged(tmp_path, own_judge).base.interface.judge == "lab_judge:judge"


def test_another_text_of_the_judge_is_another_sweep(tmp_path: Path, own_judge: Path) -> None:
    before = judged(tmp_path, own_judge).key
    assert judged(tmp_path, own_judge).key == before
    own_judge.write_text(own_judge.read_text().replace("False", "True"))
    assert judged(tmp_path, own_judge).key != before


def test_the_order_of_the_keys_changes_nothing(tmp_path: Path) -> None:
    both = {"train.critic_lr": {"choice": [1e-3, 1e-4]}, **RATES}
    one, other = sweep(tmp_path, both), sweep(tmp_path, dict(reversed(both.items())))
    assert one.key == other.key
    assert list(one.space) == list(other.space)


def test_what_a_sweep_varies_wins_over_what_the_base_overrides(tmp_path: Path) -> None:
    base = {**TOY, "overrides": {"spirl_cl": {"train.actor_lr": 0.1, "train.critic_lr": 0.2}}}
    chosen = sweep(tmp_path, {"train.actor_lr": {"grid": [1e-3, 1e-4]}}, base=base)
    assert [one.for_method("spirl_cl").train.actor_lr for one in chosen.examples()] == [1e-3, 1e-4]
    assert {one.for_method("spirl_cl").train.critic_lr for one in chosen.examples()} == {0.2}


@pytest.mark.parametrize(
    "pattern", ["smoke_sweep", "kitchen_sweep", "kitchen_search", "maze_sweep", "kitchen_ablation_*"]
)
def test_shipped_sweeps_are_valid(pattern: str) -> None:
    paths = sorted(Path("tune_configs").glob(f"{pattern}.yaml"))
    assert len(paths) == (4 if "*" in pattern else 1)
    for path in paths:
        assert load_sweep(path).examples()


@pytest.mark.parametrize("kind", ["uniform", "loguniform"])
@pytest.mark.parametrize("key", ["train.batch_size", "skills.horizon", "seeds", "pretrain.updates"])
def test_a_range_of_fractions_over_a_whole_number_is_refused(tmp_path: Path, key: str, kind: str) -> None:
    message = refusal(tmp_path, {key: {kind: [1, 8]}})
    assert f"{key}" in message
    assert "must be a whole number" in message


def test_a_range_is_tried_inside_where_it_is(tmp_path: Path) -> None:
    space = {
        "train.polyak": {"uniform": [0.1, 0.2]},
        "train.actor_lr": {"loguniform": [1e-6, 1e-2]},
        "train.batch_size": {"intuniform": [16, 64]},
    }
    for dimension in sweep(tmp_path, space).space.values():
        low, inside, high = dimension.samples
        assert low < inside < high
        assert type(inside) is type(low)


@pytest.mark.parametrize("value", [{1, 2}, b"x", float("nan"), float("inf")])
def test_a_value_that_no_config_can_hold_is_refused(tmp_path: Path, value: Any) -> None:
    given = {**sweep(tmp_path, RATES).file.model_dump(), "space": {"env.kwargs.x": {"grid": [value]}}}
    with pytest.raises(ValueError, match=r"numbers, text, lists and mappings"):
        SweepFile.model_validate(given)


def test_a_single_value_is_a_grid_or_choice_of_one(tmp_path: Path) -> None:
    chosen = sweep(tmp_path, {"seeds": {"grid": 3}, "methods": {"choice": "spirl"}} | RATES)
    assert (chosen.space["seeds"].grid, chosen.space["methods"].choice) == ((3,), ("spirl",))
    assert all(one.methods == ("spirl",) and one.seeds == (3,) for one in chosen.examples())
