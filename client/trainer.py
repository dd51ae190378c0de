"""LocalTrainer: answers one site's requests; the records never leave it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from lorica.client.dp_sgd import DPTrainer, NoisyOptimizer
from lorica.client.session_ledger import SessionLedger
from lorica.client.noise import NoiseSource
from lorica.client.per_sample import enable_per_sample_gradients
from lorica.common.accounting import PrivacyEvent
from lorica.common.adapters import State, pack_state, unpack_state
from lorica.common.backbones import Backbone, load_backbone
from lorica.common.errors import Code, LoricaError
from lorica.common.memory import release_unused
from lorica.common.messages import Reply, Request
from lorica.common.methods import Part, is_trained, part_of
from lorica.common.plan import RunPlan
from lorica.common.prefix_cache import CACHE_BYTES, PrefixCache
from lorica.common.records import Records, label_indices
from lorica.common.site_privacy import round_event
from lorica.common.tasks.text_classification import TextClassifier, encode, loss_sum

NoiseFactory = Callable[[str, int], NoiseSource]
"""(run, round) -> the source of that round's sampling and noise."""


class LocalTrainer:
    """Trains one site's records for one plan after another.

    Formal guarantee:
        Over all replies to one run, the site's records have the (ε, δ) of the plan, under
        adding or removing one record (:mod:`lorica.client.dp_sgd`): σ is calibrated for all
        steps of the run, each round is charged to the ledger before it runs, the ledger refuses
        what would pass the budget, and a repeated request returns the stored reply. A reply
        holds the update (noised), the site's name and its declared number of records (public),
        and, when refused, a reason from the error catalogue. σ and q follow from the declared
        number; the true number of records influences neither.
    """

    def __init__(
        self,
        site: str,
        records: Records,
        *,
        noise: NoiseFactory,
        declared_records: int | None = None,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        """
        Args:
            site: the site's public name.
            records: the private records.
            noise: makes the source of randomness of a round.
            declared_records: the public figure for the number of records; the true number
                when omitted, which makes that number public.
            cache_bytes: memory for cached token states, bytes.
        """
        self.site = site
        self.declared_records = len(records) if declared_records is None else declared_records
        self._records = records
        self._noise = noise
        self._cache_bytes = cache_bytes
        self._ledgers: dict[float, SessionLedger] = {}
        self._session: _Session | None = None

    def capabilities(self, request: Request) -> Reply:
        """Whether the site can train under the request's plan; spends nothing.

        Raises:
            LoricaError: why it cannot.
        """
        round_event(request.plan, self.declared_records)
        self._check_labels(request.plan)
        return Reply(
            request.plan.fingerprint, request.round, site=self.site, weight=self.declared_records
        )

    def train(self, request: Request) -> Reply:
        """Train for one round from the request's global adapter and return the update.

        The update holds, for every tensor that the method trains, local minus global value.

        Raises:
            LoricaError: why the site refuses; nothing was spent unless the ledger says so.
        """
        plan = request.plan
        if not 1 <= request.round <= plan.rounds.count:
            raise LoricaError(
                Code.PRIVACY_BUDGET,
                f"Round {request.round} is outside the plan's 1 to {plan.rounds.count}.",
            )
        ledger = self._ledgers.setdefault(plan.privacy.delta, SessionLedger(plan.privacy.delta))
        stored = ledger.stored(request.run, request.round)
        if stored is not None and stored.fingerprint == plan.fingerprint:
            return stored
        event = round_event(plan, self.declared_records)
        session = self._open(plan)
        session.load(unpack_state(request.blob))
        ledger.charge(request.run, request.round, event, budget=plan.privacy.epsilon)
        update = session.train(request.round, event, self._noise(request.run, request.round))
        release_unused()
        reply = Reply(
            plan.fingerprint,
            request.round,
            site=self.site,
            weight=self.declared_records,
            blob=pack_state(update),
        )
        ledger.store(request.run, request.round, reply)
        return reply

    @property
    def labels(self) -> list[str]:
        """The records' labels: private, for simulators and the site's own eyes."""
        return self._records.labels

    def close(self) -> None:
        """Free the model and the cached states; the next request builds them anew."""
        self._session = None

    def _check_labels(self, plan: RunPlan) -> list[int]:
        if len(plan.task.labels) < 2:
            raise LoricaError(
                Code.DATA_TOO_FEW_LABELS,
                f"task.labels names {len(plan.task.labels)} label(s); a site needs them all.",
            )
        return label_indices(self._records, plan.task.labels, where=f"Site {self.site}")

    def _open(self, plan: RunPlan) -> _Session:
        if self._session is None or not self._session.serves(plan):
            self._session = None
            labels = self._check_labels(plan)
            backbone = load_backbone(plan.backbone)
            self._session = _Session(plan, backbone, self._records.texts, labels, self._cache_bytes)
        return self._session


class _Session:
    """Model and encoded records of one plan, warm across rounds."""

    def __init__(
        self,
        plan: RunPlan,
        backbone: Backbone,
        texts: Sequence[str],
        labels: Sequence[int],
        cache_bytes: int,
    ) -> None:
        self._plan = plan
        self._labels = torch.tensor(labels, dtype=torch.int64)
        self._classifier = TextClassifier(backbone, plan)
        encoded = encode(backbone, texts, plan.training.max_length)
        self._cache = PrefixCache(self._classifier, encoded, limit_bytes=cache_bytes)
        everything = self._classifier.adapter_parameters
        self._trained = {
            name: parameter
            for name, parameter in everything.items()
            if is_trained(plan.aggregation.method, name)
        }
        enable_per_sample_gradients(self._classifier, self._trained.values())

    def serves(self, plan: RunPlan) -> bool:
        return plan.fingerprint == self._plan.fingerprint

    def load(self, state: State) -> None:
        self._classifier.load_state(state)

    def train(self, round: int, event: PrivacyEvent, noise: NoiseSource) -> State:
        plan = self._plan.training
        before = {name: p.detach().clone() for name, p in self._trained.items()}
        optimizer = NoisyOptimizer(
            torch.optim.Adam(self._groups(self._plan.rate_factor(round))),
            noise=noise,
            noise_multiplier=event.noise_multiplier,
            expected_batch_size=plan.expected_batch_size,
        )
        trainer = DPTrainer(
            self._trained,
            optimizer,
            self._loss,
            self._cache.lengths,
            sample_rate=event.sample_rate,
            noise=noise,
        )
        trainer.run(event.steps)
        optimizer.zero_grad(set_to_none=True)
        return {name: p.detach() - before[name] for name, p in self._trained.items()}

    def _groups(self, factor: float) -> list[dict[str, Any]]:
        plan, bound = self._plan.training, self._plan.privacy.clip_norm
        head = [p for name, p in self._trained.items() if part_of(name) is Part.HEAD]
        lora = [p for name, p in self._trained.items() if part_of(name) is not Part.HEAD]
        share = plan.lora_clip_share if lora else 0.0
        groups = [
            {
                "params": head,
                "lr": factor * plan.head_learning_rate,
                "clip_norm": bound * math.sqrt(1 - share),
            },
            {
                "params": lora,
                "lr": factor * plan.learning_rate,
                "clip_norm": bound * math.sqrt(share),
            },
        ]
        return [group for group in groups if group["params"]]

    def _loss(self, rows: np.ndarray) -> torch.Tensor:
        features = self._cache.features(self._classifier, rows)
        logits = self._classifier.head(features)
        return loss_sum(logits, self._labels[torch.from_numpy(rows)])
