"""A coordinator that lies about who survived, and the sites that collude with it.

*Design.* Real sites (:class:`~lorica.client.training.trainer.LocalTrainer`) give their masked
vectors to a sum over n sites with threshold t; c = t - h of the sites are the attacker's own: it
has their keys, signs with them whatever it likes, and reads all that was sent to them. Then
it tells its lie, in every order that it could hope for, and again with all signatures that it got
from anybody:

- *two sets*: it tells some sites that everybody survived, for shares of self masks, and others
  that one site dropped out, for the keys of that site's pairwise masks;
- *one alone*: it tells every site that it alone survived, or it and the colluders;
- *a replayed stage*: it asks for a round's vector a second time with another roster, replays what
  a site was asked in an earlier round, and brings signatures from there for another set.

*What would be a leak.* The attacker puts together every share and key that it ever got. A set A of
honest sites *opens* if it has the self masks of A and all pairwise masks between A and others
(those within A cancel). By the claim (:mod:`lorica.common.secure_sum.terms`) one set at most
opens, and with all honest members of a set of t survivors, so h of them or more. Every set that
opens is unmasked and compared with the sum of the vectors that the sites' ledgers stored: an
opened set is no matter of counting shares. *Passed*: there were refusals, each with a code of
sealed sums; no other set opened; and a question that came again got the same bytes.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from lorica.client.ledger import MemoryLedger
from lorica.client.secure_sum.memory import KeptInMemory
from lorica.client.secure_sum.part import PartInSum
from lorica.client.training.replies import unpacked_from
from lorica.client.training.trainer import LocalTrainer
from lorica.common.adapter.state import pack_state
from lorica.common.data.records import Records
from lorica.common.errors import Code, LoricaError
from lorica.common.plan.stages import returned, sent
from lorica.common.privacy.sealed import sum_terms, training_grid
from lorica.common.secure_sum.identity import Identity
from lorica.common.secure_sum.keys import RunKeys
from lorica.common.secure_sum.masks import add_mask, centred, mask_key, unpack
from lorica.common.secure_sum.messages import (
    Agreed,
    Masked,
    Opening,
    SumRequest,
    second_from_bytes,
    survivors_statement,
)
from lorica.common.secure_sum.one_sum import OneSum
from lorica.common.secure_sum.roster import Card, Roster
from lorica.common.secure_sum.shamir import (
    ELEMENT_BYTES,
    element_from_bytes,
    element_to_bytes,
    secret,
)
from lorica.common.wire.messages import TRAIN, Request
from lorica.simulations.audit.evidence.findings import Check
from lorica.simulations.audit.watched.subject import Subject
from lorica.simulations.audit.watched.sums import sealing_of

Set = frozenset[int]

_SITES, _HONEST = 4, 2  # t = 3: one site may drop out, and one colludes
_RECORDS = 40  # of each site: what is attacked is the protocol, not its statistics
_REFUSALS = (
    Code.SUM_UNKNOWN,
    Code.SURVIVORS_REFUSED,
    Code.PRIVACY_BUDGET,  # of a round before the newest: its stored answer is gone
)
_ROUNDS = 2


def lying_audit(subject: Subject) -> list[Check]:
    """Tell every lie to sites that hold some of the subject's records.

    Args:
        subject: gives plan, backbone, start and records.

    Returns:
        A check for each lie.
    """
    return [lie_told(subject, name, lie) for name, lie in LIES.items()]


def lie_told(subject: Subject, name: str, lie: Callable[[_Liar], None]) -> Check:
    """Tell one lie in a run of its own, and see what opens."""
    liar = _Liar(subject, f"audit-lie-{name.replace(' ', '-')}")
    lie(liar)
    told = Counter(code.value for code in liar.refusals)
    said = ", ".join(f"{code} {times} times" for code, times in sorted(told.items()))
    detail = f"{liar.asked} questions, {len(liar.refusals)} refused ({said or 'none'})"
    leaks = liar.differing + [leak for found in liar.sums.values() for leak in found.leaks()]
    strange = sorted(told.keys() - {code.value for code in _REFUSALS})
    if leaks:
        detail += f"; got {'; '.join(leaks)}."
    elif strange:
        detail += f"; {', '.join(strange)} is no refusal of a lie."
    elif not told:
        detail += "; no site saw a lie."
    else:
        detail += "; no vector unmasked, and no second sum"
    return Check(f"lying about survivors, {name}", not leaks and not strange and bool(told), detail)


class _Liar:
    """The coordinator, its confederates, and all it was ever told in a run."""

    def __init__(self, subject: Subject, run: str) -> None:
        self.run, self._start = run, subject.start
        self.plan = subject.plan.replace(
            privacy={"honest_sites": _HONEST},
            rounds={"minimum_sites": _HONEST, "count": max(_ROUNDS, subject.plan.rounds.count)},
            simulation={"sites": _SITES, "sealing": "protocol"},
        )
        numbers = sum_terms(self.plan, _SITES)
        self.honest = list(range(_SITES - numbers.colluders))
        self.colluding = list(range(_SITES - numbers.colluders, _SITES))
        self.everybody: Set = frozenset(range(_SITES))
        self._ledgers = [
            MemoryLedger(self.plan.privacy.delta, unit=self.plan.privacy.unit) for _ in self.honest
        ]
        self._trainers = [
            LocalTrainer(
                f"site {number}",
                _some(subject.records, number),
                noise=subject.noise_of(f"site {number}"),
                ledger=self._ledgers[number],
                sealing=sealing_of(subject, f"site {number}"),
            )
            for number in self.honest
        ]
        self._own = {
            number: RunKeys(
                Identity.from_seed(bytes([number]) * 32),
                run,
                self.plan.fingerprint,
                f"site {number}",
            )
            for number in self.colluding
        }
        asked = Request(self.plan, run)
        cards = [
            Card.from_json(trainer.capabilities(asked).sealed.decode())
            for trainer in self._trainers
        ]
        self.cards = [*cards, *(keys.card for keys in self._own.values())]
        self.asked = 0
        """Questions about survivors, and vectors asked for again."""
        self.refusals: list[Code] = []
        self.sums: dict[int, _Sum] = {}
        """Round -> what the attacker has of its sum."""
        self.differing: list[str] = []
        """Sites whose answer to the same question was another one."""

    def begin(self, round: int) -> _Sum:
        """Ask every site for its vector, as an honest coordinator does."""
        one = self._one(round, Roster.of(self.cards))
        found = _Sum(one, self.honest)
        self.sums[round] = found
        for number in self.honest:
            reply = self._trainers[number].train(self._request(round, one.roster, b""))
            found.masked[number] = found.read(reply.sealed)
            ledger = self._ledgers[number]
            stored = ledger.stored(self.run, round, TRAIN, fingerprint=self.plan.fingerprint)
            assert stored is not None
            kept = unpacked_from(ledger, stored).sealed
            found.true[number] = np.frombuffer(kept, dtype="<i8").astype(np.int64)
        for number in self.colluding:
            found.true[number] = np.zeros(one.context.values, dtype=np.int64)
            part = PartInSum(one, self._own[number], KeptInMemory())
            found.masked[number] = found.read(part.mask(found.true[number]))
            found.collude(number, self._own[number])
        return found

    def again(self, round: int) -> None:
        """Ask honest sites for a round's vector once more, and for a sum of fewer sites."""
        found = self.sums[round]
        fewer = Roster.of([self.cards[number] for number in self.honest])
        for number in self.honest:
            same = self._heard(number, self._request(round, found.one.roster, b""))
            if same is not None and found.masked[number] != found.read(same):
                self.differing.append(f"two masked vectors of site {number}")
            self._heard(number, self._request(round, fewer, b""))

    def tell(self, round: int, lies: Iterable[tuple[int, Set]]) -> None:
        """Tell sites who survived a round; twice, the second time with all that was signed."""
        found, lies = self.sums[round], list(lies)
        for _ in range(2):
            for number, survivors in lies:
                self.ask(round, number, found.opening(number, survivors))
                signed = found.signatures[survivors]
                if signed:
                    self.ask(round, number, found.opening(number, survivors, signed))

    def ask(self, round: int, number: int, opening: Opening) -> None:
        """Put a question to an honest site, and keep what it answers."""
        found = self.sums[round]
        request = self._request(round, found.one.roster, opening.to_bytes(_SITES))
        answer = self._heard(number, request)
        if answer is not None:
            found.second(number, opening.survivors, answer)

    def sign(self, round: int, *sets: Set) -> None:
        """Colluding sites sign every set."""
        found = self.sums[round]
        for survivors in sets:
            statement = survivors_statement(found.one.digest, survivors, _SITES)
            for number in self.colluding:
                found.signatures[survivors][number] = self._own[number].identity.sign(statement)

    def _heard(self, number: int, request: Request) -> bytes | None:
        self.asked += 1
        try:
            return self._trainers[number].train(request).sealed
        except LoricaError as error:
            self.refusals.append(error.code)
            return None

    def _request(self, round: int, roster: Roster, opening: bytes) -> Request:
        blob = pack_state({n: self._start[n] for n in sent(self.plan, round, self._start)})
        asked = SumRequest(roster.as_bytes(), opening).to_bytes()
        return Request(self.plan, self.run, round, blob, sealed=asked)

    def _one(self, round: int, roster: Roster) -> OneSum:
        names = returned(self.plan, round, self._start)
        values = sum(self._start[name].numel() for name in names)
        grid = training_grid(self.plan, round, values, len(roster))
        return OneSum.of(
            roster,
            sum_terms(self.plan, len(roster)),
            run=self.run,
            fingerprint=self.plan.fingerprint,
            round=round,
            kind=TRAIN,
            values=grid.values,
            bits=grid.bits,
        )


class _Sum:
    """All that the attacker has of one sum."""

    def __init__(self, one: OneSum, honest: Sequence[int]) -> None:
        """
        Args:
            one: the sum.
            honest: positions of those whose vectors are none of the attacker's.
        """
        self.one, self._honest = one, honest
        self.masked: dict[int, Masked] = {}
        self.true: dict[int, npt.NDArray[np.int64]] = {}
        """What the sites' ledgers stored: not the attacker's knowledge, to compare with."""
        self.signatures: defaultdict[Set, dict[int, bytes]] = defaultdict(dict)
        self._shares: defaultdict[int, dict[int, bytes]] = defaultdict(dict)
        self._pairs: dict[Set, bytes] = {}
        self._spare: defaultdict[Set, dict[int, bytes]] = defaultdict(dict)

    def read(self, content: bytes) -> Masked:
        """A site's first message."""
        one = self.one
        neighbours = one.terms.neighbours
        return Masked.from_bytes(content, neighbours=neighbours, vector_bytes=one.vector_bytes)

    def opening(
        self, number: int, survivors: Set, signatures: Mapping[int, bytes] | None = None
    ) -> Opening:
        """A question to a site, with all of its parcels that it may ask about."""
        parcels = {
            other: self.masked[other].promises[number].parcel
            for other in self.one.graph.of(number)
            if other in survivors
        }
        return Opening(self.one.digest, survivors, signatures or {}, parcels)

    def second(self, number: int, survivors: Set, content: bytes) -> None:
        """Keep a site's second message."""
        reply = second_from_bytes(content)
        if isinstance(reply, Agreed):
            self.signatures[survivors][number] = reply.signature
            return
        for dealer, share in reply.shares.items():
            self._shares[dealer][number] = share
        for other, found in reply.pairs.items():
            self._pairs[frozenset((number, other))] = found
        for pair, share in reply.spare.items():
            self._spare[frozenset(pair)][number] = share

    def collude(self, number: int, keys: RunKeys) -> None:
        """All that a colluding site has: its pairs' keys, and every share in its parcels."""
        one = self.one
        for other in one.graph.of(number):
            card, parcel = one.roster.cards[other], self.masked[other].promises[number].parcel
            self._pairs[frozenset((number, other))] = keys.pair(one.digest, card)
            key = ChaCha20Poly1305(keys.parcel(one.digest, card, sends=False))
            content = key.decrypt(parcel.nonce, parcel.sealed, one.digest)
            places = range(0, len(content), ELEMENT_BYTES)
            own, *spare = [content[place : place + ELEMENT_BYTES] for place in places]
            self._shares[other][number] = own
            for third, share in zip(one.graph.of(other), spare, strict=True):
                self._spare[frozenset((other, third))][number] = share

    def leaks(self) -> list[str]:
        """Every set of honest sites whose sum the attacker has and must not have, in words."""
        sets = itertools.chain.from_iterable(
            itertools.combinations(self._honest, size) for size in range(1, len(self._honest) + 1)
        )
        opened = [chosen for chosen in sets if self._opens(frozenset(chosen))]
        small = [chosen for chosen in opened if len(chosen) < self.one.terms.honest]
        if len(opened) <= 1 and not small:
            return []
        return [
            f"the vector of site {chosen[0]} in round {self.one.context.round}"
            if len(chosen) == 1
            else f"the sum over sites {', '.join(map(str, chosen))} alone"
            for chosen in opened
        ]

    def _opens(self, chosen: Set) -> bool:
        """Whether the masks that are left on the set's sum are all known; tried, not counted."""
        one, bits = self.one, self.one.context.bits
        total = np.zeros(one.context.values, dtype=np.uint64)
        for number in sorted(chosen):
            total += unpack(self.masked[number].vector, one.context.values, bits)
            own = self._secret(self._shares[number])
            if own is None:
                return False
            add_mask(total, mask_key(one.digest, own), -1)
            for other in sorted(set(one.graph.of(number)) - chosen):
                pair = frozenset((number, other))
                found = self._pairs.get(pair) or self._secret(self._spare[pair])
                if found is None:
                    return False
                add_mask(total, mask_key(one.digest, found), -1 if number < other else +1)
        true = np.sum([self.true[number] for number in chosen], axis=0).view(np.uint64)
        return bool(np.array_equal(centred(total, bits), centred(true, bits)))

    def _secret(self, shares: Mapping[int, bytes]) -> bytes | None:
        chosen = list(shares.items())[: self.one.terms.shares]
        if len(chosen) < self.one.terms.shares:
            return None
        return element_to_bytes(secret({h + 1: element_from_bytes(s) for h, s in chosen}))


def _two_sets(liar: _Liar) -> None:
    everybody = liar.everybody
    without = [everybody - {number} for number in liar.honest]
    orders: list[list[tuple[int, Set]]] = [
        [  # every site hears of another set first
            *((0, everybody), (0, without[1]), (1, without[0]), (1, everybody)),
            *((2, everybody), (2, without[0]), (2, without[1])),
        ],
        [  # a set that they can agree to, then everybody
            *((1, without[0]), (2, without[0])),
            *((0, everybody), (1, everybody), (2, everybody)),
            *((0, without[0]), (0, without[1]), (2, without[1])),
        ],
    ]
    for round, lies in enumerate(orders, start=1):
        liar.begin(round)
        liar.sign(round, *without)
        liar.tell(round, lies)


def _one_alone(liar: _Liar) -> None:
    liar.begin(1)
    confederates = frozenset(liar.colluding)
    alone = [(number, frozenset({number})) for number in liar.honest]
    sets = [*alone, *((number, only | confederates) for number, only in alone)]
    liar.sign(1, *(survivors for _, survivors in sets))
    liar.tell(1, [*sets, *((number, liar.everybody) for number in liar.honest), *sets])


def _replayed(liar: _Liar) -> None:
    gone = liar.everybody - {0}
    first = liar.begin(1)
    liar.sign(1, gone)
    liar.tell(1, [(1, gone), (2, gone)])  # as if site 0 had dropped out: an honest round
    second = liar.begin(2)
    liar.sign(2, gone)
    liar.again(2)
    for number in liar.honest:
        liar.ask(2, number, first.opening(number, gone, first.signatures[gone]))
    liar.tell(2, [(0, liar.everybody), (1, liar.everybody)])
    for number in (2, 1):
        liar.ask(2, number, second.opening(number, gone, first.signatures[gone]))
    liar.tell(2, [(2, gone), (1, gone), (2, liar.everybody)])
    liar.again(1)


LIES: Mapping[str, Callable[[_Liar], None]] = {
    "two sets of them": _two_sets,
    "one site alone": _one_alone,
    "a replayed stage": _replayed,
}


def _some(records: Records, number: int) -> Records:
    """Some of the records, others for every number."""
    rows = np.arange(number, len(records), _SITES)[:_RECORDS]
    return records.take(rows.tolist())
