"""What models read: tokenised texts, ragged, and their padded batches."""

from __future__ import annotations

import contextlib
import hashlib
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from lorica.common.backbone.loading import Backbone, known_tokens
from lorica.common.display.long_texts import LongTexts
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.plan.course import PARTS, KeptPart
from lorica.common.tasks.shapes import UNLIMITED, padded

_TOKENIZE_CHUNK = 1000
_ENDS: weakref.WeakKeyDictionary[Any, tuple[int, int]] = weakref.WeakKeyDictionary()


class Inputs(Protocol):
    """The encoded records of one data set."""

    @property
    def lengths(self) -> np.ndarray:
        """Tokens (or patches) per record, shape (N,), int64: what a record costs."""
        ...

    @property
    def sizes(self) -> np.ndarray:
        """What of a record decides the shape it is computed in, shape (N, d), int64; the first is
        its length (:mod:`lorica.common.tasks.shapes`)."""
        ...

    @property
    def limit(self) -> int:
        """The longest that a record could be, by plan and model; nothing is padded beyond."""
        ...

    def __len__(self) -> int: ...

    def collate(self, rows: Iterable[int]) -> tuple[torch.Tensor, ...]:
        """The arguments of the model's ``states_of`` for these rows, in the canonical shape of
        the largest of them."""
        ...

    def digest(self) -> bytes:
        """A hash of all that the model reads."""
        ...


@dataclass(frozen=True)
class Encoded:
    """Tokenised texts, ragged: texts are token-id arrays of their own lengths."""

    tokens: list[np.ndarray]
    """One int64 array per text, special tokens included, at most ``limit`` long."""
    cut: int = field(default=0, kw_only=True)
    """How many of the texts were longer, and lost tokens: at a site, as private as they are."""
    limit: int = field(default=UNLIMITED, kw_only=True)
    """The longest that a text could be, by plan and model, tokens."""

    @property
    def sizes(self) -> np.ndarray:
        """Tokens per text, shape (n, 1)."""
        return self.lengths[:, None]

    @property
    def lengths(self) -> np.ndarray:
        """Tokens per text, shape (n,)."""
        return np.array([len(ids) for ids in self.tokens], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.tokens)

    def collate(self, rows: Iterable[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Pad the texts of ``rows`` to the canonical length of the longest of them.

        Returns:
            input ids and attention mask, both int64, shape (n, T).
        """
        return collate(self, rows)

    def digest(self) -> bytes:
        """SHA-256 of limit, lengths and tokens."""
        found = hashlib.sha256(repr(self.limit).encode() + self.lengths.tobytes())
        for tokens in self.tokens:
            found.update(tokens.tobytes())
        return found.digest()


def encode(
    backbone: Backbone,
    texts: Sequence[str],
    max_length: int,
    *,
    keep: KeptPart = "head",
    prompt: str = "",
) -> Encoded:
    """Tokenise texts without padding.

    Any text will do: one that the tokenizer makes nothing of is one token of padding. A text that
    ended the work instead would tell that it is there.

    Args:
        backbone: its tokenizer, and the length that its model takes.
        texts: as they are.
        max_length: tokens; a longer text is cut to them, special tokens included.
        keep: what is left of it.
        prompt: comes before every text, and is cut with it.
    """
    given = [prompt + text for text in texts] if prompt else texts
    tokens, _, cut = _tokenised(backbone, given, max_length, keep, places=False)
    return Encoded(tokens, cut=cut, limit=min(max_length, backbone.max_length))


def encode_pooled(plan: RunPlan, backbone: Backbone, texts: Sequence[str]) -> Encoded:
    """Tokenise texts as a plan says, for a model of one vector per text: behind the backbone's
    usual prompt, if it has one."""
    training, prompt = plan.training, backbone.pooling.prompt
    return encode(backbone, texts, training.max_length, keep=training.keep, prompt=prompt)


def cut_share(inputs: Inputs) -> float:
    """Share of records whose text was cut; 0 for what has no texts."""
    base = getattr(inputs, "base", inputs)
    return getattr(base, "cut", 0) / max(1, len(inputs))


def long_texts(plan: RunPlan, backbone: Backbone, inputs: Inputs) -> LongTexts:
    """How long a run's texts are beside what is read of them and what the model was made for.

    It changes nothing of what is trained: people are told. At a site these figures are as private
    as the texts, and are told to the site's own people alone.
    """
    training, promised = plan.training, backbone.promised_length
    within = training.max_length <= backbone.max_length
    lengths = np.asarray(inputs.lengths)
    beyond = float((lengths > promised).mean()) if promised and len(lengths) else 0.0
    return LongTexts(
        cut_share(inputs),
        min(training.max_length, backbone.max_length),
        "training.max_length" if within else "what the model takes",
        PARTS[training.keep],
        promised,
        beyond,
    )


def encode_with_offsets(
    backbone: Backbone, texts: Sequence[str], max_length: int, *, keep: KeptPart = "head"
) -> tuple[list[np.ndarray], list[np.ndarray], int]:
    """As :func:`encode`, with the place of every token in its text.

    Returns:
        token ids per text; per text int64 (T, 2): first character, and the one after the last,
        both 0 for special tokens; how many texts were cut.

    Raises:
        LoricaError: LOR-221 when the tokenizer keeps no places.
    """
    if not getattr(backbone.tokenizer, "is_fast", False):
        raise LoricaError(
            Code.TOKENIZER_OFFSETS,
            f"The backbone's tokenizer ({type(backbone.tokenizer).__name__}) cannot say where its "
            "tokens are in the text.",
        )
    return _tokenised(backbone, texts, max_length, keep, places=True)


def kept_places(
    length: int, limit: int, keep: KeptPart, *, before: int = 0, after: int = 0
) -> np.ndarray:
    """Which tokens are left of a text of ``length`` tokens, at most ``limit``, in their order.

    Args:
        length: special tokens included.
        limit: the same.
        keep: "head" and "tail" keep the beginning or the end, "both" half of each.
        before: special tokens that begin every text, and stay.
        after: those that end it, and stay.
    """
    if length <= limit:
        return np.arange(length)
    room = max(0, limit - before - after)
    first = {"head": room, "tail": 0, "both": (room + 1) // 2}[keep]
    body = np.arange(before, length - after)
    left = np.concatenate([body[:first], body[len(body) - (room - first) :]])
    ends = np.concatenate([np.arange(before), left, np.arange(length - after, length)])
    return ends[:limit]


def special_ends(tokenizer: Any) -> tuple[int, int]:
    """How many special tokens a tokenizer puts before a text, and after it."""
    try:
        return _ENDS[tokenizer]
    except (KeyError, TypeError):  # another kind of tokenizer may not be kept by
        pass
    found = tokenizer(["a"], return_special_tokens_mask=True)["special_tokens_mask"][0]
    before = next((place for place, special in enumerate(found) if not special), len(found))
    after = next((place for place, special in enumerate(found[::-1]) if not special), 0)
    with contextlib.suppress(TypeError):
        _ENDS[tokenizer] = before, after
    return before, after


def _tokenised(
    backbone: Backbone, texts: Sequence[str], max_length: int, keep: KeptPart, *, places: bool
) -> tuple[list[np.ndarray], list[np.ndarray], int]:
    limit = min(max_length, backbone.max_length)
    known: dict[str, int] = {}
    which = [known.setdefault(text, len(known)) for text in texts]
    # Texts that occur again are read once.
    tokens, offsets, cut = _each_tokenised(backbone, list(known), limit, keep, places=places)
    offsets = [offsets[one] for one in which] if places else []
    return [tokens[one] for one in which], offsets, sum(cut[one] for one in which)


def _each_tokenised(
    backbone: Backbone, texts: Sequence[str], limit: int, keep: KeptPart, *, places: bool
) -> tuple[list[np.ndarray], list[np.ndarray], list[bool]]:
    """Of every text its tokens, their places if they are asked for, and whether it was cut."""
    before, after = special_ends(backbone.tokenizer)
    rows, unknown = known_tokens(backbone), backbone.tokenizer.unk_token_id or 0
    tokens: list[np.ndarray] = []
    offsets: list[np.ndarray] = []
    cut: list[bool] = []
    for start in range(0, len(texts), _TOKENIZE_CHUNK):
        chunk = list(texts[start : start + _TOKENIZE_CHUNK])
        found = backbone.tokenizer(chunk, return_offsets_mapping=places)
        for at, made in enumerate(found["input_ids"]):
            ids = made or [_filler(backbone)]
            kept = kept_places(len(ids), limit, keep, before=before, after=after)
            cut.append(len(kept) < len(ids))
            chosen = np.asarray(ids, dtype=np.int64)[kept]
            # Special tokens that the model has no embedding for, spelt out in a text.
            tokens.append(np.where(chosen < rows, chosen, unknown))
            if places:
                given = found["offset_mapping"][at] or [(0, 0)]
                spans = np.asarray(given, dtype=np.int64).reshape(-1, 2)
                offsets.append(spans[kept])
    return tokens, offsets, cut


def _filler(backbone: Backbone) -> int:
    return int(backbone.tokenizer.pad_token_id or 0)


def collate(encoded: Encoded, rows: Iterable[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """As :meth:`Encoded.collate`."""
    chosen = [encoded.tokens[row] for row in rows]
    width = int(padded(max(map(len, chosen)), encoded.limit))
    ids = np.zeros((len(chosen), width), dtype=np.int64)
    mask = np.zeros_like(ids)
    for position, row in enumerate(chosen):
        ids[position, : len(row)] = row
        mask[position, : len(row)] = 1
    return torch.from_numpy(ids), torch.from_numpy(mask)
