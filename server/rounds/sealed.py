"""One sealed sum over the sites that take part: two exchanges, or three where a site dropped out.

First every site is asked for its masked vector. Who answered is noted in the run's folder before
anything more is asked, so that a coordinator that is killed goes on with the same survivors: sites
open the sum over one set alone. Then survivors are asked for what opens it; where not everybody
survived, for their signatures first.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from lorica.common.adapter.state import State
from lorica.common.errors import LoricaError
from lorica.common.plan import RunPlan
from lorica.common.privacy.sealed import sum_terms
from lorica.common.secure_sum.grid import Grid
from lorica.common.secure_sum.messages import SumRequest
from lorica.common.secure_sum.one_sum import OneSum
from lorica.common.secure_sum.roster import Card, Roster
from lorica.common.wire.messages import Kind
from lorica.server.results.folder import RunFolder
from lorica.server.results.round import SiteRound
from lorica.server.rounds.sites import Sites, Unanswered, shown
from lorica.server.secure_sum.collector import SumCollector
from lorica.server.secure_sum.stand_in import StandIn

_log = logging.getLogger("lorica.coordinator")

_OPENINGS = 3  # exchanges after the first: agreement, opening, and one more where a site came back


@dataclass(frozen=True)
class SealedSum:
    """What came of it."""

    values: npt.NDArray[np.float64]
    """The sum over the survivors, with its noise, shape (d,), in its own units."""
    sites: list[SiteRound]
    """What every site did."""
    survivors: int
    """How many sites are in it."""
    shares: float
    """The variance of its noise, in units of that which the plan promises."""
    units: float
    """What the survivors declare, added up."""


class SealedSums:
    """Makes a run's sealed sums."""

    def __init__(
        self,
        sites: Sites,
        plan: RunPlan,
        folder: RunFolder,
        run: str,
        *,
        heard: Callable[[int, SiteRound], None],
        stand_in: bool = False,
    ) -> None:
        """
        Args:
            sites: who takes part.
            plan: the run.
            folder: where it is noted who is in a sum.
            run: Lorica's run id.
            heard: is told of every site's answer in a round.
            stand_in: sites give their vectors as they are (simulations of many sites).
        """
        self._sites, self._plan, self._folder, self._run = sites, plan, folder, run
        self._heard, self._stand_in = heard, stand_in

    def make(
        self, kind: Kind, round: int, blob: bytes, grid_of: Callable[[int], Grid]
    ) -> SealedSum:
        """The sum of a round over the sites that are ready.

        Args:
            kind: what is summed.
            round: its number.
            blob: what the sites need of the global state.
            grid_of: of a number of sites.

        Raises:
            LoricaError: LOR-503 fewer sites than the threshold answered, LOR-536 the sum could not
                be opened; the run can be resumed, and asks for the same again.
        """
        noted = self._folder.begun_sum(round, kind)
        cards = [self._sites.named(node).card for node in self._sites.ready]
        roster = Roster.of([card for card in cards if card is not None])
        if noted:
            roster = Roster.of([Card(*fields) for fields in noted["roster"]])
        numbers = sum_terms(self._plan, len(roster))
        grid = grid_of(len(roster))
        one = OneSum.of(
            roster,
            numbers,
            run=self._run,
            fingerprint=self._plan.fingerprint,
            round=round,
            kind=kind,
            values=grid.values,
            bits=grid.bits,
        )
        survivors = noted["survivors"] if noted else None
        collector = StandIn(one) if self._stand_in else SumCollector(one, survivors)
        self._note(one, kind, survivors)
        nodes = {
            roster.positions[name]: node
            for node in self._sites.ready
            if (name := self._sites.named(node).name) in roster.positions
        }
        asked = {p: n for p, n in nodes.items() if survivors is None or p in survivors}
        found = self._collect(collector, one, kind, round, blob, asked)
        self._sites.enough(found, f"Round {round}", numbers.threshold)
        fixed = collector.fix()
        self._note(one, kind, sorted(fixed))
        self._open(collector, one, kind, round, {p: n for p, n in nodes.items() if p in fixed})
        names = {roster.cards[position].name for position in fixed}
        return SealedSum(
            grid.reals(collector.open()),
            found,
            len(fixed),
            len(fixed) / grid.honest,
            sum(site.weight for site in found if site.site in names),
        )

    def _collect(
        self,
        collector: SumCollector | StandIn,
        one: OneSum,
        kind: Kind,
        round: int,
        blob: bytes,
        nodes: Mapping[int, int],
    ) -> list[SiteRound]:
        """Ask for masked vectors; what came of it, by site."""
        position = {node: p for p, node in nodes.items()}
        request = SumRequest(one.roster.as_bytes()).to_bytes()
        found = []
        asked = dict.fromkeys(position, request)
        for answer in self._sites.exchange(list(position), kind, round, blob, asked):
            site = self._sites.of(answer)
            outcome = SiteRound(site.name, "ok", "", site.weight, seconds=answer.seconds)
            try:
                reply = self._sites.reply(answer, round, kind)
                collector.add(position[answer.node], reply.sealed)
                outcome = replace(outcome, bytes_up=len(reply.sealed))
            except Unanswered as problem:
                outcome = replace(outcome, status=problem.status, reason=problem.reason, weight=0)
            except LoricaError as error:
                outcome = replace(outcome, status="failed", reason=shown(error), weight=0)
            found.append(outcome)
            self._heard(round, outcome)
        return found

    def _open(
        self,
        collector: SumCollector | StandIn,
        one: OneSum,
        kind: Kind,
        round: int,
        nodes: Mapping[int, int],
    ) -> None:
        """Ask survivors for what opens the sum, until it does."""
        roster = one.roster.as_bytes()
        position = {node: p for p, node in nodes.items()}
        for _ in range(_OPENINGS):
            if collector.openable:
                return
            openings = collector.openings()
            asked = {
                node: SumRequest(roster, openings[p]).to_bytes() for node, p in position.items()
            }
            agreeing = collector.asks_agreement
            for answer in self._sites.exchange(list(asked), kind, round, b"", asked):
                name = self._sites.of(answer).name
                try:
                    reply = self._sites.reply(answer, round, kind)
                    collector.take(position[answer.node], reply.sealed)
                except (Unanswered, LoricaError) as problem:
                    _log.warning("%s does not open round %d's sum: %s", name, round, problem)
                enough = not collector.asks_agreement if agreeing else collector.openable
                if enough:
                    break

    def _note(self, one: OneSum, kind: Kind, survivors: list[int] | None) -> None:
        roster = [[c.name, c.identity, c.key, c.signature] for c in one.roster.cards]
        self._folder.note_sum(one.context.round, kind, {"roster": roster, "survivors": survivors})


def split(values: npt.NDArray[np.float64], shapes: Mapping[str, torch.Size]) -> State:
    """A sum's values as tensors of these shapes, float32, in their order."""
    sizes = [shape.numel() for shape in shapes.values()]
    parts = torch.from_numpy(values).float().split(sizes)
    return {
        name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)
    }
