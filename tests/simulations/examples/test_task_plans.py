"""The runs of the benchmark of all tasks: each kind has one, transfer pays, a result is reused."""

from __future__ import annotations

import io
from pathlib import Path
from typing import get_args

import pytest
from rich.console import Console

from lorica.common.backbone.loading import load_backbone
from lorica.common.plan import RunPlan
from lorica.common.plan.traits import TaskKind
from lorica.common.tasks import task_of
from lorica.common.tasks.run_data import load_data, with_labels
from lorica.server.results.folder import RunFolder
from lorica.simulations.examples.reuse import source_then_target
from lorica.simulations.examples.small_language import make_language_model, words_of
from lorica.simulations.examples.task_plans import (
    TASKS,
    base,
    images,
    images_scratch,
    reuse_plans,
)
from lorica.simulations.run.simulate import Simulation


def score(plan: RunPlan, out: Path, epsilon: float) -> float:
    """Of the last round, on the coordinator's test data."""
    private = plan.replace(privacy={"epsilon": epsilon})
    Simulation(private, out, Console(file=io.StringIO())).run(report=False)
    found = RunFolder(out).rounds()[-1].score
    assert found is not None
    return found


@pytest.mark.parametrize(("family", "kind"), [("gpt2", "causal-lm"), ("bert", "masked-lm")])
def test_a_small_language_model_is_a_backbone_that_knows_its_sentences(
    tmp_path: Path, family: str, kind: str
) -> None:
    """Its loss on a sentence's words (hidden one by one from "bert") falls below a third of that
    of a model that was not trained."""
    import torch
    import transformers

    sentences = ["who sees a sore throat ?\ncardiology", "the cough is back since monday."]
    words = words_of([*sentences, "unseen words"])
    auto = (
        transformers.AutoModelForCausalLM if family == "gpt2" else transformers.AutoModelForMaskedLM
    )
    losses = []
    for steps in (0, 150):
        folder = make_language_model(
            tmp_path / str(steps),
            family,  # type: ignore[arg-type]
            sentences,
            words,
            steps=steps,
            width=32,
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        model = auto.from_pretrained(folder).eval()
        ids = tokenizer(sentences[:1], return_tensors="pt")["input_ids"]
        assert tokenizer.unk_token_id not in ids
        shown, labels = ids, ids
        if family == "bert":
            inner = torch.eye(ids.shape[1], dtype=torch.bool)[1:-1]
            shown = torch.where(inner, tokenizer.mask_token_id, ids)
            labels = torch.where(inner, ids, -100)
        with torch.no_grad():
            losses.append(float(model(input_ids=shown, labels=labels).loss))
    assert losses[1] < losses[0] / 3
    plan = base(
        task={"kind": kind},
        backbone={"source": str(folder)},
        adapter={"kind": "lora", "target_modules": ["c_attn" if family == "gpt2" else "query"]},
    )
    assert task_of(plan).model(load_backbone(plan.backbone)).adapter_parameters


@pytest.mark.slow("pretrains the backbone of every task")
def test_every_kind_of_task_has_a_run_whose_data_its_task_accepts(tmp_path: Path) -> None:
    kinds = set()
    for make in TASKS.values():
        plan = make(tmp_path)
        data = load_data(plan)
        plan = with_labels(plan, data.train, data.test)
        task_of(plan).check(data.train, where="The training data")
        assert plan.simulation.sites >= 3 and plan.data.test
        kinds.add(plan.task.kind)
    assert kinds == set(get_args(TaskKind))


@pytest.mark.slow("pretrains, then four whole runs")
def test_digits_0_to_4_help_to_tell_5_to_9(tmp_path: Path) -> None:
    """Three sites; the same transformer with random weights is what it is compared with."""
    pretrained, random = images(tmp_path), images_scratch(tmp_path)
    for epsilon, level, margin in ((float("inf"), 0.85, 0.15), (8.0, 0.85, 0.2)):
        transferred = score(pretrained, tmp_path / f"transfer-{epsilon}", epsilon)
        scratch = score(random, tmp_path / f"scratch-{epsilon}", epsilon)
        assert transferred > level, epsilon
        assert transferred > scratch + margin, epsilon


@pytest.mark.slow("pretrains, then three whole runs")
def test_the_result_of_a_run_is_a_better_backbone_than_the_one_it_started_from(
    tmp_path: Path,
) -> None:
    """By the command line: simulate, export, simulate."""
    found = source_then_target(tmp_path, *reuse_plans(tmp_path))
    assert found.source > 0.7 and found.gain > 0.07, found
