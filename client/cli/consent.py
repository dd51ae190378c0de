"""``lorica site pending``, ``approve-run`` and ``deny-run``: people decide about runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from lorica.client.cli.options import SITE_TOML, ConfigOption
from lorica.common.display.console import Console
from lorica.common.display.tables import Table
from lorica.common.display.text import plain
from lorica.common.display.wording import epsilon_text, left_text
from lorica.common.errors import Code, LoricaError

if TYPE_CHECKING:
    from lorica.client.admission.consent import Consent, Decision, Pending
    from lorica.client.config.site import SiteConfig

_LABEL, _SENTENCE = 40, 1000  # characters that are shown

RunArgument = Annotated[str, typer.Argument(help="Lorica's run id, as `lorica site pending` says.")]
PlanOption = Annotated[
    str, typer.Option("--plan", help="First digits of the plan's fingerprint, if several.")
]


def site_pending(config: ConfigOption = SITE_TOML) -> None:
    """List the runs that await a decision, with what each would cost; reads only counts."""
    loaded, consent = _opened(config)
    console = Console()
    waiting = consent.pending()
    for item in waiting:
        _show(item, loaded, config.absolute().parent, console)
    if not waiting:
        console.print("No run awaits a decision.")
    for past in consent.decided():
        said = f"{past.decision} by {past.by}, {past.time}"
        console.print(f"{plain(past.run)}  {said}", style="dim", soft_wrap=True)


def site_approve_run(
    run: RunArgument, plan: PlanOption = "", config: ConfigOption = SITE_TOML
) -> None:
    """Let a run use this site's data, within the policy and the budgets."""
    _decide(run, "approved", plan, config)


def site_deny_run(
    run: RunArgument, plan: PlanOption = "", config: ConfigOption = SITE_TOML
) -> None:
    """Keep a run from this site's data; one that was approved gets no further round."""
    _decide(run, "denied", plan, config)


def _decide(run: str, decision: Decision, fingerprint: str, config: Path) -> None:
    _, consent = _opened(config)
    made = consent.decide(run, decision, fingerprint)
    Console().print(
        f"Run {plain(made.run)}, plan {made.fingerprint[:12]}: {decision}.", soft_wrap=True
    )


def _opened(config: Path) -> tuple[SiteConfig, Consent]:
    from lorica.client.config.site import load_site
    from lorica.client.training.opening import site_consent

    loaded = load_site(config)
    consent = site_consent(loaded, config.absolute().parent)
    if consent is None:
        raise LoricaError(
            Code.RUN_NOT_ASKED,
            'Runs need no approval at this site: policy.consent is "none".',
            mend='Set policy.consent = "per-run" in site.toml and start the trainer anew.',
        )
    return loaded, consent


def _show(item: Pending, config: SiteConfig, folder: Path, console: Console) -> None:
    from lorica.client.site.cost import run_cost

    plan = item.plan
    labels = ", ".join(plain(label, _LABEL) for label in plan.task.labels[:8])
    more = f" and {len(plan.task.labels) - 8} more" if len(plan.task.labels) > 8 else ""
    rows = [
        ("asked since", item.asked),
        ("by the coordinator", plain(item.coordinator)),
        ("plan", plan.fingerprint),
        ("task", f"{plan.task.kind}: {labels}{more}"),
        ("model", plain(plan.backbone.source)),
        ("rounds", f"{plan.rounds.count}, {len(plan.evaluation_rounds)} with evaluation here"),
    ]
    if bit := plan.privacy.benefit_epsilon:
        rows.append(("one bit about the guard", f"by randomised response with ε = {bit:g}"))
    try:
        cost = run_cost(plan, config, folder)
    except LoricaError as error:
        rows.append(("cost", plain(f"cannot be told: {error}", _SENTENCE)))
        refusals = []
    else:
        rows += [
            ("ε of the run", f"{epsilon_text(cost.run_epsilon, 3)} at δ = {plan.privacy.delta:g}"),
            (
                "ε of this data set",
                f"{epsilon_text(cost.spent, 3)} now, {epsilon_text(cost.after, 3)} after the run",
            ),
            (
                "left of the lifetime",
                f"{left_text(cost.left, 3)} of {config.ledger.lifetime_epsilon:g}",
            ),
        ]
        refusals = cost.refusals
    table = Table(box=None, show_header=False, title=f"Run {plain(item.run)}")
    table.add_column(style="dim")
    table.add_column()
    for row in rows:
        table.add_row(*row)
    console.print(table)
    for reason in refusals:
        why = plain(reason, _SENTENCE)
        console.print(Text.assemble(("would be refused  ", "bold red"), why), soft_wrap=True)
