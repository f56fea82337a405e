"""What a sweep keeps of the snapshots that its trials tell."""

from __future__ import annotations

from spirl_ray.sweeps.ledger import TrialRecord


def test_a_trial_that_resumes_and_tells_its_snapshots_again_loses_none() -> None:
    record = TrialRecord(0, {})
    rows = [{"env_steps": steps, "sampled_return": float(steps)} for steps in (100, 200, 300)]
    for row in rows:
        record.add(row)
    record.add(dict(rows[0]))  # the sweep may be interrupted here
    assert record.reports == rows


def test_what_followed_is_gone_where_a_trial_takes_another_course() -> None:
    record = TrialRecord(0, {}, reports=[{"env_steps": steps, "sampled_return": 1.0} for steps in (100, 200, 300)])
    record.add({"env_steps": 200, "sampled_return": 2.0})
    assert [(row["env_steps"], row["sampled_return"]) for row in record.reports] == [(100, 1.0), (200, 2.0)]
