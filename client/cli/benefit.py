"""``lorica site benefit``: whether joining helped this site."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from lorica.client.cli.options import SITE_TOML, ConfigOption
from lorica.common.cli.options import AdapterArgument, BackboneOption
from lorica.common.display.console import Console
from lorica.common.display.tables import Table
from lorica.common.display.wording import metric_name, metric_text


def site_benefit(
    adapter: AdapterArgument,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Folder for the model that the site keeps, and benefit.json."
        ),
    ] = None,
    config: ConfigOption = SITE_TOML,
    trains: Annotated[
        str,
        typer.Option(
            help="What the site's own models train: head, or adapter (the head and the factors)."
        ),
    ] = "head",
    seed: Annotated[int, typer.Option(help="Of the order of records and the draws.")] = 0,
    backbone: BackboneOption = "",
) -> None:
    """Did joining help this site? Its own models beside the federation's, on its own records.

    Trains two models on the site's records without noise: from the start, and from the
    federation's. All are judged on records set aside, and the site keeps the federation's unless
    another is better beyond chance. FOR THE SITE ALONE: figures and models are as private as the
    records. Nothing is sent or charged.
    """
    from lorica.client.benefit.aside import own_records
    from lorica.client.benefit.compared import compare_models
    from lorica.client.benefit.guard import NAMES
    from lorica.client.config.site import load_site
    from lorica.client.data.fetched import fetch
    from lorica.client.data.reading import read_records
    from lorica.client.training.opening import kept_secret
    from lorica.common.machine.secret import derived
    from lorica.common.saved.folder import load_adapter
    from lorica.common.tasks import task_of

    if trains not in ("head", "adapter"):
        raise typer.BadParameter("--trains takes head or adapter.")
    console = Console()
    os.umask(0o077)  # what is written is as private as the records
    site, root = load_site(config), config.absolute().parent
    saved = load_adapter(adapter)
    loaded = saved.backbone(backbone)
    with console.status("reading the site's records"):
        records = read_records(site, root, fetch(config, site))
        task_of(saved.plan).check(records, where=f"Site {site.site.name}")
        own = own_records(records, saved.plan, derived(kept_secret(site, root), "aside"))
    with console.status("training the site's own models"):
        benefit = compare_models(
            saved.plan,
            loaded,
            own,
            saved.state,
            trains="adapter" if trains == "adapter" else "head",
            seed=seed,
        )
    decision = benefit.decision
    metric = decision.headline
    table = Table("model", metric_name(metric), "95 %", "", box=None, header_style="bold")
    for name, judged in decision.models.items():
        span = f"{metric_text(metric, judged.low)} – {metric_text(metric, judged.high)}"
        mark = "◀ kept" if name == decision.kept else ""
        table.add_row(Text(NAMES[name]), metric_text(metric, judged.score), span, mark)
    console.print(table)
    said = [
        f"Own models were trained on {benefit.trained_on:,} records, without privacy. Kept: "
        f"{NAMES[decision.kept]}; {decision.because}."
    ]
    if not benefit.unseen:
        said.append(
            "The run set no records aside: the federation has seen those compared on, under its ε."
        )
    if decision.harmed:
        said.append("The federation's model is worse here: joining did not help this site.")
    if output is not None:
        from lorica.client.benefit.kept import write_kept

        write_kept(output, benefit, saved, loaded)
        said.append(f"Wrote {output}.")
    console.print(Text(" ".join(said)), soft_wrap=True)
    console.print(
        Text("For this site alone: these figures and models are as private as its records."),
        style="yellow",
        soft_wrap=True,
    )
