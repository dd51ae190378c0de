"""Model and encoded records of one plan at one site, warm across rounds."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lorica.client.mechanism.after_noise import AfterNoise
from lorica.client.mechanism.clipping import blocks
from lorica.client.mechanism.evaluation import counts_by_unit, noised_counts, set_aside
from lorica.client.mechanism.frozen_features import (
    Contributions,
    head_contributions,
    head_tensors,
    label_contributions,
    noised_sum,
)
from lorica.client.mechanism.noise import NoiseSource
from lorica.client.mechanism.step_sizes import layerwise_adam, parameter_groups
from lorica.client.mechanism.units import Units
from lorica.client.secure_sum.grid_noise import GridNoise
from lorica.client.training.models import Model, Models, build
from lorica.common.adapter.factors import cut_factors, filled_up
from lorica.common.adapter.layer_rates import layer_factors
from lorica.common.adapter.state import State, check_shapes
from lorica.common.backbone.loading import Backbone
from lorica.common.cache.batching import Batch
from lorica.common.cache.prefix import PrefixCache, judgements
from lorica.common.cache.shelf import SHELF
from lorica.common.data.records import Records
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.plan.methods import is_personal, step_turns
from lorica.common.plan.stages import (
    Stage,
    falling,
    returned,
    schedule,
    stage_of,
    trained,
)
from lorica.common.plan.tensors import factor_pairs
from lorica.common.privacy.event import PrivacyEvent
from lorica.common.tasks import task_of
from lorica.common.tasks.inputs import Inputs, long_texts
from lorica.common.tasks.model import AdaptedModel
from lorica.common.tasks.text_classification import BIAS_INPUT
from lorica.common.tasks.views import ViewNumbers

_log = logging.getLogger("lorica.site")


@dataclass(frozen=True)
class Drawn:
    """Records drawn for a release."""

    cache: PrefixCache
    """That has them."""
    targets: Any
    """Of all records of the cache."""
    rows: np.ndarray
    """Theirs in cache and targets, shape (n,)."""
    owner: torch.Tensor
    """Number of every one's unit, from 0 without gaps, shape (n,)."""


class Session:
    """Trains and evaluates one plan's adapter on one site's records."""

    def __init__(
        self,
        plan: RunPlan,
        backbone: Backbone,
        records: Records,
        *,
        cache_bytes: int,
        secret: bytes,
        rank: int | None = None,
        models: Models | None = None,
    ) -> None:
        """Build the model; of the records nothing is looked at before :meth:`read`.

        Args:
            plan: the run.
            backbone: loaded, shared.
            records: all of the site's records, checked by the plan's task.
            cache_bytes: memory for cached token states, bytes.
            secret: the site's own, which decides what is set aside for evaluation.
            rank: the LoRA rank to train at, at most the plan's; the plan's when omitted.
            models: where sites of one process have their model in common; None builds one.

        Raises:
            LoricaError: LOR-2xx the backbone does not give what the plan needs, LOR-411 not the
                same numbers every time; of the machine and the plan alone.
        """
        self._plan = plan
        self._rank = rank or plan.adapter.rank
        self._task = task_of(plan)
        own = _at_rank(plan, self._rank)
        get = build if models is None else models.get
        self._model: Model = get(own, backbone, records)
        self._classifier = self._model.classifier
        self._records, self._secret = records, secret
        self._backbone = backbone
        self._cache_bytes = cache_bytes
        self._trained = self._trainable = self._model.trainable
        self._received: State = {}
        self._views = plan.training.augmentations
        self._test: tuple[PrefixCache, Any] | None = None
        self._ready = False

    def _divide(self, records: Records, plan: RunPlan) -> tuple[np.ndarray, np.ndarray]:
        """Rows to train on, and rows set aside."""
        aside = set_aside(records, plan, self._secret)
        return np.flatnonzero(~aside), np.flatnonzero(aside)

    def serves(self, plan: RunPlan) -> bool:
        """Whether this session was made for exactly this plan."""
        return plan.fingerprint == self._plan.fingerprint

    def read(self) -> None:
        """Set aside, encode and group the records as the plan says; once.

        Not before the answer is charged: whatever fails here may depend on a single record, and
        that it does must not be a question that costs nothing.
        """
        if self._ready:
            return
        self._train_rows, self._test_rows = self._divide(self._records, self._plan)
        self._train_cache, self._train_targets = self._cache(self._train_rows)
        self._units = self._units_of(self._train_rows)
        self._ready = True

    def load(self, state: State, stage: Stage, own: State | None = None) -> None:
        """Take over a global adapter state: all of it, or what a stage on frozen features needs.

        Args:
            state: what the coordinator sent.
            stage: of the round.
            own: the site's personal tensors, which count instead of what was sent; without any
                they begin as sent, and B as 0.

        Raises:
            LoricaError: LOR-205 when it does not fit, LOR-501 when it holds NaN or infinity.
        """
        self._model.held = None
        for name, tensor in state.items():
            if not bool(tensor.isfinite().all()):
                raise LoricaError(
                    Code.MESSAGE_MALFORMED, f"The global adapter's {name} is not finite."
                )
        if stage.on_frozen_features:
            self._classifier.load_head(state)
        else:
            unsent = {name: torch.zeros_like(tensor) for name, tensor in self.personal.items()}
            self._received = state = unsent | state | (own or {})
            self._classifier.load_state(self._at_own_rank(state))

    def hold(self, blob: bytes, stage: Stage) -> None:
        """Note that what is loaded is what these bytes hold, for a stage on frozen features."""
        self._model.held = (blob, stage) if stage.on_frozen_features else None

    def holds(self, blob: bytes, stage: Stage) -> bool:
        """Whether just that is loaded, in the very bytes, and nothing was loaded since."""
        held = self._model.held
        return held is not None and held[0] is blob and held[1] is stage

    @property
    def personal(self) -> State:
        """A copy of the tensors, as they are now, that the site keeps for itself."""
        method = self._plan.aggregation.method
        return {
            name: parameter.detach().clone()
            for name, parameter in self._trainable.items()
            if is_personal(method, name)
        }

    def train(self, round: int, event: PrivacyEvent, noise: NoiseSource) -> State:
        """What the round's stage asks for, from the loaded state; all of it noised. For a sealed
        sum (a :class:`~lorica.client.secure_sum.grid_noise.GridNoise`) its integers, int64."""
        stage = stage_of(self._plan, round)
        self._choose(round)
        if stage is Stage.LOCAL:
            return self._local_steps(round, event, noise)
        if not in_closed_form(self._plan, stage):
            return self._gradient_sum(event, noise)
        drawn = self.drawn(event, noise)
        noised = noised_sum(self._contributions(stage, drawn.rows), drawn.owner, event, noise)
        if isinstance(noise, GridNoise):
            noised = noise.released[-1]
        return named(stage, noised)

    def _contributions(self, stage: Stage, rows: np.ndarray) -> Contributions:
        """What training rows give to a release on frozen features, before clipping."""
        features = idle_features(self._train_cache, self._classifier, rows)
        return self.contributions_of(stage, features, self._train_targets, rows)

    def contributions_of(
        self, stage: Stage, features: torch.Tensor, targets: Any, rows: np.ndarray
    ) -> Contributions:
        """The same of any records with these features, whose targets are ``rows`` of ``targets``;
        by this session's model as it is."""
        if stage is Stage.CLASS_SUMS:
            return label_contributions(features, targets.of(rows), len(self._plan.task.labels))
        head = self._classifier.head
        assert isinstance(head, torch.nn.Linear)
        return head_contributions(
            head,
            features,
            lambda outputs, places: self._task.residuals(outputs, targets, rows[places]),
            self._plan.privacy.clip_norm,
        )

    def drawn(self, event: PrivacyEvent, noise: NoiseSource) -> Drawn:
        """The records that a release reads: drawn by the site's own stream."""
        rows, owner = self._units.draw_rows(noise, event.sample_rate)
        return Drawn(self._train_cache, self._train_targets, rows, owner)

    @property
    def model(self) -> Model:
        """What the session computes with."""
        return self._model

    def _choose(self, round: int) -> None:
        """Make what the round trains, and nothing else, trainable."""
        names = trained(self._plan, round, self._trainable)
        self._trained = {name: self._trainable[name] for name in names}
        for name, parameter in self._trainable.items():
            parameter.requires_grad_(name in self._trained)

    def _local_steps(self, round: int, event: PrivacyEvent, noise: NoiseSource) -> State:
        """Several DP-SGD steps; local minus global value of what is trained and sent.

        At a lower rank than the plan's, missing rows and columns count as 0.
        """
        training = self._plan.training
        shared = returned(self._plan, round, self._trained)
        rate = falling(self._plan, round, training.final_rate)
        self._dp_steps(
            layerwise_adam(
                parameter_groups(self._plan, self._trained, rate),
                self._trained,
                layer_factors(self._classifier.adapter_parameters, training.layer_decay),
            ),
            event,
            noise,
            batch=training.expected_batch_size,
            after=AfterNoise(
                smoothing=training.smoothing,
                proximal=training.proximal,
                origin={self._trained[n]: self._trained[n].detach().clone() for n in shared},
            ),
        )
        found = {}
        for name in shared:
            before = self._received[name].float()
            found[name] = filled_up(self._trained[name].detach(), before.shape) - before
        return found

    def _gradient_sum(self, event: PrivacyEvent, noise: NoiseSource) -> State:
        """The noised sum of the drawn units' clipped gradients."""
        from lorica.client.mechanism.dp_sgd import KeepGradient

        inner = KeepGradient(parameter_groups(self._plan, self._trained))
        self._dp_steps(inner, event, noise, batch=1)
        if isinstance(noise, GridNoise):
            names = {parameter: name for name, parameter in self._trained.items()}
            order = [names[p] for group in inner.param_groups for p in group["params"]]
            return dict(zip(order, noise.released, strict=True))
        return {name: inner.kept[parameter] for name, parameter in self._trained.items()}

    def _dp_steps(
        self,
        inner: torch.optim.Optimizer,
        event: PrivacyEvent,
        noise: NoiseSource,
        *,
        batch: int,
        after: AfterNoise | None = None,
    ) -> None:
        from lorica.client.mechanism.dp_sgd import DPTrainer, KeepGradient, NoisyOptimizer

        releases = isinstance(inner, KeepGradient)
        self._augmenting = ViewNumbers(_key(noise) if self._views > 1 else b"none")
        optimizer = NoisyOptimizer(
            inner,
            noise=noise,
            noise_multiplier=event.noise_multiplier,
            expected_batch_size=batch,
            after=after,
        )
        DPTrainer(
            self._trained,
            optimizer,
            self._loss,
            self._train_cache.sizes,
            self._train_cache.encoded.limit,
            sample_rate=event.sample_rate,
            noise=noise,
            units=self._units,
            moves=not releases,
            scales={"head.bias": BIAS_INPUT} if releases else {},
            turns=step_turns(self._plan.aggregation.method, list(self._trained)),
            views=self._views,
        ).run(event.steps, self._augmenting.next_step)
        optimizer.zero_grad(set_to_none=True)

    def _at_own_rank(self, state: State) -> State:
        """The state cut to the rank that this site trains at."""
        if self._rank == self._plan.adapter.rank or self._plan.adapter.kind != "lora":
            return state
        shapes = {name: p.shape for name, p in self._classifier.adapter_parameters.items()}
        for name_a, name_b in factor_pairs(shapes).values():
            shapes[name_a] = torch.Size((self._plan.adapter.rank, shapes[name_a][1]))
            shapes[name_b] = torch.Size((shapes[name_b][0], self._plan.adapter.rank))
        check_shapes(state, shapes)
        return cut_factors(state, self._rank)

    def evaluate(self, event: PrivacyEvent, noise: NoiseSource) -> tuple[float, ...]:
        """Noised counts of the loaded state on the records set aside."""
        self._test = self._test or self._cache(self._test_rows)
        table = judgements(self._task, self._classifier, *self._test)
        parts = [self._task.contributions(part)[:count] for part, count in blocks(table)]
        values = torch.cat(parts) if parts else self._task.contributions(table)
        contributions = counts_by_unit(values, self._names_of(self._test_rows))
        return noised_counts(contributions, event.noise_multiplier, noise, self._plan)

    def _cache(self, rows: np.ndarray) -> tuple[PrefixCache, Any]:
        """Cache and targets of these records."""
        records = self._records.take([int(row) for row in rows])
        encoded = self._task.encode(self._backbone, records)
        self._say_long(encoded)
        share = self._cache_bytes * len(rows) // max(1, len(self._records))
        later = any(not stage.on_frozen_features for stage, _ in schedule(self._plan))
        cache = SHELF.get(
            self._classifier,
            encoded,
            backbone=self._backbone,
            limit_bytes=share,
            states=later,
        )
        return cache, self._task.targets(records, encoded)

    def _say_long(self, encoded: Inputs) -> None:
        """Tell the people at this machine, and nobody else, that texts are longer than is read."""
        if said := long_texts(self._plan, self._backbone, encoded).sentence:
            _log.info("of the records' texts, %s", said)

    def _units_of(self, rows: np.ndarray) -> Units:
        if self._plan.privacy.unit == "record":
            return Units.of_records(len(rows))
        return Units(self._names_of(rows), most=self._plan.privacy.max_records_per_unit)

    def _names_of(self, rows: np.ndarray) -> list[str]:
        """Unit of privacy of every row."""
        if self._plan.privacy.unit == "record":
            return [str(row) for row in rows]
        return [self._records.units[row] for row in rows]

    def _loss(self, batch: Batch) -> torch.Tensor:
        rows = batch.rows
        if self._views > 1:
            views, inputs = batch.turn % self._views, self._train_cache.encoded
            outputs = self._task.outputs_of_views(
                self._classifier, inputs, rows, views, self._augmenting
            )
        else:
            outputs = self._train_cache.outputs(self._classifier, rows)
        return self._task.loss_sum(outputs, self._train_targets, rows)


@torch.no_grad()
def idle_features(cache: PrefixCache, classifier: AdaptedModel, rows: np.ndarray) -> torch.Tensor:
    """Features (n, H) of rows of a cache through the backbone as it came."""
    features = torch.empty(len(rows), classifier.pooled_width)
    for batch, places in cache.batches(rows):
        found = cache.features(classifier, batch)[: len(places)]
        features[torch.from_numpy(places)] = found
    return features


def in_closed_form(plan: RunPlan, stage: Stage) -> bool:
    """Whether a stage's release is one of :mod:`~lorica.client.mechanism.frozen_features`."""
    closed = task_of(plan).closed_head and plan.training.augmentations == 1
    return stage is Stage.CLASS_SUMS or (stage is Stage.HEAD and closed)


def named(stage: Stage, noised: torch.Tensor) -> State:
    """A release on frozen features as the tensors that are sent."""
    return {"head.weight": noised} if stage is Stage.CLASS_SUMS else head_tensors(noised)


def _key(noise: NoiseSource) -> bytes:
    """Bytes as unforeseeable as the noise, for choices that need not be secret."""
    return noise.gaussian((8,), 1.0).numpy().tobytes()


def _at_rank(plan: RunPlan, rank: int) -> RunPlan:
    """The plan with another LoRA rank and the same scaling alpha / rank."""
    if rank == plan.adapter.rank:
        return plan
    alpha = plan.adapter.alpha * rank / plan.adapter.rank
    return plan.replace(adapter={"rank": rank, "alpha": alpha}, simulation={"ranks": []})
