"""Figures of an evaluation, against scikit-learn called otherwise, closed forms and plain loops."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import classification_report, f1_score, precision_score, recall_score

from lorica.common.errors import Code, LoricaError
from lorica.common.saved.quality.answers import Answers, answers
from lorica.common.saved.quality.calibration import (
    calibrated,
    calibration_error,
    fitted_temperature,
    reliability,
    with_temperature,
)
from lorica.common.saved.quality.choices import coverages, threshold_for
from lorica.common.saved.quality.groups import by_group
from lorica.common.saved.quality.judged import judge, write_judged
from lorica.common.saved.quality.metrics import by_label, confusion, estimates
from lorica.common.saved.quality.page import worst_pairs, write_page

NAMES = ["heart", "skin", "bones"]


def made(count: int = 300, seed: int = 0, temperature: float = 1.0) -> Answers:
    """Answers whose probabilities are right at temperature 1, too sharp below it."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 1.5, (count, len(NAMES)))
    true = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    truth = np.array([random.choice(len(NAMES), p=row) for row in true])
    shown = np.exp(logits / temperature)
    return Answers(NAMES, shown / shown.sum(1, keepdims=True), truth)


def test_the_table_by_label_is_scikit_learns() -> None:
    found = made()
    report = classification_report(
        found.truth, found.said, target_names=NAMES, output_dict=True, zero_division=0
    )
    for label in by_label(found):
        expected = report[label.label]
        assert label.precision == pytest.approx(expected["precision"])
        assert label.recall == pytest.approx(expected["recall"])
        assert label.f1 == pytest.approx(expected["f1-score"])
        assert label.records == expected["support"]


def test_the_area_under_the_curve_is_the_share_of_pairs_in_the_right_order() -> None:
    """Reference: the Mann-Whitney statistic, pair by pair."""
    found = made(80)
    scores = found.probabilities[:, 1]
    positive, negative = scores[found.truth == 1], scores[found.truth != 1]
    pairs = [(a > b) + 0.5 * (a == b) for a in positive for b in negative]
    assert by_label(found)[1].auc == pytest.approx(np.mean(pairs))


def test_groups_are_scikit_learns_on_the_rows_of_the_group() -> None:
    found = made()
    sex = np.random.default_rng(1).choice(["f", "m", ""], len(found.truth))
    groups = by_group(found, "sex", sex.tolist(), draws=0, seed=0)
    assert {group.value for group in groups} == {"f", "m", ""}
    for group in groups:
        rows = sex == group.value
        right = found.truth[rows] == found.said[rows]
        macro = recall_score(found.truth[rows], found.said[rows], average="macro")
        assert group.records == rows.sum()
        assert group.metrics["accuracy"].value == pytest.approx(right.mean())
        assert group.metrics["balanced accuracy"].value == pytest.approx(macro)
        f1 = f1_score(found.truth[rows], found.said[rows], average="macro")
        assert group.metrics["macro F1"].value == pytest.approx(f1)


def test_the_confusion_counts_every_record_once() -> None:
    found = made(50)
    table = confusion(found)
    assert table.sum() == 50
    assert table[1, 2] == sum((found.truth == 1) & (found.said == 2))


def test_an_interval_is_as_wide_as_the_binomial_says() -> None:
    """Reference: 1.96 standard errors of a share, within a tenth."""
    found = made(800)
    accuracy = estimates(found, draws=2000, metrics=("accuracy",))["accuracy"]
    share = float(found.right.mean())
    width = 2 * 1.96 * np.sqrt(share * (1 - share) / 800)
    assert accuracy.value == pytest.approx(share)
    assert accuracy.high - accuracy.low == pytest.approx(width, rel=0.1)


def test_records_that_belong_together_widen_the_interval() -> None:
    """Eight copies of every record: the interval is that of the records, not of the copies."""
    one = made(100)
    eight = one.take(np.repeat(np.arange(100), 8))
    units = [str(row) for row in np.repeat(np.arange(100), 8)]
    single = estimates(one, draws=1500, metrics=("accuracy",))["accuracy"]
    together = estimates(eight, draws=1500, units=units, metrics=("accuracy",))["accuracy"]
    apart = estimates(eight, draws=1500, metrics=("accuracy",))["accuracy"]
    width = single.high - single.low
    assert together.high - together.low == pytest.approx(width, rel=0.12)
    assert apart.high - apart.low < 0.5 * width


def test_the_calibration_error_is_a_plain_loop_over_bins() -> None:
    found = made(200, temperature=0.5)
    total = 0.0
    for number in range(15):
        low, high = number / 15, (number + 1) / 15
        rows = [
            row for row, sure in enumerate(found.sure) if low < sure <= high or (sure == low == 0)
        ]
        if rows:
            gap = abs(found.right[rows].mean() - found.sure[rows].mean())
            total += len(rows) / 200 * gap
    assert calibration_error(found) == pytest.approx(total)
    assert sum(part.records for part in reliability(found)) == 200


def test_the_temperature_that_spoiled_probabilities_is_found_again() -> None:
    found = made(4000, temperature=0.5)
    assert fitted_temperature(found) == pytest.approx(2.0, rel=0.1)
    mended = calibrated(found, seed=3)
    assert mended is not None
    assert mended.after < 0.03 < mended.before
    assert (with_temperature(found, 3.0).said == found.said).all()


def test_a_threshold_reaches_the_wanted_recall_at_the_best_precision() -> None:
    """Reference: every probability tried as a threshold."""
    found = made()
    positive, scores = found.truth == 0, found.probabilities[:, 0]
    best = threshold_for(found, "heart", "recall", 0.9)
    said = scores >= best.threshold
    assert best.recall == pytest.approx(recall_score(positive, said)) and best.recall >= 0.9
    assert best.precision == pytest.approx(precision_score(positive, said))
    tried = [
        precision_score(positive, scores >= score)
        for score in scores
        if recall_score(positive, scores >= score) >= 0.9
    ]
    assert best.precision == pytest.approx(max(tried))
    precise = threshold_for(found, "heart", "precision", 0.8)
    assert precision_score(positive, scores >= precise.threshold) >= 0.8


def test_leaving_the_unsure_ones_to_people_raises_accuracy() -> None:
    found = coverages(made(2000))
    accuracies = [part.accuracy for part in found]
    assert accuracies == sorted(accuracies)
    assert found[0].accuracy == pytest.approx(made(2000).right.mean())


@given(st.integers(1, 40), st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_any_answers_can_be_judged(count: int, seed: int) -> None:
    """One record, one label only, equal probabilities: figures, never an error."""
    random = np.random.default_rng(seed)
    spread = random.dirichlet([0.2] * 3, count).round(random.integers(0, 4))
    spread[spread.sum(1) == 0] = 1 / 3
    spread /= spread.sum(1, keepdims=True)
    judged = judge(Answers(NAMES, spread, random.integers(0, 3, count)), draws=5)
    assert judged.records == count
    assert 0 <= judged.calibration_error <= 1
    json.dumps(judged.content())


def test_files_hold_what_was_judged_and_names_stay_text(tmp_path: Path) -> None:
    names = ["<script>alert(1)</script>", "skin", "bones"]
    found = made()
    judged = judge(Answers(names, found.probabilities, found.truth), draws=20, seed=4)
    write_judged(tmp_path / "a.json", judged)
    write_page(tmp_path / "a.html", judged, adapter="runs/a <b>", data="x.csv")
    held = json.loads((tmp_path / "a.json").read_text())
    assert held["metrics"]["accuracy"]["value"] == pytest.approx(found.right.mean())
    page = (tmp_path / "a.html").read_text()
    assert "<script" not in page and "&lt;script" in page
    assert page.count("<svg") == 3
    assert worst_pairs(judged)[0][2] == max(
        judged.confusion[i, j] for i in range(3) for j in range(3) if i != j
    )


@pytest.mark.parametrize("wrong", ["liver", ""])
def test_an_answer_that_is_no_label_is_refused_by_name(wrong: str) -> None:
    with pytest.raises(LoricaError) as caught:
        answers(NAMES, [[1.0, 0.0, 0.0]], [wrong])
    assert caught.value.code is Code.DATA_UNKNOWN_LABEL
    assert repr(wrong) in caught.value.detail


def test_nothing_to_judge_by_and_thresholds_that_cannot_be_are_refused() -> None:
    with pytest.raises(LoricaError) as caught:
        answers(NAMES, [], [])
    assert caught.value.code is Code.DATA_TOO_FEW_RECORDS
    for label, least in (("liver", 0.5), ("heart", 0.0), ("heart", 1.5)):
        with pytest.raises(LoricaError):
            threshold_for(made(), label, "precision", least)
