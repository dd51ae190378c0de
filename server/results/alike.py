"""How alike the sites of a run are, as their class sums say (:mod:`lorica.server.rounds.alike`)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from lorica.common.display.text import printable
from lorica.common.plan.stages import Stage
from lorica.server.results.round import RoundRecord

MOST_SHOWN = 16
"""Sites with a table of all cosines."""


@dataclass(frozen=True)
class AlikeSites:
    """Sites and the cosines of their class sums."""

    sites: list[str]
    cosines: list[list[float | None]]
    error: float | None
    """Largest standard error from noise."""
    sealed: int = 0
    """Sites whose sums were seen added up alone; 0: each was seen."""

    @staticmethod
    def of(record: RoundRecord) -> AlikeSites | None:
        """What a round says of it; None where it had no class sums, or of too few or many sites."""
        if record.stage == Stage.CLASS_SUMS.value and record.sealed:
            return AlikeSites([], [], None, record.sealed)
        if record.alike:
            sites = [site.site for site in record.sites if site.status == "ok"]
            return AlikeSites(sites, record.alike, record.alike_error)
        return None

    def as_json(self) -> dict[str, Any]:
        """To keep: names as they may be shown, cosines to four decimals."""
        return {
            "sites": [printable(site) for site in self.sites],
            "cosines": [[None if c is None else round(c, 4) for c in row] for row in self.cosines],
            "error": self.error,
            "sealed": self.sealed,
        }

    @staticmethod
    def from_json(found: Mapping[str, Any]) -> AlikeSites | None:
        """The inverse of :meth:`as_json`; None of nothing."""
        return AlikeSites(**found) if found else None

    @property
    def told(self) -> list[int]:
        """Sites of whom anything is told."""
        count = range(len(self.sites))
        return [a for a in count if any(a != b and self.cosines[a][b] is not None for b in count)]

    @property
    def rows(self) -> list[tuple[str, list[float | None]]]:
        """For a table; none where there are too many sites."""
        if len(self.sites) > MOST_SHOWN:
            return []
        return list(zip(self.sites, self.cosines, strict=True))

    @property
    def sentence(self) -> str:
        """Who is most and least alike."""
        if self.sealed:
            return (
                f"Sealed: the coordinator saw the sum over {self.sealed} sites alone, and nothing "
                "of a single one."
            )
        told = self.told
        if not told:
            return "Noise is all there is in single sites' sums: how alike they are cannot be told."
        means = {a: _mean([self.cosines[a][b] for b in told if b != a]) for a in told}
        odd = min(means, key=lambda site: means[site])
        pairs = [
            (cosine, a, b)
            for a in told
            for b in told
            if a < b and (cosine := self.cosines[a][b]) is not None
        ]
        best, one, other = max(pairs)
        error = f", ± {2 * self.error:.2f} from noise" if self.error else ""
        names = [printable(self.sites[site]) for site in (one, other, odd)]
        said = f"Most alike are {names[0]} and {names[1]} ({best:.2f}{error})"
        if len(told) > 2:
            said += f"; least like the others is {names[2]} ({means[odd]:.2f} on average)"
        return said + "."


def alike_sites(rounds: Sequence[RoundRecord]) -> AlikeSites | None:
    """By a run's round of class sums; None where it had none, or of too few or many sites."""
    return next((found for record in rounds if (found := AlikeSites.of(record))), None)


class _Round(Protocol):
    """A round in the store."""

    @property
    def alike(self) -> dict[str, Any]: ...


def likeness(rounds: Sequence[_Round]) -> AlikeSites | None:
    """The same of rounds that were kept by :meth:`AlikeSites.as_json`."""
    return next((found for row in rounds if (found := AlikeSites.from_json(row.alike))), None)


def _mean(values: Sequence[float | None]) -> float:
    given = [value for value in values if value is not None]
    return sum(given) / len(given) if given else math.nan
