"""A site's sealed sums: whom it hides among, its keys of a run, and the answer before it is masked.

A sealed answer is charged, computed and stored like any other (:mod:`lorica.client.training.
trainer`); what is stored is the site's vector with its share of the noise, and it never leaves as
it is: what leaves is made of it anew for every request, and is the same every time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from lorica.client.mechanism.noise import NoiseSource
from lorica.client.secure_sum.grid_noise import GridNoise
from lorica.client.secure_sum.memory import KeptInMemory, SumMemory
from lorica.client.secure_sum.part import PartInSum
from lorica.client.secure_sum.peers import Peers
from lorica.common.adapter.state import unpack_state
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.plan.stages import returned
from lorica.common.privacy.sealed import (
    evaluation_grid,
    shared_noise,
    sum_terms,
    training_grid,
)
from lorica.common.privacy.shared_noise import SharedNoise
from lorica.common.secure_sum.grid import Grid
from lorica.common.secure_sum.identity import Identity
from lorica.common.secure_sum.keys import RunKeys
from lorica.common.secure_sum.messages import SumRequest
from lorica.common.secure_sum.one_sum import OneSum
from lorica.common.secure_sum.roster import Roster
from lorica.common.tasks.noised_metrics import sensitivity, vector_length
from lorica.common.wire.messages import EVALUATE, TRAIN, Kind, Reply, Request

GridOf = Callable[[int, int], Grid]
"""(values, sites) -> the grid of a sum."""

_RUNS_KEPT = 4


class Sealing:
    """What a site needs for sealed sums, over all runs."""

    def __init__(
        self,
        site: str,
        identity: Identity | None = None,
        *,
        peers: Peers | None = None,
        fewest_peers: int = 0,
        memory: SumMemory | None = None,
        stand_in: bool = False,
    ) -> None:
        """
        Args:
            site: its public name.
            identity: its signing key; that of ``peers`` when omitted. Without either it takes part
                in no sealed sum.
            peers: whom it knows; None knows everybody (simulations).
            fewest_peers: a sum needs so many of them, the site itself not counted.
            memory: what it said before; kept for this process's lifetime when omitted.
            stand_in: give vectors unmasked, for simulations that add them up in one process.
        """
        self._site, self._identity = site, identity
        self._memory = memory or KeptInMemory()
        self._peers, self._fewest, self._stand_in = peers, fewest_peers, stand_in
        self._keys: dict[tuple[str, str], RunKeys] = {}

    def card(self, request: Request) -> bytes:
        """How the site introduces itself to a run's others.

        Raises:
            LoricaError: LOR-532 it has no identity.
        """
        return self._keys_of(request).card.as_json().encode("ascii")

    def training(self, request: Request) -> SealedAnswer:
        """The sum that a request to train asks for, checked; of nothing yet.

        Raises:
            LoricaError: LOR-501 malformed, LOR-103 sites too few or too many for the plan,
                LOR-531 a roster that is not genuine, LOR-532 too few that the site knows.
        """
        plan, round = request.plan, request.round

        def grid_of(values: int, sites: int) -> Grid:
            return training_grid(plan, round, values, sites)

        def names() -> dict[str, int]:
            state = unpack_state(request.blob)
            return {name: state[name].numel() for name in sorted(returned(plan, round, state))}

        return self._asked(request, TRAIN, grid_of, names)

    def evaluation(self, request: Request) -> SealedAnswer:
        """The same of a request to evaluate."""
        plan = request.plan

        def grid_of(values: int, sites: int) -> Grid:
            return evaluation_grid(plan, values, sensitivity(plan), sites)

        return self._asked(request, EVALUATE, grid_of, lambda: {"counts": vector_length(plan)})

    def _asked(
        self, request: Request, kind: Kind, grid_of: GridOf, names: Callable[[], dict[str, int]]
    ) -> SealedAnswer:
        asked = SumRequest.from_bytes(request.sealed)
        roster = Roster.from_bytes(asked.roster)
        keys = self._keys_of(request)
        self._know(roster, request.plan)
        numbers = sum_terms(request.plan, len(roster))

        def part(grid: Grid) -> PartInSum:
            one = OneSum.of(
                roster,
                numbers,
                run=request.run,
                fingerprint=request.plan.fingerprint,
                round=request.round,
                kind=kind,
                values=grid.values,
                bits=grid.bits,
            )
            return PartInSum(one, keys, self._memory)

        return SealedAnswer(
            asked.opening,
            lambda values: grid_of(values, len(roster)),
            names,
            part,
            shared=shared_noise(request.plan, numbers),
            stand_in=self._stand_in,
        )

    def _know(self, roster: Roster, plan: RunPlan) -> None:
        """Return if the site knows enough of a roster's others."""
        if self._peers is None:
            return
        self._peers.meet(roster)
        known = [
            card.name
            for card in roster.cards
            if card.name != self._site and self._peers.knows(card.name, card.identity)
        ]
        wanted = max(self._fewest, plan.honest_sites - 1)
        if len(known) < wanted:
            raise LoricaError(
                Code.PEERS_UNCONFIRMED,
                f"{len(known)} of the {len(roster) - 1} other sites of the sum are among "
                f"policy.peers with the key they have; at least {wanted} must be.",
            )

    def _keys_of(self, request: Request) -> RunKeys:
        if self._identity is None and self._peers is not None:
            self._identity = self._peers.identity()
        if self._identity is None:
            raise LoricaError(
                Code.PEERS_UNCONFIRMED,
                "The site has no signing key of its own, which its peers could know it by.",
                mend="Open the site by its site.toml; `lorica site peers show` makes the key.",
            )
        key = request.run, request.plan.fingerprint
        if key not in self._keys:
            while len(self._keys) >= _RUNS_KEPT:
                del self._keys[next(iter(self._keys))]
            self._keys[key] = RunKeys(self._identity, *key, self._site)
        return self._keys[key]


class SealedAnswer:
    """A site's answer to one request of a sealed sum: to give its vector, or to open the sum."""

    def __init__(
        self,
        opening: bytes,
        grid_of: Callable[[int], Grid],
        names: Callable[[], dict[str, int]],
        part: Callable[[Grid], PartInSum],
        *,
        shared: SharedNoise,
        stand_in: bool,
    ) -> None:
        """Made by :class:`Sealing`.

        Args:
            opening: what it is asked to open the sum for; empty where it is asked for its vector.
            grid_of: of a number of values.
            names: numbers of values by tensor, in the vector's order.
            part: the site's part in the sum on a grid.
            shared: among how many sites the noise is shared.
            stand_in: whether the vector leaves as it is.
        """
        self._opening, self._grid_of, self._names, self._part = opening, grid_of, names, part
        self._stand_in = stand_in
        self.shared = shared
        """Among how many sites the noise is shared, for the ledger."""

    def begin(self) -> None:
        """Bind the round to this sum, before anything is charged or computed for it.

        Raises:
            LoricaError: LOR-531 the roster is not genuine, LOR-533 the round was given to another
                sum, or is to be opened without a vector; LOR-406 no grid; LOR-60x.
        """
        if self._opening:
            raise LoricaError(
                Code.SUM_UNKNOWN, "A sum is to be opened that this site gave no vector to."
            )
        self._part(self._grid()).begin()

    def vector(self, noise: NoiseSource, release: Callable[[GridNoise], object]) -> bytes:
        """The vector to store: what ``release`` does with a source of noise that is on the grid.

        Args:
            noise: where sampling and noise come from.
            release: runs the mechanism; for training it returns integers by tensor.
        """
        shared = GridNoise(noise, self._grid())
        found = release(shared)
        if not shared.whole:
            raise ValueError("A sealed sum was given other values than it has.")
        tensors = found if isinstance(found, dict) else {"counts": shared.released[0]}
        parts = [tensors[name].numpy().ravel() for name in self._names()]
        return np.concatenate(parts).astype("<i8").tobytes()

    def leaving(self, stored: Reply) -> Reply:
        """What leaves: the stored reply with its vector masked, or with what opens the sum.

        Raises:
            LoricaError: as of :class:`~lorica.client.secure_sum.part.PartInSum`.
        """
        if stored.status == "refused" or self._stand_in:
            return stored
        vector = np.frombuffer(stored.sealed, dtype="<i8").astype(np.int64)
        part = self._part(self._grid_of(len(vector)))
        content = part.open(vector, self._opening) if self._opening else part.mask(vector)
        return replace(stored, sealed=content)

    def _grid(self) -> Grid:
        return self._grid_of(sum(self._names().values()))
