"""How many sites must be honest, must answer, share secrets with whom: the numbers of a sum.

With n sites in a sum, of which any h honest ones give the noise that the plan promises, the site
insists on a threshold of t survivors. Then

- up to D = n - t sites may drop out,
- up to c = t - h may collude with the coordinator, and a sum over t survivors still holds the noise
  of h honest ones,
- 2t > n + c, so that no two sets of survivors can both be agreed to by t sites: honest sites agree
  to one set each, and colluders to as many as they like.

Formal statement (n <= :data:`COMPLETE`, where everybody shares with everybody):
    Whatever the coordinator and c sites do, they learn of honest sites' vectors nothing but one sum
    over all honest members of one set S of at least t sites, hence over at least h honest vectors.
    *Why.* A site answers for one S only. For S of everybody it gives shares of self masks and no
    pairwise key; for any other S it wants t signatures, and two sets cannot both have them. So
    pairwise keys come out for one S alone, and only those between a member and a site outside.
    (1) The masks that honest members share with one another stay shut, so that of their vectors
    only the sum over all of them is free of masks. (2) The self mask of an honest site outside S
    would need t shares, and they come from sites that were told "everybody", at most n - t
    honest ones, and from c others: fewer than t. (3) Without an S that t sites agreed to, no
    pairwise key comes out at all, and the sum over everybody is all there is.

For more sites the graph is sparse (Bell, Bonawitz, Gascón, Lepoint and Raykova 2020, "Secure
single-server aggregation with (poly)logarithmic overhead"): the sites stand on a circle in an order
drawn from a hash, and each shares with the k/2 next on either side (their Harary graph). There
every S needs signatures, the one of everybody, too, so that S is the same for all honest sites. A
self mask is shared among its site's closed neighbourhood of k + 1, any τ of which open it.

    *Why sums over parts are closed there.* Let A be a connected part of the honest survivors, not
    all of them. Some member i of A has no honest survivor among the k/2 next on one side. So the
    shares of i's self mask can come from the at most k/2 + 1 on its other side, itself included,
    and from colluders in its neighbourhood; if these are at most τ - k/2 - 2, the mask stays shut,
    and with it every sum over A. Colluders are chosen before the order is drawn, so their number
    in a neighbourhood is hypergeometric; k and τ are the smallest for which any site has more with
    probability below 2^-:data:`_SECURITY_BITS` (a union bound over n). A coordinator could draw
    another order by starting another run; 2^40 such tries leave 2^-40. *Correct:* a survivor lacks
    τ surviving neighbours with probability below 2^-:data:`_FAILURE_BITS`, if who drops out does
    not depend on the order; else that round's sum is lost, and nothing else is.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

from lorica.common.errors import Code, LoricaError

COMPLETE = 32
"""Up to so many sites everybody shares with everybody."""

MOST_SITES = 10_000

_SECURITY_BITS = 80
_FAILURE_BITS = 20


@dataclass(frozen=True)
class Terms:
    """The numbers of one sum."""

    sites: int
    """n."""
    honest: int
    """h: honest sites whose noise is the plan's."""
    threshold: int
    """t: fewest survivors."""
    neighbours: int
    """k: with how many others a site shares."""
    shares: int
    """τ: how many shares open a self mask."""

    @property
    def colluders(self) -> int:
        """c: most sites that may collude with the coordinator."""
        return self.threshold - self.honest

    @property
    def dropouts(self) -> int:
        """D: most sites that may drop out."""
        return self.sites - self.threshold

    @property
    def always_signed(self) -> bool:
        """Whether also the set of everybody needs signatures."""
        return self.sites > COMPLETE


def terms(sites: int, honest: int, fewest: int = 1) -> Terms:
    """The numbers for ``sites`` sites, of which any ``honest`` make the noise.

    Args:
        sites: n, those that are asked for a vector.
        honest: h.
        fewest: how many survivors the plan wants at least; more tolerate more colluders, and fewer
            drop-outs.

    Raises:
        LoricaError: LOR-103 there are no such numbers.
    """
    if not (2 <= honest <= sites <= MOST_SITES and fewest <= sites):
        raise LoricaError(
            Code.PLAN_BAD_VALUE,
            f"A sealed sum over {sites} sites cannot have {honest} honest ones and at least "
            f"{fewest} survivors: from 2 to {MOST_SITES:,} sites, at least 2 of them honest, and "
            "no more than there are.",
        )
    threshold = max(honest, fewest, sites - honest + 1)
    if sites <= COMPLETE:
        return Terms(sites, honest, threshold, sites - 1, threshold)
    neighbours, shares = _sparse(sites, threshold - honest, sites - threshold)
    return Terms(sites, honest, threshold, neighbours, shares)


@functools.lru_cache(maxsize=256)
def _sparse(sites: int, colluders: int, dropouts: int) -> tuple[int, int]:
    """The smallest even k, and a τ for it; everybody where no sparse graph does."""
    low, high = 2, sites - 1 - (sites - 1) % 2
    if _share_count(sites, colluders, dropouts, high) is None:
        raise LoricaError(
            Code.PLAN_BAD_VALUE,
            f"Of {sites} sites, {colluders} colluding and {dropouts} dropping out are too many for "
            "one sealed sum: together they must stay well below half.",
            mend="Raise privacy.honest_sites, or ask fewer sites.",
        )
    while low < high:
        middle = (low + high) // 4 * 2
        if _share_count(sites, colluders, dropouts, middle) is None:
            low = middle + 2
        else:
            high = middle
    found = _share_count(sites, colluders, dropouts, high)
    assert found is not None
    return high, found


def _share_count(sites: int, colluders: int, dropouts: int, k: int) -> int | None:
    """τ for k neighbours: above k/2 + 1 and what colluders can have, at most what survives."""
    corrupted = _most(sites, colluders, k, _SECURITY_BITS)
    lost = _most(sites, dropouts, k, _FAILURE_BITS)
    shares = k // 2 + 2 + corrupted
    return shares if shares <= k + 1 - lost else None


def _most(sites: int, marked: int, k: int, bits: int) -> int:
    """The smallest m such that any of the n sites has more than m marked neighbours with
    probability below 2^-bits; neighbours are k of the other n - 1 at random."""
    from scipy.stats import hypergeom

    limit = -bits * math.log(2) - math.log(sites)
    low, high = 0, min(k, marked)
    while low < high:
        middle = (low + high) // 2
        if hypergeom.logsf(middle, sites - 1, marked, k) < limit:
            high = middle
        else:
            low = middle + 1
    return low
