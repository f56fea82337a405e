"""Names of kinds are checked before any work."""

from __future__ import annotations

from typing import Any

import pytest
from toy import TOY

from spirl_ray.config import load_experiment
from spirl_ray.errors import SpirlError
from spirl_ray.pipeline.kinds import check_kinds


def test_the_toy_experiment_names_what_is_there() -> None:
    check_kinds(load_experiment(TOY))


@pytest.mark.parametrize(
    ("changes", "key", "known"),
    [
        ({"methods": ["spirl", "ppo"]}, "methods", "spirl_cl"),
        ({"overrides": {"ppo": {"train.env_steps": 5}}}, "overrides.ppo", "spirl_cl"),
        ({"skills.prior": "cauchy"}, "skills.prior", "mixture"),
        ({"skills.encoders": {"position": {"kind": "cauchy"}}}, "skills.encoders.position.kind", "vector"),
        ({"train.policy_head": "cauchy"}, "train.policy_head", "residual"),
        ({"overrides": {"sac": {"train.policy_head": "cauchy"}}}, "overrides.sac.train.policy_head", "residual"),
        ({"data.sources.0.type": "tapes"}, "data.sources.0.type", "folder, generated"),
        ({"evaluate.metrics": ["beauty"]}, "evaluate.metrics", "success"),
    ],
)
def test_an_unknown_name_is_refused_with_its_key_and_the_known_ones(
    changes: dict[str, Any], key: str, known: str
) -> None:
    with pytest.raises(SpirlError) as caught:
        check_kinds(load_experiment(TOY, changes), "mine.yaml")
    (line,) = str(caught.value).splitlines()[1:]
    assert line.strip().startswith(f"{key}: ")
    assert known in line
    assert "mine.yaml" in str(caught.value)


def test_one_message_holds_all_of_them() -> None:
    experiment = load_experiment(TOY, {"methods": ["ppo"], "skills.prior": "cauchy"})
    with pytest.raises(SpirlError) as caught:
        check_kinds(experiment)
    assert len(str(caught.value).splitlines()) == 3
