"""The sites of a run: who takes part, what they are asked, what they answer."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

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
    refusal_code,
    require_answer,
    unpack_reply,
    with_head,
)
from lorica.common.wire.sealing import verify_reply
from lorica.common.wire.signing import CoordinatorKey
from lorica.server.results.round import SiteRound, SiteStatus
from lorica.server.rounds.direct import DirectGrid, exchange_directly
from lorica.server.rounds.exchange import Answer, exchange
from lorica.server.rounds.heads import Heads
from lorica.server.rounds.known import MOST_UNITS, Directory, KnownSite
from lorica.server.rounds.selection import Selection, select

_NODE_POLL_SECONDS = 1.0
_MOST_SHOWN = 500
_AWAIT_SECONDS = 5.0  # before a site that waits for a person is asked again
_PASSING = frozenset(
    {Code.TRAINER_DOWN.value, Code.TRAINER_BUSY.value, Code.REQUEST_REPLAYED.value}
)
"""Codes of refusals that pass by themselves: a request whose answer was lost is signed anew."""


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
        directory: Directory | None = None,
        most_units: int = MOST_UNITS,
    ) -> None:
        """
        Args:
            grid: Flower's grid.
            plan: the run's.
            run: Lorica's run id.
            key: signs every request; None sends them unsigned, which sites may refuse.
            stop: whether an operator wants the run to end; asked between polls.
            heads: the newest head of every site's ledger; None keeps them for this run alone.
            directory: binds nodes to registered sites, whose replies must be signed; None takes
                every site's word for its name (simulations).
            most_units: a site that declares more takes no part.
        """
        self._heads = heads or Heads(None)
        self._directory, self._most_units = directory, most_units
        self._known: dict[int, KnownSite] = {}
        self._called: dict[int, str] = {}  # node -> how it calls itself, where no register says
        self._sent: dict[int, list[Request]] = {}  # node -> what it was sent in this exchange
        self._grid, self._plan, self._run, self._key = grid, plan, run, key
        self._stop = stop
        self._tries: Counter[int] = Counter()
        self._refused: set[int] = set()
        self._awaiting: dict[int, float] = {}  # node -> when it was asked last
        self._ready: dict[int, Site] = {}
        self._names: set[str] = set()  # of ready sites
        self._declared = True  # whether all of them declare their units

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
        return float(site.weight) if self._declared else 1.0

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
        if self._directory is not None:
            self._known |= self._directory.sites()  # who is offline now may yet answer
            strangers = [node for node in nodes if node not in self._known]
            nodes = [node for node in nodes if node in self._known]
            unknown = [self._stranger(node) for node in strangers]
        else:
            unknown = []
        found, renamed = [], []
        for answer in self.exchange(nodes, CAPABILITIES, 0):
            if self._calls_itself_otherwise(answer):
                renamed.append(answer.node)
            else:
                found.append(self._admit(answer))
        found += [self._admit(answer) for answer in self.exchange(renamed, CAPABILITIES, 0)]
        return found + unknown

    def _stranger(self, node: int) -> SiteRound:
        """A node whose key is no admitted site's is asked nothing."""
        return SiteRound(f"node {node}", "failed", Code.SITE_UNKNOWN.public_reason)

    def _calls_itself_otherwise(self, answer: Answer) -> bool:
        """Whether a site refused because the request did not name it, and what it calls itself is
        news: without a register that is the only way to learn a name to sign for."""
        if self._directory is not None or self._key is None or answer.content is None:
            return False
        if refusal_code(answer.content) != Code.REQUEST_MISADDRESSED.value:
            return False
        fields = answer.content.config_records.get("lorica", {})
        name = str(fields.get("site", ""))
        if not name or self._called.get(answer.node) == name:
            return False
        self._called[answer.node] = name
        return True

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
        """Ask all ``nodes``, signed for each when there is a key: the same, but for what each is
        asked for in a sealed sum."""
        self._sent = {}
        if self._key is None and isinstance(self._grid, DirectGrid):
            asked: dict[bytes, Request] = {}

            def request_to(node: int) -> Request:
                what = sealed[node] if sealed else b""
                if what not in asked:
                    asked[what] = Request(self._plan, self._run, round, blob, sealed=what)
                return asked[what]

            return exchange_directly(self._grid, nodes, request_to, kind, self.check_stop)
        unsigned: dict[bytes, RecordDict] = {}

        def content(node: int) -> RecordDict:
            what, name = sealed[node] if sealed else b"", self._name(node)
            request = Request(self._plan, self._run, round, blob, sealed=what)
            if self._key is not None:
                request = self._key.sign(replace(request, site=name), kind)
            self._sent.setdefault(node, []).append(request)
            if self._key is not None:
                return with_head(pack_request(request), self._heads.newest(name))
            if what not in unsigned:
                unsigned[what] = pack_request(request)
            return with_head(unsigned[what], self._heads.newest(name))

        return exchange(
            self._grid,
            nodes,
            content,
            kind,
            timeout=self._plan.rounds.timeout_seconds,
            group=str(round),
            reconnect=self._plan.rounds.reconnect_seconds,
            unavailable=self._unavailable,
            stop=self.check_stop,
        )

    def _name(self, node: int) -> str:
        """The site that a request to a node is for; empty before its name is known."""
        if node in self._known:
            return self._known[node].name
        return self._ready[node].name if node in self._ready else self._called.get(node, "")

    def check_stop(self) -> None:
        """Raise LOR-743 when an operator wants the run to end."""
        if self._stop():
            raise LoricaError(Code.RUN_STOPPED, "An operator stopped the run.")

    @staticmethod
    def _unavailable(content: RecordDict) -> bool:
        """Whether a site says that its trainer cannot be reached for the moment."""
        return refusal_code(content) in _PASSING

    def reply(self, answer: Answer, round: int, kind: Kind) -> Reply:
        """The reply in an answer; of a registered site one that it signed, or a refusal.

        Raises:
            Unanswered: there is none that holds what was asked for.
            LoricaError: LOR-501, LOR-104 it cannot be read, or belongs to something else; LOR-514
                it is not the registered site's.
        """
        if answer.kind == "late":
            seconds = self._plan.rounds.timeout_seconds
            raise Unanswered(
                "late", f"{Code.SITE_SILENT.value}: no answer within {seconds:g} seconds"
            )
        fingerprint = self._plan.fingerprint
        if answer.reply is not None:
            reply = require_answer(answer.reply, fingerprint=fingerprint, round=round)
        elif answer.kind == "error" or answer.content is None:
            raise Unanswered("failed", f"the node answered with Flower's error {answer.error}")
        else:
            reply = unpack_reply(answer.content, fingerprint=fingerprint, round=round)
        known = self._known.get(answer.node)
        if known is None and self._directory is not None:
            raise LoricaError(
                Code.REPLY_FORGED, f"Node {answer.node} holds no admitted site's key."
            )
        if known is not None:
            if reply.status == "ok" or reply.signature:
                if answer.content is None:
                    raise LoricaError(
                        Code.REPLY_FORGED, "A registered site's reply did not travel."
                    )
                verify_reply(answer.content, self._sent[answer.node], kind, known.public_key)
            if reply.status == "ok" and reply.site != known.name:
                raise LoricaError(
                    Code.REPLY_FORGED,
                    f"The registered site {known.name} calls itself {reply.site!r:.70}.",
                )
            reply = replace(reply, site=known.name)
        if reply.status == "refused":
            raise Unanswered("refused", reply.reason, reply.site, reply.code)
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
        unnamed = self._name(answer.node) if self._known else f"node {answer.node}"
        try:
            reply = self.reply(answer, 0, CAPABILITIES)
            if not reply.site:
                raise LoricaError(Code.MESSAGE_MALFORMED, "A site gave no name.")
            if reply.site in self._names:
                raise LoricaError(
                    Code.MESSAGE_MALFORMED, f"Two nodes say that they are site {reply.site}."
                )
            if reply.weight > self._most_units:
                raise LoricaError(
                    Code.SITE_TOO_LARGE,
                    f"Site {reply.site} declares {reply.weight:,} units; at most "
                    f"{self._most_units:,} are believed.",
                )
            card = self._card(reply) if self._plan.sealed else None
        except Unanswered as problem:
            unnamed = problem.site or unnamed
            self._awaiting.pop(answer.node, None)
            if problem.code == Code.AWAITING_APPROVAL.value:
                self._awaiting[answer.node] = time.monotonic()
            elif problem.status == "refused":
                self._refused.add(answer.node)
            return SiteRound(unnamed, problem.status, problem.reason, seconds=answer.seconds)
        except LoricaError as error:
            return SiteRound(unnamed, "failed", shown(error), seconds=answer.seconds)
        self._awaiting.pop(answer.node, None)
        self._ready[answer.node] = Site(answer.node, reply.site, reply.weight, card)
        self._names.add(reply.site)
        self._declared = self._declared and reply.weight > 0
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

    def __init__(self, status: SiteStatus, reason: str, site: str = "", code: str = "") -> None:
        super().__init__(reason)
        self.status, self.reason, self.site, self.code = status, reason, site, code
