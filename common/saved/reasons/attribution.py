"""Integrated gradients of an answer by what was read (captum).

Of an answer's output F (a logit, or the scaled number) every input has the share
(x - x') · ∫ ∂F/∂x along the straight line from a baseline x' to x, summed over an embedding's or a
pixel's numbers (Sundararajan, Taly, Yan, ICML 2017). Shares sum to F(x) - F(x'): what is missing
of that is the error of the integral, and is said. The baseline of a text is its special tokens with
padding between them, of an image the mean color that the model expects, of a table its centers.

What a share means: what the model read, not what is true of the world.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lorica.common.data.records import Records
from lorica.common.errors import Code, LoricaError
from lorica.common.plan.table import TablePlan
from lorica.common.saved.exported.agreement import arguments, forward
from lorica.common.saved.exported.folded import adapted_model
from lorica.common.saved.folder import SavedAdapter, load_adapter
from lorica.common.tasks.base import Prediction
from lorica.common.tasks.fusion.inputs import WithTable
from lorica.common.tasks.inputs import encode_with_offsets

STEPS = (64, 512)
"""Points of the line: the second number where the first leaves more than ``_OFF`` of the change."""

_OFF = 0.02
_AT_ONCE = 16  # points of the line that are computed together


@dataclass(frozen=True)
class Share:
    """A part of what was read, and what it spoke for the answer; below 0: against it."""

    part: str
    weight: float


@dataclass(frozen=True)
class Reasons:
    """Why one record got its answer."""

    answer: str
    """What is explained: the label, or "the number"."""
    certainty: float | None
    nearest: list[tuple[str, float]]
    """The most probable labels; empty where there are none."""
    text: str
    words: list[tuple[int, int, float]]
    """Places in ``text`` (first character, one after the last) and weights, in order; of texts."""
    pixels: np.ndarray | None
    """Weights (H, W), float64; of images."""
    image: np.ndarray | None
    """uint8 (H, W, 3), as the model saw it."""
    table: list[Share]
    """By column, where a table is read."""
    rest: float
    """Weight of what is no word: special tokens, a prompt."""
    missing: float
    """What all weights lack of the output's change from the baseline."""
    change: float
    """That change."""

    @property
    def strongest(self) -> list[Share]:
        """Words and columns by size, the largest first."""
        found = [Share(self.text[first:last], weight) for first, last, weight in self.words]
        return sorted([*found, *self.table], key=lambda share: -abs(share.weight))


class Explainer:
    """An adapter whose answers are asked for their reasons."""

    def __init__(self, folder: Any, backbone_source: str = "") -> None:
        """
        Args:
            folder: an adapter folder.
            backbone_source: where the backbone is on this machine, if not where the plan says.

        Raises:
            LoricaError: LOR-103 a task whose answers have no single output; LOR-207 captum is
                missing; LOR-205, LOR-206, LOR-20x as of use.
        """
        _require_captum()
        saved: SavedAdapter = load_adapter(folder)
        kind = saved.plan.task.kind
        if kind in ("token-classification", "causal-lm", "masked-lm"):
            raise LoricaError(
                Code.PLAN_BAD_VALUE,
                f"The adapter's task is {kind}, whose answers are many: there is no one output to "
                "explain.",
                mend="Explain adapters that choose labels or tell a number.",
            )
        self.plan = saved.plan
        self._backbone = saved.backbone(backbone_source)
        self._task, self._model = adapted_model(saved, self._backbone)
        self._model.requires_grad_(False)

    def __call__(self, record: Records, label: str = "") -> Reasons:
        """The reasons of one record's answer.

        Args:
            record: exactly one, without an answer.
            label: explain this label instead of the answer.

        Raises:
            LoricaError: LOR-221 a tokenizer that keeps no places, LOR-306 no such label.
        """
        task, model = self._task, self._model
        inputs = task.encode_for_use(self._backbone, record)
        given = arguments(inputs, np.arange(1))
        with torch.no_grad():
            outputs = forward(task, model, given)
        prediction = task.predictions(outputs, inputs, np.arange(1))[0]
        row = self._row(outputs[0], label)
        read, table = (given[:-1], given[-1:]) if isinstance(inputs, WithTable) else (given, ())
        for steps in STEPS:
            weights, table_weights, change = self._weights(read, table, row, steps)
            total = float(weights.sum()) + float(table_weights.sum())
            if abs(change - total) <= _OFF * abs(change):
                break
        images = task.traits.images
        words, rest = ([], 0.0) if images else self._words(record.texts[0], read[0][0], weights)
        labels = self.plan.task.labels
        return Reasons(
            answer=labels[row] if labels else "the number",
            certainty=prediction.certainty,
            nearest=_nearest(prediction),
            text="" if images else record.texts[0],
            words=words,
            pixels=weights.double().numpy() if images else None,
            image=_shown(inputs) if images else None,
            table=_by_column(self.plan.table, table_weights),
            rest=rest,
            missing=change - total,
            change=change,
        )

    def _row(self, outputs: torch.Tensor, label: str) -> int:
        labels = self.plan.task.labels
        if not label:
            return int(outputs.argmax())
        if label not in labels:
            raise LoricaError(
                Code.DATA_UNKNOWN_LABEL,
                f"{label!r} is none of the adapter's labels: {', '.join(labels) or 'none'}.",
            )
        return labels.index(label)

    def _weights(
        self, read: tuple[torch.Tensor, ...], table: tuple[torch.Tensor, ...], row: int, steps: int
    ) -> tuple[torch.Tensor, torch.Tensor, float]:
        """Weights of tokens (T,) or pixels (H, W), of the table's numbers (K,), and what the output
        changes by from the baseline of both."""
        from captum.attr import IntegratedGradients, LayerIntegratedGradients

        task, model = self._task, self._model

        def output(*given: torch.Tensor) -> torch.Tensor:
            return forward(task, model, given)[:, row]

        how = {"n_steps": steps, "internal_batch_size": _AT_ONCE}
        base = _baseline(task.traits.images, read[0], self._backbone.tokenizer)
        if task.traits.images:
            found = IntegratedGradients(output).attribute(
                read[0], baselines=base, additional_forward_args=table or None, **how
            )
            weights = found[0].sum(0)
        else:
            embeddings = model.encoder.get_input_embeddings()
            found = LayerIntegratedGradients(output, embeddings).attribute(
                read[0], baselines=base, additional_forward_args=(read[1], *table), **how
            )
            weights = found[0].sum(-1)
        beside = torch.zeros(0)
        start = (base, *read[1:], *table)
        if table:
            # On from there: the text stays at its baseline, so that the two parts add up.
            still = (base, *read[1:])

            def of_table(numbers: torch.Tensor) -> torch.Tensor:
                parts = (part.expand(len(numbers), *part.shape[1:]) for part in still)
                return output(*parts, numbers)

            nothing = torch.zeros_like(table[0])
            found = IntegratedGradients(of_table).attribute(table[0], nothing, n_steps=steps)
            beside = found[0]
            start = (base, *read[1:], torch.zeros_like(table[0]))
        with torch.no_grad():
            change = float(output(*read, *table) - output(*start))
        return weights.detach(), beside.detach(), change

    def _words(
        self, text: str, ids: torch.Tensor, weights: torch.Tensor
    ) -> tuple[list[tuple[int, int, float]], float]:
        """Words of the text with the weights of their tokens together, and the rest's."""
        pooled = self._backbone.pooling.prompt
        training = self.plan.training
        tokens, offsets, _ = encode_with_offsets(
            self._backbone, [pooled + text], training.max_length, keep=training.keep
        )
        places = offsets[0] - len(pooled)
        length = len(tokens[0])
        assert ids[:length].tolist() == tokens[0].tolist()
        spans = [match.span() for match in re.finditer(r"\S+", text)]
        sums = [0.0] * len(spans)
        rest = 0.0
        for (first, last), weight in zip(places, weights.tolist(), strict=False):
            word = next(
                (n for n, (begin, end) in enumerate(spans) if begin < last and first < end), None
            )
            if word is None or last <= first:
                rest += weight
            else:
                sums[word] += weight
        return [(*span, weight) for span, weight in zip(spans, sums, strict=True)], rest


def _baseline(images: bool, read: torch.Tensor, tokenizer: Any) -> torch.Tensor:
    if images:
        return torch.zeros_like(read)
    ends = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id, tokenizer.mask_token_id}
    special = torch.isin(read, torch.tensor(sorted(ends)))  # an unknown word has been read, too
    return torch.where(special, read, torch.full_like(read, tokenizer.pad_token_id))


def _shown(inputs: Any) -> np.ndarray:
    base: Any = inputs.base if isinstance(inputs, WithTable) else inputs
    found: np.ndarray = base.images[0].permute(1, 2, 0).numpy()
    return found


def _by_column(plan: TablePlan, weights: torch.Tensor) -> list[Share]:
    """A column of numbers has two of the table's numbers, one of categories one for each value and
    for an empty cell."""
    found, at = [], 0
    if not len(weights):
        return []
    sizes = [(name, 2) for name in plan.columns]
    sizes += [(name, len(values) + 1) for name, values in plan.choices.items()]
    for name, size in sizes:
        found.append(Share(name, float(weights[at : at + size].sum())))
        at += size
    return found


def _nearest(prediction: Prediction, most: int = 3) -> list[tuple[str, float]]:
    content = prediction.content().get("probabilities", {})
    pairs: Sequence[tuple[str, float]] = sorted(content.items(), key=lambda pair: -pair[1])
    return list(pairs[:most])


def _require_captum() -> None:
    try:
        import captum  # noqa: F401
    except ImportError as error:
        raise LoricaError(
            Code.PACKAGE_MISSING,
            f"Explanations need the package {error.name}, which is not installed.",
            mend="pip install 'lorica[explain]'",
        ) from None
