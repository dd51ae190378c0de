"""LocalTrainer: answers one site's requests; the records never leave it."""

from __future__ import annotations

import hashlib
import logging
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from cryptography.hazmat.primitives.asymmetric import ec

from lorica.client.admission.gate import Admission
from lorica.client.benefit.aside import OwnRecords, own_records
from lorica.client.benefit.told import keeps_own, told
from lorica.client.ledger import Charge, Ledger, MemoryLedger
from lorica.client.ledger.head import Heads
from lorica.client.mechanism.noise import NoiseSource, RequestNoise
from lorica.client.training.models import Models
from lorica.client.training.personal import MemoryPersonal, PersonalStore, has_own, own_state
from lorica.client.training.replies import packed_for, unpacked_from
from lorica.client.training.sealing import SealedAnswer, Sealing
from lorica.client.training.session import Session
from lorica.common.adapter.state import State, pack_state, unpack_state
from lorica.common.backbone.precision import number_format
from lorica.common.cache.prefix import CACHE_BYTES
from lorica.common.data.records import Records
from lorica.common.errors import Code, LoricaError, is_failure
from lorica.common.machine.memory import release_unused
from lorica.common.machine.secret import SECRET_BYTES
from lorica.common.plan import RunPlan
from lorica.common.plan.stages import stage_of
from lorica.common.privacy.event import PrivacyEvent
from lorica.common.privacy.of_plan import RunPrivacy, run_privacy
from lorica.common.privacy.shared_noise import OWN_NOISE
from lorica.common.tasks import task_of
from lorica.common.version import __version__
from lorica.common.wire.messages import (
    CAPABILITIES,
    EVALUATE,
    TRAIN,
    Kind,
    Reply,
    Request,
    refusal,
)
from lorica.common.wire.rounding import encode
from lorica.common.wire.sealing import sign_reply

NoiseFactory = Callable[[str, int], NoiseSource]
"""(stream, round) -> the source of one answer's sampling and noise. The stream is the run's id
for training and that id with "/evaluate" for evaluation. For simulations and tests; a site gives
its :class:`~lorica.client.mechanism.noise.RequestNoise`."""

Run = Callable[[Session, PrivacyEvent], tuple[Reply, State]]
"""Computes a charged answer: the reply, and the personal tensors to keep with it."""

Asked = Literal["train", "evaluate", "benefit"]
"""What a charge is for. The last is asked for as an evaluation after the last round."""

BENEFIT: Asked = "benefit"

_log = logging.getLogger("lorica.site")


@dataclass(frozen=True)
class Begun:
    """An answer that is checked and charged, and not computed yet."""

    request: Request
    kind: Asked
    ledger: Ledger
    session: Session
    event: PrivacyEvent
    """What was charged."""
    sealed: SealedAnswer | None = None


class LocalTrainer:
    """Trains and evaluates on one site's records, for one plan after another.

    Formal guarantee:
        Over all replies to one run, the site's records have the plan's (ε, δ), under adding or
        removing one unit of the plan's kind (:mod:`lorica.client.mechanism.dp_sgd`,
        :mod:`lorica.client.mechanism.evaluation`,
        :class:`lorica.common.privacy.of_plan.RunPrivacy`). Every answer that reads records is
        charged to the ledger before it runs; the ledger refuses what would pass a budget, and a
        repeated request returns the stored reply. A reply holds the update or the counts (noised),
        or the bit about the guard (:mod:`lorica.client.benefit.told`),
        the site's name, its declared number of units (public by the site's decision, or 0), and,
        when refused, a reason from the error catalogue.

        σ and q follow from the plan and the figure ``sampling_units``, which a real site fixes
        by hand; so they reveal nothing of the records. Where none is fixed (simulations) it is the
        true count, and the guarantee is the usual one of DP-SGD, in
        which the number of units is known.

        Not covered: the time an answer takes, and whether a site refuses a plan because its
        records do not fit it: one bit for each plan that asks anew, and ``questions`` bounds how
        many there are. That a private step fails is told, too, once for each charge.
    """

    def __init__(
        self,
        site: str,
        records: Records,
        *,
        noise: NoiseFactory | RequestNoise,
        admission: Admission | None = None,
        ledger: Ledger | None = None,
        heads: Heads | None = None,
        personal: PersonalStore | None = None,
        sealing: Sealing | None = None,
        aside: bytes | None = None,
        key: ec.EllipticCurvePrivateKey | None = None,
        cache_bytes: int = CACHE_BYTES,
        models: Models | None = None,
    ) -> None:
        """
        Args:
            site: the site's public name.
            records: the private records.
            noise: makes the source of randomness of an answer.
            admission: the site's figures, policy and people; None admits every plan and says the
                true number of units (simulations).
            ledger: where charges are written; None keeps them for this process's lifetime.
            heads: the ledger's, which every reply then carries; None: none does.
            personal: where tensors that never leave are kept between rounds (method "fedsa");
                None keeps them for this process's lifetime.
            sealing: the site's identity and peers; without it the site is in no sealed sum.
            aside: the site's secret that decides which units are set aside for evaluation; None
                draws one for this process's lifetime.
            key: signs replies, that of the site's registration; None leaves them unsigned.
            cache_bytes: memory for cached token states, bytes.
            models: where sites of one process have their model in common; the process then keeps
                its memory between answers. None: a model of its own.

        Raises:
            LoricaError: LOR-615 the ledger protects another unit than the policy.
        """
        self._admission = admission or Admission()
        self._figures = self._admission.figures
        if ledger is not None and self._figures.unit not in (None, ledger.unit):
            raise LoricaError(
                Code.LEDGER_MISMATCH,
                f"The ledger protects the unit '{ledger.unit}', policy.unit is "
                f"'{self._figures.unit}'.",
            )
        self.site = site
        self._records = records
        self._noise = noise
        self._ledger, self._heads = ledger, heads
        self._personal = personal or MemoryPersonal()
        self._ledgers: dict[tuple[str, float], Ledger] = {}
        self._cache_bytes, self._aside = cache_bytes, aside or os.urandom(SECRET_BYTES)
        self._key = key
        self._sealing = sealing or Sealing(site)
        self._session: Session | None = None
        self._models = models
        self._units_by_name = len(set(records.units))

    def capabilities(self, request: Request) -> Reply:
        """Whether the site takes part in the request's plan; spends nothing.

        Raises:
            LoricaError: why it does not.
        """
        with self._admission.answering(request, CAPABILITIES):
            self._require_newest(request)
            self._allow(request)
            card = self._sealing.card(request) if request.plan.sealed else b""
            reply = self._reply(request, sealed=card)
            told = replace(reply, version=__version__, budget=self._budget())
            return self._signed(self._headed(told), request, CAPABILITIES)

    def train(self, request: Request) -> Reply:
        """Train for one round from the request's global adapter and return the update.

        The update holds what the round's stage asks for (:mod:`lorica.common.plan.stages`): a
        noised sum, or, after local steps, local minus global value of every tensor that was
        trained; rounded to the plan's ``wire.update``, which costs no ε
        (:mod:`lorica.common.wire.rounding`).

        Raises:
            LoricaError: why the site refuses; once the round is charged, a step that fails is
                answered with a refusal instead, and so is the request if it comes again.
        """
        with self._admission.answering(request, TRAIN):
            return self._signed(self._train(request), request, TRAIN)

    def _train(self, request: Request) -> Reply:
        begun = self._begin_training(request)
        if isinstance(begun, Reply):
            return begun
        round, sealed = request.round, begun.sealed

        def run(session: Session, event: PrivacyEvent) -> tuple[Reply, State]:
            noise = self.source(request, TRAIN)
            if sealed is not None:
                vector = sealed.vector(noise, lambda n: session.train(round, event, n))
                return self._reply(request, sealed=vector), {}
            return self._trained(request, session, session.train(round, event, noise))

        return self._finish(begun, run)

    def joins(self, request: Request) -> bool:
        """Whether a request to train may be answered in parts, beside other sites' of this process
        (:mod:`lorica.client.training.together`): the site shares its model with them, and neither
        sums are sealed nor requests or replies signed."""
        plain = self._models is not None and self._admission.open and self._key is None
        return plain and not request.plan.sealed

    def begin_training(self, request: Request) -> Begun | Reply:
        """The first part of :meth:`train`, of a site that :meth:`joins`: check and charge, or the
        stored reply. Raises as that does."""
        return self._begin_training(request)

    def finish_training(self, begun: Begun, update: Callable[[], State]) -> Reply:
        """The last part: the reply with an update that was computed for what was begun, or, if
        ``update`` raises, the refusal that is the round's reply."""

        def run(session: Session, event: PrivacyEvent) -> tuple[Reply, State]:
            return self._trained(begun.request, session, update())

        return self._finish(begun, run)

    def load(self, begun: Begun) -> None:
        """Have the model hold again what the request sent: other sites' answers use it, too."""
        self._load(begun.request, begun.kind, begun.session)

    def _begin_training(self, request: Request) -> Begun | Reply:
        plan = request.plan
        if not 1 <= request.round <= plan.rounds.count:
            raise LoricaError(
                Code.PRIVACY_BUDGET,
                f"Round {request.round} is outside the plan's 1 to {plan.rounds.count}.",
            )

        sealed = self._sealing.training(request) if plan.sealed else None
        part = partial(RunPrivacy.of_round, round=request.round)
        return self._begin(request, TRAIN, part, sealed)

    def _trained(self, request: Request, session: Session, update: State) -> tuple[Reply, State]:
        """The reply with an update, and what the site keeps for itself."""
        own = session.personal if has_own(request.plan, request.round) else {}
        seed = request.run, request.round, self.site
        blob = pack_state(encode(update, request.plan.wire.update, *seed))
        return self._reply(request, blob=blob), own

    def evaluate(self, request: Request) -> Reply:
        """Noised counts of the request's global adapter on records set aside at the site; after the
        last round, where the plan asks and the policy allows it, one noised bit in their place:
        whether the site's guard keeps a model without the others' records.

        Raises:
            LoricaError: as of :meth:`train`.
        """
        with self._admission.answering(request, EVALUATE):
            return self._signed(self._evaluate(request), request, EVALUATE)

    def _evaluate(self, request: Request) -> Reply:
        if request.plan.benefit_round and request.round == request.plan.benefit_round:
            return self._tell_benefit(request)
        if request.round not in request.plan.evaluation_rounds:
            raise LoricaError(
                Code.PRIVACY_BUDGET,
                f"The plan has no evaluation at sites after round {request.round}.",
            )

        sealed = self._sealing.evaluation(request) if request.plan.sealed else None
        begun = self._begin(request, EVALUATE, lambda privacy: privacy.evaluation, sealed)
        if isinstance(begun, Reply):
            return begun

        def run(session: Session, event: PrivacyEvent) -> tuple[Reply, State]:
            noise = self.source(request, EVALUATE)
            if sealed is not None:
                vector = sealed.vector(noise, lambda n: session.evaluate(event, n))
                return self._reply(request, sealed=vector), {}
            return self._reply(request, counts=session.evaluate(event, noise)), {}

        return self._finish(begun, run)

    def _tell_benefit(self, request: Request) -> Reply:
        begun = self._begin(request, BENEFIT, lambda privacy: privacy.benefit, None)
        if isinstance(begun, Reply):
            return begun

        def run(session: Session, event: PrivacyEvent) -> tuple[Reply, State]:
            plan, kept = request.plan, own_state(self._personal, request, BENEFIT)
            received = unpack_state(request.blob) | kept
            backbone = self._admission.backbone(plan)
            bit = keeps_own(plan, backbone, partial(self.own, plan), received)
            answer = told(bit, event, self.source(request, BENEFIT))
            return self._reply(request, counts=(float(answer),)), {}

        return self._finish(begun, run)

    @property
    def labels(self) -> list[str]:
        """The records' labels: private, for simulators and the site's own eyes."""
        return self._records.labels

    def strata(self, plan: RunPlan) -> list[str]:
        """A coarse class of every record by its target: private, as :attr:`labels`."""
        return task_of(plan).strata(self._records)

    def own(self, plan: RunPlan) -> OwnRecords:
        """The records, and which of them no round of the plan trained on: private, as
        :attr:`labels`."""
        return own_records(self._records, plan, self._aside)

    def units(self, plan: RunPlan) -> int:
        """True number of units of the plan's kind: private."""
        return len(self._records) if plan.privacy.unit == "record" else self._units_by_name

    def sampling_units(self, plan: RunPlan) -> int:
        """The figure that sample rates and noise are computed from: of a real site the one that
        its policy fixes, never the true count."""
        return self._figures.units or self.units(plan)

    def close(self) -> None:
        """Free the model and the cached states; the next request builds them anew."""
        self._session = None

    def _begin(
        self,
        request: Request,
        kind: Asked,
        part: Callable[[RunPrivacy], PrivacyEvent | None],
        sealed: SealedAnswer | None,
    ) -> Begun | Reply:
        """The stored reply, or: check and charge."""
        plan = request.plan
        ledger = self._ledger_of(plan)
        self._require_newest(request)
        stored = ledger.stored(request.run, request.round, kind, fingerprint=plan.fingerprint)
        if stored is not None:
            kept_reply = unpacked_from(ledger, stored)
            return self._headed(kept_reply if sealed is None else sealed.leaving(kept_reply))
        privacy = self._allow(request)
        event = part(privacy)
        assert event is not None
        if sealed is not None:
            sealed.begin()
        session = self._open(plan)
        self._load(request, kind, session)
        ledger.charge(
            Charge(
                run=request.run,
                round=request.round,
                kind=kind,
                events=(event,),
                unit=plan.privacy.unit,
                fingerprint=plan.fingerprint,
                run_epsilon=plan.privacy.epsilon,
                run_delta=plan.privacy.delta,
                whole=privacy.whole,
                shared=OWN_NOISE if sealed is None else sealed.shared,
            )
        )
        return Begun(request, kind, ledger, session, event, sealed)

    def _load(self, request: Request, kind: Asked, session: Session) -> None:
        """Have the session take over what was sent; where sites share its model and it holds just
        that already, it stays."""
        stage = stage_of(request.plan, request.round)
        unasked = self._models is not None and self._admission.open
        if unasked and session.holds(request.blob, stage):
            return
        own = own_state(self._personal, request, kind)
        unpack = unpack_state if self._models is None else self._models.unpacked
        sent = unpack(request.blob)
        session.load(sent, stage, own)
        self._admission.require_adapter(sent)
        session.hold(request.blob, stage)

    def _finish(self, begun: Begun, run: Run) -> Reply:
        """Run what was charged and store its reply. Only stored replies leave (masked, in a
        sealed sum), and only the personal tensors that ``run`` gave with them are kept.

        A private step that fails leaves no second chance: its refusal is the round's reply. Were
        it tried again, whether and how often it fails could tell of the records, unaccounted.
        """
        request, kind, sealed = begun.request, begun.kind, begun.sealed
        kept: State = {}
        try:
            if kind != BENEFIT:  # a bit needs no encoded records: that they fail would be told
                begun.session.read()
            reply, kept = run(begun.session, begun.event)
            packed = packed_for(begun.ledger, reply)
        except BaseException as error:  # it may depend on the records: answered once
            if not is_failure(error):
                raise
            _log.warning(
                "%s of round %d failed; its refusal is kept", kind, request.round, exc_info=error
            )
            self.close()
            if self._models is not None:
                self._models.clean()
            reply = self._refusal(request, error)
            packed = packed_for(begun.ledger, reply)
        if self._models is None:
            release_unused()

        def keep() -> None:
            if kept:
                self._personal.save(request.run, request.plan, request.round, kept)

        leaves = begun.ledger.store(request.run, request.round, kind, packed, beside=keep)
        if self._heads is not None:
            self._heads.keep()
        if leaves is not packed or not isinstance(begun.ledger, MemoryLedger):
            reply = unpacked_from(begun.ledger, leaves)  # as it will be when it is asked for again
        return self._headed(reply if sealed is None else sealed.leaving(reply))

    def source(self, request: Request, kind: Asked) -> NoiseSource:
        """Sampling and noise of the answer to a request."""
        if isinstance(self._noise, RequestNoise):
            blob = hashlib.sha256(request.blob).hexdigest()
            what = request.plan.fingerprint, blob
            return self._noise.of(self.site, request.run, request.round, kind, *what)
        stream = request.run if kind == TRAIN else f"{request.run}/{kind}"
        return self._noise(stream, request.round)

    def _require_newest(self, request: Request) -> None:
        """Return unless somebody holds a head that the ledger does not contain.

        Raises:
            LoricaError: LOR-613 it is older than what left.
        """
        if self._heads is not None:
            self._heads.require(request.head)

    def _headed(self, reply: Reply) -> Reply:
        """The reply with the ledger's head."""
        return reply if self._heads is None else replace(reply, head=self._heads.newest())

    def _signed(self, reply: Reply, request: Request, kind: Kind) -> Reply:
        """The reply, signed as the answer to this very request where the site has a key."""
        return sign_reply(reply, request, kind, self._key) if self._key else reply

    def _refusal(self, request: Request, error: BaseException) -> Reply:
        """The refusal of an answer that failed: the same whatever ``error`` is."""
        failed = LoricaError(Code.DATA_UNFIT, f"The answer failed: {error!r}")
        return refusal(
            failed, fingerprint=request.plan.fingerprint, round=request.round, site=self.site
        )

    def _allow(self, request: Request) -> RunPrivacy:
        """What the run costs here. Raises when policy, people, data or machine do not admit it."""
        plan = request.plan
        self._admission.admit(request, self.sampling_units(plan))
        number_format(plan.training.precision)
        privacy = run_privacy(plan, self.sampling_units(plan))
        self._admission.require_noise(privacy)
        self._admission.compare(plan, self._records, where=f"Site {self.site}")
        return privacy

    def _reply(
        self,
        request: Request,
        *,
        blob: bytes = b"",
        counts: tuple[float, ...] = (),
        sealed: bytes = b"",
    ) -> Reply:
        declared = self._figures.weight
        weight = self.sampling_units(request.plan) if declared is None else declared
        return Reply(
            request.plan.fingerprint,
            request.round,
            site=self.site,
            weight=weight,
            blob=blob,
            counts=counts,
            sealed=sealed,
        )

    def _budget(self) -> tuple[float, float] | None:
        """The lifetime budget and what is left of it, if the policy declares them."""
        if not self._figures.tells_budget or self._ledger is None:
            return None
        if math.isinf(self._ledger.budgets.lifetime):
            return None
        whole = float(self._ledger.budgets.lifetime)
        return whole, max(0.0, whole - float(self._ledger.spending().lifetime))

    def _ledger_of(self, plan: RunPlan) -> Ledger:
        if self._ledger is not None:
            return self._ledger
        key = plan.privacy.unit, plan.privacy.delta
        if key not in self._ledgers:
            replies = None
            if self._models is not None:
                replies = self._models.replies
                self._models.began(self)
            self._ledgers[key] = MemoryLedger(
                plan.privacy.delta, unit=plan.privacy.unit, replies=replies
            )
        return self._ledgers[key]

    def _open(self, plan: RunPlan) -> Session:
        if self._session is None or not self._session.serves(plan):
            self._session = None
            self._session = Session(
                plan,
                self._admission.backbone(plan),
                self._records,
                cache_bytes=self._cache_bytes,
                secret=self._aside,
                rank=self._figures.rank_of(plan),
                models=self._models,
            )
        if self._models is not None:
            self._models.opened(id(self), self.close)
        return self._session
