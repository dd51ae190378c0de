"""What an audit leaves: audit.json, audit.html with its plots, and the lines on the terminal."""

from __future__ import annotations

import importlib.resources
import json
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from rich.text import Text

from lorica.common.display.colours import BLUE, GREY, ORANGE, RED
from lorica.common.display.console import Console
from lorica.common.display.figures import new_figure, svg_text
from lorica.common.display.tables import Table
from lorica.common.machine.files import storage_errors, write_atomically
from lorica.simulations.audit.evidence.findings import Audit, Scatter

JSON, PAGE = "audit.json", "audit.html"

_BARS = " ▁▂▃▄▅▆▇█"
_WIDTH = 48  # bins of a histogram on the terminal
_SHOWN = (0.5, 99.5)  # percentiles of the scores that a histogram spans


def write_audit(audit: Audit, out: Path) -> None:
    """Write audit.json and audit.html into ``out``, each whole or not at all.

    Raises:
        LoricaError: LOR-601 disk full, LOR-602 refused by the system.
    """
    content = audit.to_dict()
    with storage_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(out / JSON, f"{text}\n")
    template = importlib.resources.files("lorica.simulations.audit") / "report.html.j2"
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.globals["number"] = number
    page = environment.from_string(template.read_text(encoding="utf-8")).render(
        audit=content,
        bounds_svg=Markup(bounds_svg(audit)),
        score_svgs=[Markup(scores_svg(s, f"scores-{i}")) for i, s in enumerate(audit.scatters)],
        **audit.facts,
    )
    write_atomically(out / PAGE, page.encode("utf-8", "replace"))


def print_audit(audit: Audit, console: Console) -> None:
    """Claim, bounds, checks and a histogram of the scores."""
    table = Table(box=None, header_style="bold")
    for column in ("method", "claimed ε", "ε at least", "confidence", "seconds"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for finding in audit.findings:
        loud = "bold red" if finding.lower_bound > audit.claimed_epsilon else ""
        table.add_row(
            finding.method,
            number(audit.claimed_epsilon),
            Text(number(finding.lower_bound), loud),
            f"{finding.confidence:.2%}",
            f"{finding.seconds:.0f}",
        )
    console.print(table)
    for method, what in audit.facts.get("audited", {}).items():
        console.print(f"  {method}: audits {what}", highlight=False)
    for finding in audit.findings:
        for line in _asides(finding.details):
            console.print(f"  {finding.method}: {line}", highlight=False)
    for check in audit.checks:
        mark = Text("as claimed ", "green") if check.passed else Text("NOT AS CLAIMED ", "bold red")
        console.print(Text.assemble(mark, f"{check.name}: {check.detail}"), soft_wrap=True)
    for scatter in audit.scatters:
        console.print(f"\n{scatter.title}", highlight=False)
        for name, bars in histogram(scatter):
            console.print(f"  {name:>3} {bars}", highlight=False)
    strongest = audit.strongest
    console.print(
        f"\nClaimed: ε = {number(audit.claimed_epsilon)} at δ = {audit.delta:g}. "
        f"Measured: ε ≥ {number(strongest.lower_bound)}, {audit.confidence:.0%} confident "
        f"({strongest.method}).",
        highlight=False,
        soft_wrap=True,
    )


def histogram(scatter: Scatter) -> list[tuple[str, str]]:
    """Two lines of block characters over the same range: canaries in the data, and out."""
    edges = np.linspace(*_span(scatter), _WIDTH + 1)
    counts = [
        np.histogram(np.clip(s, edges[0], edges[-1]), edges)[0]
        for s in (scatter.included, scatter.excluded)
    ]
    top = max(1, *(int(count.max()) for count in counts))
    lines = ["".join(_BARS[-(-8 * int(n) // top)] for n in count) for count in counts]
    return list(zip(("in", "out"), lines, strict=True))


def bounds_svg(audit: Audit) -> str:
    """Every bound as a bar, the claim as a line."""
    with new_figure(7.2, 0.9 + 0.42 * len(audit.findings)) as figure:
        axes = figure.add_subplot()
        findings = list(audit.findings)[::-1]
        bounds = [finding.lower_bound for finding in findings]
        colours = [RED if bound > audit.claimed_epsilon else BLUE for bound in bounds]
        axes.barh([finding.method for finding in findings], bounds, color=colours, height=0.62)
        for place, bound in enumerate(bounds):
            axes.annotate(f" {number(bound)}", (bound, place), va="center")
        axes.axvline(audit.claimed_epsilon, color=GREY, linestyle=(0, (5, 1.5)))
        axes.set_xlabel(f"ε at least; the dashed line is the claim, {audit.claimed_epsilon:g}")
        axes.set_xlim(0, 1.15 * max(audit.claimed_epsilon, *bounds))
        axes.grid(visible=False, axis="y")
        return svg_text(figure, "bounds", "Lower bounds on epsilon against the claim")


def scores_svg(scatter: Scatter, name: str) -> str:
    """Two histograms over each other: in the data, and out."""
    with new_figure(7.2, 2.8) as figure:
        axes = figure.add_subplot()
        edges = np.linspace(*_span(scatter), 41)
        kinds = (("in the data", scatter.included, ORANGE), ("not in", scatter.excluded, BLUE))
        for label, scores, colour in kinds:
            clipped = np.clip(scores, edges[0], edges[-1])
            share = np.full(len(scores), 1 / max(1, len(scores)))
            axes.hist(
                clipped, edges, weights=share, color=colour, alpha=0.55, label=label, linewidth=0
            )
        axes.set_title(scatter.title)
        axes.set_ylabel("share")
        axes.legend()
        return svg_text(figure, name, scatter.title)


def number(value: float) -> str:
    """An ε as text."""
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"


def _span(scatter: Scatter) -> tuple[float, float]:
    everything = np.concatenate([scatter.included, scatter.excluded])
    low, high = np.percentile(everything, _SHOWN)
    return (float(low), float(high)) if high > low else (float(low) - 1.0, float(high) + 1.0)


def _asides(details: dict[str, Any]) -> list[str]:
    lines = []
    if "estimate" in details:
        low, high = details["estimate_interval"]
        lines.append(
            f"estimate (no bound) ε ≈ {number(details['estimate'])}, interval {number(low)} to "
            f"{number(high)}"
        )
    if "largest_change" in details:
        found = ", ".join(f"{name} {x:.6f}" for name, x in details["largest_change"].items())
        lines.append(f"one record changes a sum, in units of C, by: {found}")
    if "auc" in details:
        rates = ", ".join(
            f"{tpr:.1%} at {float(fpr):.1%}" for fpr, tpr in details["tpr_at_fpr"].items()
        )
        lines.append(f"AUC {details['auc']:.3f}; true positives by false positives: {rates}")
    return lines
