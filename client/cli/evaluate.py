"""``lorica site evaluate``: how good an adapter is on the site's own records."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from lorica.client.cli.options import SITE_TOML, ConfigOption
from lorica.common.cli.options import AdapterArgument, BackboneOption
from lorica.common.display.console import Console
from lorica.common.errors import Code, LoricaError


def site_evaluate(
    adapter: AdapterArgument,
    config: ConfigOption = SITE_TOML,
    by: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN", help="Figures for each value of one of data.columns; repeatable."
        ),
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="All records, also those that the run trained on.")
    ] = False,
    draws: Annotated[int, typer.Option(min=0, help="Bootstrap draws for the intervals.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the draws and the temperature's split.")] = 0,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for evaluation.html and .json.")
    ] = None,
    backbone: BackboneOption = "",
) -> None:
    """Judge an adapter on the site's own records, those that the run set aside.

    For tasks that choose one label. FOR THE SITE ALONE: the figures are exact, nothing is sent and
    nothing charged.
    """
    from lorica.client.benefit.aside import own_records
    from lorica.client.config.site import load_site
    from lorica.client.data.fetched import fetch
    from lorica.client.data.reading import read_records, shown
    from lorica.client.training.opening import kept_secret
    from lorica.common.data.records import UNNAMED
    from lorica.common.machine.secret import derived
    from lorica.common.saved.predict import Predictor
    from lorica.common.saved.quality.answers import answers
    from lorica.common.saved.quality.judged import judge, write_judged
    from lorica.common.saved.quality.page import print_judged, write_page
    from lorica.common.tasks import task_of
    from lorica.common.tasks.predictions import ClassPrediction

    console = Console()
    os.umask(0o077)  # what is written is as private as the records
    site, root = load_site(config), config.absolute().parent
    predictor = Predictor(adapter, backbone)
    plan = predictor.plan
    if not task_of(plan).traits.one_label_each:
        raise LoricaError(
            Code.PLAN_BAD_VALUE,
            f"The adapter's task is {plan.task.kind}: `lorica site evaluate` judges tasks that "
            "choose one label.",
            mend="`lorica site benefit` compares models of every task.",
        )
    with console.status("reading the site's records"):
        records = read_records(site, root, fetch(config, site))
        task_of(plan).check(records, where=f"Site {site.site.name}")
        own = own_records(records, plan, derived(kept_secret(site, root), "aside"))
        if own.unseen and not every:
            records = records.take(own.aside.nonzero()[0].tolist())
        cells = {name: _cells(records.table, name) for name in {*(by or []), *predictor.columns}}
        beside = {name: cells[name] for name in predictor.columns}
        found = predictor(list(records.texts), beside, records.images)
    judged = judge(
        answers(
            plan.task.labels,
            [item.probabilities for item in found if isinstance(item, ClassPrediction)],
            list(records.labels),
        ),
        groups={name: cells[name] for name in by or []},
        units=[
            f"{row}" if unit.startswith(UNNAMED) else f"unit {unit}"
            for row, unit in enumerate(records.units)
        ],
        draws=draws,
        seed=seed,
    )
    print_judged(judged, console)
    if not own.unseen or every:
        console.print(Text("The run trained on these records, too, under its ε."), style="yellow")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_judged(out / "evaluation.json", judged)
        write_page(out / "evaluation.html", judged, adapter=str(adapter), data=shown(site.data))
        console.print(Text(f"Wrote {out / 'evaluation.html'} and evaluation.json."))
    console.print(
        Text("For this site alone: these figures are as private as its records."), style="yellow"
    )


def _cells(table: object, name: str) -> list[str]:
    from lorica.common.data.table import Table

    if not isinstance(table, Table) or name not in table.names:
        has = ", ".join(table.names) if isinstance(table, Table) else "none"
        raise LoricaError(
            Code.DATA_COLUMN,
            f"The site keeps no column '{name}' of its records; it keeps: {has}.",
            mend="Name it in data.columns of site.toml.",
        )
    return table.cells(name)
