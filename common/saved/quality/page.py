"""An evaluation as a page with pictures, and as tables in a terminal."""

from __future__ import annotations

import importlib.resources
from pathlib import Path
from typing import Any

from markupsafe import Markup
from rich.text import Text

from lorica.common.display.colours import BLUE, GREY, ORANGE
from lorica.common.display.console import Console
from lorica.common.display.figures import new_figure, short, svg_text
from lorica.common.display.pages import page_environment
from lorica.common.display.tables import Table
from lorica.common.display.text import printable
from lorica.common.machine.files import write_atomically
from lorica.common.saved.quality.judged import Judged
from lorica.common.saved.quality.metrics import Estimate

_MOST_LABELS = 40
_IN_SQUARES = 12  # labels up to which every square of the confusion matrix has its number


def write_page(path: Path, judged: Judged, *, adapter: str, data: str) -> None:
    """Write the page, whole or not at all.

    Args:
        path: the HTML file.
        judged: the figures.
        adapter: what was judged, as people name it.
        data: on what.

    Raises:
        LoricaError: LOR-601, LOR-602.
    """
    source = importlib.resources.files("lorica.common.saved.quality")
    template = page_environment().from_string(
        source.joinpath("templates/evaluation.html.j2").read_text(encoding="utf-8")
    )
    html = template.render(
        judged=judged,
        adapter=adapter,
        data=data,
        interval=interval,
        worst=worst_pairs(judged),
        confusion=Markup(_confusion_svg(judged)),
        reliability=Markup(_reliability_svg(judged)),
        coverage=Markup(_coverage_svg(judged)),
    )
    write_atomically(path, html)


def interval(estimate: Estimate) -> str:
    """The interval's ends, as shown beside a value."""
    return f"{estimate.low:.3f} to {estimate.high:.3f}"


def worst_pairs(judged: Judged, most: int = 8) -> list[tuple[str, str, int]]:
    """(right label, said label, records) of the commonest mistakes."""
    names = [label.label for label in judged.labels]
    found = [
        (names[right], names[said], int(count))
        for (right, said), count in _cells(judged)
        if right != said and count
    ]
    return sorted(found, key=lambda item: -item[2])[:most]


def _cells(judged: Judged) -> list[tuple[tuple[int, int], int]]:
    count = len(judged.labels)
    return [
        ((row, column), int(judged.confusion[row, column]))
        for row in range(count)
        for column in range(count)
    ]


def print_judged(judged: Judged, console: Console) -> None:
    """The figures as tables."""
    table = Table("metric", "value", "95 % interval", box=None, header_style="bold")
    for name, estimate in judged.metrics.items():
        table.add_row(name, f"{estimate.value:.3f}", interval(estimate))
    table.add_row("calibration error (ECE)", f"{judged.calibration_error:.3f}", "")
    if judged.calibrated is not None:
        found = judged.calibrated
        table.add_row(
            f"  with temperature {found.temperature:.2f}",
            f"{found.after:.3f}",
            f"{found.before:.3f} before, on the same records",
        )
    console.print(Text(f"{judged.records} records", style="bold"))
    console.print(table)
    if judged.groups:
        groups = Table("group", "records", "accuracy", "95 % interval", "ECE", box=None)
        for group in judged.groups:
            accuracy = group.metrics["accuracy"]
            groups.add_row(
                Text(f"{printable(group.column)} = {printable(group.value) or 'missing'}"),
                str(group.records),
                f"{accuracy.value:.3f}",
                interval(accuracy),
                f"{group.calibration_error:.3f}",
            )
        console.print(groups)
    for threshold in judged.thresholds:
        console.print(
            Text(
                f"Say {printable(threshold.label)} from a probability of "
                f"{threshold.threshold:.4f} on: recall {threshold.recall:.3f}, precision "
                f"{threshold.precision:.3f}."
            )
        )
    pairs = worst_pairs(judged, 5)
    if pairs:
        mistakes = Table("right", "said", "records", box=None, header_style="bold")
        for right, said, count in pairs:
            mistakes.add_row(Text(printable(right)), Text(printable(said)), str(count))
        console.print(mistakes)


def _confusion_svg(judged: Judged) -> str:
    names = [short(label.label, 18) for label in judged.labels][:_MOST_LABELS]
    counts = judged.confusion[: len(names), : len(names)].astype(float)
    shares = counts / counts.sum(1, keepdims=True).clip(1)
    side = min(9.0, 3.0 + 0.22 * len(names))
    with new_figure(side + 1.2, side) as figure:
        axes = figure.add_subplot()
        axes.grid(visible=False)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
        axes.set_yticks(range(len(names)), names, fontsize=7)
        axes.set_xlabel("said")
        axes.set_ylabel("right")
        if len(names) <= _IN_SQUARES:
            for (row, column), count in _cells(judged):
                dark = shares[row, column] > 0.5
                colour = "#ffffff" if dark else "#1a1a1a"
                axes.text(column, row, str(count), ha="center", va="center", color=colour)
        return svg_text(figure, "confusion", "Right labels by said labels, as shares of a row")


def _reliability_svg(judged: Judged) -> str:
    with new_figure(5.0, 3.6) as figure:
        axes: Any = figure.add_subplot()
        axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1)
        full = [part for part in judged.reliability if part.records]
        axes.bar(
            [part.low for part in full],
            [part.accuracy for part in full],
            width=[part.high - part.low for part in full],
            align="edge",
            color=BLUE,
            alpha=0.75,
        )
        axes.plot(
            [part.confidence for part in full],
            [part.accuracy for part in full],
            color=ORANGE,
            marker="o",
            markersize=4,
        )
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="probability", ylabel="share that is right")
        return svg_text(figure, "reliability", "How often answers of a probability are right")


def _coverage_svg(judged: Judged) -> str:
    with new_figure(5.0, 3.0) as figure:
        axes: Any = figure.add_subplot()
        points = sorted(judged.coverages, key=lambda found: found.share)
        axes.plot(
            [100 * found.share for found in points],
            [100 * found.accuracy for found in points],
            color=BLUE,
            marker="o",
        )
        axes.set(xlabel="answered, % of records", ylabel="of these right, %")
        return svg_text(figure, "coverage", "Accuracy when the unsure ones are left to people")
