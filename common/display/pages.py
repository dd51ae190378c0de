"""Pages that need nothing but themselves: what Lorica's reports have in common."""

from __future__ import annotations

import importlib.resources

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from lorica.common.display.text import printable
from lorica.common.display.wording import (
    NO_PRIVACY,
    duration,
    epsilon_text,
    human_bytes,
    metric_name,
    metric_text,
    percent,
)


def page_environment() -> Environment:
    """A jinja2 environment that escapes everything, with Lorica's units as filters.

    ``stylesheet`` is the reports' common style: light, dark and print, wide and narrow.
    """
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        percent=percent,
        bytes=human_bytes,
        duration=duration,
        epsilon=epsilon_text,
        name=printable,
        metric=lambda value, name: metric_text(name, value),
        metric_name=metric_name,
    )
    environment.globals.update(NO_PRIVACY=NO_PRIVACY, stylesheet=_stylesheet())
    return environment


def _stylesheet() -> Markup:
    files = importlib.resources.files("lorica.common.display")
    return Markup(files.joinpath("templates/report.css").read_text(encoding="utf-8"))
