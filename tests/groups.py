"""Groups of tests by what they need, and what one test may cost.

Every test is in at least one group: ``unit`` unless a marker says ``process``, ``slow``, ``e2e``,
``web`` or ``chaos``. Rules, checked while tests are collected and run:

- ``@pytest.mark.slow("why")``: a slow test says why. Such a test is not in ``make test``.
- A test that starts a process with ``subprocess`` is marked ``process`` (or one of the larger
  groups); one that does not say so fails.
- A unit test, and each fixture it is the first to ask for, takes at most ``CEILING`` processor
  seconds; ``@pytest.mark.ceiling(seconds, "why")`` allows more. Those above are listed when
  the session ends and never fail: how long a computation takes is no property of the code alone.

Processor seconds (user and system, of this process, its threads and the children that have ended)
and not those on the wall: a busy machine changes them little.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

CEILING = 5.0
"""Processor seconds that a unit test may take."""

LARGER = ("process", "slow", "e2e", "web", "chaos")
SECONDS = "processor seconds"

_last = 0.0
"""What this process had used at the last report."""
_started: list[str] | None = None
"""Programs that the test being called has started; None between tests."""
_taken: list[tuple[float, float, str]] = []
"""Of each phase of a test: seconds, seconds allowed, its name."""


def _watch(event: str, details: tuple[Any, ...]) -> None:
    if event == "subprocess.Popen" and _started is not None:
        _started.append(Path(os.fsdecode(details[0])).name)


sys.addaudithook(_watch)


def _used() -> float:
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(used.ru_utime + used.ru_stime for used in map(resource.getrusage, kinds))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each test its group; refuse a slow test that does not say why."""
    mute = set()
    for item in items:
        if not any(item.get_closest_marker(group) for group in LARGER):
            item.add_marker("unit")
        for name, types in (("slow", [str]), ("ceiling", [int, str])):
            for marker in item.iter_markers(name):
                if list(map(type, marker.args)) != types:
                    mute.add(f"{name} at {item.nodeid.split('[')[0]}")
    if mute:
        raise pytest.UsageError(
            "tests that may take long say why; write the reason into the marker, "
            '@pytest.mark.slow("…") or @pytest.mark.ceiling(20, "…"):\n  '
            + "\n  ".join(sorted(mute))
        )


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """What was done between two tests belongs to neither."""
    global _last
    _last = _used()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Fail a unit test that started a process."""
    global _started
    _started = []
    try:
        result = yield
        if _started and item.get_closest_marker("unit"):
            pytest.fail(
                f"this unit test started {', '.join(_started)}: call the code in this process, or "
                "mark the test @pytest.mark.process",
                pytrace=False,
            )
        return result
    finally:
        _started = None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Write into the report what the phase took and may take (xdist carries it over)."""
    global _last
    report = yield
    marker = item.get_closest_marker("ceiling")
    allowed = marker.args[0] if marker else CEILING if item.get_closest_marker("unit") else 0.0
    now = _used()
    report.user_properties.append((SECONDS, (now - _last, allowed)))
    _last = now
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Gather the figures of all workers."""
    if figures := dict(report.user_properties).get(SECONDS):
        taken, allowed = figures
        _taken.append((taken, allowed, f"{report.when:<8} {report.nodeid}"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List unit tests above the ceiling; write all figures where LORICA_TEST_SECONDS says."""
    if name := os.environ.get("LORICA_TEST_SECONDS"):
        lines = [f"{taken:9.3f}\t{test}\n" for taken, _, test in sorted(_taken, reverse=True)]
        Path(name).write_text("".join(lines), encoding="utf-8")
    above = [entry for entry in sorted(_taken, reverse=True) if 0 < entry[1] < entry[0]]
    if above:
        terminalreporter.section(f"unit tests above their ceiling of {CEILING:g} processor seconds")
        for taken, _, test in above:
            terminalreporter.line(f"{taken:7.1f} s {test}")
