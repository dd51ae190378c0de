"""Groups of tests by what they need, and what one test may cost.

Every test is in at least one group: ``unit`` unless a marker says ``process``, ``slow``, ``e2e``,
``web`` or ``chaos``. Rules, checked while tests are collected and run:

- ``@pytest.mark.slow("why")``: a slow test says why. Such a test is not in ``make test``.
- A test that starts a process with ``subprocess`` is marked ``process`` (or one of the larger
  groups).
- A unit test, and each fixture it is the first to ask for, takes at most ``CEILING`` processor
  seconds; ``@pytest.mark.ceiling(seconds, "why")`` allows more.

Tests against the last two are listed when the session ends and never fail: how long a computation
takes is no property of the code alone, and a library may start programs of its own. Processor
seconds are those of this process, its threads and the children that have ended, user and system,
not those on the wall: a busy machine changes them little.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

CEILING = 5.0
"""Processor seconds that a unit test may take."""

LARGER = ("process", "slow", "e2e", "web", "chaos")


class Cost(NamedTuple):
    """What one phase of a test took, and may take."""

    seconds: float
    ceiling: float
    """0: none."""
    programs: str
    """That a unit test started, joined by commas."""
    test: str
    """The phase and the test's name."""


_last = 0.0
"""What this process had used at the last report."""
_started: list[str] | None = None
"""Programs that the test being called has started; None between tests."""
_costs: list[Cost] = []


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
def pytest_runtest_call() -> Generator[None, object, object]:
    """Note the programs that the test starts."""
    global _started
    _started = []
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Write the phase's cost into its report (which xdist carries to the main process)."""
    global _last, _started
    report = yield
    unit = item.get_closest_marker("unit") is not None
    marker = item.get_closest_marker("ceiling")
    ceiling = float(marker.args[0]) if marker else CEILING if unit else 0.0
    programs = ", ".join(dict.fromkeys(_started or [])) if unit else ""
    now = _used()
    cost = Cost(now - _last, ceiling, programs, f"{call.when:<8} {item.nodeid}")
    report.user_properties.append(("cost", tuple(cost)))
    _last, _started = now, None
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Gather the costs of all workers."""
    _costs.extend(Cost(*value) for name, value in report.user_properties if name == "cost")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List what is against the rules; write all costs into the file of LORICA_TEST_COSTS."""
    costs = sorted(_costs, reverse=True)
    if name := os.environ.get("LORICA_TEST_COSTS"):
        lines = [f"{cost.seconds:9.3f}\t{cost.test}\n" for cost in costs]
        Path(name).write_text("".join(lines), encoding="utf-8")
    if above := [cost for cost in costs if 0 < cost.ceiling < cost.seconds]:
        terminalreporter.section(f"unit tests above {CEILING:g} processor seconds")
        for cost in above:
            terminalreporter.line(f"{cost.seconds:7.1f} s {cost.test}")
    if starting := [cost for cost in costs if cost.programs]:
        terminalreporter.section("unit tests that started programs, not marked process")
        for cost in starting:
            terminalreporter.line(f"{cost.programs}: {cost.test}")
