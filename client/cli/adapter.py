"""``lorica site adapter``: a shared adapter made whole with the site's own part."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorica.client.cli.options import SITE_TOML, ConfigOption
from lorica.common.display.console import Console
from lorica.common.errors import Code, LoricaError


def site_adapter(
    adapter: Annotated[Path, typer.Argument(help="Folder of the adapter that the run ended with.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder to write the site's own adapter to.")
    ],
    config: ConfigOption = SITE_TOML,
    run: Annotated[
        str, typer.Option(help="The run's id, where the site took part in several of this plan.")
    ] = "",
) -> None:
    """Write the site's own adapter of a run with personal parts (aggregation.method "fedsa").

    What the coordinator publishes holds the shared part alone. The result is an adapter folder like
    any other; it is covered by the site's (ε, δ), and stays at the site unless it is given away.
    """
    from lorica.client.config.site import load_site
    from lorica.client.training.opening import personal_store
    from lorica.common.backbone.loading import backbone_of
    from lorica.common.plan.methods import METHODS
    from lorica.common.saved.card import CardResults
    from lorica.common.saved.folder import load_adapter, save_adapter

    site, shared = load_site(config), load_adapter(adapter)
    plan = shared.plan
    if not METHODS[plan.aggregation.method].personal:
        raise LoricaError(
            Code.PERSONAL_ABSENT,
            f"{adapter} was trained with {plan.aggregation.method}: it is whole as it is.",
            mend="Use it as it is.",
        )
    store = personal_store(site, config.parent)
    runs = [found for found in store.runs(plan) if run in ("", found)]
    if len(runs) != 1:
        which = f"run {run!r}" if run else "a run"
        several = f"several: {', '.join(sorted(runs))}" if runs else "none"
        raise LoricaError(
            Code.PERSONAL_ABSENT,
            f"{store.folder} should hold what {site.site.name} kept of {which} of this plan, and "
            f"holds {several}.",
            mend="Name the run with --run." if runs else None,
        )
    state = shared.state | store.load(runs[0], plan)
    save_adapter(output, state, plan, backbone_of(plan), CardResults(seeded=shared.seeded))
    Console().print(f"Written to {output}.", highlight=False, soft_wrap=True)
