"""Small language models, made on the spot: real architectures that know some sentences.

What a federation adapts is then a model that knows a language, as a pre-trained one does, in
seconds. Tokens are words.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

Family = Literal["gpt2", "bert"]

MODULES: dict[Family, list[str]] = {"gpt2": ["c_attn", "c_fc"], "bert": ["query", "value", "dense"]}
"""Linear modules that take LoRA factors."""

_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[END]"]
_HIDDEN_SHARE = 0.2
_LENGTH = 64


def words_of(texts: Sequence[str]) -> list[str]:
    """The words and signs of texts, once each, sorted."""
    return sorted({word for text in texts for word in re.findall(r"\w+|[^\w\s]+", text)})


def make_language_model(
    folder: Path,
    family: Family,
    sentences: Sequence[str],
    words: Sequence[str],
    *,
    steps: int = 300,
    width: int = 64,
    seed: int = 0,
) -> Path:
    """Write a model of two layers that was trained to tell the words of sentences.

    Args:
        folder: where to.
        family: "gpt2" tells the next word, "bert" hidden ones.
        sentences: what it is trained on; "" trains nothing. A line break in one is a word.
        words: its vocabulary, of sentences and of what it is going to read.
        steps: of Adam, 32 sentences each.
        width: of its states.
        seed: of weights and batches.

    Returns:
        The folder.
    """
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    tokenizer = _tokenizer(words, family)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = _model(family, len(tokenizer), width)
        _train(model, tokenizer, list(sentences), causal=family == "gpt2", steps=steps)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _tokenizer(words: Sequence[str], family: Family) -> Any:
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    known = {word: number for number, word in enumerate([*_SPECIAL, "\n", *words])}
    made = Tokenizer(models.WordLevel(known, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Split(
        Regex(r"\w+|\n|[^\w\s]+"), behavior="removed", invert=True
    )
    if family == "bert":
        made.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        eos_token="[END]",
    )


def _model(family: Family, vocabulary: int, width: int) -> Any:
    import transformers

    if family == "gpt2":
        return transformers.GPT2LMHeadModel(
            transformers.GPT2Config(
                vocab_size=vocabulary,
                n_embd=width,
                n_layer=2,
                n_head=4,
                n_positions=_LENGTH,
                bos_token_id=None,
                eos_token_id=_SPECIAL.index("[END]"),
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                resid_pdrop=0.0,
            )
        )
    return transformers.BertForMaskedLM(
        transformers.BertConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=2 * width,
            max_position_embeddings=_LENGTH,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )


def _train(model: Any, tokenizer: Any, sentences: list[str], *, causal: bool, steps: int) -> None:
    import torch

    if causal:
        sentences = [f"{text}{tokenizer.eos_token}" for text in sentences]
    batch = tokenizer(
        sentences, padding=True, truncation=True, max_length=_LENGTH, return_tensors="pt"
    )
    ids, held = batch["input_ids"], batch["attention_mask"].bool()
    own = ids >= len(_SPECIAL)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, steps)
    for _ in range(steps):
        rows = torch.randint(len(ids), (32,))
        width = int(held[rows].sum(1).max())
        shown, there = ids[rows, :width].clone(), held[rows, :width]
        labels = shown.masked_fill(~there, -100)
        if not causal:
            hidden = (torch.rand(shown.shape) < _HIDDEN_SHARE) & own[rows, :width]
            hidden[:, 1] |= ~hidden.any(1)  # one at least
            labels = labels.masked_fill(~hidden, -100)
            shown[hidden] = tokenizer.mask_token_id
        loss = model(input_ids=shown, attention_mask=there.long(), labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()
