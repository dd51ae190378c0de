"""What simulations draw beside lines: pictures as files, and names at the ends of lines."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg

from lorica.common.display.wording import percent
from lorica.common.machine.files import write_atomically

_DOTS_PER_INCH = 120


def write_png(figure: Any, path: Path) -> None:
    """Write the figure as a PNG, whole or not at all.

    Raises:
        LoricaError: LOR-601, LOR-602.
    """
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DOTS_PER_INCH, metadata={"Software": None})
    write_atomically(path, buffer.getvalue())


def label_ends(
    axes: Any, marks: list[tuple[float, str, str]], text: Callable[[float], str] = percent
) -> None:
    """Names at the right ends of lines, moved apart where they would overlap.

    ``marks`` are (value, name, colour), written by ``text``; call it when the limits are set.
    """
    low, high = axes.get_ylim()
    gap = 0.115
    wanted = sorted(((value - low) / (high - low), value, *rest) for value, *rest in marks)
    places: list[float] = []
    for index, (place, *_) in enumerate(wanted):
        room = 1.0 - gap * (len(wanted) - 1 - index)  # leave room for those above
        below = places[-1] + gap if places else 0.0
        places.append(max(min(place, room), below))
    for place, (true, value, name, colour) in zip(places, wanted, strict=True):
        across = axes.transAxes
        axes.plot(
            [1.0, 1.03, 1.05], [true, place, place], color=colour, transform=across,
            clip_on=False, linewidth=1.5,
        )  # fmt: skip
        axes.text(1.06, place, f"{name}\n{text(value)}", transform=across, va="center", fontsize=9)
