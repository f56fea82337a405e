"""The configuration language accepts what is declared, and says what is wrong with the rest."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from spirl_ray.config import Experiment, load_experiment, parse_experiment
from spirl_ray.config_file import to_yaml
from spirl_ray.errors import SpirlError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path, "name: test\n")


def write(folder: Path, text: str) -> Path:
    path = folder / "experiment.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(SpirlError) as caught:
        load_experiment(path, overrides)
    return str(caught.value)


# --- what is refused ---


def test_an_unknown_key_is_named_with_the_known_ones(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, "name: test\ntrain: {env_step: 5}\nenvs: {}\n"))
    assert "experiment.yaml" in message
    assert "train.env_step: unknown key. Known here: actor_lr, alpha_lr," in message
    assert "env_steps" in message
    assert "\n  envs: unknown key. Known here: data, env, evaluate" in message


def test_an_unknown_key_within_a_group_within_a_group_is_named(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, "name: test\npretrain: {augmentation: {knd: none}}\n"))
    assert "pretrain.augmentation.knd: unknown key. Known here: kind, object_normal, position_normal" in message


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("train: {env_steps: many}", "train.env_steps"),
        ("train: {env_steps: 0}", "train.env_steps"),
        ("train: {env_steps: 1.5}", "train.env_steps"),
        ("train: {discount: 1.5}", "train.discount"),
        ("skills: {beta: -1}", "skills.beta"),
        ("pretrain: 5", "pretrain"),
        ("methods: []", "methods"),
        ("methods: [sac, sac]", "methods"),
        ("seeds: [0, 1, 0]", "seeds"),
        ("seeds: [-1]", "seeds.0"),
        ("evaluate: {modes: []}", "evaluate.modes"),
        ("env: {max_episode_steps: 1000000000}", "env.max_episode_steps"),
        ("data: {validation_fraction: 1.0}", "data.validation_fraction"),
    ],
)
def test_a_wrong_value_is_named_by_its_key(tmp_path: Path, text: str, key: str) -> None:
    assert f"\n  {key}: " in refusal(write(tmp_path, f"name: test\n{text}\n"))


def test_data_as_version_0_1_wrote_them_are_told_in_todays_words(tmp_path: Path) -> None:
    said = refusal(
        write(tmp_path, "name: old\ndata: {source: minari, dataset: D4RL/x, minari_root: here, shards: 2}\n")
    )
    (today,) = re.findall(r"Write (sources: \[.*\])", said)
    (source,) = load_experiment(write(tmp_path, f"name: new\ndata: {{{today}, shards: 2}}\n")).data.sources
    assert source.model_dump() == {"type": "minari", "id": "D4RL/x", "root": "here"}


def test_all_problems_come_in_one_message(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, "name: test\ntrain: {env_steps: -1, polyak: 2}\nskills: {width: 0}\n"))
    assert message.count("\n") == 3
    assert "(found -1)" in message


def test_a_missing_name_is_said_briefly(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, "train: {env_steps: 5}\n"))
    assert message.endswith("\n  name: is missing")


@pytest.mark.parametrize("name", ["a/b", "..", ".hidden", "", "a b"])
def test_a_name_is_one_visible_folder(tmp_path: Path, name: str) -> None:
    assert "name: " in refusal(write(tmp_path, f"name: {name!r}\n"))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"name: [", "is not valid YAML"),
        (b"name: \xff", "is not valid YAML"),
        (b"- a\n- b\n", "must hold a mapping of settings, not list"),
        (b"", "must hold a mapping of settings, not NoneType"),
        (b"!!python/object/apply:os.getcwd []", "is not valid YAML"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "experiment.yaml"
    path.write_bytes(content)
    message = refusal(path)
    assert reason in message
    assert "experiment.yaml" in message


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "Cannot read the config file" in refusal(tmp_path / "none.yaml")
    assert "none.yaml: No such file" in refusal(tmp_path / "none.yaml")


# --- --set ---


def test_set_overrides_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "name: test\ntrain: {env_steps: 5, batch_size: 7}\n")
    found = load_experiment(
        path, ["train.env_steps=9", "seeds=[1, 2]", "pretrain.augmentation.kind=target_preserving", "name=other"]
    )
    assert (found.train.env_steps, found.train.batch_size) == (9, 7)
    assert found.seeds == (1, 2)
    assert found.pretrain.augmentation.kind == "target_preserving"
    assert found.name == "other"


def test_numbers_may_be_written_in_exponents(file: Path) -> None:
    assert load_experiment(file, ["pretrain.learning_rate=1e-4"]).pretrain.learning_rate == 1e-4


def test_set_may_name_a_null(tmp_path: Path) -> None:
    path = write(tmp_path, "name: test\ntrain: {target_divergence: 2}\n")
    assert load_experiment(path, ["train.target_divergence=null"]).train.target_divergence is None


def test_setting_a_group_leaves_its_other_settings_alone(tmp_path: Path) -> None:
    path = write(tmp_path, "name: test\npretrain: {updates: 5, augmentation: {position_normal: 0.5}}\n")
    found = load_experiment(path, ["pretrain={batch_size: 7, augmentation: {kind: target_preserving}}"]).pretrain
    assert (found.updates, found.batch_size) == (5, 7)
    assert (found.augmentation.kind, found.augmentation.position_normal) == ("target_preserving", 0.5)


def test_setting_a_free_mapping_replaces_it(tmp_path: Path) -> None:
    path = write(tmp_path, "name: test\nenv: {kwargs: {a: 1, b: 2}}\n")
    assert load_experiment(path, ["env.kwargs={c: 3}"]).env.kwargs == {"c": 3}
    assert load_experiment(path, ["env.kwargs.a=3"]).env.kwargs == {"a": 3, "b": 2}


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("train.env_steps", "--set train.env_steps: write it as key=value"),
        ("=5", "write it as key=value"),
        ("train.env_steps=[", "the value is not valid YAML"),
        ("train.env_stepz=5", "train.env_stepz: unknown key. Known here:"),
        ("train.env_steps=few", "train.env_steps: "),
        ("name.x=5", "name is a single value, it has no key x"),
    ],
)
def test_a_bad_set_is_refused(file: Path, override: str, reason: str) -> None:
    assert reason in refusal(file, override)


def test_set_changes_a_group_that_has_been_left_out(tmp_path: Path) -> None:
    path = write(tmp_path, "name: test\ntracking: {wandb: null}\n")
    assert load_experiment(path, ["tracking.mlflow={}"]).tracking.mlflow is not None
    chosen = load_experiment(path, ["tracking.wandb.project=p", "tracking.wandb={tags: arms}"]).tracking.wandb
    assert chosen is not None
    assert (chosen.project, chosen.tags) == ("p", ("arms",))
    assert "Known here: entity, group, mode, project, tags" in refusal(path, "tracking.wandb.name=p")


# --- overrides for single methods ---


def test_overrides_apply_to_their_method_only(tmp_path: Path) -> None:
    path = write(tmp_path, "name: test\ntrain: {batch_size: 7}\noverrides: {sac: {train.updates_per_decision: 0.5}}\n")
    found = load_experiment(path)
    assert found.for_method("spirl") is found
    assert found.for_method("sac").train.updates_per_decision == 0.5
    assert found.for_method("sac").train.batch_size == 7
    assert found.train.updates_per_decision == 1.0


@pytest.mark.parametrize("text", ["{train.batch_size: 7, train.polyak: 0.1}", "{train: {batch_size: 7, polyak: 0.1}}"])
@pytest.mark.parametrize("change", ["train.batch_size=9", "train={batch_size: 9}"])
def test_what_the_command_line_says_holds_for_every_method(tmp_path: Path, text: str, change: str) -> None:
    found = load_experiment(write(tmp_path, f"name: test\noverrides: {{sac: {text}}}\n"), [change])
    for method in ("sac", "spirl"):
        assert found.for_method(method).train.batch_size == 9
    assert found.for_method("sac").train.polyak == 0.1
    later = load_experiment(
        write(tmp_path, f"name: test\noverrides: {{sac: {text}}}\n"), ["overrides.sac.train.batch_size=5"]
    )
    assert later.for_method("sac").train.batch_size == 5


def test_a_set_option_of_a_decoder_holds_where_the_file_names_the_same_one_for_a_method(tmp_path: Path) -> None:
    path = write(tmp_path, "name: test\noverrides: {spirl_plan: {skills.decoder_options: {displacement_weight: 1}}}\n")
    found = load_experiment(path, ["skills.decoder_options.displacement_weight=0.5"]).for_method("spirl_plan")
    assert found.skills.decoder_options == {"displacement_weight": 0.5}


@pytest.mark.parametrize(
    ("text", "overrides"),
    [
        ("overrides: {sac: {train: {updates_per_decision: 0.5}}}", []),
        ("", ["overrides.sac.train.updates_per_decision=0.5"]),
    ],
)
def test_overrides_written_as_groups_keep_the_other_settings(tmp_path: Path, text: str, overrides: list[str]) -> None:
    path = write(tmp_path, f"name: test\ntrain: {{batch_size: 7}}\n{text}\n")
    changed = load_experiment(path, overrides).for_method("sac").train
    assert (changed.updates_per_decision, changed.batch_size) == (0.5, 7)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("overrides: {sac: {train.env_stepz: 5}}", "train.env_stepz: unknown key"),
        ("overrides: {sac: {train.env_steps: no}}", "overrides.sac"),
        ("overrides: {sac: {env.id: other}}", "env.id cannot differ between methods, only skills, pretrain, train"),
        ("overrides: {sac: {seeds: [1]}}", "seeds cannot differ between methods"),
    ],
)
def test_bad_overrides_are_refused_before_anything_runs(tmp_path: Path, text: str, reason: str) -> None:
    assert reason in refusal(write(tmp_path, f"name: test\n{text}\n"))


# --- the models ---


def test_settings_are_frozen() -> None:
    experiment = Experiment(name="test")
    for target, key in ((experiment, "name"), (experiment.train, "env_steps")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(target, key, 1)


def test_output_is_a_folder_of_the_name_unless_given() -> None:
    assert Experiment(name="test").folder == Path("runs/test")
    assert Experiment(name="test", output=Path("/elsewhere")).folder == Path("/elsewhere")


def test_yaml_round_trip(tmp_path: Path) -> None:
    raw: dict[str, Any] = {
        "name": "a-test_1.0",
        "output": "some/where",
        "methods": ["spirl", "sac"],
        "seeds": [3, 4],
        "env": {"id": "spirl/PointPads-v0", "kwargs": {"tasks": ["north"], "note": "Süd"}},
        "skills": {"beta": 1e-7, "target_kl": 0.5},
        "train": {"target_divergence": 2, "latent_limit": 2.0},
        "overrides": {"sac": {"train.updates_per_decision": 0.5}},
    }
    experiment = Experiment.model_validate(raw)
    assert load_experiment(write(tmp_path, to_yaml(experiment))) == experiment
    assert load_experiment(write(tmp_path, to_yaml(Experiment(name="test")))) == Experiment(name="test")


_SHIPPED = sorted((Path(__file__).parents[1] / "tune_configs").glob("*.yaml"))


@pytest.mark.parametrize(
    "path", [p for p in _SHIPPED if "space" not in yaml.safe_load(p.read_text())], ids=lambda p: p.name
)
def test_shipped_experiments_load(path: Path) -> None:
    assert load_experiment(path).name


@pytest.mark.parametrize("path", _SHIPPED, ids=lambda p: p.name)
def test_shipped_experiments_fix_the_scale_of_rewards_with_which_they_have_learned(path: Path) -> None:
    raw = yaml.safe_load(path.read_text())
    base = raw.get("base", raw)
    train = base["train"] if isinstance(base, dict) else load_experiment(path.parent / base).train.model_dump()
    assert isinstance(train["reward_scale"], float)


def test_an_environments_arguments_may_stand_beside_its_id(tmp_path: Path) -> None:
    path = write(tmp_path, "name: test\nenv: {id: spirl/Maze-v0, size: 20, kwargs: {layout_seed: 3}}\n")
    chosen = load_experiment(path, ["env.start=[4, 5]", "env.goal=null"])
    assert chosen.env.kwargs == {"layout_seed": 3, "size": 20, "start": [4, 5], "goal": None}
    assert "size" not in to_yaml(chosen).partition("kwargs")[0]


def test_an_argument_that_is_given_twice_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "name: test\nenv: {id: spirl/Maze-v0, size: 20}\n")
    with pytest.raises(SpirlError, match=r"env\.size and as env\.kwargs\.size"):
        load_experiment(path, ["env.kwargs.size=30"])


def test_settings_may_be_given_as_mappings_which_stay_as_they_are() -> None:
    raw = {"name": "test", "train": {"batch_size": 7}}
    found = load_experiment(raw, {"train.env_steps": 5, "env.size": 20})
    assert (found.train.batch_size, found.train.env_steps, found.env.kwargs) == (7, 5, {"size": 20})
    assert raw == {"name": "test", "train": {"batch_size": 7}}
    with pytest.raises(SpirlError, match=r"train\.env_step: unknown key"):
        load_experiment(raw, {"train.env_step": 5})


def test_a_bare_name_is_found_from_every_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_experiment("quickstart").name == "quickstart"


def test_a_bare_name_is_a_shipped_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tune_configs").mkdir()
    (tmp_path / "tune_configs" / "mine.yaml").write_text("name: shipped\n")
    assert load_experiment(Path("mine")).name == "shipped"
    (tmp_path / "mine").write_text("name: local\n")
    assert load_experiment(Path("mine")).name == "local"


@pytest.mark.parametrize("output", ["s3://bucket/runs", "gs://bucket", "file:///shared"])
def test_an_output_that_is_a_uri_is_refused_with_what_to_do(output: str) -> None:
    with pytest.raises(SpirlError, match=r"output: .*this is a URI.*storage: "):
        parse_experiment({"name": "x", "output": output}, "test")


@pytest.mark.parametrize("value", ["fast", "0", "-1.0", "null", "[1.0]"])
def test_a_scale_of_rewards_is_a_positive_number_or_auto(file: Path, value: str) -> None:
    with pytest.raises(SpirlError) as error:
        load_experiment(file, [f"train.reward_scale={value}"])
    assert str(error.value).count("\n") == 1
    assert "train.reward_scale: " in str(error.value)
    assert "auto" in str(error.value)


@pytest.mark.parametrize(("value", "scale"), [("auto", "auto"), ("2", 2.0), ("0.5", 0.5), ("1e-3", 1e-3)])
def test_a_scale_of_rewards_may_be_chosen_or_left_to_the_rewards(file: Path, value: str, scale: Any) -> None:
    assert load_experiment(file, [f"train.reward_scale={value}"]).train.reward_scale == scale
    assert load_experiment(file).train.reward_scale == "auto"


def test_a_fixed_alpha_is_not_below_the_floor() -> None:
    with pytest.raises(SpirlError, match=r"fixed_alpha 0\.01 is below alpha_min 0\.1"):
        parse_experiment({"name": "x", "train": {"fixed_alpha": 0.01, "alpha_min": 0.1}}, "test")
