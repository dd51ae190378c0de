"""Token classification: the entities in a text, by a tag for every token of the tokenizer.

A token's feature is its state after the last layer scaled to unit length, f (H,); its outputs are
W f + b with a row for "O" and two for every kind of entity
(:mod:`lorica.common.tasks.tokens.entities`). Targets lie on the tokenizer's own tokens: every piece
of a word has a tag. Of what the model says of a word's pieces the first counts for all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from lorica.common.adapter.state import State
from lorica.common.backbone.loading import Backbone
from lorica.common.data.records import Records
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.tasks.base import Metrics, Released, SiteMetrics, Task
from lorica.common.tasks.classes import LOSS_BOUND
from lorica.common.tasks.inputs import Encoded, Inputs, encode_with_offsets
from lorica.common.tasks.labels import labels_of
from lorica.common.tasks.model import AdaptedModel, starting_factors
from lorica.common.tasks.noised_metrics import f1_of, ratio
from lorica.common.tasks.predictions import EntitiesPrediction, Entity
from lorica.common.tasks.targets import bad_target
from lorica.common.tasks.tokens.entities import (
    IGNORED,
    Note,
    by_words,
    continues_word,
    entities_of,
    read_note,
    tags_of,
)
from lorica.common.tasks.usage import usage_of_tokens

MOST_ENTITIES = 8.0
"""A record's counts of right, wrong and missed entities are cut to this L2 norm, and divided by
it, before they are summed at a site."""

_START_NORM = 10.0  # length of a row of W at the start: outputs of about ±0.5
_LOSS, _HITS, _WRONG, _MISSED, _RIGHT, _TOKENS = range(6)  # columns of judgements


@dataclass(frozen=True)
class TokenInputs(Encoded):
    """Tokenised texts, with the place of every token in its text."""

    texts: list[str]
    offsets: list[np.ndarray]
    """Per text int64 (T, 2): first character, and the one after the last."""

    def continues(self, row: int) -> np.ndarray:
        """Which tokens of a text go on within a word, bool (T,)."""
        return continues_word(self.texts[row], self.offsets[row])


@dataclass(frozen=True)
class TagTargets:
    """The tag of every token of every record, ragged."""

    tags: list[np.ndarray]
    hidden: list[int]
    """Entities of every record that no token shows: they count as missed."""
    continues: list[np.ndarray]
    """Which of a record's tokens go on within a word, as of
    :func:`~lorica.common.tasks.tokens.entities.continues_word`."""

    def __len__(self) -> int:
        return len(self.tags)

    def of(self, rows: np.ndarray, width: int = 0) -> torch.Tensor:
        """Tags of these rows, shape (n, T), padded to the longest, and at least to ``width``."""
        chosen = [self.tags[row] for row in rows]
        width = max(width, *map(len, chosen))
        found = np.full((len(chosen), width), IGNORED, dtype=np.int64)
        for place, tags in enumerate(chosen):
            found[place, : len(tags)] = tags
        return torch.from_numpy(found)


class TokenModel(AdaptedModel):
    """A linear head on every token's unit state."""

    vector: ClassVar[bool] = False
    head: nn.Linear

    def __init__(self, backbone: Backbone, plan: RunPlan) -> None:
        head = nn.Linear(backbone.hidden_size, 1 + 2 * len(plan.task.labels))
        super().__init__(backbone, plan, head)

    def features(self, pooled: torch.Tensor) -> torch.Tensor:
        """Unit states (n, T, H)."""
        return functional.normalize(pooled, dim=-1)


class TokenClassification(Task):
    """Texts, each with any number of entities of the plan's kinds.

    A record's loss is the mean cross-entropy over its tokens, in nats. Judgements: that loss (NaN
    where an output is not finite); entities found rightly, wrongly and missed; tokens with the
    right tag, and tokens.
    """

    kind: ClassVar[str] = "token-classification"
    pipeline_tag: ClassVar[str] = "token-classification"
    judgement_width: ClassVar[int] = 6

    def check(self, records: Records, *, where: str) -> None:
        known = set(self.plan.task.labels)
        for row, note in enumerate(self._notes(records, where)):
            unknown = [span.label for span in note.spans if span.label not in known]
            if unknown:
                raise LoricaError(
                    Code.DATA_UNKNOWN_LABEL,
                    f"{where}: record {row + 1} has an entity of the kind {unknown[0]!r}, which is "
                    "not in the plan's task.labels.",
                )

    def _notes(self, records: Records, where: str) -> list[Note]:
        found = []
        for row, (text, label) in enumerate(zip(records.texts, records.labels, strict=True)):
            try:
                found.append(read_note(text, label))
            except ValueError as error:
                raise bad_target(where, row, str(error)) from None
        return found

    def with_labels(self, parts: Sequence[Records]) -> RunPlan:
        notes = [note for part in parts for note in self._notes(part, "The data")]
        return labels_of(self.plan, (span.label for note in notes for span in note.spans))

    def strata(self, records: Records) -> list[str]:
        """The kind of a record's first entity."""
        notes = self._notes(records, "The data")
        return [note.spans[0].label if note.spans else "none" for note in notes]

    def encode(self, backbone: Backbone, records: Records) -> TokenInputs:
        """Raises LoricaError LOR-221 when the tokenizer does not know where its tokens are."""
        texts = [note.text for note in self._notes(records, "The data")]
        training = self.plan.training
        tokens, offsets, cut = encode_with_offsets(
            backbone, texts, training.max_length, keep=training.keep
        )
        limit = min(training.max_length, backbone.max_length)
        return TokenInputs(tokens, texts, offsets, cut=cut, limit=limit)

    def targets(self, records: Records, inputs: Inputs) -> TagTargets:
        assert isinstance(inputs, TokenInputs)
        notes = self._notes(records, "The data")
        pairs = [
            tags_of(note.spans, offsets, self.plan.task.labels)
            for note, offsets in zip(notes, inputs.offsets, strict=True)
        ]
        return TagTargets(
            [tags for tags, _ in pairs],
            [hidden for _, hidden in pairs],
            [inputs.continues(row) for row in range(len(inputs))],
        )

    def model(self, backbone: Backbone) -> TokenModel:
        return TokenModel(backbone, self.plan)

    def start(self, backbone: Backbone) -> State:
        """Head: random rows of length 10, so that LoRA has a gradient from the first step."""
        generator = torch.Generator().manual_seed(self.plan.rounds.seed)
        model = self.model(backbone)
        state = starting_factors(model, generator)
        rows = torch.randn(model.head.weight.shape, generator=generator)
        state["head.weight"] = _START_NORM * functional.normalize(rows, dim=1)
        return state

    def losses(self, outputs: torch.Tensor, targets: TagTargets, rows: np.ndarray) -> torch.Tensor:
        tags = targets.of(rows, outputs.shape[1])
        each = functional.cross_entropy(
            outputs.transpose(1, 2), tags, reduction="none", ignore_index=IGNORED
        )
        return each.sum(1) / (tags != IGNORED).sum(1).clamp(min=1)

    def judge(self, outputs: torch.Tensor, targets: TagTargets, rows: np.ndarray) -> torch.Tensor:
        tags = targets.of(rows, outputs.shape[1])
        real = tags != IGNORED
        loss = self.losses(outputs.double(), targets, rows)
        sane = (outputs.isfinite().all(2) | ~real).all(1)
        given = outputs.argmax(2)
        for place, row in enumerate(rows):
            continues = targets.continues[row]
            own = by_words(given[place, : len(continues)].numpy(), continues)
            given[place, : len(continues)] = torch.from_numpy(own)
        right = ((given == tags) & real).sum(1)
        found = torch.zeros(len(rows), self.judgement_width, dtype=torch.float64)
        found[:, _LOSS] = torch.where(sane, loss, torch.nan)
        found[:, _RIGHT], found[:, _TOKENS] = right.double(), real.sum(1).double()
        for place, row in enumerate(rows):
            true = entities_of(tags[place].tolist())
            said = entities_of(torch.where(real, given, IGNORED)[place].tolist())
            hits = len(true & said)
            missed = len(true) - hits + targets.hidden[row]
            found[place, [_HITS, _WRONG, _MISSED]] = torch.tensor(
                [hits, len(said) - hits, missed], dtype=torch.float64
            )
        return found

    def metrics(self, table: torch.Tensor) -> Metrics:
        """F1, precision and recall of whole entities (place and kind right), share of tokens with
        the right tag, mean loss."""
        hits, wrong, missed = (float(table[:, c].sum()) for c in (_HITS, _WRONG, _MISSED))
        values = {
            "entity_f1": f1_of(hits, wrong, missed),
            "precision": ratio(hits, hits + wrong),
            "recall": ratio(hits, hits + missed),
            "accuracy": ratio(float(table[:, _RIGHT].sum()), float(table[:, _TOKENS].sum())),
            "loss": float(table[:, _LOSS].mean()),
        }
        return Metrics(values, self.headline)

    def released(self) -> list[Released]:
        """Share of right tokens and loss / ``LOSS_BOUND``: in [0, 1]. "f1": counts of entities
        found rightly, wrongly and missed, cut to norm ``MOST_ENTITIES`` and divided by it."""
        wanted = self.plan.privacy.evaluation_metrics
        parts = [Released(name) for name in ("accuracy", "loss") if name in wanted]
        return parts + ([Released("f1", 3)] if "f1" in wanted else [])

    def contributions(self, table: torch.Tensor) -> torch.Tensor:
        """A record whose outputs are not finite has no token right and the full loss; what it
        shows as entities counts as it is."""
        wanted = self.plan.privacy.evaluation_metrics
        loss, sane = table[:, _LOSS], table[:, _LOSS].isfinite()
        share = torch.where(sane, table[:, _RIGHT] / table[:, _TOKENS].clamp(min=1), 0.0)
        cut = torch.where(sane, loss, LOSS_BOUND).clamp(0.0, LOSS_BOUND) / LOSS_BOUND
        columns = [torch.zeros(len(table), 0, dtype=torch.float64)]
        columns += [share[:, None]] if "accuracy" in wanted else []
        columns += [cut[:, None]] if "loss" in wanted else []
        if "f1" in wanted:
            counts = table[:, [_HITS, _WRONG, _MISSED]]
            columns += [counts / counts.norm(dim=1, keepdim=True).clamp(min=MOST_ENTITIES)]
        return torch.cat(columns, dim=1)

    def site_metrics(
        self, parts: Mapping[str, np.ndarray], count: float, noise: float
    ) -> SiteMetrics:
        """Accuracy is the mean over records of their share of right tokens."""
        values: dict[str, float] = {}
        if "accuracy" in parts:
            values["accuracy"] = ratio(float(parts["accuracy"][0]), count)
        if "loss" in parts:
            values["loss"] = max(float(parts["loss"][0]) / count, 0.0) * LOSS_BOUND
        if "f1" in parts:
            values["entity_f1"] = f1_of(*(max(float(value), 0.0) for value in parts["f1"]))
        return SiteMetrics(values, self.headline)

    def predictions(
        self, outputs: torch.Tensor, inputs: Inputs, rows: np.ndarray
    ) -> list[EntitiesPrediction]:
        assert isinstance(inputs, TokenInputs)
        found = []
        for given, row in zip(outputs.argmax(2), rows, strict=True):
            text, offsets = inputs.texts[row], inputs.offsets[row]
            real = offsets[:, 1] > offsets[:, 0]
            own = by_words(given[: len(offsets)].numpy(), inputs.continues(row))
            tags = np.where(real, own, IGNORED)
            entities = []
            for first, after, kind in sorted(entities_of(tags.tolist())):
                start, end = int(offsets[first, 0]), int(offsets[after - 1, 1])
                label = self.plan.task.labels[kind]
                entities.append(Entity(start, end, label, text[start:end]))
            found.append(EntitiesPrediction(entities))
        return found

    def about(self, backbone: Backbone) -> dict[str, Any]:
        labels = self.plan.task.labels
        tags = ["O", *(f"{mark}-{label}" for label in labels for mark in "BI")]
        limit = min(self.plan.training.max_length, backbone.max_length)
        return {"labels": labels, "tags": tags, "max_length": limit}

    def usage(self, backbone: Backbone) -> str:
        return usage_of_tokens(self.plan, backbone, self.answer)

    @property
    def answer(self) -> str:
        return """# Of a word in several pieces, Lorica takes the first one's tag for all.
tokens = tokenizer.convert_ids_to_tokens(batch["input_ids"][0])
print([(token, about["tags"][i]) for token, i in zip(tokens, outputs[0].argmax(1))])"""

    @property
    def subject(self) -> str:
        return f"entities of {len(self.plan.task.labels)} kind(s)"
