"""``lorica site config``, ``lorica site plan`` and ``lorica site backbone``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from lorica.client.cli.options import SITE_TOML, ConfigOption
from lorica.common.cli.options import PlanArgument, SetOption
from lorica.common.display.console import Console
from lorica.common.display.tables import Table
from lorica.common.display.wording import epsilon_text, left_text
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.privacy.event import PrivacyEvent
from lorica.common.privacy.response import truth

_REFUSED = 14


def site_config(
    name: Annotated[str, typer.Option(help="The site's public name.")],
    data: Annotated[
        str, typer.Option(help="The records: a file, a folder, or a database (docs/data.md).")
    ],
    config: ConfigOption = SITE_TOML,
) -> None:
    """Write a site.toml with every setting, its default and its meaning."""
    from lorica.client.config.site import documented_site
    from lorica.common.machine.files import write_atomically

    if config.exists():
        raise LoricaError(
            Code.SITE_CONFIG,
            f"{config} exists already.",
            mend="Edit it, or give another path with --config.",
        )
    write_atomically(config, documented_site(name, data))
    Console().print(f"Written to {config}. Read it through and set the limits.", soft_wrap=True)


def site_plan(
    plan: PlanArgument = None, settings: SetOption = None, config: ConfigOption = SITE_TOML
) -> None:
    """Show what a run would cost this site: σ, ε now, after and left, and whether it may run.

    Looks at nothing of the data but the number of units. Exits with status 14 when the policy or
    a budget would refuse the run.
    """
    from lorica.client.config.site import load_site
    from lorica.client.site.cost import run_cost
    from lorica.common.plan.io import load_plan

    site, loaded = load_site(config), load_plan(plan, settings or [])
    cost = run_cost(loaded, site, config.parent)
    evaluation = cost.privacy.evaluation
    table = Table(box=None, show_header=False, title=f"What this run would cost {site.site.name}")
    table.add_column(style="dim")
    table.add_column()
    known = site.policy.coordinators
    rows = [
        (
            "coordinators answered",
            f"{len(known)} by key" if known else "NONE: the site does not start",
        ),
        ("unit of privacy", loaded.privacy.unit),
        ("units that rates are computed from", f"{cost.units:,}"),
        *(
            (f"{stage.value}: noise multiplier σ", _event_text(event))
            for stage, event in cost.privacy.events_by_stage(loaded.rounds.count)
        ),
        ("evaluations", str(len(loaded.evaluation_rounds)) if evaluation else "none"),
        ("one bit about the guard", _bit_text(cost.privacy.benefit)),
        ("signal to noise of a step", f"{cost.signal_to_noise:.1f} (expected batch / σ)"),
        ("ε of the run", f"{epsilon_text(cost.run_epsilon, 3)} at δ = {loaded.privacy.delta:g}"),
        *_of_sums(loaded),
        ("ε of this data set now", f"{epsilon_text(cost.spent, 3)} at δ = {site.ledger.delta:g}"),
        ("ε after the run", epsilon_text(cost.after, 3)),
        (
            "left of the lifetime budget",
            f"{left_text(cost.left, 3)} of {site.ledger.lifetime_epsilon:g}",
        ),
    ]
    for row in rows:
        table.add_row(*row)
    console = Console()
    console.print(table)
    for reason in cost.refusals:
        console.print(Text.assemble(("would be refused  ", "bold red"), reason), soft_wrap=True)
    if cost.refusals:
        sys.exit(_REFUSED)
    console.print(Text("The site would take part.", style="bold green"))


def site_backbone(
    folder: Annotated[Path, typer.Argument(help="The folder of a pretrained model.")],
) -> None:
    """Print the hash of a pretrained model by which policy.backbones allows it."""
    from lorica.common.backbone.files import backbone_sha256, settings_sha256, weights_sha256

    weights, settings = weights_sha256(folder), settings_sha256(folder)
    sys.stdout.write(f"{backbone_sha256(folder, weights, settings)}\n")
    Console(stderr=True).print(
        f"weights {weights}\nconfig and tokenizer {settings}\nThe first line, of all of it, goes "
        f"into policy.backbones, and {folder} into policy.backbone_folders. A plan may name either "
        "that hash or the weights' as backbone.sha256. To allow it with rounded weights "
        "(backbone.quantize), list the first line with :int8 or :int4 behind it.",
        highlight=False,
        soft_wrap=True,
    )


def _of_sums(plan: RunPlan) -> list[tuple[str, str]]:
    """Rows with the three figures of a plan with sealed sums."""
    if not plan.sealed:
        return []
    from lorica.common.privacy.sealed import run_figures, shared_noise

    found, shared = run_figures(plan), shared_noise(plan)
    most = shared.threshold - shared.honest
    return [
        ("ε, if no other site colludes", epsilon_text(found.sums, 3)),
        (
            f"ε, if at least {shared.honest} sites of every sum are honest",
            f"{epsilon_text(found.colluding, 3)} (the plan's; {most} of the "
            f"{shared.threshold} in the smallest sum may collude)",
        ),
        ("ε, if all other sites collude", epsilon_text(found.alone, 3)),
    ]


def _bit_text(event: PrivacyEvent | None) -> str:
    if event is None:
        return "not asked for"
    return f"randomised, ε = {event.response:g}: true in {truth(event.response):.0%} of cases"


def _event_text(event: PrivacyEvent) -> str:
    times = "once" if event.steps == 1 else f"{event.steps:,} times"
    return f"{event.noise_multiplier:.4f} at sample rate q = {event.sample_rate:.4g}, {times}"
