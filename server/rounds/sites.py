"""The sites of a run: who takes part, what they are asked, what they answer."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from flwr.app import RecordDict
from flwr.serverapp import Grid

from lorica.common.display.text import printable
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.secure_sum.roster import Card
from lorica.common.wire.messages import (
    CAPABILITIES,
    Kind,
    Reply,
    Request,
    pack_request,
    unpack_reply,
    with_head,
)
from lorica.common.wire.signing import CoordinatorKey
from lorica.server.results.round import SiteRound, SiteStatus
from lorica.server.rounds.exchange import Answer, exchange
from lorica.server.rounds.heads import Heads
from lorica.server.rounds.selection import Selection, select

_NODE_POLL_SECONDS = 1.0
_MOST_SHOWN = 500
_AWAIT_SECONDS = 5.0  # before a site that waits for a person is asked again
_PASSING = (Code.TRAINER_DOWN.value, Code.TRAINER_BUSY.value)
"""Codes of refusals that pass by themselves."""


@dataclass(frozen=True)
class Site:
    """A site that takes part."""

    node: int
    """Flower's id of its node."""
    name: str
    weight: int
    """Its declared, public number of units; 0 when it declares none."""
    card: Card | None = None
    """How it introduced itself for sealed sums; None where there are none."""


class Sites:
    """Knows which nodes take part in a run and exchanges messages with them."""

    def __init__(
        self,
        grid: Grid,
        plan: RunPlan,
        run: str,
        key: CoordinatorKey | None,
        stop: Callable[[], bool] = lambda: False,
        heads: Heads | None = None,
    ) -> None:
        """
        Args:
            grid: Flower's grid.
            plan: the run's.
            run: Lorica's run id.
            key: signs every request; None sends them unsigned, which sites may refuse.
            stop: whether an operator wants the run to end; asked between polls.
            heads: the newest head of every site's ledger; None keeps them for this run alone.
        """
        self._heads = heads or Heads(None)
        self._grid, self._plan, self._run, self._key = grid, plan, run, key
        self._stop = stop
        self._tries: Counter[int] = Counter()
        self._refused: set[int] = set()
        self._awaiting: dict[int, float] = {}  # node -> when it was asked last
        self._ready: dict[int, Site] = {}

    @property
    def ready(self) -> list[int]:
        """Nodes that take part, in the order in which they said so."""
        return list(self._ready)

    def selection(self, round: int) -> Selection:
        """The ready sites that a round asks, by position in :attr:`ready`."""
        sites = [(site.name, site.weight) for site in self._ready.values()]
        return select(self._plan.rounds, self._run, round, sites)

    def named(self, node: int) -> Site:
        """The site of a ready node."""
        return self._ready[node]

    def of(self, answer: Answer) -> Site:
        """The site that an answer of a ready node comes from."""
        return self._ready[answer.node]

    def share(self, site: Site) -> float:
        """A site's weight: what it declares if all sites declare, else the same for all."""
        declared = all(other.weight > 0 for other in self._ready.values())
        return float(site.weight) if declared else 1.0

    def select(self, wanted: int, seconds: float) -> list[SiteRound]:
        """Ask every node what it can do; wait so long for there to be so many nodes.

        Returns:
            What came of it, by name.

        Raises:
            LoricaError: LOR-503 when too few are able.
        """
        deadline = time.monotonic() + seconds
        answers = {site.site: site for site in self.ask()}
        while time.monotonic() < deadline and (
            len(self._tries) < wanted or (self._awaiting and len(self._ready) < wanted)
        ):
            self.check_stop()
            time.sleep(_NODE_POLL_SECONDS)
            answers |= {site.site: site for site in self.ask()}
        found = sorted(answers.values(), key=lambda site: site.site)
        self.enough(found, "Before the first round")
        return found

    def ask(self, tries: int = 1) -> list[SiteRound]:
        """Ask nodes what they can do; the able ones become ready.

        Nodes that are ready or refused are not asked again, others until they were asked
        ``tries`` times: whoever was late or failed may have mended. Sites where a person has yet to
        approve the run are asked again and again.
        """
        settled = self._ready.keys() | self._refused
        online = set(self._grid.get_node_ids())
        nodes = sorted(node for node in online - settled if self._due(node, tries))
        if not nodes:
            return []
        self._tries.update(nodes)
        return [self._admit(answer) for answer in self.exchange(nodes, CAPABILITIES, 0)]

    def _due(self, node: int, tries: int) -> bool:
        if node in self._awaiting:
            return time.monotonic() - self._awaiting[node] > _AWAIT_SECONDS
        return self._tries[node] < tries

    def exchange(
        self,
        nodes: list[int],
        kind: Kind,
        round: int,
        blob: bytes = b"",
        sealed: Mapping[int, bytes] | None = None,
    ) -> Iterator[Answer]:
        """Ask all ``nodes``, signed when there is a key: the same, but for what each is asked for
        in a sealed sum."""
        packed: dict[bytes, RecordDict] = {}

        def asked(what: bytes) -> RecordDict:
            if what not in packed:
                request = Request(self._plan, self._run, round, blob, sealed=what)
                packed[what] = pack_request(self._key.sign(request, kind) if self._key else request)
            return packed[what]

        def content_of(node: int) -> RecordDict:
            site = self._ready.get(node)
            head = self._heads.newest(site.name) if site else ""
            return with_head(asked(sealed[node] if sealed else b""), head)

        return exchange(
            self._grid,
            nodes,
            asked(b"") if sealed is None else RecordDict(),
            kind,
            content_of=content_of,
            timeout=self._plan.rounds.timeout_seconds,
            group=str(round),
            reconnect=self._plan.rounds.reconnect_seconds,
            unavailable=self._unavailable,
            stop=self.check_stop,
        )

    def check_stop(self) -> None:
        """Raise LOR-743 when an operator wants the run to end."""
        if self._stop():
            raise LoricaError(Code.RUN_STOPPED, "An operator stopped the run.")

    @staticmethod
    def _unavailable(content: RecordDict) -> bool:
        """Whether a site says that its trainer cannot be reached for the moment."""
        record = content.config_records.get("lorica")
        reason = str(record.get("reason", "")) if record is not None else ""
        return reason.startswith(_PASSING)

    def reply(self, answer: Answer, round: int) -> Reply:
        """The reply in an answer.

        Raises:
            Unanswered: there is none that holds what was asked for.
            LoricaError: LOR-501, LOR-104 it cannot be read, or belongs to something else.
        """
        if answer.kind == "late":
            seconds = self._plan.rounds.timeout_seconds
            raise Unanswered(
                "late", f"{Code.SITE_SILENT.value}: no answer within {seconds:g} seconds"
            )
        if answer.kind == "error" or answer.content is None:
            raise Unanswered("failed", f"the node answered with Flower's error {answer.error}")
        reply = unpack_reply(answer.content, fingerprint=self._plan.fingerprint, round=round)
        if reply.status == "refused":
            raise Unanswered("refused", reply.reason, reply.site)
        site = self._ready.get(answer.node)
        self._heads.keep(site.name if site else reply.site, reply.head)
        return reply

    def enough(self, sites: list[SiteRound], when: str, sufficient: int = 0) -> None:
        """Return if enough of these sites did what they were asked.

        Args:
            sites: what came of asking them.
            when: words for the message.
            sufficient: so many, if more than rounds.minimum_sites.

        Raises:
            LoricaError: LOR-503 with every other site's reason.
        """
        able = sum(site.status == "ok" for site in sites)
        wanted = max(self._plan.rounds.minimum_sites, sufficient)
        if able < wanted:
            reasons = "; ".join(f"{s.site}: {s.reason}" for s in sites if s.status != "ok")
            raise LoricaError(
                Code.TOO_FEW_SITES,
                f"{when}, {able} of {len(sites)} sites could take part and at least {wanted} must. "
                f"{reasons or 'No node is online.'}",
            )

    def _card(self, reply: Reply) -> Card:
        """How a site introduced itself for sealed sums; raises LOR-501, LOR-531."""
        card = Card.from_json(reply.sealed.decode("utf-8", "replace"))
        if card.name != reply.site or not card.genuine(self._run, self._plan.fingerprint):
            raise LoricaError(
                Code.ROSTER_INVALID, f"Site {reply.site} did not sign its key for this run."
            )
        return card

    def _admit(self, answer: Answer) -> SiteRound:
        unnamed = f"node {answer.node}"
        try:
            reply = self.reply(answer, 0)
            if not reply.site:
                raise LoricaError(Code.MESSAGE_MALFORMED, "A site gave no name.")
            if any(site.name == reply.site for site in self._ready.values()):
                raise LoricaError(
                    Code.MESSAGE_MALFORMED, f"Two nodes say that they are site {reply.site}."
                )
            card = self._card(reply) if self._plan.sealed else None
        except Unanswered as problem:
            unnamed = problem.site or unnamed
            self._awaiting.pop(answer.node, None)
            if problem.reason.startswith(Code.AWAITING_APPROVAL.value):
                self._awaiting[answer.node] = time.monotonic()
            elif problem.status == "refused":
                self._refused.add(answer.node)
            return SiteRound(unnamed, problem.status, problem.reason, seconds=answer.seconds)
        except LoricaError as error:
            return SiteRound(unnamed, "failed", shown(error), seconds=answer.seconds)
        self._awaiting.pop(answer.node, None)
        self._ready[answer.node] = Site(answer.node, reply.site, reply.weight, card)
        return SiteRound(
            reply.site,
            "ok",
            "",
            reply.weight,
            seconds=answer.seconds,
            version=reply.version,
            budget=reply.budget,
        )


def shown(error: LoricaError) -> str:
    """An error's text for records and screens; parts of it may come from a site."""
    return printable(str(error))[:_MOST_SHOWN]


class Unanswered(Exception):  # noqa: N818 - control flow between this module and the round loop
    """A site's answer that does not hold what was asked for."""

    def __init__(self, status: SiteStatus, reason: str, site: str = "") -> None:
        super().__init__(reason)
        self.status, self.reason, self.site = status, reason, site
