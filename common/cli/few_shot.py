"""``lorica few-shot``: an adapter from a handful of labelled texts, without a federation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from lorica.common.cli.options import PlanArgument, SetOption
from lorica.common.display.console import Console


def few_shot(
    out: Annotated[Path, typer.Option("--out", "-o", help="The adapter's folder, a new one.")],
    plan: PlanArgument = None,
    file: Annotated[
        Path | None,
        typer.Option("--file", "-f", help="Labelled records; the plan's data.train if left out."),
    ] = None,
    shots: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Records of each label, chosen by --seed; 0: none, labels' names and "
            "task.descriptions alone. All if left out.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the choice.")] = 0,
    settings: SetOption = None,
) -> None:
    """Make an adapter of k records a label: their mean features, blended with the labels' meaning.

    It has no differential privacy where there are records: it stays where they may stay.
    """
    from lorica.common.data.records import read_records
    from lorica.common.plan.io import load_plan
    from lorica.common.saved.exported.written import require_new
    from lorica.common.saved.few_shot import few_shot as made_of
    from lorica.common.saved.folder import save_adapter

    console = Console()
    require_new(out)
    wanted = load_plan(plan, settings or [])
    records = read_records(str(file) if file else wanted.data.train, wanted.columns)
    with console.status("reading the records"):
        made = made_of(wanted, records, shots, seed)
        save_adapter(out, made.state, made.plan, made.backbone)
    console.print(Text(f"Wrote {out}: {_what(made.records, made.shots)}."), soft_wrap=True)
    if made.left_out is not None:
        console.print(
            Text(
                f"A label's name or description counts as {made.worth:g} records; of the records, "
                f"each left out of its own prototype, {made.left_out:.1%} are told rightly."
            ),
            soft_wrap=True,
        )
        console.print(
            Text("It has no differential privacy: it tells of the records it was made of."),
            style="yellow",
            soft_wrap=True,
        )
    elif not made.plan.privacy.private:
        console.print(
            Text("Its labels are those of the records: name them in task.labels, if all may know."),
            style="yellow",
            soft_wrap=True,
        )
    if made.records and made.without:
        console.print(Text(f"By their meaning alone: {', '.join(made.without)}."), soft_wrap=True)


def _what(records: int, shots: int) -> str:
    if not records:
        return "labels by their names and descriptions, no record in it"
    return f"prototypes of {records} records, at most {shots} of a label"
