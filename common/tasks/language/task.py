"""What is common to tasks in which a model tells tokens: loss, metrics, released values."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from lorica.common.adapter.state import State
from lorica.common.backbone.loading import Backbone
from lorica.common.data.records import Records
from lorica.common.plan import RunPlan
from lorica.common.tasks.base import Metrics, Released, SiteMetrics, Task
from lorica.common.tasks.classes import BAND
from lorica.common.tasks.inputs import Inputs
from lorica.common.tasks.language.inputs import IGNORED, AskedTokens, TokenTargets, picked
from lorica.common.tasks.model import AdaptedModel, starting_factors

TOKEN_LOSS_BOUND = 12.0
"""A record's mean loss is cut at this many nats, and divided by it, before it is summed."""

_LOSS, _ASKED, _RIGHT = 0, 1, 2  # columns of judgements


class LanguageModel(AdaptedModel):
    """An encoder with LoRA, perhaps a trained map of its states, and a frozen vocabulary head."""

    vector = False

    def __init__(
        self, backbone: Backbone, plan: RunPlan, tell: nn.Module, *, bridge: bool = False
    ) -> None:
        """
        Args:
            backbone: the encoder.
            plan: its adapter.
            tell: states to scores of the vocabulary, frozen.
            bridge: whether a linear map of states, trained as the adapter's head, comes before it.
        """
        width = backbone.hidden_size
        super().__init__(backbone, plan, nn.Linear(width, width) if bridge else nn.Identity())
        self.tell = tell.requires_grad_(False)

    def outputs(self, features: torch.Tensor, inputs: Inputs, rows: np.ndarray) -> torch.Tensor:
        """Scores (n, P, V) at the positions that the inputs ask about."""
        assert isinstance(inputs, AskedTokens)
        found: torch.Tensor = self.tell(self.head(picked(features, inputs.places(rows))))
        return found


class LanguageModelling(Task):
    """Tokens told from states; a record's loss is the mean cross-entropy over its asked tokens.

    Judgements: the record's loss summed over tokens in nats (NaN where a score is not finite),
    how many tokens were asked for, how many were told rightly.
    """

    judgement_width = 3

    def strata(self, records: Records) -> list[str]:
        """One class for all: tokens are none."""
        return [""] * len(records)

    def start(self, backbone: Backbone) -> State:
        model = self.model(backbone)
        generator = torch.Generator().manual_seed(self.plan.rounds.seed)
        state = starting_factors(model, generator)
        if "head.weight" in state:
            state["head.weight"] = torch.eye(model.width)
        return state

    def losses(
        self, outputs: torch.Tensor, targets: TokenTargets, rows: np.ndarray
    ) -> torch.Tensor:
        wanted = targets.of(rows, outputs.shape[1])
        asked = (wanted != IGNORED).sum(1)
        return _token_losses(outputs, wanted).sum(1) / asked

    def judge(self, outputs: torch.Tensor, targets: TokenTargets, rows: np.ndarray) -> torch.Tensor:
        wanted = targets.of(rows, outputs.shape[1])
        held = wanted != IGNORED
        loss = _token_losses(outputs, wanted).double().sum(1)
        sane = (outputs.isfinite().all(-1) | ~held).all(1)
        right = ((outputs.argmax(-1) == wanted) & held).sum(1)
        return torch.stack(
            [torch.where(sane, loss, torch.nan), held.sum(1).double(), right.double()], dim=1
        )

    def metrics(self, table: torch.Tensor) -> Metrics:
        """Share of asked tokens told rightly (mean over records), share of records with all of
        them right, perplexity over all tokens, and the records' mean loss in nats per token."""
        loss, asked, right = table[:, _LOSS], table[:, _ASKED], table[:, _RIGHT]
        mean = float(loss.sum() / asked.sum())
        return Metrics(
            {
                "accuracy": float((right / asked).mean()),
                "exact_match": float((right == asked).double().mean()),
                "perplexity": math.exp(min(mean, 700.0)) if math.isfinite(mean) else math.nan,
                "loss": float((loss / asked).mean()),
            }
        )

    def released(self) -> list[Released]:
        """A record's share of tokens told rightly, and its loss / ``TOKEN_LOSS_BOUND``: both in
        [0, 1] whatever its length."""
        wanted = self.plan.privacy.evaluation_metrics
        return [Released(name) for name in ("accuracy", "loss") if name in wanted]

    def contributions(self, table: torch.Tensor) -> torch.Tensor:
        """A record whose scores are not finite counts as all wrong with the full loss."""
        wanted = self.plan.privacy.evaluation_metrics
        sane, asked = table[:, _LOSS].isfinite(), table[:, _ASKED].clamp(min=1.0)
        right = torch.where(sane, table[:, _RIGHT] / asked, 0.0).clamp(0.0, 1.0)
        mean = torch.where(sane, table[:, _LOSS] / asked, TOKEN_LOSS_BOUND)
        loss = mean.clamp(0.0, TOKEN_LOSS_BOUND) / TOKEN_LOSS_BOUND
        columns = [torch.zeros(len(table), 0, dtype=torch.float64)]
        columns += [right[:, None]] if "accuracy" in wanted else []
        columns += [loss[:, None]] if "loss" in wanted else []
        return torch.cat(columns, dim=1)

    def site_metrics(
        self, parts: Mapping[str, np.ndarray], count: float, noise: float
    ) -> SiteMetrics:
        values: dict[str, float] = {}
        band = None
        if "accuracy" in parts:
            values["accuracy"] = min(max(float(parts["accuracy"][0]) / count, 0.0), 1.0)
            band = BAND * noise * math.sqrt(1 + values["accuracy"] ** 2) / count
        if "loss" in parts:
            values["loss"] = max(float(parts["loss"][0]) / count, 0.0) * TOKEN_LOSS_BOUND
        return SiteMetrics(values, self.headline, band)


def _token_losses(outputs: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Cross-entropy (n, P) of scores (n, P, V); 0 at padding."""
    return functional.cross_entropy(
        outputs.transpose(1, 2), wanted, ignore_index=IGNORED, reduction="none"
    )
