"""Whether joining helped each site, as the report and the terminal say it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.text import Text

from lorica.common.display.tables import Table
from lorica.common.display.text import printable
from lorica.common.display.wording import metric_name, metric_text
from lorica.simulations.reports.tables import Summary, headline

_SHOWN = {"start": "start", "own": "own", "federated": "federation's", "tuned": "tuned"}


@dataclass(frozen=True)
class BenefitRow:
    """One site's four models, by name."""

    site: str
    units: int
    """Set aside."""
    scores: Mapping[str, float]
    """On the records set aside."""
    tested: Mapping[str, float]
    """On the common test data, weighted to the site's labels."""
    kept: str
    """Which model, in a word or two."""
    because: str
    harmed: bool
    """Whether a model without the others' records is better."""
    change: float
    """What keeping it changes on test data, against the federation's."""


def benefit_rows(summary: Summary) -> list[BenefitRow]:
    """A row for every site; none where sites' own models were not trained."""
    return [
        BenefitRow(
            site,
            found["units_aside"],
            {name: model["score"] for name, model in found["models"].items()},
            found["tested"],
            _SHOWN[found["kept"]],
            found["because"],
            bool(found["harmed"]),
            found["tested"][found["kept"]] - found["tested"]["federated"],
        )
        for site, found in (summary.get("benefit") or {}).items()
    ]


def benefit_sentence(summary: Summary) -> str:
    """Who gained, who was harmed, and what the guard costs the others; empty without rows."""
    rows = benefit_rows(summary)
    if not rows:
        return ""
    metric = headline(summary)
    gained = sum(row.scores["federated"] > row.scores["own"] for row in rows)
    said = [
        f"The federation's model is better than a site's own at {gained} of {len(rows)} sites, on "
        "records they set aside."
    ]
    harmed = [printable(row.site) for row in rows if row.harmed]
    if harmed:
        said.append(
            f"It is worse beyond chance at {', '.join(harmed)}: there the guard keeps a model "
            "without the others' records."
        )
    else:
        said.append("It harms no site beyond chance.")
    rest = [row for row in rows if not row.harmed]
    if rest:
        mean = sum(row.change for row in rest) / len(rest)
        worst = min(row.change for row in rest)
        at = " elsewhere" if harmed else ""
        said.append(
            f"What guards keep{at} changes the {metric_name(metric)} on test data by "
            f"{mean:+.3f} on average, {worst:+.3f} at worst."
        )
    if not all(found["unseen_by_federation"] for found in summary["benefit"].values()):
        said.append(
            "The plan sets nothing aside for evaluation: the federation trained on these records, "
            "too, under its ε."
        )
    return " ".join(said)


def benefit_table(summary: Summary) -> Table:
    """The same for a terminal."""
    metric = headline(summary)
    table = Table(
        title=f"Did joining help each site? {metric_name(metric)} on records set aside",
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        caption=Text(benefit_sentence(summary)),
        caption_justify="left",
        pad_edge=False,
    )
    table.add_column("site")
    for shown in _SHOWN.values():
        table.add_column(shown, justify="right", no_wrap=True)
    table.add_column("keeps")
    for row in benefit_rows(summary):
        figures = [Text(metric_text(metric, row.scores[name])) for name in _SHOWN]
        style = "bold red" if row.harmed else ""
        table.add_row(Text(printable(row.site)), *figures, Text(row.kept), style=style)
    return table
