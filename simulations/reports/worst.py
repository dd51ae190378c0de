"""Who is served worst, as the report says it."""

from __future__ import annotations

from lorica.common.display.text import printable
from lorica.common.display.wording import metric_name, metric_text
from lorica.simulations.reports.tables import Summary, headline


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
