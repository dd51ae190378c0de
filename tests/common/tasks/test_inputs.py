"""What is read of texts that are too long: which part, how many, and that it is said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorica.common.backbone.loading import Backbone, load_backbone
from lorica.common.plan import RunPlan
from lorica.common.tasks import task_of
from lorica.common.tasks.inputs import (
    cut_share,
    encode,
    encode_with_offsets,
    kept_places,
    long_texts,
)
from tests.tasks import KINDS, TRAITS, example, plan_of, rows_of

WORDS = [
    *["the", "old", "doctor", "has", "my", "money", "today", "and", "the", "new", "doctor"],
    *["was", "lost", "again"],
]


def backbone_at(folder: Path) -> Backbone:
    return load_backbone(RunPlan().replace(backbone={"source": str(folder)}).backbone)


@given(
    length=st.integers(0, 50),
    limit=st.integers(1, 50),
    before=st.integers(0, 2),
    after=st.integers(0, 2),
)
def test_what_is_kept_is_as_long_as_can_be_and_in_order(
    length: int, limit: int, before: int, after: int
) -> None:
    length += before + after
    for keep in ("head", "tail", "both"):
        kept = kept_places(length, limit, keep, before=before, after=after)  # type: ignore[arg-type]
        assert len(kept) == min(length, limit)
        assert (np.diff(kept) > 0).all() and set(kept) <= set(range(length))
        if limit >= before + after:
            assert set(range(before)) <= set(kept)
            assert set(range(length - after, length)) <= set(kept)


@pytest.mark.parametrize(
    ("keep", "words"),
    [("head", WORDS[:6]), ("tail", WORDS[-6:]), ("both", WORDS[:3] + WORDS[-3:])],
)
def test_the_part_that_the_plan_names_is_kept_between_the_special_tokens(
    small_backbone: Path, keep: Any, words: list[str]
) -> None:
    backbone = backbone_at(small_backbone)
    texts = [" ".join(WORDS), "card lost"]
    encoded = encode(backbone, texts, 8, keep=keep)
    assert encoded.cut == 1 and cut_share(encoded) == 0.5
    found = backbone.tokenizer.convert_ids_to_tokens(encoded.tokens[0].tolist())
    known = backbone.tokenizer.get_vocab()
    wanted = [word if word in known else "[UNK]" for word in words]
    assert found == ["[CLS]", *wanted, "[SEP]"]
    tokens, places, cut = encode_with_offsets(backbone, texts, 8, keep=keep)
    assert cut == 1 and all(map(np.array_equal, tokens, encoded.tokens))
    spans = [texts[0][start:end] for start, end in places[0][1:-1]]
    assert spans == words


def test_the_head_is_what_plain_transformers_cut_to(small_backbone: Path) -> None:
    backbone = backbone_at(small_backbone)
    texts = [" ".join(WORDS[:count]) for count in range(1, len(WORDS))]
    for limit in (3, 5, 9, 64):
        # reference: the tokenizer's own truncation
        wanted = backbone.tokenizer(texts, truncation=True, max_length=limit)["input_ids"]
        found = encode(backbone, texts, limit)
        assert [ids.tolist() for ids in found.tokens] == wanted
        assert found.cut == sum(
            len(ids) < len(text.split()) + 2 for ids, text in zip(wanted, texts, strict=True)
        )


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not TRAITS[kind].images])  # type: ignore[index]
def test_every_task_of_texts_counts_what_it_cuts(
    small_backbone: Path, tmp_path: Path, kind: str
) -> None:
    backbone = backbone_at(small_backbone)
    plan = plan_of(kind, small_backbone, training={"max_length": 3})
    _, one = example(kind, plan, tmp_path)
    assert len(rows_of(kind, 1)) == 1
    task = task_of(plan)
    assert cut_share(task.encode_for_use(backbone, one)) == 1.0
    wide = task_of(plan.replace(training={"max_length": 60}))
    assert cut_share(wide.encode_for_use(backbone, one)) == 0.0


@pytest.mark.parametrize("name", ["sentence_bert_config.json", "sentence_roberta_config.json"])
@pytest.mark.parametrize(
    ("promised", "read", "said"),
    [
        (None, 8, "longer than training.max_length (8 tokens)"),
        (16, 8, "made for up to 16 tokens"),
        (6, 8, "training.max_length=6 keeps to them"),
        (16, 64, ""),
        (12, 64, "50 % are read beyond the 12 tokens"),
        (500, 500, "longer than what the model takes (64 tokens)"),
    ],
)
def test_the_length_that_a_sentence_encoder_was_made_for_is_said_and_changes_nothing(
    small_backbone: Path, name: str, promised: int | None, read: int, said: str
) -> None:
    copy = Path(shutil.copytree(small_backbone, small_backbone.parent / "copy"))
    plain = backbone_at(copy)
    length = {"max_seq_length": promised, "do_lower_case": False}
    (small_backbone / name).write_text(json.dumps(length))
    backbone = backbone_at(small_backbone)
    texts = [" ".join(WORDS * (9 if read == 500 else 1)), "card lost"]
    plan = plan_of("text-classification", small_backbone, training={"max_length": read})
    found = long_texts(plan, backbone, encode(backbone, texts, read)).sentence
    assert (said in found) if said else not found
    assert backbone.identity == plain.identity
    both = (encode(model, texts, read).tokens for model in (plain, backbone))
    assert all(map(np.array_equal, *both))


@pytest.mark.parametrize("keep", ["head", "tail", "both"])
def test_a_text_that_occurs_again_is_read_and_counted_as_if_it_did_not(
    small_backbone: Path, keep: Any
) -> None:
    """Reference: every text by itself."""
    backbone = backbone_at(small_backbone)
    long = " ".join(WORDS)
    texts = ["the old doctor", long, "", long, "the old doctor", long]
    apart = [encode(backbone, [text], 8, keep=keep) for text in texts]
    found = encode(backbone, texts, 8, keep=keep)
    assert [ids.tolist() for ids in found.tokens] == [one.tokens[0].tolist() for one in apart]
    assert found.cut == sum(one.cut for one in apart) == 3
    tokens, places, cut = encode_with_offsets(backbone, texts, 8, keep=keep)
    assert [ids.tolist() for ids in tokens] == [ids.tolist() for ids in found.tokens]
    assert cut == 3 and [len(one) for one in places] == [len(ids) for ids in tokens]
