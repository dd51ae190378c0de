"""``lorica site``: what an institution's operators and privacy officers do at their machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from lorica.client.cli.adapter import site_adapter
from lorica.client.cli.approve import site_approve, site_fab_check, site_withdraw
from lorica.client.cli.benefit import site_benefit
from lorica.client.cli.consent import site_approve_run, site_deny_run, site_pending
from lorica.client.cli.data import data_app
from lorica.client.cli.evaluate import site_evaluate
from lorica.client.cli.forget import site_forget
from lorica.client.cli.ledger import ledger_app
from lorica.client.cli.peers import peers_app
from lorica.client.cli.plan import site_backbone, site_config, site_plan
from lorica.client.cli.start import site_check, site_init, site_start
from lorica.client.cli.trainer import ledger_create, site_status, site_trainer

if TYPE_CHECKING:  # the ledger's modules need numpy; `lorica --help` should not wait for it
    pass

app = typer.Typer(
    name="site",
    no_args_is_help=True,
    help="Run and look after a site.",
    rich_help_panel="Institutions",
)
app.add_typer(ledger_app, name="ledger")
app.add_typer(data_app, name="data")
app.add_typer(peers_app, name="peers")
app.command("config")(site_config)
app.command("plan")(site_plan)
app.command("adapter")(site_adapter)
app.command("benefit")(site_benefit)
app.command("evaluate")(site_evaluate)
app.command("forget")(site_forget)
app.command("backbone")(site_backbone)
app.command("trainer")(site_trainer)
app.command("status")(site_status)
app.command("approve")(site_approve)
app.command("withdraw")(site_withdraw)
app.command("fab-check")(site_fab_check)
app.command("pending")(site_pending)
app.command("approve-run")(site_approve_run)
app.command("deny-run")(site_deny_run)
ledger_app.command("create")(ledger_create)
app.command("init")(site_init)
app.command("start")(site_start)
app.command("check")(site_check)
