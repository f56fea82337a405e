"""K updates in one call against single ones, and captured updates against plain ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ray.rllib.core.columns import Columns
from torch import Tensor

UPDATES = 100
MakeConfig = Callable[..., Any]


def parameters_of(learner: Any) -> Tensor:
    return torch.cat([value.detach().flatten().cpu() for value in learner.networks.parameters()])


def losses_of(learner: Any, updates: int) -> Tensor:
    return torch.tensor([learner.learn(1, 1.0)["critic_loss"] for _ in range(updates)])


@pytest.mark.parametrize("prior", ["gaussian", "mixture"])
def test_updates_in_one_call_are_those_of_single_steps(
    make_learner: Callable[..., Any], make_skills: Callable[..., Path], prior: str
) -> None:
    skills = make_skills(prior=prior)
    together, alone = make_learner(skills=skills), make_learner(skills=skills)
    size = together._settings.batch_size
    torch.manual_seed(7)
    metrics = together.learn(UPDATES, 0.5)
    rows = alone.replay.sample(UPDATES * size)
    torch.manual_seed(7)
    for update in range(UPDATES):
        batch = {name: values[update * size : (update + 1) * size] for name, values in rows.items()}
        found = alone.step(batch | {Columns.REWARDS: 0.5 * batch[Columns.REWARDS]})
    assert torch.equal(parameters_of(together), parameters_of(alone))
    assert metrics["critic_loss"] == pytest.approx(float(found["critic_loss"].detach()))
    assert together.updates == alone.updates == UPDATES


def test_a_long_call_draws_its_rows_in_parts(make_learner: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    learner, counts = make_learner(), []
    monkeypatch.setattr("spirl_ray.rl.learner._ROWS_AT_A_TIME", 3 * learner._settings.batch_size)
    sample = learner.rows.sample

    def counted(count: int) -> dict[str, Tensor]:
        counts.append(count)
        return sample(count)

    monkeypatch.setattr(learner.rows, "sample", counted)
    learner.learn(7, 1.0)
    assert [count // learner._settings.batch_size for count in counts] == [3, 3, 1]
    assert learner.updates == 7


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("prior", ["gaussian", "mixture"])
@pytest.mark.parametrize("changes", [{}, {"critics": 5, "critics_in_minimum": 2, "critic_layer_norm": True}])
def test_captured_updates_are_those_of_the_plain_path(
    make_learner: Callable[..., Any], make_skills: Callable[..., Path], prior: str, changes: dict[str, Any]
) -> None:
    """The kernels are the same, so the losses are, but for the order in which a GPU adds."""
    skills = make_skills(prior=prior)
    plain = make_learner(skills=skills, gpu=True, cuda_graph=False, **changes)
    torch.cuda.manual_seed(3)
    expected = losses_of(plain, UPDATES)
    captured = make_learner(skills=skills, gpu=True, cuda_graph=True, **changes)
    torch.cuda.manual_seed(3)
    found = losses_of(captured, UPDATES)
    assert captured._captured is not None
    assert captured._captured._graph is not None
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(parameters_of(captured), parameters_of(plain), rtol=1e-3, atol=1e-4)
    assert captured.updates == plain.updates == UPDATES


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_a_restored_learner_captures_anew_and_continues_alike(
    make_learner: Callable[..., Any], make_skills: Callable[..., Path]
) -> None:
    skills = make_skills()
    first, second = (make_learner(skills=skills, gpu=True) for _ in range(2))
    first.learn(10, 1.0)
    second.learn(6, 1.0)
    state = first.get_state()
    state["weights_seq_no"] = 99
    second.set_state(state)
    second.replay.restore(first.replay.state())
    torch.cuda.manual_seed(5)
    first.learn(10, 1.0)
    torch.cuda.manual_seed(5)
    second.learn(10, 1.0)
    torch.testing.assert_close(parameters_of(second), parameters_of(first), rtol=1e-3, atol=1e-4)
