"""Model and encoded records of one plan at one site, warm across rounds."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from lorica.client.dp_sgd import DPTrainer, NoisyOptimizer
from lorica.client.evaluation import counts_by_unit, noised_counts, set_aside
from lorica.client.noise import NoiseSource
from lorica.client.per_sample import enable_per_sample_gradients
from lorica.client.units import Units
from lorica.common.accounting import PrivacyEvent
from lorica.common.adapters import State
from lorica.common.backbones import Backbone
from lorica.common.errors import Code, LoricaError
from lorica.common.methods import Part, is_trained, part_of
from lorica.common.plan import RunPlan
from lorica.common.prefix_cache import PrefixCache, predict_logits
from lorica.common.records import Records
from lorica.common.tasks.text_classification import TextClassifier, encode, loss_sum


class Session:
    """Trains and evaluates one plan's adapter on one site's records."""

    def __init__(
        self,
        plan: RunPlan,
        backbone: Backbone,
        records: Records,
        labels: list[int],
        *,
        cache_bytes: int,
    ) -> None:
        """
        Args:
            plan: the run.
            backbone: loaded, shared.
            records: all of the site's records.
            labels: the position of every record's label in the plan's list.
            cache_bytes: memory for cached token states, bytes.
        """
        self._plan = plan
        self._classifier = TextClassifier(backbone, plan).eval()
        aside = set_aside(records, plan)
        self._train_rows, self._test_rows = np.flatnonzero(~aside), np.flatnonzero(aside)
        self._labels = torch.tensor(labels, dtype=torch.int64)
        self._records = records
        self._backbone = backbone
        self._cache_bytes = cache_bytes
        self._train_cache = self._cache(self._train_rows)
        self._test_cache: PrefixCache | None = None
        self._train_labels = self._labels[torch.from_numpy(self._train_rows)]
        self._trained = {
            name: parameter
            for name, parameter in self._classifier.adapter_parameters.items()
            if is_trained(plan.aggregation.method, name)
        }
        enable_per_sample_gradients(self._classifier, self._trained.values())
        self._units = self._units_of(self._train_rows)

    def serves(self, plan: RunPlan) -> bool:
        """Whether this session was made for exactly this plan."""
        return plan.fingerprint == self._plan.fingerprint

    def load(self, state: State) -> None:
        """Take over a global adapter state.

        Raises:
            LoricaError: LOR-205 when it does not fit, LOR-501 when it holds NaN or infinity.
        """
        for name, tensor in state.items():
            if not bool(tensor.isfinite().all()):
                raise LoricaError(
                    Code.MESSAGE_MALFORMED, f"The global adapter's {name} is not finite."
                )
        self._classifier.load_state(state)

    def train(self, round: int, event: PrivacyEvent, noise: NoiseSource) -> State:
        """One round of DP-SGD from the loaded state; local minus global value of what is
        trained."""
        before = {name: p.detach().clone() for name, p in self._trained.items()}
        optimizer = NoisyOptimizer(
            torch.optim.Adam(self._groups(self._plan.rate_factor(round))),
            noise=noise,
            noise_multiplier=event.noise_multiplier,
            expected_batch_size=self._plan.training.expected_batch_size,
        )
        trainer = DPTrainer(
            self._trained,
            optimizer,
            self._loss,
            self._train_cache.lengths,
            sample_rate=event.sample_rate,
            noise=noise,
            units=self._units,
        )
        trainer.run(event.steps)
        optimizer.zero_grad(set_to_none=True)
        return {name: p.detach() - before[name] for name, p in self._trained.items()}

    def evaluate(self, event: PrivacyEvent, noise: NoiseSource) -> tuple[float, ...]:
        """Noised counts of the loaded state on the records set aside."""
        if self._test_cache is None:
            self._test_cache = self._cache(self._test_rows)
        logits = predict_logits(self._classifier, self._test_cache)
        labels = self._labels[torch.from_numpy(self._test_rows)]
        units = self._names_of(self._test_rows)
        contributions = counts_by_unit(logits, labels, units, self._plan)
        return noised_counts(contributions, event.noise_multiplier, noise, self._plan)

    def _cache(self, rows: np.ndarray) -> PrefixCache:
        texts = [self._records.texts[row] for row in rows]
        encoded = encode(self._backbone, texts, self._plan.training.max_length)
        share = self._cache_bytes * len(rows) // max(1, len(self._records))
        return PrefixCache(self._classifier, encoded, limit_bytes=share)

    def _units_of(self, rows: np.ndarray) -> Units:
        if self._plan.privacy.unit == "record":
            return Units.of_records(len(rows))
        names = self._names_of(rows)
        return Units(names, most=self._plan.privacy.max_records_per_unit)

    def _names_of(self, rows: np.ndarray) -> list[str]:
        """Unit of privacy of every row."""
        if self._plan.privacy.unit == "record":
            return [str(row) for row in rows]
        return [self._records.units[row] for row in rows]

    def _groups(self, factor: float) -> list[dict[str, Any]]:
        """Parameter groups with their learning rates and clip norms."""
        plan, bound = self._plan.training, self._plan.privacy.clip_norm
        head = [p for name, p in self._trained.items() if part_of(name) is Part.HEAD]
        lora = [p for name, p in self._trained.items() if part_of(name) is not Part.HEAD]
        share = plan.lora_clip_share if lora else 0.0
        groups = [
            (head, plan.head_learning_rate, 1 - share),
            (lora, plan.learning_rate, share),
        ]
        return [
            {"params": params, "lr": factor * rate, "clip_norm": bound * math.sqrt(part)}
            for params, rate, part in groups
            if params
        ]

    def _loss(self, rows: np.ndarray) -> torch.Tensor:
        features = self._train_cache.features(self._classifier, rows)
        logits = self._classifier.head(features)
        return loss_sum(logits, self._train_labels[torch.from_numpy(rows)])
