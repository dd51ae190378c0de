"""Causal and masked language modelling: against transformers, plain autograd, closed forms."""

from __future__ import annotations

import contextlib
import csv
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lorica.client.mechanism.per_sample import enable_per_sample_gradients
from lorica.common.adapter.state import State
from lorica.common.backbone.loading import load_backbone
from lorica.common.cache.prefix import PrefixCache, judgements
from lorica.common.cache.shelf import CacheShelf
from lorica.common.data.records import Records
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.saved.exported.merged import export_merged
from lorica.common.saved.folder import save_adapter
from lorica.common.saved.predict import Predictor
from lorica.common.tasks import task_of
from lorica.common.tasks.language.inputs import AskedTokens
from tests.language_models import TARGETS, make_language_model, questions

CASES = [
    ("causal-lm", "gpt2"),
    ("causal-lm", "llama"),
    ("masked-lm", "bert"),
    ("masked-lm", "bert-encoder"),
]


def plan_of(kind: str, folder: Path, model: str, **sections: dict[str, Any]) -> RunPlan:
    content: dict[str, dict[str, Any]] = {
        "task": {"kind": kind},
        "backbone": {"source": str(folder)},
        "adapter": {"target_modules": TARGETS[model], "rank": 4, "alpha": 8.0, "layers": [-1]},
        "training": {"mode": "local", "max_length": 32},
    }
    for name, values in sections.items():
        content[name] = content.get(name, {}) | values
    return RunPlan.model_validate(content)


def records_of(kind: str, count: int = 7) -> Records:
    pairs = questions(count)
    if kind == "causal-lm":
        texts, labels = [p for p, _ in pairs], [a for _, a in pairs]
    else:
        texts, labels = [f"{p} {a}" for p, a in pairs], [""] * count
    return Records(texts, labels, [str(i) for i in range(count)], [""] * count)


def moved(state: State, seed: int = 1) -> State:
    """A state in which every factor is away from its start."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: tensor + 0.05 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in state.items()
    }


@pytest.mark.parametrize(("kind", "model"), CASES)
def test_start_equals_the_backbones_own_language_model(
    tmp_path: Path, kind: str, model: str
) -> None:
    import transformers

    plan = plan_of(kind, make_language_model(tmp_path / "m", model), model)
    backbone, task = load_backbone(plan.backbone), task_of(plan)
    records = records_of(kind)
    inputs = task.encode(backbone, records)
    adapted = task.model(backbone).eval()
    adapted.load_state(task.start(backbone))
    rows = np.arange(len(records))
    with torch.no_grad():
        ids, mask = inputs.collate(rows)
        found = adapted.outputs(adapted.pooled_of_ids(ids, mask), inputs, rows)
        if model == "bert-encoder":
            states = backbone.model(input_ids=ids, attention_mask=mask).last_hidden_state
            words = backbone.model.get_input_embeddings().weight
            unit = torch.nn.functional.normalize
            wanted = 16 * unit(states, dim=-1) @ unit(words, dim=-1).T
        else:
            auto = {
                "causal-lm": transformers.AutoModelForCausalLM,
                "masked-lm": transformers.AutoModelForMaskedLM,
            }[kind]
            whole = auto.from_pretrained(backbone.folder, dtype=torch.float32).eval()
            wanted = whole(input_ids=ids, attention_mask=mask).logits
    assert isinstance(inputs, AskedTokens)
    for row in rows:
        places = torch.from_numpy(inputs.positions[row])
        assert torch.allclose(found[row, : len(places)], wanted[row, places], atol=1e-4)


@pytest.mark.parametrize(("kind", "model"), CASES)
def test_per_record_gradients_agree_with_plain_autograd_of_single_records(
    tmp_path: Path, kind: str, model: str
) -> None:
    plan = plan_of(kind, make_language_model(tmp_path / "m", model), model)
    backbone, task = load_backbone(plan.backbone), task_of(plan)
    records = records_of(kind)
    inputs = task.encode(backbone, records)
    targets = task.targets(records, inputs)
    rows = np.arange(len(records))

    def build() -> tuple[Any, dict[str, torch.nn.Parameter]]:
        made = task.model(backbone).eval()
        made.load_state(moved(task.start(backbone)))
        return made, made.adapter_parameters

    def loss(made: Any, chosen: np.ndarray) -> torch.Tensor:
        states = made.pooled_of_ids(*inputs.collate(chosen))
        return task.loss_sum(made.outputs(states, inputs, chosen), targets, chosen)

    ours, parameters = build()
    enable_per_sample_gradients(ours, parameters.values())
    loss(ours, rows).backward()
    plain, reference = build()
    for parameter in reference.values():
        parameter.requires_grad_(True)
    for row in rows:
        for parameter in reference.values():
            parameter.grad = None
        loss(plain, np.array([row])).backward()
        for name, parameter in parameters.items():
            per_record: Any = parameter
            assert torch.allclose(per_record.grad_sample[row], reference[name].grad, atol=1e-5)


@pytest.mark.parametrize(("kind", "model"), CASES)
def test_a_records_loss_and_judgement_depend_on_no_other_record_to_the_bit(
    tmp_path: Path, kind: str, model: str
) -> None:
    """Of any outputs, in every row of batches of any size, as tests/common/tasks/test_every_task.py
    has it of the other tasks."""
    plan = plan_of(kind, make_language_model(tmp_path / "m", model), model)
    backbone, task = load_backbone(plan.backbone), task_of(plan)
    records = records_of(kind, 13)
    inputs = task.encode(backbone, records)
    targets, made = task.targets(records, inputs), task.model(backbone).eval()
    everything = np.arange(len(records))
    with torch.no_grad():
        pooled = made.pooled_of_ids(*inputs.collate(everything))
        shape = made.outputs(pooled, inputs, everything).shape
    given = 6 * torch.randn(shape, generator=torch.Generator().manual_seed(5))

    def of(rows: np.ndarray) -> list[torch.Tensor]:
        outputs = given[torch.from_numpy(rows)].requires_grad_(True)
        task.loss_sum(outputs, targets, rows).backward()
        assert outputs.grad is not None
        return [outputs.grad, task.judge(outputs.detach(), targets, rows)]

    alone = [of(np.array([row])) for row in everything]
    for count in (4, 11, 16, 64):
        for first in range(0, len(records), 3):
            rows = (first + np.arange(count)) % len(records)
            for place, values in enumerate(of(rows)):
                for row, value in zip(rows, values, strict=True):
                    assert torch.equal(value, alone[row][place][0]), (place, count, row)


@pytest.mark.parametrize(("kind", "model"), CASES)
def test_cached_and_uncached_states_agree(tmp_path: Path, kind: str, model: str) -> None:
    plan = plan_of(kind, make_language_model(tmp_path / "m", model), model)
    backbone, task = load_backbone(plan.backbone), task_of(plan)
    records = records_of(kind)
    inputs = task.encode(backbone, records)
    targets = task.targets(records, inputs)
    adapted = task.model(backbone).eval()
    adapted.load_state(moved(task.start(backbone)))
    assert adapted.prefix.depth == 2  # the last of three layers is adapted
    cached = judgements(task, adapted, PrefixCache(adapted, inputs), targets)
    anew = judgements(task, adapted, PrefixCache(adapted, inputs, limit_bytes=0), targets)
    assert torch.allclose(cached, anew, atol=1e-5)


def test_loss_and_perplexity_agree_with_transformers(tmp_path: Path) -> None:
    import transformers

    folder = make_language_model(tmp_path / "m", "llama")
    plan = plan_of("causal-lm", folder, "llama")
    backbone, task = load_backbone(plan.backbone), task_of(plan)
    records = records_of("causal-lm", 3)
    inputs = task.encode(backbone, records)
    adapted = task.model(backbone).eval()
    adapted.load_state(task.start(backbone))
    table = judgements(task, adapted, PrefixCache(adapted, inputs), task.targets(records, inputs))
    whole = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    losses, tokens = [], []
    assert isinstance(inputs, AskedTokens)
    for ids, places in zip(inputs.tokens, inputs.positions, strict=True):
        labels = torch.full((1, len(ids)), -100)
        labels[0, places + 1] = torch.from_numpy(ids[places + 1])
        with torch.no_grad():
            losses.append(float(whole(torch.from_numpy(ids)[None], labels=labels).loss))
        tokens.append(len(places))
    found = task.metrics(table).values
    assert found["loss"] == pytest.approx(np.mean(losses), abs=1e-5)
    mean = np.average(losses, weights=tokens)
    assert found["perplexity"] == pytest.approx(math.exp(mean), rel=1e-5)


@pytest.mark.parametrize("chat", [False, True])
def test_only_the_answer_and_its_end_are_asked_for(tmp_path: Path, chat: bool) -> None:
    folder = make_language_model(tmp_path / "m", "llama", chat=chat)
    plan = plan_of("causal-lm", folder, "llama", task={"system": "be brief"})
    backbone, task = load_backbone(plan.backbone), task_of(plan)
    records = Records(["what is the colour of snow"], ["white"], ["0"], [""])
    inputs = task.encode(backbone, records)
    (told,) = task.targets(records, inputs).tokens
    assert backbone.tokenizer.decode(told) == "white <end>"
    assert isinstance(inputs, AskedTokens)
    whole = backbone.tokenizer.decode(inputs.tokens[0])
    if chat:
        start = "system : be brief <end> user : what is the colour of snow <end> assistant : "
        assert whole == f"{start}white <end>"
    else:
        assert whole == "be brief what is the colour of snow white <end>"


def test_too_long_a_prompt_loses_its_beginning_and_keeps_its_answer(tmp_path: Path) -> None:
    folder = make_language_model(tmp_path / "m", "gpt2")
    plan = plan_of("causal-lm", folder, "gpt2", training={"max_length": 8})
    backbone, task = load_backbone(plan.backbone), task_of(plan)
    records = Records(
        [" ".join(["again"] * 30) + " sky", "sky"], ["blue", "a " * 30], ["", ""], ["", ""]
    )
    inputs = task.encode(backbone, records)
    decode = backbone.tokenizer.decode
    assert isinstance(inputs, AskedTokens)
    assert decode(inputs.tokens[0]) == "again again again again again sky blue <end>"
    assert decode(inputs.tokens[1]) == "sky a a a a a a a"
    assert [len(places) for places in inputs.positions] == [2, 7]


def test_exact_match_is_what_greedy_decoding_gives(tmp_path: Path) -> None:
    folder = make_language_model(tmp_path / "m", "gpt2", seed=3)
    plan = plan_of("causal-lm", folder, "gpt2", task={"answer_tokens": 5})
    backbone, task = load_backbone(plan.backbone), task_of(plan)
    adapted = task.model(backbone).eval()
    adapted.load_state(moved(task.start(backbone)))
    prompts = [prompt for prompt, _ in questions(5)]
    answers = [p.shown for p in task.generate(backbone, adapted, prompts)]
    assert all(answers)
    nothing = [""] * 5
    # What greedy decoding said, without an end (it was cut): every told token must be right.
    records = Records(prompts, answers, nothing, nothing)
    inputs = task.encode(backbone, records)
    table = judgements(task, adapted, PrefixCache(adapted, inputs), task.targets(records, inputs))
    assert (table[:, 2] >= table[:, 1] - 1).all()  # all but perhaps the end
    other = Records(prompts, ["no pain today"] * 5, nothing, nothing)
    inputs = task.encode(backbone, other)
    table = judgements(task, adapted, PrefixCache(adapted, inputs), task.targets(other, inputs))
    assert task.metrics(table).values["exact_match"] < 1


def test_records_with_the_same_tokens_and_other_answers_share_no_cache(tmp_path: Path) -> None:
    """Where the prompt ends is told by the positions alone; also with as many of them."""
    folder = make_language_model(tmp_path / "m", "gpt2")
    plan = plan_of("causal-lm", folder, "gpt2")
    backbone, task = load_backbone(plan.backbone), task_of(plan)
    inputs = task.encode(backbone, records_of("causal-lm", 3))
    assert isinstance(inputs, AskedTokens)
    earlier = AskedTokens(inputs.tokens, [places - 1 for places in inputs.positions])
    fewer = AskedTokens(inputs.tokens, [places[1:] for places in inputs.positions])
    again = AskedTokens(inputs.tokens, inputs.positions, limit=inputs.limit)
    assert len({found.digest() for found in (inputs, earlier, fewer)}) == 3
    assert again.digest() == inputs.digest()
    shelf, model, rows = CacheShelf(), task.model(backbone), np.arange(3)
    with torch.no_grad():
        found = shelf.get(model, inputs, backbone=backbone).outputs(model, rows)
        differs = shelf.get(model, earlier, backbone=backbone).outputs(model, rows)
        expected = PrefixCache(model, earlier).outputs(model, rows)
    assert not torch.allclose(found, differs)
    torch.testing.assert_close(differs, expected)


def test_masks_depend_on_a_records_text_alone(tmp_path: Path) -> None:
    folder = make_language_model(tmp_path / "m", "bert")
    plan = plan_of("masked-lm", folder, "bert", task={"mask_share": 0.4})
    backbone, task = load_backbone(plan.backbone), task_of(plan)
    records = records_of("masked-lm", 6)
    whole = task.encode(backbone, records)
    order = [4, 0, 5]
    part = task.encode(backbone, records.take(order))
    assert isinstance(whole, AskedTokens)
    assert isinstance(part, AskedTokens)
    for at, row in enumerate(order):
        assert (part.tokens[at] == whole.tokens[row]).all()
        assert (part.positions[at] == whole.positions[row]).all()


def test_masks_hide_the_stated_share_and_never_special_tokens(tmp_path: Path) -> None:
    folder = make_language_model(tmp_path / "m", "bert")
    plan = plan_of("masked-lm", folder, "bert", task={"mask_share": 0.25})
    backbone, task = load_backbone(plan.backbone), task_of(plan)
    texts = [
        " ".join(np.random.default_rng(i).choice(["a", "no", "mild", "fever"], 20))
        for i in range(200)
    ]
    records = Records(texts, [""] * 200, [""] * 200, [""] * 200)
    inputs: Any = task.encode(backbone, records)
    targets = task.targets(records, inputs)
    special = set(backbone.tokenizer.all_special_ids)
    assert all(len(places) == 5 for places in inputs.positions)
    assert not special.intersection(np.concatenate(targets.tokens).tolist())
    shown = np.concatenate(
        [ids[places] for ids, places in zip(inputs.tokens, inputs.positions, strict=True)]
    )
    hidden = float((shown == backbone.tokenizer.mask_token_id).mean())
    assert hidden == pytest.approx(0.8, abs=4 * math.sqrt(0.16 / len(shown)) + 0.02)


@pytest.mark.parametrize(("kind", "model"), CASES)
def test_released_contributions_are_bounded_whatever_the_scores(
    tmp_path: Path, kind: str, model: str
) -> None:
    plan = plan_of(kind, make_language_model(tmp_path / "m", model), model)
    task = task_of(plan)
    table = torch.tensor(
        [
            [math.nan, 3.0, 3.0],
            [1e30, 2.0, 0.0],
            [0.0, 5.0, 5.0],
            [math.inf, 1.0, 9.0],
            [-5.0, 1.0, 1.0],
        ],
        dtype=torch.float64,
    )
    found = task.contributions(table)
    assert found.isfinite().all()
    assert ((found >= 0) & (found <= 1)).all()
    assert found[0].tolist() == [0.0, 1.0]


def test_exported_backbone_equals_backbone_and_adapter(tmp_path: Path) -> None:
    for kind, model in CASES:
        folder = make_language_model(tmp_path / f"{kind}-{model}", model)
        plan = plan_of(kind, folder, model)
        backbone, task = load_backbone(plan.backbone), task_of(plan)
        adapted = task.model(backbone).eval()
        state = moved(task.start(backbone))
        adapted.load_state(state)
        save_adapter(tmp_path / f"{kind}-{model}-adapter", state, plan, backbone)
        out = tmp_path / f"{kind}-{model}-merged"
        merged = export_merged(tmp_path / f"{kind}-{model}-adapter", out)
        again = load_backbone(
            plan.replace(backbone={"source": str(out), "sha256": merged.sha256}).backbone
        )
        ids, mask = (
            torch.tensor([[7, 8, 9, 10], [11, 12, 13, 0]]),
            torch.tensor([[1] * 4, [1, 1, 1, 0]]),
        )
        with torch.no_grad():
            wanted = adapted.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
            found = again.model(input_ids=ids, attention_mask=mask).last_hidden_state
        assert torch.allclose(found[mask == 1], wanted[mask == 1], atol=1e-5)
        assert again.settings_sha256 == backbone.settings_sha256
        with pytest.raises(LoricaError) as refused:
            export_merged(tmp_path / f"{kind}-{model}-adapter", out)
        assert refused.value.code is Code.RUN_FOLDER_EXISTS


@pytest.mark.parametrize(("kind", "model"), [*CASES, ("causal-lm", "chat")])
def test_readme_of_an_adapter_runs_with_plain_transformers_and_agrees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, model: str
) -> None:
    chat = model == "chat"
    model = "llama" if chat else model
    folder = make_language_model(tmp_path / "m", model, chat=chat)
    plan = plan_of(kind, folder, model, task={"answer_tokens": 6})
    backbone, task = load_backbone(plan.backbone), task_of(plan)
    state = moved(task.start(backbone))
    save_adapter(tmp_path / "adapter", state, plan, backbone)
    readme = (tmp_path / "adapter" / "README.md").read_text(encoding="utf-8")
    code = readme.split("```python\n")[1].split("```")[0]
    text = "what is the colour" if kind == "causal-lm" else "the colour of [MASK] is"
    code = code.replace('"some prompt', f'"{text}').replace(
        '"the " + tokenizer.mask_token', f'"{text}"'
    )
    code = code.replace('revision="main"', "").replace(", revision=revision", "")
    monkeypatch.chdir(tmp_path / "adapter")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README", "exec"), {})
    (prediction,) = Predictor(tmp_path / "adapter")([text])
    said = prediction.shown if kind == "causal-lm" else str([prediction.shown])
    assert printed.getvalue().strip() == said


@pytest.mark.parametrize("text", ["[SEP] [CLS]", "", "\u200b"])
def test_a_text_of_which_nothing_can_be_hidden_ends_no_run(tmp_path: Path, text: str) -> None:
    """Refused, it would tell that it is there; it counts as one that nobody can tell."""
    plan = plan_of("masked-lm", make_language_model(tmp_path / "bert", "bert"), "bert")
    task, backbone = task_of(plan), load_backbone(plan.backbone)
    records = Records([text, "the sky is blue"], ["", ""], ["0", "1"], ["", ""])
    encoded = task.encode(backbone, records)
    targets, model = task.targets(records, encoded), task.model(backbone).eval()
    assert [len(places) for places in encoded.positions] == [1, 1]
    cache = CacheShelf().get(model, encoded, backbone=backbone, limit_bytes=0)
    rows = np.arange(2)
    losses = task.losses(cache.outputs(model, rows), targets, rows)
    assert losses.shape == (2,) and bool(losses.isfinite().all())
    assert bool(task.contributions(judgements(task, model, cache, targets)).isfinite().all())


def test_bad_input_is_refused_in_sentences(tmp_path: Path) -> None:
    gpt2 = make_language_model(tmp_path / "gpt2", "gpt2")
    encoder = make_language_model(tmp_path / "encoder", "bert-encoder")
    causal = task_of(plan_of("causal-lm", gpt2, "gpt2"))
    empty = Records(["what is"], [" "], ["0"], [""])
    with pytest.raises(LoricaError, match="record 1 has an empty answer") as refused:
        causal.check(empty, where="Site a")
    assert refused.value.code is Code.DATA_EMPTY_TEXT
    plan = plan_of("masked-lm", encoder, "bert-encoder")
    masked = task_of(plan)
    backbone = load_backbone(plan.backbone)
    with pytest.raises(LoricaError, match="nothing is asked for"):
        masked.encode_for_use(backbone, Records(["the sky"], [""], ["0"], [""]))
    with pytest.raises(LoricaError) as unfit:
        task_of(plan_of("masked-lm", gpt2, "gpt2")).model(
            load_backbone(plan.backbone.model_copy(update={"source": str(gpt2)}))
        )
    assert unfit.value.code is Code.BACKBONE_UNSUPPORTED
    with pytest.raises(ValueError, match="has no labels"):
        plan_of("causal-lm", gpt2, "gpt2", task={"labels": ["a", "b"]})
    with pytest.raises(ValueError, match=r"needs data\.label"):
        plan_of("causal-lm", gpt2, "gpt2", data={"label": ""})


def write_table(path: Path, rows: list[tuple[str, str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows(rows)
    return path
