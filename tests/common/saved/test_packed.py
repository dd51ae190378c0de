"""Texts in rows: the same states as alone; encoders that cannot are found out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModel, BertConfig, GPT2Config, PreTrainedConfig, RobertaConfig

from lorica.common.data.records import Records
from lorica.common.saved.folder import load_adapter
from lorica.common.saved.packed import LONGEST, WIDTH, Packing, packing_of, packs
from lorica.common.saved.ready import ReadyModel, ready_model
from tests.conftest import make_small_backbone
from tests.saved_adapters import random_adapter

SMALL = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 130,
}


def encoder(config: PreTrainedConfig) -> torch.nn.Module:
    torch.manual_seed(0)
    made: torch.nn.Module = AutoModel.from_config(config).eval()
    for parameter in made.parameters():  # far from how they start, where places hardly matter
        torch.nn.init.normal_(parameter, std=0.3)
    return made


NONE = -1
BERT = encoder(BertConfig(**SMALL))


@given(st.lists(st.integers(1, LONGEST), min_size=1, max_size=40))
@settings(max_examples=40, deadline=None)
def test_texts_in_rows_have_the_states_that_they_have_alone(lengths: list[int]) -> None:
    draw = np.random.default_rng(sum(lengths))
    texts = [draw.integers(1, 60, size=length) for length in lengths]
    with torch.inference_mode():
        states, mask = Packing().states(BERT, texts)
        assert mask.sum(1).tolist() == lengths
        assert states.shape == (len(texts), max(lengths), 16)
        for text, found in zip(texts, states, strict=True):
            alone = BERT(input_ids=torch.from_numpy(text)[None]).last_hidden_state[0]
            torch.testing.assert_close(found[: len(text)], alone, rtol=1e-4, atol=1e-4)
            assert not found[len(text) :].any()


@given(st.lists(st.integers(1, LONGEST), min_size=1, max_size=80), st.integers(64, 2048))
@settings(max_examples=60, deadline=None)
def test_every_text_is_in_one_batch_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = list(packs(np.array(lengths), budget))
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    assert all(sum(lengths[text] for text in rows) < budget + LONGEST for rows in batches)
    flat = [lengths[text] for rows in batches for text in rows]
    assert flat == sorted(lengths, reverse=True)


@given(st.lists(st.integers(1, LONGEST), min_size=20, max_size=200))
@settings(max_examples=40, deadline=None)
def test_rows_have_little_padding(lengths: list[int]) -> None:
    seen: list[tuple[int, int]] = []

    def looked(*, input_ids: torch.Tensor, **_: torch.Tensor) -> object:
        seen.append(tuple(input_ids.shape))  # type: ignore[arg-type]
        return BERT(input_ids=torch.zeros((1, 1), dtype=torch.int64))

    with torch.inference_mode(), pytest.raises(IndexError):  # states of other texts than asked for
        Packing().states(looked, [np.ones(length, dtype=np.int64) for length in lengths])
    (rows, width) = seen[0]
    assert width < WIDTH + LONGEST
    assert rows * (width - LONGEST) <= sum(lengths) <= rows * width


@pytest.mark.parametrize(
    ("config", "padding"),
    [
        (BertConfig(**SMALL, pad_token_id=0), None),
        (RobertaConfig(**SMALL, pad_token_id=1), 1),  # places are counted from behind padding's
        (GPT2Config(vocab_size=60, n_embd=16, n_layer=2, n_head=2, n_positions=130), NONE),
    ],
    ids=["bert", "roberta", "gpt2, whose tokens do not see later ones"],
)
def test_which_encoders_take_texts_in_rows_is_tried(
    tmp_path: Path, config: PreTrainedConfig, padding: int | None
) -> None:
    adapter = random_adapter(
        tmp_path / "adapter", make_small_backbone(tmp_path / "backbone"), ["a", "b"]
    )
    saved = load_adapter(adapter)
    ready = ready_model(saved, saved.backbone())
    assert ready.packing is not None
    ready.model.encoder = encoder(config)
    found = packing_of(ready.model, 128)
    assert (NONE if found is None else found.padding) == padding


def test_what_is_not_packed_is_padded_with_the_same_answers(tmp_path: Path) -> None:
    backbone = make_small_backbone(tmp_path / "backbone")
    saved = load_adapter(random_adapter(tmp_path / "adapter", backbone, ["a", "b", "c"]))
    ready = ready_model(saved, saved.backbone())
    texts = ["fever " * (1 + 9 * number % 31) for number in range(30)] + ["cough " * 100] * 2
    nothing = [""] * len(texts)
    records = Records(texts, nothing, nothing, nothing)
    encoded = ready.task.encode_for_use(saved.backbone(), records)
    packed = ready.answers(encoded)
    apart = ReadyModel(ready.task, ready.model, None).answers(encoded)
    for one, other in zip(packed, apart, strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=2e-6)  # type: ignore[attr-defined]
