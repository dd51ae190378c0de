"""``lorica runs``: look at runs in the store, take them out, put them in, clear them away."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from lorica.server.store import RunStore

app = typer.Typer(
    name="runs",
    no_args_is_help=True,
    help="Look at runs in the run store: list, show, compare, export, report, prune.",
    rich_help_panel="Runs",
)

StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="URL",
        help="The run store; default LORICA_STORE, else the one in the user's folder.",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
RunArgument = Annotated[
    str, typer.Argument(metavar="RUN", help="A run's id, or enough of its beginning.")
]


@app.command("list")
def list_command(
    status: Annotated[
        list[str] | None, typer.Option(help="Only runs of this status; repeatable.")
    ] = None,
    kind: Annotated[
        list[str] | None,
        typer.Option(
            help="Only federation, simulation, baseline, sweep or sweep-run; repeatable. "
            "Baselines and runs of sweeps are listed only when asked for."
        ),
    ] = None,
    parent: Annotated[
        str | None, typer.Option(metavar="RUN", help="Runs of this sweep or simulation.")
    ] = None,
    search: Annotated[
        str | None, typer.Option(help="Text in the id, name, method, task or backbone.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="Most runs.")] = 30,
    as_json: JsonOption = False,
    store: StoreOption = None,
) -> None:
    """List runs, newest first."""
    from lorica.server.reports.output import print_json, run_content, runs_table, say
    from lorica.server.store.tables import KINDS, STATUSES

    _known(status, STATUSES, "--status")
    _known(kind, KINDS, "--kind")
    opened = _open(store)
    page = opened.list_runs(
        status=status,
        kind=kind,
        parent=opened.find(parent).run_id if parent else None,
        search=search,
        limit=limit,
    )
    if as_json:
        print_json([run_content(run) for run in page.items])
    elif not page.items:
        say("No runs. `lorica simulate` or `lorica demo` makes one.")
    else:
        say(runs_table(page.items))
        if page.next:
            say(f"There are more; --limit {limit * 4} shows them.")


@app.command("show")
def show_command(run: RunArgument, as_json: JsonOption = False, store: StoreOption = None) -> None:
    """Show a run: how far it is, its sites, what went wrong, its files."""
    from lorica.server.reports.output import print_json, run_view, say, whole_run

    opened = _open(store)
    found = opened.find(run)
    if as_json:
        print_json(whole_run(opened, found))
    else:
        say(*run_view(opened, found))


@app.command("compare")
def compare_command(
    runs: Annotated[list[str], typer.Argument(metavar="RUN RUN…", help="Two or more runs.")],
    as_json: JsonOption = False,
    store: StoreOption = None,
) -> None:
    """Compare runs: their results, and the keys in which their plans differ."""
    from lorica.server.reports.output import comparison, comparison_tables, print_json, say

    if len(runs) < 2:
        raise typer.BadParameter("Give at least two runs.")
    opened = _open(store)
    found = [opened.find(run) for run in runs]
    if as_json:
        print_json(comparison(opened, found))
    else:
        say(*comparison_tables(opened, found))


@app.command("export")
def export_command(
    run: RunArgument,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="A .json, or a .csv with a line for each round.")
    ],
    sites: Annotated[
        bool, typer.Option("--sites", help="In a .csv, a line for each site in each round.")
    ] = False,
    store: StoreOption = None,
) -> None:
    """Write all that the store holds of a run to a file."""
    from lorica.server.reports.export import export_run
    from lorica.server.reports.output import say

    opened = _open(store)
    found = opened.find(run)
    export_run(opened, found, output, sites=sites)
    say(f"{found.run_id} is in {output}")


@app.command("import")
def import_command(
    folders: Annotated[list[Path], typer.Argument(help="Results folders of runs.")],
    store: StoreOption = None,
) -> None:
    """Take results folders into the store, or catch up with what it missed of them."""
    from lorica.server.recording.importing import import_folder
    from lorica.server.reports.output import say

    opened = _open(store)
    for folder in folders:
        say(f"{folder} is run {import_folder(opened, folder)}")


@app.command("report")
def report_command(
    run: RunArgument,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The HTML file; default RUN.html.")
    ] = None,
    store: StoreOption = None,
) -> None:
    """Write a report for those who decide: one printable page that needs nothing but itself."""
    from lorica.server.reports.output import say
    from lorica.server.reports.report import write_report

    opened = _open(store)
    found = opened.find(run)
    path = output or Path(f"{found.run_id}.html")
    write_report(opened, found, path)
    say(f"report of {found.run_id} in {path}")


@app.command("prune")
def prune_command(
    older_than: Annotated[
        float | None, typer.Option(metavar="DAYS", min=0, help="Runs created so many days ago.")
    ] = None,
    keep: Annotated[
        int | None, typer.Option(min=0, help="Leave so many of the newest runs.")
    ] = None,
    status: Annotated[
        list[str] | None, typer.Option(help="Only runs of this status; repeatable.")
    ] = None,
    files: Annotated[
        bool,
        typer.Option("--files", help="Delete their artefacts' files, too; default: rows only."),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    store: StoreOption = None,
) -> None:
    """Delete runs that are over from the store, with their rounds, events and child runs.

    What will go is said first. Files stay where they are unless --files is given.
    """
    from lorica.server.reports.output import prune_table, say
    from lorica.server.store.prune import plan_pruning, prune
    from lorica.server.store.tables import OVER

    if older_than is None and keep is None and not status:
        raise typer.BadParameter("Say which: --older-than DAYS, --keep N or --status STATUS.")
    _known(status, OVER, "--status")
    opened = _open(store)
    pruning = plan_pruning(opened, older_than_days=older_than, keep=keep, status=status)
    if not pruning.runs:
        say("No run is to go.")
        return
    say(prune_table(pruning, files=files))
    if dry_run:
        return
    if not yes and not typer.confirm("Delete them?"):
        raise typer.Exit(1)
    freed = prune(opened, pruning, files=files)
    words = f", and {freed} files" if files else "; their files are where they were"
    say(f"{len(pruning.runs)} runs are deleted from the store{words}.")


def _open(url: str | None) -> RunStore:
    from lorica.server.store import RunStore

    store = RunStore.open(url)
    store.mark_interrupted()
    return store


def _known(given: list[str] | None, valid: tuple[str, ...], option: str) -> None:
    wrong = [value for value in given or [] if value not in valid]
    if wrong:
        raise typer.BadParameter(f"{option} {wrong[0]}: expected one of {', '.join(valid)}.")
