"""The progress view, on a terminal and off it."""

from __future__ import annotations

import io
import math

import pytest
from rich.console import Console

from lorica.common.plan import RunPlan
from lorica.server.results.observers import Observer
from lorica.server.results.round import RoundRecord, SiteRound
from lorica.simulations.run.progress import LiveProgress, sparkline

REASON = "LOR-403: The request would pass the site's privacy budget."


def fake_run(view: LiveProgress, *, first: int = 1, rounds: int = 3, sites: int = 3) -> None:
    """Tell ``view`` of a run in which the last site refuses from round 2 on."""
    plan = RunPlan().replace(rounds={"count": rounds})
    names = [f"site-{index:02}" for index in range(sites)]
    view.started(plan, [SiteRound(name, "ok", weight=100) for name in names], first)
    if first == 1:
        view.round_ended(RoundRecord(0, accuracy=0.125))
    for number in range(first, rounds + 1):
        answers = [SiteRound(name, "ok", "", 100, 1.0, 1000, 0.1) for name in names]
        if number > 1:
            answers[-1] = SiteRound(names[-1], "refused", REASON)
        for answer in answers:
            view.site_answered(number, answer)
        view.round_ended(
            RoundRecord(
                number, answers, accuracy=0.2 + 0.1 * number, bytes_up=2000, bytes_down=3000
            )
        )


def plain(budget: float = 8.0, **run: int) -> str:
    """What a run leaves in a file."""
    file = io.StringIO()
    with LiveProgress(Console(file=file, width=40), budget, lambda rounds: 2.0 * rounds) as view:
        fake_run(view, **run)
    return file.getvalue()


def live(budget: float = 8.0, width: int = 100, **run: int) -> str:
    """What a run sends to a terminal, control codes and all."""
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=width, _environ={"TERM": "xterm"})
    with LiveProgress(console, budget, lambda rounds: 2.0 * rounds) as view:
        view.note("loading")
        fake_run(view, **run)
    return file.getvalue()


def test_view_is_an_observer() -> None:
    observer: Observer = LiveProgress(Console(file=io.StringIO()), 8.0)
    assert observer


def test_plain_output_has_one_line_per_round_and_no_control_codes() -> None:
    text = plain()
    assert "\x1b" not in text and "\r" not in text
    lines = [line for line in text.splitlines() if line.startswith("round ")]
    assert [line.split()[1] for line in lines] == ["0/3", "1/3", "2/3", "3/3"]
    assert "accuracy 40.0% (+10.0)" in lines[2]
    assert "ε 4 of 8" in lines[2] and "sites 2/3" in lines[2]
    assert "2.0 kB up, 3.0 kB down" in lines[2]


def test_a_refusal_is_told_once_with_its_reason() -> None:
    for text in (plain(), live(width=120)):
        assert text.count(REASON) == 1
        assert "refused" in text


def test_sites_refused_before_the_first_round_are_told() -> None:
    file = io.StringIO()
    view = LiveProgress(Console(file=file), 8.0)
    view.started(RunPlan(), [SiteRound("a", "ok"), SiteRound("node 7", "failed", "LOR-501")], 1)
    assert "node 7 failed: LOR-501" in file.getvalue()
    assert "1 site," in file.getvalue()


def test_resumed_run_starts_at_its_first_round() -> None:
    text = plain(first=3)
    assert "resuming at round 3" in text
    assert [line for line in text.splitlines() if line.startswith("round ")] != []
    assert "round 1/3" not in text and "round 3/3" in text
    assert "since round 3" in live(first=3)


@pytest.mark.parametrize("show", [plain, live])
def test_no_privacy_is_loud_and_nothing_is_accounted(show) -> None:  # type: ignore[no-untyped-def]
    assert "NO PRIVACY (ε = ∞)" in show(budget=math.inf)


def test_live_view_shows_where_the_run_is() -> None:
    text = live()
    for part in ("\x1b[", "fedsvd, 3 sites", "round 3/3", "sites 2/3", "ε 6 of 8", "loading"):
        assert part in text
    assert "6.0 kB up, 9.0 kB down" in text
    assert sparkline([0.125, 0.3, 0.4, 0.5]) in text


@pytest.mark.parametrize("width", [20, 60, 200])
def test_live_view_renders_at_any_width(width: int) -> None:
    assert "round" in live(width=width)


def test_live_view_can_end_before_the_run_starts() -> None:
    console = Console(file=io.StringIO(), force_terminal=True)
    with pytest.raises(ValueError, match="early"), LiveProgress(console, 8.0):
        raise ValueError("early")


def test_escape_sequences_and_markup_in_reasons_do_not_reach_the_terminal() -> None:
    file = io.StringIO()
    view = LiveProgress(Console(file=file, force_terminal=False), 8.0)
    view.started(RunPlan(), [SiteRound("a\x1b[2J", "failed", "[red]x[/]\nround 9/9")], 1)
    view.note("[bold]note[/]")
    text = file.getvalue()
    assert "\x1b" not in text and "[red]x[/]" in text and "[bold]note[/]" in text
    assert not any(line.startswith("round") for line in text.splitlines())


def test_ascii_files_get_ascii() -> None:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii")
    with LiveProgress(Console(file=file), math.inf) as view:
        fake_run(view)
    file.flush()
    assert b"NO PRIVACY (epsilon = inf)" in raw.getvalue()


def test_sparkline_spans_its_values() -> None:
    assert sparkline([0.0, 0.5, 1.0]) == "▁▅█"
    assert sparkline([0.4, 0.4]) == "▁▁"


@pytest.mark.parametrize("drawn", [False, True])
def test_a_tasks_own_metric_is_shown_in_its_own_unit(drawn: bool) -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=drawn, width=100, _environ={"TERM": "xterm"})
    with LiveProgress(console, 8.0) as view:
        view.started(RunPlan().replace(rounds={"count": 2}), [SiteRound("a", "ok")], 1)
        for number, score in enumerate((-0.25, 0.5)):
            metrics = {"r2": score, "mae": 2.0}
            view.round_ended(RoundRecord(number, metrics=metrics, headline="r2"))
    text = file.getvalue()
    assert "R²" in text and "0.500 (+0.750)" in text
    assert "50.0%" not in text and "accuracy" not in text
