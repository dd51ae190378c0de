"""The round loop: ask, send, screen, aggregate, evaluate, save; once per round."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

from flwr.serverapp import Grid

from lorica.common.adapter.state import State, pack_state
from lorica.common.errors import Code, LoricaError
from lorica.common.machine.logs import log_context
from lorica.common.plan import RunPlan
from lorica.common.plan.stages import Stage, is_tested, returned, sent, stage_of
from lorica.common.plan.traits import TRAITS
from lorica.common.privacy.sealed import evaluation_grid, training_grid
from lorica.common.tasks.base import Metrics, SiteMetrics
from lorica.common.tasks.noised_metrics import (
    believable,
    combine,
    of_total,
    sensitivity,
    vector_length,
)
from lorica.common.wire.messages import EVALUATE, TRAIN
from lorica.common.wire.signing import CoordinatorKey
from lorica.server.aggregation import Aggregator
from lorica.server.aggregation.choose import rule_of_round
from lorica.server.aggregation.sums.base import SumOfReleases
from lorica.server.results.folder import RunFolder
from lorica.server.results.kept_own import kept_own
from lorica.server.results.observers import Observer
from lorica.server.results.round import RoundRecord, SiteRound
from lorica.server.rounds.exchange import Answer
from lorica.server.rounds.expected import ExpectedUpdates
from lorica.server.rounds.heads import FILE, Heads
from lorica.server.rounds.known import MOST_UNITS, Directory
from lorica.server.rounds.lora_trial import LoraTrial, Score, of_validation
from lorica.server.rounds.measures import RoundMeasures
from lorica.server.rounds.sealed import SealedSums, split
from lorica.server.rounds.sites import Sites, Unanswered, shown

Evaluator = Callable[[State], Metrics]


class Judge(Protocol):
    """An evaluator that says on how many records."""

    @property
    def records(self) -> int:
        """How many."""
        ...

    def __call__(self, state: State) -> Metrics:
        """Quality of a state."""
        ...


_log = logging.getLogger("lorica.coordinator")
_MOST_TRIES = 3  # at asking a node whether it takes part


class RoundLoop:
    """Runs a plan over the sites that a grid reaches."""

    def __init__(
        self,
        grid: Grid,
        plan: RunPlan,
        folder: RunFolder,
        *,
        run: str,
        start: Callable[[], State],
        evaluate: Evaluator | None,
        observer: Observer,
        key: CoordinatorKey | None = None,
        nodes: int = 1,
        wait_seconds: float = 0.0,
        stop: Callable[[], bool] = lambda: False,
        judge: Judge | None = None,
        stand_in: bool = False,
        directory: Directory | None = None,
        most_units: int = MOST_UNITS,
    ) -> None:
        """
        Args:
            grid: Flower's grid.
            plan: with its labels filled in.
            folder: created, perhaps with a checkpoint to go on from.
            run: Lorica's run id; a checkpoint's own wins.
            start: makes the starting state; called when there is no checkpoint.
            evaluate: quality of a state on data that the coordinator holds; None without any.
            observer: hears of progress.
            key: signs every request; None sends them unsigned, which sites may refuse.
            nodes: how many nodes to wait for before the first round, if more than
                rounds.minimum_sites.
            wait_seconds: how long to wait for them.
            stop: whether an operator wants the run to end; asked between rounds and polls.
            judge: quality of a state on validation data that the coordinator holds; without, sites
                judge.
            stand_in: sealed sums are added up in the open (simulations of many sites).
            directory: binds nodes to registered sites; None takes sites' word for their names.
            most_units: a site that declares more takes no part.
        """
        self._judge = judge
        self._directory, self._most_units = directory, most_units
        self._grid, self._plan, self._folder = grid, plan, folder
        self._run, self._start, self._evaluate = run, start, evaluate
        self._observer, self._key = observer, key
        self._nodes, self._wait_seconds, self._stop = nodes, wait_seconds, stop
        self._stand_in = stand_in
        self._memory: State = {}
        self._trial = LoraTrial(plan)
        self._headline = TRAITS[plan.task.kind].headline

    def run(self) -> State:
        """Run all rounds that are left and return the final global state.

        Raises:
            LoricaError: LOR-503 when too few sites are ready or answer, LOR-743 when an operator
                stopped it; what was done before is saved and can be resumed.
        """
        checkpoint = self._folder.checkpoint(self._plan)
        if checkpoint is None:
            state, done = self._start(), -1
        else:
            state, done, self._run = checkpoint.state, checkpoint.round, checkpoint.run
            self._memory = checkpoint.memory
        self._sites = Sites(
            self._grid,
            self._plan,
            self._run,
            self._key,
            self._stop,
            Heads(self._folder.path.parent / FILE),
            self._directory,
            self._most_units,
        )
        wanted = max(self._nodes, self._plan.rounds.minimum_sites)
        selected = self._sites.select(wanted, self._wait_seconds)
        self._sums = SealedSums(
            self._sites,
            self._plan,
            self._folder,
            self._run,
            heard=self._observer.site_answered,
            stand_in=self._stand_in,
        )
        self._observer.started(self._plan, selected, max(done + 1, 1))
        if done < 0:
            start = RoundRecord(0, headline=self._headline)
            self._close(start, state, {}, time.monotonic())
        first = max(done + 1, 1)
        for round in range(first, self._plan.rounds.count + 1):
            with log_context(run=self._run, round=round):
                self._sites.check_stop()
                self._sites.ask(tries=_MOST_TRIES if round > first else 1)
                state = self._one_round(round, state)
        return state

    def _one_round(self, round: int, state: State) -> State:
        begun = time.monotonic()
        rule = rule_of_round(self._plan, round, state, self._memory)
        if self._plan.sealed:
            return self._sealed_round(round, state, rule, begun)
        expected = ExpectedUpdates(self._plan, round, state)
        blob = self._packed(state, round)
        chosen = self._sites.selection(round)
        measures = RoundMeasures(self._plan, round, len(chosen.asked))
        ready = self._sites.ready
        missing = dict.fromkeys(ready[position] for position in chosen.asked)
        sites: list[SiteRound] = []
        able = 0
        for answer in self._sites.exchange(list(missing), TRAIN, round, blob):
            del missing[answer.node]
            site = self._take(answer, round, expected, rule, measures)
            sites.append(site)
            self._observer.site_answered(round, site)
            able += site.status == "ok"
            if able >= chosen.wanted:
                break
        for node in missing:
            sites.append(_cut(self._sites.named(node).name, time.monotonic() - begun))
            self._observer.site_answered(round, sites[-1])
        exchanged = time.monotonic()
        self._sites.enough(sites, f"Round {round}", chosen.sufficient)
        state = rule.finish()
        self._memory = rule.memory
        found = measures.finish()
        record = RoundRecord(
            round,
            _with_agreement(sites, found.agreement or {}),
            headline=self._headline,
            stage=stage_of(self._plan, round).value,
            alike=found.alike.cosines if found.alike else [],
            alike_error=found.alike.error if found.alike else None,
            mean_norm=found.mean_norm,
            noise_norm=found.noise_norm,
            signal_to_noise=found.signal_to_noise,
            exact=rule.exact,
            bytes_up=sum(site.bytes_up for site in sites),
            bytes_down=len(blob) * len(sites),
        )
        return self._end(record, state, begun, exchanged)

    def _end(self, record: RoundRecord, state: State, begun: float, exchanged: float) -> State:
        """Evaluate at sites, put LoRA on trial, and close the round; the state that counts."""
        round = record.round
        phases = {"sites": exchanged - begun, "aggregate": time.monotonic() - exchanged}
        if round in self._plan.evaluation_rounds:
            record = self._evaluate_at_sites(record, state)
            phases["evaluate at sites"] = time.monotonic() - exchanged - phases["aggregate"]
        if self._trial.judges(round):
            at = time.monotonic()
            score = self._score(record, state)
            self._memory = self._trial.keep(round, state, score, self._memory)
            record = replace(record, judged=score.value if score else None)
            phases["judge"] = time.monotonic() - at
        kept = self._trial.kept_round(round, self._memory)
        if kept is not None:
            dropped = stage_of(self._plan, kept) is not Stage.LORA
            record = replace(record, kept_round=kept, lora_dropped=dropped)
            state = self._trial.kept(state, self._memory)
        if round + 1 == self._plan.benefit_round:
            at = time.monotonic()
            record = self._ask_benefit(record, state)
            phases["benefit"] = time.monotonic() - at
        self._close(record, state, phases, begun)
        return state

    def _score(self, record: RoundRecord, state: State) -> Score | None:
        """What the judge makes of a state."""
        if self._judge is not None:
            return of_validation(self._judge(state).values.get(self._headline), self._judge.records)
        declared = sum(self._sites.named(node).weight for node in self._sites.ready)
        return self._trial.of_sites(record, declared * self._plan.data.validation)

    def _sealed_round(self, round: int, state: State, rule: Aggregator, begun: float) -> State:
        """The same where the sites' sum is all that is seen."""
        assert isinstance(rule, SumOfReleases)
        plan, blob = self._plan, self._packed(state, round)
        shapes = {name: state[name].shape for name in sorted(returned(plan, round, state))}
        values = sum(shape.numel() for shape in shapes.values())
        found = self._sums.make(
            TRAIN, round, blob, lambda sites: training_grid(plan, round, values, sites)
        )
        exchanged = time.monotonic()
        total = split(found.values, shapes)
        rule.add_sum(total, shares=found.shares, units=found.units)
        measures = RoundMeasures(plan, round, 1)
        measures.add_sum(total, sites=found.survivors, shares=found.shares)
        measured = measures.finish()
        state = rule.finish()
        self._memory = rule.memory
        record = RoundRecord(
            round,
            sorted(found.sites, key=lambda site: site.site),
            headline=self._headline,
            stage=stage_of(plan, round).value,
            mean_norm=measured.mean_norm,
            noise_norm=measured.noise_norm,
            signal_to_noise=measured.signal_to_noise,
            exact=rule.exact,
            sealed=found.survivors,
            bytes_up=sum(site.bytes_up for site in found.sites),
            bytes_down=len(blob) * len(found.sites),
        )
        return self._end(record, state, begun, exchanged)

    def _evaluate_at_sites(self, record: RoundRecord, state: State) -> RoundRecord:
        """The record with metrics from the noised counts of the sites that send any."""
        blob = self._packed(state, record.round)
        if self._plan.sealed:
            plan, bound = self._plan, sensitivity(self._plan)
            whole = self._sums.make(
                EVALUATE,
                record.round,
                blob,
                lambda sites: evaluation_grid(plan, vector_length(plan), bound, sites),
            )
            metrics = of_total(plan, whole.values, whole.shares)
            return self._with_metrics(record, metrics, len(blob) * len(whole.sites))
        vectors, asked = [], self._sites.ready
        for answer in self._sites.exchange(asked, EVALUATE, record.round, blob):
            site = self._sites.of(answer)
            try:
                counts = self._sites.reply(answer, record.round, EVALUATE).counts
            except (Unanswered, LoricaError) as problem:
                _log.warning("no evaluation from %s: %s", site.name, problem)
                continue
            if not believable(self._plan, counts, site.weight):
                _log.warning("%s counts more than it can have; left out", site.name)
            elif len(counts) == vector_length(self._plan):
                vectors.append(counts)
        return self._with_metrics(record, combine(self._plan, vectors), len(blob) * len(asked))

    def _ask_benefit(self, record: RoundRecord, state: State) -> RoundRecord:
        """The record with what sites' noised bits say of the state that the run ends with."""
        round, asked = self._plan.benefit_round, self._sites.ready
        blob, bits = self._packed(state, round), []
        for answer in self._sites.exchange(asked, EVALUATE, round, blob):
            try:
                counts = self._sites.reply(answer, round, EVALUATE).counts
            except (Unanswered, LoricaError) as problem:
                _log.warning("no bit from %s: %s", self._sites.of(answer).name, problem)
                continue
            if counts in ((0.0,), (1.0,)):
                bits.append(counts == (1.0,))
            else:
                _log.warning("%s tells no bit; left out", self._sites.of(answer).name)
        if not bits:
            return record
        found = kept_own(bits, len(asked), self._plan.privacy.benefit_epsilon)
        _log.info("%s", found.sentence)
        down = record.bytes_down + len(blob) * len(asked)
        return replace(record, kept_own=found.as_json(), bytes_down=down)

    @staticmethod
    def _with_metrics(
        record: RoundRecord, found: SiteMetrics | None, bytes_down: int
    ) -> RoundRecord:
        if found is None:
            return record
        return replace(
            record,
            site_metrics=found.values,
            site_accuracy=found.accuracy,
            site_accuracy_band=found.accuracy_band,
            site_loss=found.loss,
            site_accuracy_by_label=found.per_label,
            bytes_down=record.bytes_down + bytes_down,
        )

    def _close(
        self, record: RoundRecord, state: State, phases: dict[str, float], begun: float
    ) -> None:
        """Evaluate, save, report."""
        at = time.monotonic()
        wanted = self._evaluate is not None and is_tested(self._plan, record.round)
        metrics = self._evaluate(state) if self._evaluate and wanted else None
        phases = phases | {"evaluate": time.monotonic() - at}
        record = replace(
            record,
            **(_quality(metrics) if metrics else {}),
            seconds=time.monotonic() - begun,
            seconds_by_phase=phases,
        )
        self._folder.save(self._run, self._plan, record, state, self._memory)
        self._observer.round_ended(record)

    def _take(
        self,
        answer: Answer,
        round: int,
        expected: ExpectedUpdates,
        rule: Aggregator,
        measures: RoundMeasures,
    ) -> SiteRound:
        """Screen one answer and add it to the aggregate."""
        site = self._sites.of(answer)
        size = 0
        try:
            reply = self._sites.reply(answer, round, TRAIN)
            if reply.site != site.name or reply.weight != site.weight:
                raise LoricaError(
                    Code.UPDATE_REFUSED, f"Site {site.name} answers as another site or weight."
                )
            size = len(reply.blob)
            update = expected.read(reply.blob, reply.weight)
            rule.add(update, self._sites.share(site))
            measures.add(site.name, update, self._sites.share(site))
        except Unanswered as problem:
            return SiteRound(site.name, problem.status, problem.reason, seconds=answer.seconds)
        except LoricaError as error:
            return SiteRound(
                site.name, "failed", shown(error), bytes_up=size, seconds=answer.seconds
            )
        return SiteRound(site.name, "ok", "", site.weight, update.norm, size, answer.seconds)

    def _packed(self, state: State, round: int) -> bytes:
        """What sites need to be sent of a state."""
        return pack_state({name: state[name] for name in sent(self._plan, round, state)})


def _with_agreement(sites: list[SiteRound], agreement: dict[str, float]) -> list[SiteRound]:
    """The sites by name, each with how well it agrees with the others."""
    return [
        replace(site, agreement=agreement.get(site.site))
        for site in sorted(sites, key=lambda site: site.site)
    ]


def _cut(site: str, seconds: float) -> SiteRound:
    """A site that was not waited for: enough others had answered. Its update is never pulled."""
    return SiteRound(site, "late", "cut: enough other sites had answered", seconds=seconds)


def _quality(metrics: Metrics) -> dict[str, Any]:
    """The fields of a round's record that hold the coordinator's metrics."""
    named = {name: metrics.values.get(name) for name in ("accuracy", "macro_f1", "loss")}
    return {"metrics": metrics.values, **named}
