"""Multi-class text classification: an encoder, mean pooling, a linear head.

A text's feature is its pooled token states scaled to unit length, less a center c, scaled to
unit length again, f (H,); its logits are W f + b with W (labels, H). The rows of W start as the
features of the label names times ``ZERO_SHOT_SCALE``, which classifies by cosine similarity
before any training; c is the mean of the names' pooled states, or 0 (``adapter.center``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from lorica.common.adapters import (
    State,
    attach_lora,
    layer_indices,
    lora_parameters,
    read_state,
    structural_copy,
    write_state,
)
from lorica.common.backbones import Backbone, Pooling
from lorica.common.frozen_prefix import FrozenPrefix
from lorica.common.methods import HAS_RESIDUAL
from lorica.common.plan import RunPlan
from lorica.common.residuals import ResidualWeights

ZERO_SHOT_SCALE = 16.0
"""Inverse temperature of the label-name start; softmax(16 · cosine) is about calibrated."""

BIAS_INPUT = 0.1
"""In mode "gradient" the head's bias is trained as the weight of a constant input of this size:
b = 0.1·w, with the gradient 0.1·Σr for w. With an input of 1, as plain as it is, the bias takes
half of every record's clip norm and gives little for it."""

_TOKENIZE_CHUNK = 1000


@dataclass(frozen=True)
class Encoded:
    """Tokenised texts, ragged: texts are token-id arrays of their own lengths."""

    tokens: list[np.ndarray]
    """One int64 array per text, special tokens included, at most max_length long."""

    @property
    def lengths(self) -> np.ndarray:
        """Tokens per text, shape (n,)."""
        return np.array([len(ids) for ids in self.tokens], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.tokens)


def encode(backbone: Backbone, texts: Sequence[str], max_length: int) -> Encoded:
    """Tokenise texts, cut to ``max_length`` tokens or what the model takes, without padding."""
    limit = min(max_length, backbone.max_length)
    tokens: list[np.ndarray] = []
    for start in range(0, len(texts), _TOKENIZE_CHUNK):
        chunk = list(texts[start : start + _TOKENIZE_CHUNK])
        ids = backbone.tokenizer(chunk, truncation=True, max_length=limit)["input_ids"]
        tokens += [np.asarray(row, dtype=np.int64) for row in ids]
    return Encoded(tokens)


def collate(encoded: Encoded, rows: Iterable[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad the texts of ``rows`` to the longest of them.

    Returns:
        input ids and attention mask, both int64, shape (n, T).
    """
    chosen = [encoded.tokens[row] for row in rows]
    width = max(map(len, chosen))
    ids = np.zeros((len(chosen), width), dtype=np.int64)
    mask = np.zeros_like(ids)
    for position, row in enumerate(chosen):
        ids[position, : len(row)] = row
        mask[position, : len(row)] = 1
    return torch.from_numpy(ids), torch.from_numpy(mask)


class TextClassifier(nn.Module):
    """Encoder with LoRA (kind "lora") or without (kind "head"), pooling, and a linear head."""

    def __init__(self, backbone: Backbone, plan: RunPlan) -> None:
        """Shares the backbone's weights; only LoRA factors and the head are its own, and with
        residuals the weights that residuals are added to.

        ``frozen`` says that features never change (kind "head").
        """
        super().__init__()
        encoder = structural_copy(backbone.model)
        depth = backbone.layers
        self._lora: dict[str, nn.Parameter] = {}
        self._residuals: ResidualWeights | None = None
        if plan.adapter.kind == "lora":
            depth = layer_indices(plan.adapter, backbone.layers)[0]
            peft_model = attach_lora(encoder, plan.adapter, backbone.layers)
            self._lora = lora_parameters(peft_model)
            if plan.aggregation.method in HAS_RESIDUAL:
                self._residuals = ResidualWeights(peft_model, list(self._lora))
        self.encoder = encoder
        self.prefix = FrozenPrefix(encoder, depth)
        self.frozen = plan.adapter.kind == "head"
        self.head = nn.Linear(backbone.hidden_size, len(plan.task.labels))
        self.center = nn.Parameter(torch.zeros(backbone.hidden_size), requires_grad=False)
        self._pooling: Pooling = backbone.pooling

    @property
    def adapter_parameters(self) -> dict[str, nn.Parameter]:
        """All parameters of the adapter state by name: LoRA factors (and residuals), the head,
        its center."""
        head = {f"head.{name}": parameter for name, parameter in self.head.named_parameters()}
        residuals = self._residuals.parameters if self._residuals else {}
        return {**self._lora, **residuals, **head, "head.center": self.center}

    @property
    def idle(self) -> bool:
        """Whether the encoder is the backbone as it came: no LoRA factors, or every B is 0 (and
        every residual)."""
        if self._residuals and self._residuals.any():
            return False
        return not any(bool(p.any()) for name, p in self._lora.items() if ".lora_B." in name)

    @torch.no_grad()
    def make_idle(self) -> None:
        """Set every B to 0, and every residual."""
        if self._residuals:
            self._residuals.clear()
        for name, parameter in self._lora.items():
            if ".lora_B." in name:
                parameter.zero_()

    def load_state(self, state: State) -> None:
        """Take over an adapter state. Raises LoricaError LOR-205 when it does not fit."""
        write_state(self.adapter_parameters, state)
        if self._residuals:
            self._residuals.fold()

    def load_head(self, state: State) -> None:
        """Take over a head and its center on the backbone as it came; LOR-205 as above."""
        own = {name: p for name, p in self.adapter_parameters.items() if name.startswith("head.")}
        write_state(own, state)
        self.make_idle()

    def adapter_state(self) -> State:
        """A copy of the adapter state."""
        return read_state(self.adapter_parameters)

    def pooled(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Unit-norm pooled states (n, H) from token states that enter the lowest adapted layer."""
        return self._pool(self.prefix.finish(hidden, mask), mask)

    def pooled_of_ids(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Unit-norm pooled states (n, H) through the whole encoder; ids and mask are (n, T)."""
        states = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        return self._pool(states, mask)

    def features_of_ids(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Unit-norm features (n, H) through the whole encoder; ids and mask are (n, T)."""
        return self.features(self.pooled_of_ids(ids, mask))

    def features(self, pooled: torch.Tensor) -> torch.Tensor:
        """Unit-norm features (n, H): what the head reads."""
        return functional.normalize(pooled - self.center, dim=-1)

    def _pool(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if self._pooling == "cls":
            pooled = states[:, 0]
        else:
            weights = mask[..., None].to(states.dtype)
            pooled = (states * weights).sum(1) / weights.sum(1)
        return functional.normalize(pooled, dim=-1)


def loss_sum(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy summed over records; logits (n, C), labels (n,) int64."""
    return functional.cross_entropy(logits, labels, reduction="sum")


def label_text(name: str) -> str:
    """A label's name as words: "card_arrival" -> "card arrival"."""
    return " ".join(name.replace("_", " ").replace("-", " ").split())


def starting_state(classifier: TextClassifier, backbone: Backbone, plan: RunPlan) -> State:
    """The common start of a run, from the plan and its seed alone.

    LoRA: A has orthonormal rows (orthonormal columns where r > in), B is 0, so the adapted
    encoder equals the backbone. Head: label-name features times ``ZERO_SHOT_SCALE``, bias 0.
    """
    generator = torch.Generator().manual_seed(plan.simulation.seed)
    state: State = {}
    for name, parameter in classifier.adapter_parameters.items():
        if ".lora_A." in name:
            rows, width = parameter.shape
            gaussian = torch.randn(max(rows, width), min(rows, width), generator=generator)
            basis = torch.linalg.qr(gaussian)[0]
            state[name] = (basis if rows > width else basis.T).contiguous()
        else:
            state[name] = torch.zeros(parameter.shape)
    names = encode(backbone, [label_text(label) for label in plan.task.labels], 32)
    classifier.load_state(state)
    with torch.no_grad():
        pooled = classifier.pooled_of_ids(*collate(names, range(len(names))))
        if plan.adapter.center == "labels":
            state["head.center"] = pooled.mean(0)
            classifier.load_state(state)
        state["head.weight"] = ZERO_SHOT_SCALE * classifier.features(pooled)
    return state


@dataclass(frozen=True)
class Metrics:
    """Quality on a labelled set."""

    accuracy: float
    """Share of records classified correctly."""
    macro_f1: float
    """F1 averaged over the labels that occur."""
    loss: float
    """Mean cross-entropy, nats."""


def metrics(logits: torch.Tensor, labels: torch.Tensor) -> Metrics:
    """Metrics of logits (n, C) against labels (n,); n must be at least 1."""
    predicted = logits.argmax(1)
    count = logits.shape[1]
    pairs = torch.bincount(labels * count + predicted, minlength=count * count)
    confusion = pairs.reshape(count, count).double()
    hits = confusion.diagonal()
    occurs = confusion.sum(1) > 0
    f1 = 2 * hits / (confusion.sum(0) + confusion.sum(1)).clamp(min=1)
    return Metrics(
        accuracy=float(hits.sum() / confusion.sum()),
        macro_f1=float(f1[occurs].mean()),
        loss=float(loss_sum(logits, labels)) / len(labels),
    )
