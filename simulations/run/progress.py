"""The live view of a run in a terminal, and one plain line per round anywhere else."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.text import Text

from lorica.common.display.console import Console
from lorica.common.display.tables import Table
from lorica.common.display.text import printable
from lorica.common.display.wording import (
    NO_PRIVACY,
    change_text,
    duration,
    epsilon_text,
    human_bytes,
    metric_name,
    metric_text,
)
from lorica.common.plan import RunPlan
from lorica.server.results.round import RoundRecord, SiteRound

_SPARKS = "▁▂▃▄▅▆▇█"
_SPARK_WIDTH = 30
_LOUD = "bold white on red"
_ACCOUNTING = 30.0  # times what working ε out took must pass before it is done again
_LATEST = 5


class LiveProgress:
    """An observer that shows a run as it goes; a context manager around the run."""

    def __init__(
        self,
        console: Console,
        budget_epsilon: float,
        spent: Callable[[int], float] | None = None,
    ) -> None:
        """
        Args:
            console: where to show it. On a terminal that can draw, a live view; elsewhere plain
                lines without control codes.
            budget_epsilon: the plan's ε; infinity means no privacy and is shown loudly.
            spent: the largest ε over the sites after that many rounds; None when not known.
        """
        self._console, self._budget, self._spent_after = console, budget_epsilon, spent
        self._waiting = Spinner("dots", "preparing the run")
        self._plan: RunPlan | None = None
        self._first = self._round = 1
        self._ready = self._answered = self._without_update = 0
        self._scores: list[float] = []
        self._headline = "accuracy"
        self._spent = 0.0
        self._behind = False
        self._account_again = 0.0  # not before; ε of sampled steps can take longer than a round
        self._bytes_up = self._bytes_down = 0
        self._told: set[tuple[str, str]] = set()
        self._durations: deque[float] = deque(maxlen=_LATEST)
        self._begun = self._round_begun = time.monotonic()
        can_draw = console.is_terminal and not console.is_dumb_terminal
        self._live: Live | None = None
        if can_draw and not console.options.ascii_only:
            self._live = Live(
                get_renderable=self._view, console=console, refresh_per_second=8, transient=False
            )

    def __enter__(self) -> LiveProgress:
        self._begun = self._round_begun = time.monotonic()
        if self._live:
            self._live.start(refresh=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live:
            self._live.stop()

    def note(self, text: str) -> None:
        """Say something, above the view or as a line of its own."""
        self._say(Text(printable(text), style="dim" if self._live else ""))

    def started(self, plan: RunPlan, sites: list[SiteRound], first_round: int) -> None:
        """Show what runs; name the sites that will not take part."""
        self._plan, self._first, self._round = plan, first_round, first_round
        self._ready = sum(site.status == "ok" for site in sites)
        self._round_begun = time.monotonic()
        if not self._live:
            self._say(self._title())
        if first_round > 1:
            self._account(first_round - 1)
            self._say(Text(f"resuming at round {first_round}"))
        for site in sites:
            self._tell_problem(site)
        self._refresh()

    def site_answered(self, round: int, site: SiteRound) -> None:
        """Count one site's answer; say why when it brought no update."""
        if round != self._round:
            self._begin(round)
        self._answered += 1
        self._without_update += site.status != "ok"
        self._tell_problem(site)
        self._refresh()

    def round_ended(self, record: RoundRecord) -> None:
        """Take in a whole round."""
        if record.score is not None and math.isfinite(record.score):
            self._scores.append(record.score)
            self._headline = record.headline
        self._bytes_up += record.bytes_up
        self._bytes_down += record.bytes_down
        if record.round > 0:
            self._durations.append(record.seconds)
            self._account(record.round)
        if not self._live:
            self._say(self._line(record))
        self._begin(record.round + 1)
        self._refresh()

    def _begin(self, round: int) -> None:
        self._round, self._answered, self._without_update = round, 0, 0
        self._round_begun = time.monotonic()

    def _account(self, rounds: int) -> None:
        if not self._spent_after or math.isinf(self._budget):
            return
        begun = time.monotonic()
        last = self._plan is not None and rounds == self._plan.rounds.count
        self._behind = begun < self._account_again and not last
        if not self._behind:
            self._spent = self._spent_after(rounds)
            now = time.monotonic()
            self._account_again = now + _ACCOUNTING * (now - begun)

    def _tell_problem(self, site: SiteRound) -> None:
        if site.status == "ok" or (site.site, site.reason) in self._told:
            return
        self._told.add((site.site, site.reason))
        text = Text(f"  {printable(site.site)} ")
        text.append(site.status, style="bold red" if site.status == "failed" else "bold yellow")
        text.append(f": {printable(site.reason) or 'no reason given'}")
        self._say(text)

    def _say(self, text: Text) -> None:
        if self._console.options.ascii_only:
            text = Text(_ascii(text.plain))
        self._console.print(text, soft_wrap=True, highlight=False)

    def _refresh(self) -> None:
        if self._live and self._live.is_started:
            self._live.refresh()

    # What is shown.

    def _line(self, record: RoundRecord) -> Text:
        """One round as one plain line."""
        assert self._plan is not None
        parts = [f"round {record.round}/{self._plan.rounds.count}"]
        if record.score is not None:
            score = metric_text(record.headline, record.score)
            parts.append(f"{metric_name(record.headline)} {score}{self._change()}")
        if record.round == 0:
            parts.append("before training")
        else:
            ok = sum(site.status == "ok" for site in record.sites)
            parts += [
                self._privacy().plain,
                f"sites {ok}/{len(record.sites)}",
                f"{human_bytes(record.bytes_up)} up, {human_bytes(record.bytes_down)} down",
                duration(record.seconds),
            ]
            left = self._seconds_left(rounds=self._plan.rounds.count - record.round)
            if left:
                parts.append(f"about {duration(left)} left")
        return Text("  ".join(parts))

    def _view(self) -> RenderableType:
        """The live view as it is now; called several times a second."""
        if self._plan is None:
            return self._waiting
        count = self._plan.rounds.count
        done = min(self._round - 1 + self._answered / max(self._ready, 1), self._round, count)
        over = self._round > count
        rounds = Table.grid(padding=(0, 1), expand=True)
        rounds.add_column(no_wrap=True)
        rounds.add_column(ratio=1)
        rounds.add_column(no_wrap=True)
        rounds.add_row(
            Text(f"round {min(self._round, count)}/{count}", style="bold"),
            ProgressBar(count, done, complete_style="blue", finished_style="green"),
            Text("done" if over else self._sites(), style="green" if over else ""),
        )
        figures = Table.grid(padding=(0, 2))
        figures.add_column(style="dim", no_wrap=True)
        figures.add_column(no_wrap=True, overflow="ellipsis")
        if self._scores:
            score = metric_text(self._headline, self._scores[-1])
            quality = Text(f"{score}{self._change()}  ")
            quality.append(sparkline(self._scores[-_SPARK_WIDTH:]), style="blue")
            figures.add_row(metric_name(self._headline), quality)
        figures.add_row("privacy", self._privacy())
        since = f" since round {self._first}" if self._first > 1 else ""
        traffic = f"{human_bytes(self._bytes_up)} up, {human_bytes(self._bytes_down)} down{since}"
        figures.add_row("traffic", traffic)
        figures.add_row("time", self._time(0 if over else count - self._round + 1))
        return Group(self._title(), rounds, figures)

    def _title(self) -> Text:
        assert self._plan is not None
        title = Text("Lorica", style="bold", no_wrap=True, overflow="ellipsis")
        sites = f"{self._ready} site" + "s" * (self._ready != 1)
        title.append(f"  {self._plan.aggregation.method}, {sites}, ", style="not bold")
        if math.isinf(self._budget):
            title.append(NO_PRIVACY, style=_LOUD)
        else:
            budget = f"ε ≤ {self._budget:g} at δ = {self._plan.privacy.delta:g} for each site"
            title.append(budget, style="not bold")
        return title

    def _sites(self) -> str:
        missing = f", {self._without_update} without an update" if self._without_update else ""
        return f"sites {self._answered}/{max(self._ready, self._answered)}{missing}"

    def _privacy(self) -> Text:
        if math.isinf(self._budget):
            return Text(NO_PRIVACY, style=_LOUD)
        if self._spent_after is None:
            return Text(f"ε at most {self._budget:g}")
        least = "at least " if self._behind else ""  # of an earlier round
        return Text(f"ε {least}{epsilon_text(self._spent)} of {self._budget:g}")

    def _change(self) -> str:
        if len(self._scores) < 2:
            return ""
        return f" ({change_text(self._headline, self._scores[-1] - self._scores[-2])})"

    def _time(self, rounds_left: int) -> str:
        now = time.monotonic()
        elapsed = f"{_clock(now - self._begun)} so far"
        left = self._seconds_left(rounds_left, now - self._round_begun)
        return f"{elapsed}, about {_clock(math.ceil(left))} left" if left else elapsed

    def _seconds_left(self, rounds: int, spent_in_this: float = 0.0) -> float:
        if not self._durations or not rounds:
            return 0.0
        mean = sum(self._durations) / len(self._durations)
        return mean * (rounds - 1) + max(mean - spent_in_this, 0.0)


def sparkline(values: list[float]) -> str:
    """Values as a row of block characters, from the smallest to the largest of them."""
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    top = len(_SPARKS) - 1
    return "".join(_SPARKS[round((value - low) / span * top)] for value in values)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


_PLAIN_WORDS = {"R²": "R2", "ε": "epsilon", "δ": "delta", "≤": "at most", "∞": "inf", "–": "-"}


def _ascii(text: str) -> str:
    for sign, word in _PLAIN_WORDS.items():
        text = text.replace(sign, word)
    return text.encode("ascii", "replace").decode("ascii")
