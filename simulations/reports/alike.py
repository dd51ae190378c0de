"""Who is served worst, and how alike the sites are, as the report says it.

The map puts every site where distances √(2 - 2·cosine) to the others are kept best in two
dimensions (classical scaling, Torgerson 1952).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lorica.common.display.colours import BLUE
from lorica.common.display.figures import new_figure, short, svg_text
from lorica.common.display.text import printable
from lorica.common.display.wording import metric_name, metric_text
from lorica.server.results.round import RoundRecord
from lorica.simulations.reports.tables import Summary, headline

MOST_SHOWN = 16
"""Sites with a table of all cosines."""


@dataclass(frozen=True)
class AlikeSites:
    """Sites and the cosines of their class sums."""

    sites: list[str]
    cosines: list[list[float | None]]
    error: float | None
    """Largest standard error from noise."""
    sealed: int
    """Sites whose sums were seen added up alone; 0: each was seen."""

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


def alike_sites(rounds: Sequence[RoundRecord]) -> AlikeSites | None:
    """By the run's round of class sums; None where it had none, or of too few or many sites."""
    for record in rounds:
        if record.stage == "class sums" and record.sealed:
            return AlikeSites([], [], None, record.sealed)
        if record.alike:
            sites = [site.site for site in record.sites if site.status == "ok"]
            return AlikeSites(sites, record.alike, record.alike_error, 0)
    return None


def alike_sentence(found: AlikeSites | None) -> str:
    """Who is most and least alike; empty where nothing is known."""
    if found is None:
        return ""
    if found.sealed:
        return (
            f"Sealed: the coordinator saw the sum over {found.sealed} sites alone, and nothing of "
            "a single one."
        )
    told = found.told
    if not told:
        return "Noise is all there is in single sites' sums: how alike they are cannot be told."
    means = {a: _mean([found.cosines[a][b] for b in told if b != a]) for a in told}
    odd = min(means, key=lambda site: means[site])
    pairs = [
        (cosine, a, b)
        for a in told
        for b in told
        if a < b and (cosine := found.cosines[a][b]) is not None
    ]
    best, one, other = max(pairs)
    error = f", ± {2 * found.error:.2f} from noise" if found.error else ""
    names = [printable(found.sites[site]) for site in (one, other, odd)]
    said = f"Most alike are {names[0]} and {names[1]} ({best:.2f}{error})"
    if len(told) > 2:
        said += f"; least like the others is {names[2]} ({means[odd]:.2f} on average)"
    return said + "."


def alike_svg(found: AlikeSites | None) -> str | None:
    """The map; None where fewer than three sites can be told."""
    if found is None or len(found.told) < 3:
        return None
    places = placed([[found.cosines[a][b] for b in found.told] for a in found.told])
    with new_figure(5.6, 4.2) as figure:
        axes = figure.add_subplot()
        axes.scatter(places[:, 0], places[:, 1], color=BLUE, s=36)
        for site, (x, y) in zip(found.told, places.tolist(), strict=True):
            axes.annotate(
                short(found.sites[site], 16), (x, y), (5, 4), textcoords="offset points", fontsize=9
            )
        reach = 1.25 * max(0.05, float(np.abs(places).max()))
        axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
        axes.tick_params(labelbottom=False, labelleft=False)
        return svg_text(figure, "alike", "Sites as a map: near ones have similar class sums")


def placed(cosines: Sequence[Sequence[float | None]]) -> np.ndarray:
    """Places (K, 2) whose distances are nearest to √(2 - 2·cosine), in the least-squares sense of
    their inner products; a cosine that is not told counts as 0."""
    given = np.array([[0.0 if c is None else c for c in row] for row in cosines])
    squares = 2 - 2 * given
    center = np.eye(len(given)) - 1 / len(given)
    values, vectors = np.linalg.eigh(-center @ squares @ center / 2)
    found: np.ndarray = vectors[:, -2:][:, ::-1] * np.sqrt(values[-2:][::-1].clip(0))
    return found


def worst_sentence(summary: Summary) -> str:
    """Who is served worst; empty where it is not known."""
    worst = summary.get("worst") or {}
    metric, said = headline(summary), []
    if (site := worst.get("site")) is not None:
        mean = summary.get("score_at_sites_mean")
        beside = "" if mean is None else f", {metric_text(metric, mean)} in the mean over sites"
        said.append(
            f"Worst site: {printable(site['name'])}, {metric_name(metric)} "
            f"{metric_text(metric, site['score'])} on test data weighted to its own{beside}."
        )
    if (label := worst.get("label")) is not None:
        said.append(
            f"Worst label: {printable(label['name'])}, {metric_text(metric, label['score'])} of "
            f"{label['records']:,} test records."
        )
    if (label := worst.get("label_at_sites")) is not None:
        said.append(
            f"By the sites' own noised counts, paid for in ε: {printable(label['name'])}, "
            f"{metric_text('accuracy', label['score'])}."
        )
    return " ".join(said)


def _mean(values: Sequence[float | None]) -> float:
    given = [value for value in values if value is not None]
    return sum(given) / len(given) if given else math.nan
