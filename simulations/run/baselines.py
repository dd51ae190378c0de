"""What a federation is compared with: each site alone, and all data pooled without privacy.

Every baseline is a run of its own that can be resumed, in a folder beside the federation's. Where
the federation's sites were in workers (:mod:`lorica.simulations.run.workers`), baselines run in
these, side by side: what has been kept of the records serves them, too. Workers write a baseline's
folder; what happens in it they tell this process, which shows it and keeps it in the run store.
"""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from lorica.client.training.trainer import LocalTrainer
from lorica.common.display.console import Console
from lorica.common.display.text import printable
from lorica.common.display.wording import metric_name, metric_text
from lorica.common.errors import LoricaError
from lorica.common.plan import RunPlan
from lorica.server.recording.recording import Recording
from lorica.server.results.folder import PLAN, RunFolder
from lorica.server.results.round import RoundRecord, SiteRound
from lorica.simulations.run.engines import Main, run_in_process
from lorica.simulations.run.keep import Keep
from lorica.simulations.run.progress import LiveProgress
from lorica.simulations.run.workers import Nodes, SiteWorkers

ALONE, POOLED = "alone", "pooled"
"""Run ids of the baselines; they also tell streams of seeded noise apart."""

BASELINES = "baselines"
"""Folder of theirs among a run's results."""


@dataclass(frozen=True)
class Baseline:
    """A run of one site."""

    title: str
    run: str
    """:data:`ALONE` or :data:`POOLED`."""
    plan: RunPlan
    folder: RunFolder
    trainer: LocalTrainer


MainOf = Callable[[Baseline, Recording], Main]
"""The rounds of a baseline, kept by a recording."""

_Event = tuple[int, str, tuple[Any, ...]]
"""Number of a baseline, what its observer hears, and the arguments of that."""


@dataclass(frozen=True)
class _Asked:
    """What a worker is sent to run a baseline."""

    number: int


class Baselines:
    """The baselines of a simulation, each run from its last whole round on."""

    def __init__(self, baselines: Sequence[Baseline], main_of: MainOf) -> None:
        """To be made before workers are: they have what it holds.

        Args:
            baselines: what to run; perhaps none.
            main_of: makes their rounds.
        """
        self._baselines, self._main_of = list(baselines), main_of
        context = multiprocessing.get_context()
        self._events = context.SimpleQueue()
        self._stops = [context.Event() for _ in baselines]

    def beside(self, nodes: Nodes) -> Nodes:
        """Nodes that also run baselines, for workers."""
        return _Beside(nodes, self)

    def run(
        self, console: Console, keep: Keep, parent: str, workers: SiteWorkers | None
    ) -> Mapping[str, float]:
        """The last score of every baseline, by title.

        Args:
            console: where progress is shown.
            keep: the run store that hears of them.
            parent: run id of the federation.
            workers: whose nodes are :meth:`beside` some; None runs them one by one, here.

        Raises:
            LoricaError: what a baseline raises; LOR-511 when a worker died.
        """
        for one in self._baselines:
            if not (one.folder.path / PLAN).exists():
                one.folder.create(one.plan)
        if workers is None:
            return {one.title: self._here(one, console, keep, parent) for one in self._baselines}
        with _Shown(self._baselines, console, keep, parent, self._stops) as shown:
            self._together(workers, shown)
        return {one.title: _score(one) for one in self._baselines}

    def _here(self, one: Baseline, console: Console, keep: Keep, parent: str) -> float:
        with (
            keep.baseline(one.plan, one.folder.path, one.title, parent) as kept,
            LiveProgress(console, one.plan.privacy.epsilon) as progress,
        ):
            progress.note(f"Baseline: {one.title}")
            self._rounds(one, kept.beside(progress))
        return _score(one)

    def _rounds(self, one: Baseline, kept: Recording) -> None:
        main = self._main_of(one, kept)
        run_in_process(main, {one.trainer.site: one.trainer}, plan=one.plan)
        one.trainer.close()

    def _together(self, workers: SiteWorkers, shown: _Shown) -> None:
        """The longest first, the next to whichever worker has ended one."""
        costs = [one.trainer.units(one.plan) for one in self._baselines]
        waiting = sorted(range(len(costs)), key=lambda number: costs[number])
        idle, running = workers.places(), dict[str, int]()

        def look() -> None:
            while not self._events.empty():
                shown.hear(self._events.get())

        while waiting or running:
            while waiting and idle:
                number = waiting.pop()
                running[f"baseline {number}"] = place = idle.pop()
                workers.ask(f"baseline {number}", place, _Asked(number))
            ended = workers.first(list(running), look)
            problem = workers.reply(ended)
            idle.append(running.pop(ended))
            look()
            if problem is not None:
                raise problem

    def there(self, number: int) -> LoricaError | None:
        """Run a baseline in a worker; what it raised, to be raised in the process that asked."""
        teller = _Teller(number, self._events.put)
        kept = Recording("", teller, self._stops[number].is_set)
        try:
            self._rounds(self._baselines[number], kept)
        except LoricaError as error:
            return error
        return None


def _score(one: Baseline) -> float:
    score = one.folder.rounds()[-1].score
    assert score is not None
    return score


class _Beside:
    """Nodes, and baselines."""

    def __init__(self, nodes: Nodes, baselines: Baselines) -> None:
        self._nodes, self._baselines = nodes, baselines

    def answer(self, content: Any) -> Any:
        if isinstance(content, _Asked):
            return self._baselines.there(content.number)
        return self._nodes.answer(content)


class _Teller:
    """An observer in a worker: sends what it hears to the process that shows it."""

    def __init__(self, number: int, put: Callable[[_Event], None]) -> None:
        self._number, self._put = number, put

    def started(self, plan: RunPlan, sites: list[SiteRound], first_round: int) -> None:
        self._put((self._number, "started", (plan, sites, first_round)))

    def site_answered(self, round: int, site: SiteRound) -> None:
        pass  # the one site's answer is the round's end

    def round_ended(self, record: RoundRecord) -> None:
        self._put((self._number, "round_ended", (record,)))


class _Shown:
    """What is told of baselines in workers, as bars and lines and in the run store."""

    def __init__(
        self,
        baselines: Sequence[Baseline],
        console: Console,
        keep: Keep,
        parent: str,
        stops: Sequence[Any],
    ) -> None:
        self._baselines, self._stops = baselines, stops
        self._console, self._keep, self._parent = console, keep, parent
        self._kept: dict[int, Recording] = {}
        self._open: dict[int, contextlib.ExitStack] = {}
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("rounds"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal or console.is_dumb_terminal,
            transient=True,
        )
        self._bar = [
            self._bars.add_task(printable(one.title), total=one.plan.rounds.count, start=False)
            for one in baselines
        ]

    def __enter__(self) -> _Shown:
        self._bars.start()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._bars.stop()
        for held in self._open.values():
            held.__exit__(*raised)

    def hear(self, event: _Event) -> None:
        """Show and keep what happened."""
        number, name, arguments = event
        one = self._baselines[number]
        if number not in self._kept:
            held = self._open[number] = contextlib.ExitStack()
            self._kept[number] = held.enter_context(
                self._keep.baseline(one.plan, one.folder.path, one.title, self._parent)
            )
        kept = self._kept[number]
        getattr(kept.observer, name)(*arguments)
        if kept.stop():
            self._stops[number].set()
        self._bars.start_task(self._bar[number])
        if name == "round_ended":
            (record,) = arguments
            self._bars.update(self._bar[number], completed=record.round)
            if record.round == one.plan.rounds.count:
                self._ended(number, record)

    def _ended(self, number: int, record: RoundRecord) -> None:
        self._open.pop(number).close()
        said = f"Baseline: {printable(self._baselines[number].title)}"
        if record.score is not None:
            score = metric_text(record.headline, record.score)
            said += f"  {metric_name(record.headline)} {score}"
        self._console.print(Text(said), soft_wrap=True, highlight=False)
