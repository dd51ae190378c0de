"""The round loop: ask, send, screen, aggregate, evaluate, save; once per round."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace

from flwr.serverapp import Grid

from lorica.common.adapters import State, pack_state, unpack_state
from lorica.common.errors import Code, LoricaError
from lorica.common.messages import (
    CAPABILITIES,
    EVALUATE,
    TRAIN,
    Kind,
    Reply,
    Request,
    pack_request,
    unpack_reply,
)
from lorica.common.noised_metrics import combine, vector_length
from lorica.common.plan import RunPlan
from lorica.common.quantisation import decode
from lorica.common.signing import CoordinatorKey
from lorica.common.stages import Stage, sent, stage_of, trained
from lorica.common.tasks.text_classification import Metrics
from lorica.common.text import printable
from lorica.server.aggregation import Aggregator
from lorica.server.aggregation.stages import rule_of_round
from lorica.server.exchange import Answer, exchange
from lorica.server.records import Observer, RoundRecord, SiteRound, SiteStatus
from lorica.server.run_folder import RunFolder
from lorica.server.screening import honest_norm, screen, update_norm

Evaluator = Callable[[State], Metrics]

_log = logging.getLogger("lorica.coordinator")
_NODE_POLL_SECONDS = 1.0
_BEFORE_LORA = "before-lora/"  # prefix of the kept state in the optimiser's memory
_MOST_SHOWN = 500
_MOST_TRIES = 3  # at asking a node whether it takes part


@dataclass(frozen=True)
class _Site:
    node: int
    name: str
    weight: int


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
        """
        self._grid, self._plan, self._folder = grid, plan, folder
        self._run, self._start, self._evaluate = run, start, evaluate
        self._observer, self._key = observer, key
        self._nodes, self._wait_seconds = nodes, wait_seconds
        self._tries: Counter[int] = Counter()
        self._refused: set[int] = set()
        self._ready: dict[int, _Site] = {}
        self._memory: State = {}

    def run(self) -> State:
        """Run all rounds that are left and return the final global state.

        Raises:
            LoricaError: LOR-503 when too few sites are ready or answer; what was done before is
                saved and can be resumed.
        """
        checkpoint = self._folder.checkpoint(self._plan)
        if checkpoint is None:
            state, done = self._start(), -1
        else:
            state, done, self._run = checkpoint.state, checkpoint.round, checkpoint.run
            self._memory = checkpoint.memory
        self._observer.started(self._plan, self._select_enough(), max(done + 1, 1))
        if done < 0:
            self._close(RoundRecord(0), state, {}, time.monotonic())
        first = max(done + 1, 1)
        for round in range(first, self._plan.rounds.count + 1):
            self._ask_nodes(tries=_MOST_TRIES if round > first else 1)
            state = self._one_round(round, state)
        return state

    def _one_round(self, round: int, state: State) -> State:
        begun = time.monotonic()
        stage = stage_of(self._plan, round)
        rule = rule_of_round(self._plan, round, state, self._memory)
        blob = self._packed(state, stage)
        sites = []
        for answer in self._exchange(list(self._ready), TRAIN, round, blob):
            site = self._take(answer, round, state, rule)
            sites.append(site)
            self._observer.site_answered(round, site)
        exchanged = time.monotonic()
        self._enough(sites, f"Round {round}")
        state = rule.finish()
        self._memory = rule.memory
        record = RoundRecord(
            round,
            sorted(sites, key=lambda site: site.site),
            bytes_up=sum(site.bytes_up for site in sites),
            bytes_down=len(blob) * len(sites),
        )
        phases = {"sites": exchanged - begun, "aggregate": time.monotonic() - exchanged}
        if round in self._plan.evaluation_rounds:
            record = self._evaluate_at_sites(record, state)
            phases["evaluate at sites"] = time.monotonic() - exchanged - phases["aggregate"]
        self._keep_before_lora(round, state)
        if self._lora_lost(record):
            record = replace(record, lora_dropped=True)
            state = {name: self._memory[f"{_BEFORE_LORA}{name}"].clone() for name in state}
        self._close(record, state, phases, begun)
        return state

    def _keep_before_lora(self, round: int, state: State) -> None:
        """Remember the state that LoRA rounds start from, where they are on trial."""
        if self._on_trial and round == self._plan.rounds.count - self._plan.lora_rounds:
            kept = {f"{_BEFORE_LORA}{name}": tensor.clone() for name, tensor in state.items()}
            self._memory = self._memory | kept

    def _lora_lost(self, last: RoundRecord) -> bool:
        """Whether LoRA was on trial and the sites' noised accuracy did not rise by it."""
        if not self._on_trial or last.round != self._plan.rounds.count:
            return False
        before = last.round - self._plan.lora_rounds
        found = [r.site_accuracy for r in self._folder.rounds() if r.round == before]
        if not found or found[0] is None or last.site_accuracy is None:
            return bool(found)  # no evidence that it gained
        return last.site_accuracy <= found[0]

    @property
    def _on_trial(self) -> bool:
        plan = self._plan
        private = plan.privacy.private
        return private and plan.training.lora == "auto" and 0 < plan.lora_rounds < plan.rounds.count

    def _evaluate_at_sites(self, record: RoundRecord, state: State) -> RoundRecord:
        """The record with metrics from the noised counts of the sites that send any."""
        blob = self._packed(state, stage_of(self._plan, record.round))
        vectors, asked = [], list(self._ready)
        for answer in self._exchange(asked, EVALUATE, record.round, blob):
            try:
                counts = self._reply(answer, record.round).counts
            except (_Unanswered, LoricaError) as problem:
                _log.warning("no evaluation from %s: %s", self._ready[answer.node].name, problem)
                continue
            if len(counts) == vector_length(self._plan):
                vectors.append(counts)
        found = combine(self._plan, vectors)
        if found is None:
            return record
        return replace(
            record,
            site_accuracy=found.accuracy,
            site_accuracy_band=found.accuracy_band,
            site_loss=found.loss,
            site_accuracy_by_label=found.per_label,
            bytes_down=record.bytes_down + len(blob) * len(asked),
        )

    def _close(
        self, record: RoundRecord, state: State, phases: dict[str, float], begun: float
    ) -> None:
        """Evaluate, save, report."""
        at = time.monotonic()
        metrics = self._evaluate(state) if self._evaluate else None
        phases = phases | {"evaluate": time.monotonic() - at}
        record = replace(
            record,
            **(asdict(metrics) if metrics else {}),
            seconds=time.monotonic() - begun,
            seconds_by_phase=phases,
        )
        self._folder.save(self._run, self._plan, record, state, self._memory)
        self._observer.round_ended(record)

    def _take(self, answer: Answer, round: int, state: State, rule: Aggregator) -> SiteRound:
        """Screen one answer and add it to the aggregate."""
        site = self._ready[answer.node]
        size, norm = 0, None
        try:
            reply = self._reply(answer, round)
            if reply.site != site.name or reply.weight != site.weight:
                raise LoricaError(
                    Code.UPDATE_REFUSED, f"Site {site.name} answers as another site or weight."
                )
            size = len(reply.blob)
            names = trained(self._plan, round, state)
            shapes = {name: state[name].shape for name in names}
            update = decode(unpack_state(reply.blob), self._plan.wire.update, shapes)
            limit = honest_norm(self._plan, state, round)
            screen(update, state, names, max_norm=limit)
            norm = update_norm(update)
            rule.add(update, self._share(site))
        except _Unanswered as problem:
            return SiteRound(site.name, problem.status, problem.reason, seconds=answer.seconds)
        except LoricaError as error:
            return SiteRound(
                site.name, "failed", _shown(error), bytes_up=size, seconds=answer.seconds
            )
        return SiteRound(site.name, "ok", "", site.weight, norm, size, answer.seconds)

    @staticmethod
    def _packed(state: State, stage: Stage) -> bytes:
        """What sites need to be sent of a state."""
        return pack_state({name: state[name] for name in sent(stage, state)})

    def _share(self, site: _Site) -> float:
        """A site's weight: what it declares if all sites declare, else the same for all."""
        declared = all(other.weight > 0 for other in self._ready.values())
        return float(site.weight) if declared else 1.0

    def _reply(self, answer: Answer, round: int) -> Reply:
        """The reply in an answer. Raises _Unanswered when there is none with an update."""
        if answer.kind == "late":
            seconds = self._plan.rounds.timeout_seconds
            raise _Unanswered(
                "late", f"{Code.SITE_SILENT.value}: no answer within {seconds:g} seconds"
            )
        if answer.kind == "error" or answer.content is None:
            raise _Unanswered("failed", f"the node answered with Flower's error {answer.error}")
        reply = unpack_reply(answer.content, fingerprint=self._plan.fingerprint, round=round)
        if reply.status == "refused":
            raise _Unanswered("refused", reply.reason, reply.site)
        return reply

    def _select_enough(self) -> list[SiteRound]:
        """Ask every node; wait for more as long as allowed. Raises LOR-503 when too few."""
        wanted = max(self._nodes, self._plan.rounds.minimum_sites)
        deadline = time.monotonic() + self._wait_seconds
        answers = self._ask_nodes()
        while len(self._tries) < wanted and time.monotonic() < deadline:
            time.sleep(_NODE_POLL_SECONDS)
            answers += self._ask_nodes()
        self._enough(answers, "Before the first round")
        return sorted(answers, key=lambda site: site.site)

    def _ask_nodes(self, tries: int = 1) -> list[SiteRound]:
        """Ask nodes what they can do; the able ones become ready.

        Nodes that are ready or refused are not asked again, others until they were asked
        ``tries`` times: whoever was late or failed may have mended.
        """
        settled = self._ready.keys() | self._refused
        online = set(self._grid.get_node_ids())
        nodes = sorted(node for node in online - settled if self._tries[node] < tries)
        if not nodes:
            return []
        self._tries.update(nodes)
        return [self._admit(answer) for answer in self._exchange(nodes, CAPABILITIES, 0)]

    def _admit(self, answer: Answer) -> SiteRound:
        unnamed = f"node {answer.node}"
        try:
            reply = self._reply(answer, 0)
            if not reply.site:
                raise LoricaError(Code.MESSAGE_MALFORMED, "A site gave no name.")
            if any(site.name == reply.site for site in self._ready.values()):
                raise LoricaError(
                    Code.MESSAGE_MALFORMED, f"Two nodes say that they are site {reply.site}."
                )
        except _Unanswered as problem:
            unnamed = problem.site or unnamed
            if problem.status == "refused":
                self._refused.add(answer.node)
            return SiteRound(unnamed, problem.status, problem.reason, seconds=answer.seconds)
        except LoricaError as error:
            return SiteRound(unnamed, "failed", _shown(error), seconds=answer.seconds)
        self._ready[answer.node] = _Site(answer.node, reply.site, reply.weight)
        return SiteRound(reply.site, "ok", "", reply.weight, seconds=answer.seconds)

    def _exchange(
        self, nodes: list[int], kind: Kind, round: int, blob: bytes = b""
    ) -> Iterator[Answer]:
        """Ask all ``nodes`` the same, signed when there is a key."""
        request = Request(self._plan, self._run, round, blob)
        return exchange(
            self._grid,
            nodes,
            pack_request(self._key.sign(request, kind) if self._key else request),
            kind,
            timeout=self._plan.rounds.timeout_seconds,
            group=str(round),
        )

    def _enough(self, sites: list[SiteRound], when: str) -> None:
        able = sum(site.status == "ok" for site in sites)
        wanted = self._plan.rounds.minimum_sites
        if able < wanted:
            reasons = "; ".join(f"{s.site}: {s.reason}" for s in sites if s.status != "ok")
            raise LoricaError(
                Code.TOO_FEW_SITES,
                f"{when}, {able} of {len(sites)} sites could take part and at least {wanted} must. "
                f"{reasons or 'No node is online.'}",
            )


def _shown(error: LoricaError) -> str:
    """An error's text for records and screens; parts of it may come from a site."""
    return printable(str(error))[:_MOST_SHOWN]


class _Unanswered(Exception):  # noqa: N818 - control flow within this module
    """A site's answer that holds no update."""

    def __init__(self, status: SiteStatus, reason: str, site: str = "") -> None:
        super().__init__(reason)
        self.status, self.reason, self.site = status, reason, site
