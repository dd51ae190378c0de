"""``lorica run``: runs over sites on machines of their own."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group
from rich.live import Live
from rich.text import Text

from lorica.common.cli.options import SetOption
from lorica.common.display.console import Console
from lorica.common.display.tables import Table
from lorica.common.display.text import plain
from lorica.common.display.wording import metric_name, metric_text
from lorica.common.errors import Code, LoricaError

if TYPE_CHECKING:
    from lorica.server.coordinator.orders import RunPlace
    from lorica.server.results.round import RoundRecord

app = typer.Typer(
    name="run",
    no_args_is_help=True,
    help="Submit, watch, stop and resume runs of a federation.",
    rich_help_panel="Coordinators",
)

HomeOption = Annotated[
    Path | None,
    typer.Option(
        "--home",
        "-H",
        help="The coordinator's folder; else the one that LORICA_COORDINATOR_HOME names, else "
        '"coordinator" in the user\'s folder (LORICA_HOME).',
    ),
]
RunArgument = Annotated[str, typer.Argument(help="The run's id, or its first characters.")]

_COLOURS = {
    "finished": "green",
    "failed": "red",
    "stopped": "yellow",
    "running": "cyan",
    "ok": "green",
    "refused": "yellow",
    "late": "yellow",
}


@app.callback()
def _run() -> None:
    """Submit, watch, stop and resume runs of a federation."""


@app.command("submit")
def run_submit(
    plan: Annotated[Path, typer.Argument(help="The plan in TOML; it must name its task's labels.")],
    settings: SetOption = None,
    home: HomeOption = None,
    name: Annotated[str, typer.Option("--id", help="The run's id; made when left out.")] = "",
    watch: Annotated[bool, typer.Option("--watch", help="Watch it until it is over.")] = False,
) -> None:
    """Put a run into the queue and print its id."""
    from lorica.common.plan.io import load_plan
    from lorica.server.coordinator.submit import submit

    place = submit(_home(home), load_plan(plan, settings or []), run=name)
    sys.stdout.write(f"{place.run}\n")
    sys.stdout.flush()
    if watch:
        _watch(place)


@app.command("list")
def run_list(home: HomeOption = None) -> None:
    """List all runs, the newest last."""
    from lorica.server.coordinator.orders import RunPlace, last_round
    from lorica.server.results.round import RoundRecord

    table = Table("run", "state", "round", "score", "submitted", "", box=None)
    for place in RunPlace.all(_home(home).runs):
        order, last = place.order(), last_round(place)
        count = place.folder.plan().rounds.count
        table.add_row(
            order.run,
            Text(order.state, _COLOURS.get(order.state, "")),
            f"{last.get('round', 0)}/{count}",
            _result(place, RoundRecord.from_dict(last)) if last else "",
            f"{order.submitted:%Y-%m-%d %H:%M}",
            Text(plain(order.reason, 80)),
        )
    Console().print(table)


@app.command("show")
def run_show(run: RunArgument, home: HomeOption = None) -> None:
    """Show a run: its state, its last rounds, its sites."""
    Console().print(_view(_place(run, home)))


@app.command("watch")
def run_watch(run: RunArgument, home: HomeOption = None) -> None:
    """Watch a run until it is over; Ctrl-C ends the watching, not the run."""
    _watch(_place(run, home))


@app.command("stop")
def run_stop(
    run: RunArgument,
    home: HomeOption = None,
    wait: Annotated[bool, typer.Option(help="Wait until it has stopped.")] = True,
) -> None:
    """Stop a run; what its last whole round left is kept."""
    from lorica.server.coordinator.orders import wait_until_over
    from lorica.server.coordinator.submit import stop

    place = _place(run, home)
    order = stop(place)
    if wait:
        order = wait_until_over(place)
    Console().print(f"Run {order.run} is {order.state}.", highlight=False)


@app.command("resume")
def run_resume(
    run: RunArgument,
    home: HomeOption = None,
    watch: Annotated[bool, typer.Option("--watch", help="Watch it until it is over.")] = False,
) -> None:
    """Take a run that stopped or failed up again, from its last whole round.

    A run that died with its machine needs no such thing: it goes on when the services do.
    """
    from lorica.server.coordinator.submit import resume

    place = _place(run, home)
    resume(place)
    Console().print(f"Run {place.run} is queued.", highlight=False)
    if watch:
        _watch(place)


def _home(given: Path | None):  # type: ignore[no-untyped-def]
    from lorica.server.coordinator.home import CoordinatorHome, default_home
    from lorica.server.coordinator.noting import use_store

    home = CoordinatorHome(given or default_home())
    use_store(home)
    return home


def _place(run: str, home: Path | None) -> RunPlace:
    from lorica.server.coordinator.orders import RunPlace

    return RunPlace.find(_home(home).runs, run)


def _watch(place: RunPlace) -> None:
    """Show a run live; end with its error when it failed."""
    console = Console()
    try:
        with Live(_view(place), console=console, refresh_per_second=4) as live:
            while not place.order().over:
                time.sleep(0.5)
                live.update(_view(place))
            live.update(_view(place))
    except KeyboardInterrupt:
        console.print(f"Run {place.run} goes on: `lorica run watch {place.run}`.", highlight=False)
        return
    order = place.order()
    if order.state == "failed":
        raise LoricaError(Code.RUN_STATE, f"Run {order.run} failed: {order.reason}")


def _view(place: RunPlace) -> Group:
    order, plan = place.order(), place.folder.plan()
    records = place.folder.rounds()
    last = records[-1] if records else None
    done = last.round if last else 0
    bar = "█" * round(30 * done / plan.rounds.count)
    head = Text.assemble(
        (order.run, "bold"),
        "  ",
        (order.state, _COLOURS.get(order.state, "")),
        f"  round {done}/{plan.rounds.count}  ",
        (f"{bar:░<30}", "cyan"),
        f"  ε ≤ {plan.privacy.epsilon:g} at each site",
    )
    parts: list[object] = [head]
    if order.reason:
        parts.append(Text(plain(order.reason, 1000)))
    if records:
        table = Table("round", "sites", "score", "loss", "seconds", "received", box=None)
        for record in records[-8:]:
            ok = sum(site.status == "ok" for site in record.sites)
            table.add_row(
                str(record.round),
                f"{ok}/{len(record.sites)}" if record.sites else "",
                _score(record),
                "" if record.loss is None else f"{record.loss:.3f}",
                f"{record.seconds:.1f}",
                f"{record.bytes_up / 1e6:.2f} MB" if record.bytes_up else "",
            )
        parts.append(table)
    if last and last.sites:
        sites = Table("site", "last answer", "seconds", "", box=None)
        for site in last.sites:
            state = Text(site.status, _COLOURS.get(site.status, "red"))
            sites.add_row(
                Text(plain(site.site)), state, f"{site.seconds:.1f}", Text(plain(site.reason, 90))
            )
        parts.append(sites)
    return Group(*parts)  # type: ignore[arg-type]


def _result(place: RunPlace, last: RoundRecord) -> str:
    """The score of what a run has come to; the last round's, unless its LoRA was given up."""
    from lorica.server.results.round import measured_result

    if last.score is None and last.lora_dropped:
        return _score(measured_result(place.folder.rounds())[-1])
    return _score(last)


def _score(record: RoundRecord) -> str:
    """The task's headline metric, by the coordinator's data or else by the sites' counts."""
    found = record.site_headline if record.score is None else record.score
    if found is None:
        return ""
    given_up = " (given up)" if record.lora_dropped and record.score is None else ""
    return f"{metric_name(record.headline)} {metric_text(record.headline, found)}{given_up}"
