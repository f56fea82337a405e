"""What is asked for is compared with what there is, before anything waits for it."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import ray
from toy import TOY

from spirl_ray.config import RaySettings, parse_experiment
from spirl_ray.errors import SpirlError
from spirl_ray.pipeline import resources
from spirl_ray.pipeline.resources import Needs, check_resources, needs_of, said_while_waiting
from spirl_ray.pipeline.session import ray_session


def needs(**groups: Any) -> Needs:
    raw = {**TOY, **{name: {**TOY.get(name, {}), **values} for name, values in groups.items()}}
    return needs_of([parse_experiment(raw, "test")])


def test_both_stages_count_with_the_settings_of_every_method() -> None:
    assert needs().processes == 1
    assert needs(pretrain={"workers": 3}, data={"shards": 8}).processes == 3
    assert needs(train={"env_runners": 2, "learners": 2}).processes == 4
    assert needs(overrides={"spirl_cl": {"train.env_runners": 5}}).processes == 5
    assert needs(overrides={"sac": {"train.env_runners": 5}}).processes == 1


def test_gpus_of_both_stages_count_with_the_setting_that_asks_for_them() -> None:
    found = needs(pretrain={"use_gpu": True, "workers": 2}, data={"shards": 8})
    assert (found.gpus, found.gpu_keys) == (2.0, "pretrain.use_gpu")
    found = needs(train={"env_runners": 2, "learners": 2, "gpus_per_learner": 0.5})
    assert (found.gpus, found.gpu_keys) == (1.0, "train.gpus_per_learner")
    found = needs(train={"gpus_per_learner": 1})
    assert (found.gpus, found.gpu_keys) == (1.0, "train.gpus_per_learner")
    assert needs().gpus == 0.0


@pytest.mark.parametrize(
    ("wanted", "found", "said"),
    [
        (Needs(2), {"CPU": 2.0}, r"ray\.num_cpus: 2 is too few.*pretrain\.workers.*2 processes.*ray\.num_cpus to 3"),
        (Needs(1, 1.0, gpu_keys="pretrain.use_gpu"), {"CPU": 9.0}, r"use_gpu asks for 1 GPU.* has 0.*use_gpu=false"),
        (
            Needs(1, 3.0, gpu_keys="train.gpus_per_learner"),
            {"CPU": 9.0, "GPU": 2.0},
            r"gpus_per_learner asks for 3 GPU.* has 2.*gpus_per_learner=0",
        ),
        (Needs(custom={"on_demand": 0.1}), {"CPU": 9.0}, r"resources\.custom: .*'on_demand'"),
    ],
)
def test_what_is_missing_is_said_with_what_is_there_and_what_to_set(
    wanted: Needs, found: dict[str, float], said: str
) -> None:
    with pytest.raises(SpirlError, match=said):
        check_resources(wanted, found)


def test_what_is_there_is_not_refused() -> None:
    check_resources(Needs(2, 1.0, {"x": 1.0}), {"CPU": 3.0, "GPU": 1.0, "x": 1.0})


def test_gpus_that_a_variable_hides_are_said_to_be_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    with pytest.raises(SpirlError, match="CUDA_VISIBLE_DEVICES is '-1'"):
        check_resources(Needs(1, 1.0), {"CPU": 9.0})


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize(
    ("wanted", "said"), [(Needs(3), r"3 is too few"), (Needs(1, 1.0, gpu_keys="pretrain.use_gpu"), "asks for 1 GPU")]
)
def test_a_ray_that_this_process_has_started_is_looked_at_as_well(wanted: Needs, said: str) -> None:
    with pytest.raises(SpirlError, match=said), ray_session(RaySettings(), wanted):
        pass
    with ray_session(RaySettings(), Needs(2)):
        pass


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_what_a_cluster_cannot_place_is_said_while_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "is_own_instance", lambda: False)
    said: list[str] = []
    heard = threading.Event()

    def say(text: str) -> None:
        said.append(text)
        heard.set()

    task: Any = ray.remote(num_gpus=2, num_cpus=1)(lambda: None)
    with said_while_waiting(say, every_s=0.2):
        assert not heard.wait(1.0)  # nothing is asked for
        reference = task.remote()
        assert heard.wait(120.0)
    ray.cancel(reference)
    assert "2 GPU" in said[0]
    assert "the cluster has 3 CPU" in said[0]
    assert "0 GPU (0 free)" in said[0]


def test_nothing_is_said_while_there_is_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "is_own_instance", lambda: False)
    asked = threading.Event()

    def waited_for() -> str:
        asked.set()
        return "1 x 1 GPU"

    monkeypatch.setattr(resources, "waited_for", waited_for)
    said: list[str] = []
    with said_while_waiting(said.append, every_s=0.4) as progress:
        for _ in range(10):
            progress()
            assert not asked.wait(0.1)
        assert asked.wait(60.0)
