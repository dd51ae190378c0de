"""A trial of a pretrained model before anything is spent on it: made-up records, read once.

No private record is looked at. What a trial finds wrong is refused in a sentence, with what would
mend it: a model that wants other inputs, tokens without an embedding, states that are none, states
that depend on padding, on chance, or on what was read before.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from lorica.common.adapter.lora import linear_modules, note_unfit
from lorica.common.backbone.vision import Readout, image_states, readout_of
from lorica.common.errors import Code, LoricaError

PADDING_TOLERANCE = 1e-3
"""Largest change of a state, relative to the largest, that padding may make: rounding makes 1e-6,
and deep networks a hundred times that."""

_COUNT, _TOKENS, _SIDE = 3, 8, 64  # of made-up records: how many, texts' length, images' pixels
_NAMED = 3  # tokens in a message
_LONG = 512  # tokens of the longest text of a trial,
_WORK = 6 * 10**10  # where tokens times parameters are no more than these


@dataclass(frozen=True)
class Tried:
    """What a trial found out."""

    hidden: int
    """Length of the token states; of images, of the one state of an image."""
    readout: Readout | None
    """How an image's state is read; None of a model of texts."""


def made_up_texts(model: Any, limit: int, *, length: int = _TOKENS) -> tuple[torch.Tensor, ...]:
    """Ids and mask, int64 (3, T), of texts of ``length`` tokens; the same at every call."""
    rows = embeddings_of(model)
    ids = np.random.default_rng(0).integers(0, rows, (_COUNT, max(1, min(length, limit))))
    return torch.from_numpy(ids), torch.ones(ids.shape, dtype=torch.int64)


def made_up_images(processor: Any) -> tuple[torch.Tensor, ...]:
    """Pixels, float32 (3, 3, S, S), of made-up images as the processor makes them."""
    random = np.random.default_rng(0)
    images = list(random.integers(0, 256, (_COUNT, _SIDE, _SIDE, 3), dtype=np.uint8))
    made = processor(images, input_data_format="channels_last")["pixel_values"]
    return (torch.from_numpy(np.stack([np.asarray(image) for image in made])).float(),)


@torch.no_grad()
def try_texts(model: Any, tokenizer: Any, limit: int) -> Tried:
    """Let a model read made-up texts.

    Args:
        model: in eval mode.
        tokenizer: its own.
        limit: tokens of the longest text that it takes.

    Raises:
        LoricaError: LOR-204, as the module says.
    """
    _check_vocabulary(model, tokenizer)
    config = repr(model.config.to_dict())
    ids, mask = made_up_texts(model, limit)
    mask = mask.clone()
    mask[0, ids.shape[1] // 2 + 1 :] = 0  # the first is shorter
    with _watched(model, linear_modules(model)) as runs:
        states = _states(model, ids, mask)
    _note_unfit(model, runs, len(ids))
    if states.shape[:2] != ids.shape or states.dim() != 3:
        raise _refused(
            model,
            f"gives states of the shape {tuple(states.shape)} for texts of the shape "
            f"{tuple(ids.shape)}: not one for every token",
        )
    if not bool(states[mask.bool()].isfinite().all()):
        raise _not_finite(model)
    size = int(mask[0].sum())
    alone = _states(model, ids[:1, :size], mask[:1, :size])
    again = _states(model, ids, mask)
    scale = float(states[mask.bool()].abs().max()) + 1e-12
    if bool((alone - states[:1, :size]).abs().max() > PADDING_TOLERANCE * scale):
        raise _refused(
            model,
            "gives a text other states when it is padded to the length of another: what is "
            "computed of a record would depend on its neighbours",
        )
    _check_memory(model, states[mask.bool()], again[mask.bool()], config)
    size = sum(parameter.numel() for parameter in model.parameters())
    longest = min(limit, _LONG)
    if longest * size <= _WORK:
        try_length(model, longest)
    return Tried(states.shape[2], None)


@torch.no_grad()
def try_length(model: Any, length: int) -> None:
    """Let a model read a made-up text of ``length`` tokens; raises LOR-204 when it cannot."""
    ids, mask = made_up_texts(model, length, length=length)
    if not bool(_states(model, ids[:1], mask[:1]).isfinite().all()):
        raise _refused(model, f"gives states that are not finite for a text of {length} tokens")


@torch.no_grad()
def try_images(model: Any, processor: Any) -> Tried:
    """Let a model see made-up images; raises as :func:`try_texts`."""
    config = repr(model.config.to_dict())
    with _said(model):
        (pixels,) = made_up_images(processor)
        with _watched(model, linear_modules(model)) as runs:
            output = model(pixel_values=pixels)
        _note_unfit(model, runs, len(pixels))
    readout = readout_of(model, output)
    if readout is None:
        raise _refused(model, "gives no state for a whole image")
    states = image_states(output, readout)
    with _said(model):
        again = image_states(model(pixel_values=pixels), readout)
    if not bool(states.isfinite().all()):
        raise _not_finite(model)
    if states.dim() != 2 or len(states) != len(pixels):
        raise _refused(model, "gives no state for every image")
    _check_memory(model, states, again, config)
    return Tried(states.shape[1], readout)


def require_single_use(
    encoder: nn.Module,
    adapted: Sequence[str],
    inputs: dict[str, torch.Tensor],
    *,
    named: Collection[str] = (),
) -> None:
    """Return if every adapted module runs once in a pass, on one input per record.

    A module that runs twice would count a record's gradient twice, one that has something else
    than records first would divide it wrongly, and one that never runs would never be trained.

    Args:
        encoder: with its adapter.
        adapted: paths in it of the modules whose input is the adapter's.
        inputs: of its forward pass, made up.
        named: last names of modules that somebody asked for; each is to run.

    Raises:
        LoricaError: LOR-204, LOR-404 naming the module.
    """
    records = len(next(iter(inputs.values())))
    with _watched(encoder, adapted) as runs, torch.no_grad(), _said(encoder):
        encoder(**inputs)
    kinds: dict[str, int] = {}
    for name, seen in runs.items():
        last = name.rpartition(".")[2]
        kinds[last] = kinds.get(last, 0) + len(seen)
    idle = [last for last, count in kinds.items() if not count]
    every = len(idle) == len(kinds)
    idle = [last for last in idle if every or last in named]
    if idle:
        raise _unsafe(
            f"No layer {idle[0]} of the backbone runs in a forward pass: it would never be trained."
        )
    for name, seen in runs.items():
        if len(seen) > 1:
            raise _unsafe(
                f"Layer {name} of the backbone runs {len(seen)} times in one forward pass: a "
                "record's gradient would be counted as several."
            )
        if seen and seen[0] != records:
            raise _unsafe(
                f"Layer {name} of the backbone does not have the record first in what it reads: "
                "its gradient cannot be told record by record."
            )


@contextmanager
def _watched(encoder: nn.Module, names: Iterable[str]) -> Iterator[dict[str, list[int]]]:
    """Module -> the first dimension of what it reads, for every run of it; -1 for no batch."""
    runs: dict[str, list[int]] = {name: [] for name in names}

    def noting(name: str) -> Any:
        def hook(_module: Any, given: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            first = next((x for x in (*given, *kwargs.values()) if torch.is_tensor(x)), None)
            runs[name].append(-1 if first is None or first.dim() < 2 else len(first))

        return hook

    hooks = [
        encoder.get_submodule(name).register_forward_pre_hook(noting(name), with_kwargs=True)
        for name in runs
    ]
    try:
        yield runs
    finally:
        for handle in hooks:
            handle.remove()


def _note_unfit(model: Any, runs: Mapping[str, list[int]], records: int) -> None:
    note_unfit(
        model, (name for name, seen in runs.items() if set(seen) - {records} or len(seen) > 1)
    )


def _unsafe(what: str) -> LoricaError:
    return LoricaError(
        Code.PRIVACY_UNSAFE_MODEL,
        what,
        mend="Name in adapter.target_modules what can be adapted (`lorica backbone check SOURCE` "
        'lists it), or set adapter.kind to "head".',
    )


def _states(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    with _said(model):
        found: torch.Tensor = model(input_ids=ids, attention_mask=mask).last_hidden_state
        return found.float()


def embeddings_of(model: Any) -> int:
    """Number of tokens that a model has an embedding for."""
    try:
        return int(model.get_input_embeddings().num_embeddings)
    except (AttributeError, NotImplementedError, TypeError):
        return int(getattr(model.config, "vocab_size", 0) or 2)


def _check_vocabulary(model: Any, tokenizer: Any) -> None:
    """Tokens without an embedding are borne where no ordinary text has them: special ones that
    the tokenizer itself does not put into texts (a class of tokenizers brings its own along)."""
    rows = embeddings_of(model)
    added = getattr(tokenizer, "added_tokens_decoder", {}).items()
    special = {i for i, token in added if token.special} | set(tokenizer.all_special_ids)
    rare = special - set(tokenizer("a")["input_ids"])
    known = tokenizer.get_vocab().items()
    beyond = sorted((i, token) for token, i in known if i >= rows and i not in rare)
    if beyond:
        named = ", ".join(f"{token!r} ({i})" for i, token in beyond[:_NAMED])
        more = f" and {len(beyond) - _NAMED} more" if len(beyond) > _NAMED else ""
        raise LoricaError(
            Code.BACKBONE_UNSUPPORTED,
            f"The tokenizer knows {len(beyond)} tokens beyond the model's {rows} embeddings: "
            f"{named}{more}.",
            mend="Give the model rows for them and save it anew: "
            "model.resize_token_embeddings(len(tokenizer)), then train them; or save the tokenizer "
            "without them.",
        )


def _check_memory(model: Any, first: torch.Tensor, again: torch.Tensor, config: str) -> None:
    scale = float(first.abs().max()) + 1e-12
    if bool((first - again).abs().max() > PADDING_TOLERANCE * scale):
        raise _refused(model, "gives the same record other states the second time")
    if repr(model.config.to_dict()) != config:
        raise _refused(
            model,
            "changes its own configuration by the length of what it reads, and would compute a "
            "record otherwise after another",
            mend="Set in its config.json what it changes (BigBird: attention_type to "
            '"original_full").',
        )


@contextmanager
def _said(model: Any) -> Iterator[None]:
    """Any failure of the model, as a sentence."""
    try:
        yield
    except LoricaError:
        raise
    except Exception as error:  # other people's code raises many kinds
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise _refused(model, f"failed on a trial: {reason}") from error


def _not_finite(model: Any) -> LoricaError:
    """Because of its weights, or for another reason."""
    for name, weight in model.named_parameters():
        if not bool(weight.isfinite().all()):
            return _refused(
                model,
                f"has weights that are no numbers, the first in {name}",
                mend="The file is damaged, or its training diverged: fetch the model anew, or take "
                "an earlier checkpoint.",
            )
    return _refused(model, "gives states that are not finite")


def _refused(model: Any, what: str, *, mend: str | None = None) -> LoricaError:
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    return LoricaError(
        Code.BACKBONE_UNSUPPORTED,
        f"The model (of the kind '{kind}') {what}.",
        mend=mend
        or "Use an encoder or a decoder of texts (BERT, RoBERTa, ModernBERT, Llama ...) or a "
        "network for images (ViT, ConvNeXt, ResNet ...).",
    )
