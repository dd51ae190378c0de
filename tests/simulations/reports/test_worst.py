"""What the report says of who is served worst."""

from __future__ import annotations

from lorica.simulations.reports.worst import worst_sentence


def test_the_worst_are_named_with_what_they_are_measured_on() -> None:
    worst = {
        "site": {"name": "south", "score": 0.5},
        "label": {"name": "heart", "score": 0.25, "records": 12},
        "label_at_sites": {"name": "skin", "score": 0.3},
    }
    said = worst_sentence({"worst": worst, "headline": "accuracy", "score_at_sites_mean": 0.75})
    assert "Worst site: south" in said and "75.0%" in said
    assert "heart, 25.0% of 12 test records" in said
    assert "paid for in ε: skin, 30.0%" in said
    assert worst_sentence({}) == ""
