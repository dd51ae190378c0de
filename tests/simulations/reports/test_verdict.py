"""A run that is no better than its untrained start says so, with the reason where it is plain."""

from __future__ import annotations

from typing import Any

import pytest

from lorica.simulations.reports.verdict import verdict


def summary(score: float, start: float, *, labels: int, records: int, sites: int = 4) -> Any:
    each = records // sites // labels or 1
    names = [f"label {number}" for number in range(labels)]
    return {
        "score": score,
        "headline": "accuracy",
        "baselines": {"zero_shot": start},
        "epsilon": {f"site-{site}": 7.99 for site in range(sites)},
        "label_counts": {f"site-{site}": dict.fromkeys(names, each) for site in range(sites)},
    }


def test_150_labels_and_720_records_worse_than_the_start() -> None:
    said = verdict(summary(0.21, 0.34, labels=150, records=720))
    assert "worse than its untrained start: 21.0% against 34.0%" in said
    assert "150 labels share 600 records, at 4 sites: 4 a label, too few for ε = 7.99" in said
    assert "zero-shot" in said


@pytest.mark.parametrize(("labels", "records"), [(77, 800), (30, 240), (400, 1600)])
def test_as_good_as_the_start_is_said_too(labels: int, records: int) -> None:
    said = verdict(summary(0.34, 0.34, labels=labels, records=records))
    assert "no better than its untrained start: 34.0%" in said
    assert f"{labels} labels" in said


def test_many_records_are_no_reason() -> None:
    said = verdict(summary(0.3, 0.4, labels=2, records=4000))
    assert "worse than its untrained start" in said
    assert "too few" not in said


def test_without_privacy_noise_is_no_reason() -> None:
    found = summary(0.3, 0.4, labels=150, records=720)
    found["epsilon"] = dict.fromkeys(found["epsilon"], "inf")
    assert "too few" not in verdict(found)


def test_a_better_run_and_one_without_a_start_say_nothing() -> None:
    assert verdict(summary(0.5, 0.4, labels=150, records=720)) == ""
    found = summary(0.5, 0.4, labels=2, records=10)
    found["baselines"] = {}
    assert verdict(found) == ""
