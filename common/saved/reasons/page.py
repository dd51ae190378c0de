"""Reasons in a terminal's colors, and as an HTML page."""

from __future__ import annotations

import base64
import importlib.resources
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.style import Style
from rich.text import Text

from lorica.common.display.console import Console
from lorica.common.display.pages import page_environment
from lorica.common.display.tables import Table
from lorica.common.display.text import printable
from lorica.common.machine.files import write_atomically
from lorica.common.saved.reasons.attribution import Reasons

_FOR, _AGAINST = (33, 102, 172), (178, 24, 43)  # blue and red, also for those who see no green
_MOST = 8


@dataclass(frozen=True)
class Piece:
    """A piece of a text with its color's strength, from -1 (against) to 1 (for)."""

    text: str
    strength: float

    @property
    def background(self) -> str:
        """As CSS; the page's own color shows through."""
        red, green, blue = _FOR if self.strength > 0 else _AGAINST
        return f"rgba({red}, {green}, {blue}, {abs(self.strength) * 0.6:.2f})"


def pieces(reasons: Reasons) -> list[Piece]:
    """The text cut into words and what is between them."""
    most = max((abs(weight) for *_, weight in reasons.words), default=0.0) or 1.0
    found, at = [], 0
    for first, last, weight in reasons.words:
        if first > at:
            found.append(Piece(reasons.text[at:first], 0.0))
        found.append(Piece(reasons.text[first:last], weight / most))
        at = last
    return [*found, Piece(reasons.text[at:], 0.0)] if at < len(reasons.text) else found


def print_reasons(reasons: Reasons, console: Console) -> None:
    """Answer, text in colors, strongest words and columns."""
    sure = "" if reasons.certainty is None else f" ({reasons.certainty:.1%})"
    console.print(Text(f"Why {printable(reasons.answer)}{sure}"), style="bold", soft_wrap=True)
    line = Text()
    for piece in pieces(reasons):
        line.append(printable(piece.text), style=_style(piece.strength))
    if reasons.words:
        console.print(line, soft_wrap=True)
    if reasons.pixels is not None:
        console.print(Text("An image: its page shows where (--html)."), style="dim")
    table = Table("word or column", "weight", box=None, header_style="bold")
    for share in reasons.strongest[:_MOST]:
        color = "blue" if share.weight > 0 else "red"
        table.add_row(Text(printable(share.part)), Text(f"{share.weight:+.3f}", color))
    if reasons.strongest:
        console.print(table)
    if reasons.nearest:
        near = ", ".join(f"{printable(label)} {p:.1%}" for label, p in reasons.nearest)
        console.print(Text(f"Nearest labels: {near}"), soft_wrap=True)
    console.print(Text(sum_sentence(reasons)), style="dim", soft_wrap=True)


def sum_sentence(reasons: Reasons) -> str:
    """How exact the weights are."""
    return (
        f"Weights sum to the output's change from nothing read, {reasons.change:+.3f}, less "
        f"{reasons.missing:+.3f} by which the integral is off; special tokens have "
        f"{reasons.rest:+.3f}."
    )


def write_page(path: Path, found: Sequence[Reasons], *, adapter: str) -> None:
    """Write a page with the reasons of several records, whole or not at all.

    Raises:
        LoricaError: LOR-601, LOR-602.
    """
    source = importlib.resources.files("lorica.common.saved.reasons")
    template = page_environment().from_string(
        source.joinpath("templates/reasons.html.j2").read_text(encoding="utf-8")
    )
    html = template.render(
        found=found,
        adapter=adapter,
        pieces=pieces,
        picture=_picture,
        sum_sentence=sum_sentence,
        most=_MOST,
    )
    write_atomically(path, html.encode("utf-8", "replace"))


def _style(strength: float) -> Style:
    """Stronger colors for stronger words; weak ones stay as they are."""
    if abs(strength) < 0.1:
        return Style()
    base = _FOR if strength > 0 else _AGAINST
    light = [round(255 - (255 - part) * abs(strength) * 0.8) for part in base]
    return Style(color="black", bgcolor=f"rgb({light[0]},{light[1]},{light[2]})")


def _picture(reasons: Reasons) -> str:
    """The image with its weights laid over it, as a data URI."""
    if reasons.image is None or reasons.pixels is None:
        return ""
    from PIL import Image

    most = np.quantile(np.abs(reasons.pixels), 0.99) or 1.0
    strength = np.clip(reasons.pixels / most, -1, 1)[..., None]
    color = np.where(strength > 0, np.array(_FOR), np.array(_AGAINST))
    grey = reasons.image.mean(axis=2, keepdims=True)
    mixed = grey * (1 - 0.7 * np.abs(strength)) + color * 0.7 * np.abs(strength)
    scale = max(1, 320 // max(mixed.shape[:2]))
    image = Image.fromarray(mixed.astype(np.uint8)).resize(
        (mixed.shape[1] * scale, mixed.shape[0] * scale), Image.Resampling.NEAREST
    )
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
