"""What a trial of a sweep reports before it ends, which is all that is known of one that a scheduler stops."""

from __future__ import annotations

from pathlib import Path

import workspaces

from spirl_ray.files import layout
from spirl_ray.files.atomic import write_json
from spirl_ray.sweeps.trial import _where


def test_a_report_names_the_commits_that_have_trained_the_policy_so_far(tmp_path: Path) -> None:
    trial = workspaces.trial(tmp_path)
    assert _where(trial)["commit"] == ""
    processes = [{"commit": commit, "from_env_steps": 0} for commit in ("one", "two", "two")]
    trial.policy.mkdir(parents=True)
    write_json(trial.policy / layout.PROVENANCE, {"processes": processes})
    assert _where(trial)["commit"] == "one+two"
    assert _where(trial)["policy"] == trial.policy.name
