"""What a config chooses is tried before any work, so nothing of it is refused only after stage 1."""

from typing import Any

import pytest
import torch
from toy_environments import CAMERAS, GOAL

from spirl_ray.config import load_experiment
from spirl_ray.errors import SpirlError
from spirl_ray.pipeline.checks import check_experiments


@pytest.mark.parametrize(
    ("env", "changes", "told"),
    [
        (GOAL, {"train.policy_head": "gaussian"}, "train.policy_head: a gaussian head"),
        (GOAL, {"train.policy_head": "mixture"}, "train.policy_head: MixtureHead"),
        (GOAL, {"overrides": {"spirl": {"train.policy_head": "mixture"}}}, "train.policy_head: MixtureHead"),
        (GOAL, {"skills.prior": "flow", "skills.latent_dim": 1}, "skills.prior: flow"),
        (GOAL, {"evaluate.score": "beauty"}, "evaluate.score"),
        (GOAL, {"explore.in_run": True}, "explore: toy/Goal-v0"),
        (GOAL, {"train.offline_fraction": 0.5}, "train.offline_labels: toy/Goal-v0"),
        (GOAL, {"skills.decoder_options": {"steps": 4}}, "skills.decoder_options: the skills of spirl have no options"),
        (
            GOAL,
            {"overrides": {"spirl": {"skills.decoder_options": {"steps": 4}}}},
            "overrides.spirl: skills.decoder_options: the skills of spirl have no options",
        ),
        (CAMERAS, {"skills.encoders": {"front": {"kind": "vector"}}}, "skills.encoders.front.kind: VectorEncoder"),
        (CAMERAS, {"skills.encoders": {"arm": {"kind": "image"}}}, "ImageEncoder encodes images"),
        (
            GOAL,
            {
                **{"methods": ["dsrl"], "train.offline_fraction": 0.5, "train.offline_labels": "learned"},
                "skills.decoder_options": {"codec": "toy_policy:Mirror"},
            },
            "Mirror does not say which noise decodes",
        ),
        (
            CAMERAS,
            {
                **{"methods": ["dsrl"], "train.features": ["front", "arm"]},
                "skills.decoder_options": {"codec": "toy_policy:Mirror"},
            },
            "train.features: a policy observes images",
        ),
        (GOAL, {"pretrain.augmentation.kind": "target_preserving"}, "interface.position_target"),
        (
            CAMERAS,
            {"skills.encoders": {"front": {"kind": "pretrained", "options": {"channels": [8], "path": "no.file"}}}},
            "no.file",
        ),
        (
            CAMERAS,
            {"skills.encoders": {"front": {"kind": "pretrained", "options": {"channel": [8], "path": "no.file"}}}},
            r"(?s)skills\.encoders\.front\.options.*  channels: is missing.*  channel: unknown key.* channels, path",
        ),
        (
            GOAL,
            {"skills.encoders": {"position": {"kind": "vector", "options": {"nonsense": 1}}}},
            r"skills\.encoders\.position\.options is not valid:\n  nonsense: unknown key\. Known here: none",
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused_before_any_work(env: str, changes: dict[str, Any], told: str) -> None:
    raw = {"name": "toy", "methods": ["spirl"], "env": {"id": env}}
    with pytest.raises(SpirlError, match=told):
        check_experiments([load_experiment(raw, changes)])


@pytest.mark.parametrize(
    "changes",
    [{}, {"train.policy_head": "mixture", "train.policy_init": "scratch"}, {"train.policy_head": "residual"}],
)
def test_parts_that_fit_are_not_refused_and_draw_no_number(changes: dict[str, Any]) -> None:
    before = torch.get_rng_state()
    methods = ["spirl", "spirl_cl", "ssp", "flat_prior", "bc_sac", "sac", "flow"]
    check_experiments([load_experiment({"name": "toy", "methods": methods, "env": {"id": GOAL}}, changes)])
    assert torch.equal(torch.get_rng_state(), before)
