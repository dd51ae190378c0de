"""Figures as Lorica draws them: the palette, the style, and SVG fit to stand in a page.

Colours are Okabe and Ito's (2008), told apart with any colour vision. Figures are made without
pyplot, so that nothing global is left behind, and are the same bytes for the same numbers. In the
SVGs ink is the CSS variable ``--ink`` and text stays text: names from others are escaped, never
interpreted (not even as mathematics).
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from xml.etree import ElementTree

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from lorica.common.display.colours import FAINT, INK, PAPER
from lorica.common.display.text import printable

_SVG = "http://www.w3.org/2000/svg"

_HREF = "{http://www.w3.org/1999/xlink}href"

_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "lorica",
    "text.parse_math": False,
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
}


@contextmanager
def new_figure(width: float, height: float) -> Iterator[Any]:
    """A figure of so many inches, in Lorica's style, to be drawn and rendered within."""
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield Figure(figsize=(width, height), layout="constrained")


def svg_text(figure: Any, name: str, title: str) -> str:
    """The figure as an <svg> element to stand in a page: no prolog, no scripts, nothing outside.

    Rebuilt from the parsed tree, so that names stay escaped; ids get ``name`` as a prefix.
    """
    figure.patch.set_visible(False)
    for axes in figure.axes:
        axes.patch.set_visible(False)
    FigureCanvasSVG(figure)
    buffer = io.StringIO()
    none = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=none)
    root = ElementTree.fromstring(buffer.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag == f"{{{_SVG}}}style":
                parent.remove(child)
    for element in root.iter():
        for key, value in list(element.attrib.items()):
            if key == "id":
                element.set(key, f"{name}-{value}")
            elif key == _HREF:
                del element.attrib[key]
                if value.startswith("#"):
                    element.set("href", f"#{name}-{value[1:]}")
            elif key == "clip-path":
                element.set(key, value.replace("url(#", f"url(#{name}-"))
            elif key == "style":
                element.set(key, _themed(value))
    width = root.attrib.pop("width")
    root.attrib.pop("height")
    root.set("style", f"stroke-linejoin: round; max-width: {float(width[:-2]) * 4 / 3:.0f}px")
    root.set("role", "img")
    root.set("aria-labelledby", f"{name}-title")
    heading = ElementTree.Element(f"{{{_SVG}}}title", {"id": f"{name}-title"})
    heading.text = title
    root.insert(0, heading)
    ElementTree.register_namespace("", _SVG)
    return ElementTree.tostring(root, encoding="unicode")


def short(name: str, most: int) -> str:
    """The name on one line, cut to ``most`` characters."""
    name = printable(name)
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _themed(style: str) -> str:
    for name, colour in (("ink", INK), ("faint", FAINT), ("paper", PAPER)):
        style = style.replace(colour, f"var(--{name}, {colour})")
    return re.sub(r"font-family: [^;]*", "font-family: var(--font, sans-serif)", style)
