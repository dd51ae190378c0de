"""``lorica site data``: a private look at the site's records."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from lorica.client.cli.options import SITE_TOML, ConfigOption
from lorica.common.display.console import Console

if TYPE_CHECKING:
    from lorica.client.data.check.overview import Tokenize

data_app = typer.Typer(no_args_is_help=True, help="A private look at the site's records.")


@data_app.command("accept")
def data_accept(config: ConfigOption = SITE_TOML) -> None:
    """Take records that have changed as the site's from now on; what was charged stays charged."""
    from lorica.client.config.site import load_site
    from lorica.client.data.changes import require_unchanged
    from lorica.client.data.fetched import fetch
    from lorica.client.data.reading import read_records
    from lorica.client.training.opening import data_file

    site, root = load_site(config), config.absolute().parent
    records = read_records(site, root, fetch(config, site))
    require_unchanged(records, data_file(site, root), accept=True)
    Console().print(f"{len(records):,} records are the site's from now on.", highlight=False)


@data_app.command("check")
def data_check(
    config: ConfigOption = SITE_TOML,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, its notice first.")] = False,
    backbone: Annotated[
        str, typer.Option(help="Count tokens as this backbone does; empty: count none.")
    ] = "embedded",
) -> None:
    """Show counts, lengths, labels, duplicates, units and leak suspects. FOR THE SITE ALONE.

    Reads the source once, a batch in memory, sends nothing and writes nothing. The figures are
    exact and private: they must not leave the institution.
    """
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from lorica.client.config.site import load_site
    from lorica.client.data.check.overview import overview
    from lorica.client.data.check.terminal import show
    from lorica.client.data.reading import roles_of, shown, site_batches
    from lorica.common.data.columnar import need_pyarrow

    site, root = load_site(config), config.absolute().parent
    need_pyarrow()
    tokenize = _tokenizer(backbone) if backbone else None
    with Progress(
        TextColumn("reading"),
        BarColumn(),
        TextColumn("{task.completed:,.0f} records"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as progress:
        task = progress.add_task("", total=None)
        found = overview(
            site_batches(site.data, root, None),
            roles_of(site.data, root),
            shown(site.data),
            tokenize=tokenize,
            progress=lambda rows: progress.update(task, completed=rows),
        )
    if as_json:
        sys.stdout.write(json.dumps(found.as_dict(), ensure_ascii=False, indent=1) + "\n")
    else:
        show(found, Console())


def _tokenizer(source: str) -> Tokenize | None:
    """Lengths in tokens, as the backbone counts them; None where it is not to be had here."""
    from lorica.common.backbone.files import backbone_folder
    from lorica.common.errors import LoricaError
    from lorica.common.plan.subject import BackbonePlan

    try:
        from transformers import AutoTokenizer

        folder = backbone_folder(BackbonePlan(source=source))
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (ImportError, OSError, ValueError, LoricaError) as error:
        Console(stderr=True).print(f"Tokens are not counted: {error}", soft_wrap=True)
        return None
    return lambda texts: [len(ids) for ids in tokenizer(texts, truncation=False)["input_ids"]]
