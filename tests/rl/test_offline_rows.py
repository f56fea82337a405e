"""Batches that are partly offline decisions: their share, resuming, and labels that are learned."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from made_decisions import made_decisions
from ray.rllib.core.columns import Columns
from ray.rllib.utils.metrics import WEIGHTS_SEQ_NO

from spirl_ray.config_train import Labels
from spirl_ray.errors import SpirlError
from spirl_ray.rl.learned_labels import LearnedLabels
from spirl_ray.rl.offline_rows import OfflineRows
from spirl_ray.rl.replay import DISCOUNTS, OFFLINE_PHASE, PHASE

MakeLearner = Callable[..., Any]
ONLINE, OFFLINE = 0.0, OFFLINE_PHASE


@pytest.fixture
def make_offline_learner(make_learner: MakeLearner, offline_folder: Callable[..., Path]) -> MakeLearner:
    """A learner with a folder of 200 offline decisions: ``make(labels=…, **training)``."""

    def make(labels: Labels = "environment", latent_limit: float | None = None, **training: Any) -> Any:
        learner = make_learner(offline=offline_folder(labels, latent_limit), **training)
        learner.replay.columns[PHASE][:] = ONLINE
        return learner

    return make


@pytest.mark.parametrize(("fraction", "share"), [(0.5, 16), (0.25, 8), (0.9, 29)])
def test_every_batch_has_the_same_share_of_offline_decisions(
    make_offline_learner: MakeLearner, fraction: float, share: int
) -> None:
    learner = make_offline_learner(offline_fraction=fraction, discount=0.8)
    drawn = learner.rows.sample(5 * 32)
    offline = (drawn[PHASE] == OFFLINE).view(5, 32)
    assert offline.sum(1).tolist() == [share] * 5
    assert drawn[DISCOUNTS][offline.flatten()].unique().tolist() == [pytest.approx(0.8)]
    assert drawn[Columns.OBS].shape == (160, learner.networks.policy.observation_dim)


def test_a_discount_a_primitive_step_is_that_of_the_decisions_length(make_offline_learner: MakeLearner) -> None:
    learner = make_offline_learner(offline_fraction=0.5, discount=0.9, discount_per="primitive_step")
    drawn = learner.rows.sample(32)
    assert drawn[DISCOUNTS][drawn[PHASE] == OFFLINE].unique().tolist() == [pytest.approx(0.9**4)]


def test_updates_on_offline_decisions_alone_draw_no_others_and_keep_the_target_divergence(
    make_offline_learner: MakeLearner, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = make_offline_learner(offline_fraction=0.5, target_divergence=1e-6, alpha_lr=0.01, actor_lr=0.01)
    drawn: list[torch.Tensor] = []
    update = learner._update_from

    def noted(batch: Any) -> Any:
        drawn.append(batch[PHASE])
        return update(batch)

    monkeypatch.setattr(learner, "_update_from", noted)
    found = learner.learn(20, 1.0, offline=True)
    assert len(drawn) == 20
    assert torch.cat(drawn).eq(OFFLINE).all()
    assert found["divergence"] > 1e-6  # measured on offline decisions, and alpha follows it
    assert found["alpha"] > 0.5
    learner.learn(1, 1.0)
    assert drawn[-1].eq(ONLINE).sum() == 16


def test_decisions_without_rewards_of_their_own_are_not_learned_from_alone(make_offline_learner: MakeLearner) -> None:
    with pytest.raises(SpirlError, match=r"offline-learned: .*train\.offline_updates to 0"):
        make_offline_learner("learned", offline_fraction=0.5, offline_updates=10)


def test_without_a_fraction_only_the_replay_is_drawn_from(make_learner: MakeLearner) -> None:
    learner = make_learner()
    assert learner.rows is learner.replay


def test_the_folder_of_the_decisions_must_be_named_and_fit(
    make_learner: MakeLearner, make_offline_learner: MakeLearner
) -> None:
    with pytest.raises(SpirlError, match="offline"):
        make_learner(offline_fraction=0.5)
    with pytest.raises(SpirlError, match=r"decisions\.json: latent_limit"):
        make_offline_learner(latent_limit=2.0, offline_fraction=0.5)
    with pytest.raises(SpirlError, match=r"decisions\.json: policy"):
        make_offline_learner(offline_fraction=0.5, features=("position",), policy_head="residual")


@pytest.mark.parametrize("labels", ["environment", "learned"])
def test_a_resumed_learner_is_bit_equal(make_offline_learner: MakeLearner, labels: Labels) -> None:
    from spirl_ray.rl.learners import _restore, _state

    unbroken = make_offline_learner(labels, offline_fraction=0.5)
    unbroken.learn(6, 1.0)
    saved, networks = copy.deepcopy((_state(unbroken), unbroken.get_state()))
    resumed = make_offline_learner(labels, offline_fraction=0.5)
    resumed.learn(3, 1.0)  # so that everything differs
    networks[WEIGHTS_SEQ_NO] += 1  # RLlib takes only weights with a higher number than its own
    resumed.set_state(networks)
    _restore(resumed, saved)
    resumed.learn(4, 1.0)
    torch.set_rng_state(saved["rng"])
    unbroken.learn(4, 1.0)
    for one, other in zip(unbroken.networks.parameters(), resumed.networks.parameters(), strict=True):
        assert torch.equal(one, other)
    if labels == "learned":
        ours, theirs = unbroken.rows.labels.state_dict(), resumed.rows.labels.state_dict()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    other_data = {**saved, "rows": {**saved["rows"], "card": {**saved["rows"]["card"], "dataset": "e" * 64}}}
    with pytest.raises(SpirlError, match="other offline decisions"):
        _restore(resumed, other_data)


def test_labels_learn_rewards_and_reward_what_is_new(make_learner: MakeLearner) -> None:
    learner = make_learner(novelty_bonus=0.5, critic_width=32, critic_layers=2)
    policy, latent_dim = learner.networks.policy, learner.networks.latent_dim
    labels = LearnedLabels(policy, latent_dim, None, learner.config.settings, 0)
    known = {name: torch.from_numpy(v) for name, v in made_decisions(policy.observation_dim, latent_dim, 256).items()}
    known[Columns.REWARDS] = known[Columns.ACTIONS][:, 0].sign()
    for _ in range(150):
        labels.learn(known, 4)
    found = labels(known)[Columns.REWARDS]
    assert (found - known[Columns.REWARDS]).abs().mean() < 0.4
    new = {**known, Columns.ACTIONS: 10.0 + known[Columns.ACTIONS]}
    bonus = labels(new)[Columns.REWARDS] - labels.reward(labels._inputs(new)).squeeze(-1)
    assert bonus.tolist() == [pytest.approx(0.5)] * 256
    of_known = found - labels.reward(labels._inputs(known)).squeeze(-1)
    assert of_known.mean() < 0.15
    assert of_known.min() >= 0.0
    assert of_known.max() <= 0.5001


def test_labels_learn_which_decisions_end_the_task(make_learner: MakeLearner) -> None:
    learner = make_learner(critic_width=32, critic_layers=2)
    policy, latent_dim = learner.networks.policy, learner.networks.latent_dim
    labels = LearnedLabels(policy, latent_dim, None, learner.config.settings, 0)
    known = {name: torch.from_numpy(v) for name, v in made_decisions(policy.observation_dim, latent_dim, 256).items()}
    ends = known[Columns.ACTIONS][:, 0] > 0.5
    known[Columns.TERMINATEDS] = ends.float()
    for _ in range(150):
        labels.learn(known, 4)
    found = labels(known)[Columns.TERMINATEDS]
    assert ((found >= 0.0) & (found <= 1.0)).all()
    assert ((found > 0.5) == ends).float().mean() > 0.95


def test_learned_labels_change_what_is_drawn_offline_alone(make_offline_learner: MakeLearner) -> None:
    learner = make_offline_learner("learned", offline_fraction=0.5)
    columns = (Columns.REWARDS, Columns.TERMINATEDS)
    before = {name: learner.rows.offline.columns[name].clone() for name in columns}
    drawn = learner.rows.sample(64)
    offline = drawn[PHASE] == OFFLINE
    for name in columns:
        assert not torch.isin(drawn[name][offline], before[name]).any()
        assert torch.isin(drawn[name][~offline], learner.replay.columns[name]).all()
        assert torch.equal(before[name], learner.rows.offline.columns[name])


def test_labels_stay_while_only_the_policys_encoder_learns(make_learner: MakeLearner) -> None:
    learner = make_learner()
    policy, latent_dim = learner.networks.policy, learner.networks.latent_dim
    labels = LearnedLabels(policy, latent_dim, 1.0, learner.config.settings, 0)
    rows = {name: torch.from_numpy(v) for name, v in made_decisions(policy.observation_dim, latent_dim, 16).items()}
    before = labels(rows)[Columns.REWARDS]
    for value in policy.state_dict().values():
        value += 1.0
    assert torch.equal(labels(rows)[Columns.REWARDS], before)
    far = {**rows, Columns.ACTIONS: 50.0 * rows[Columns.ACTIONS].sign()}
    farther = {**rows, Columns.ACTIONS: 90.0 * rows[Columns.ACTIONS].sign()}
    assert torch.equal(labels(far)[Columns.REWARDS], labels(farther)[Columns.REWARDS])  # the decoder gets the same


def test_alpha_does_not_count_the_demonstrations(make_learner: MakeLearner) -> None:
    learner = make_learner(rows=32)
    batch = {name: values.clone() for name, values in learner.replay.columns.items()}
    batch[PHASE][16:] = OFFLINE_PHASE

    def gradient() -> torch.Tensor:
        learner.networks.log_alpha.grad = None
        torch.manual_seed(0)
        learner._losses(batch)[0].backward()
        return learner.networks.log_alpha.grad

    first = gradient()
    batch[Columns.OBS][16:] += 3.0
    torch.testing.assert_close(gradient(), first)
    batch[Columns.OBS][:16] += 3.0
    assert not torch.allclose(gradient(), first)


def test_without_a_regulariser_values_count_rewards_alone(make_learner: MakeLearner) -> None:
    """The critics' loss does not depend on alpha, though the policy's does."""

    def losses(regulariser: str, alpha: float) -> tuple[float, float]:
        learner = make_learner(regulariser=regulariser, latent_limit=2.0, rows=32)
        with torch.no_grad():
            learner.networks.log_alpha.fill_(alpha)
        torch.manual_seed(0)
        found = learner._losses(dict(learner.replay.columns))[1]
        return float(found["critic_loss"]), float(found["policy_loss"])

    for regulariser, counts in (("none", False), ("uniform", True)):
        one, other = losses(regulariser, 0.0), losses(regulariser, 2.0)
        assert (one[0] != other[0]) == counts
        assert one[1] != other[1]


def test_several_learners_share_the_decisions(make_offline_learner: MakeLearner) -> None:
    learner = make_offline_learner(offline_fraction=0.5)
    config = learner.config.copy(copy_frozen=False)
    config.learners(num_learners=2)
    parts = [OfflineRows(config, learner.replay, learner.networks.policy, number).offline for number in (0, 1)]
    assert [len(part) for part in parts] == [100, 100]
    shared = torch.cat([part.columns[Columns.ACTIONS] for part in parts])
    assert len(shared.unique(dim=0)) == 200
    assert not torch.equal(parts[0].sample(8)[Columns.ACTIONS], parts[1].sample(8)[Columns.ACTIONS])


def test_both_replays_of_a_learner_draw_other_rows(make_offline_learner: MakeLearner) -> None:
    learner = make_offline_learner(offline_fraction=0.5)
    sources = (learner.rows.offline, learner.replay)
    drawn = [torch.randint(1000, (64,), generator=source.generator) for source in sources]
    assert not torch.equal(*drawn)
