"""``lorica site trainer`` and ``lorica site status``; ``lorica site ledger create``."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from typing import Annotated

import typer

from lorica.client.cli.options import SITE_TOML, ConfigOption
from lorica.common.display.console import Console
from lorica.common.display.tables import Table
from lorica.common.display.text import plain
from lorica.common.display.wording import epsilon_text
from lorica.common.errors import Code, LoricaError


class IsolateChoice(StrEnum):
    """How much the trainer insists on having no network."""

    auto = "auto"
    require = "require"
    off = "off"


def site_trainer(
    config: ConfigOption = SITE_TOML,
    isolate: Annotated[
        IsolateChoice,
        typer.Option(
            help="Leave the network: where the system allows it (auto), or fail (require)."
        ),
    ] = IsolateChoice.auto,
    grace: Annotated[
        float, typer.Option(min=0.0, help="Seconds to finish what is worked on when told to end.")
    ] = 30.0,
) -> None:
    """Hold data, model and ledger, and answer the site's node on a Unix socket, until told to end.

    Needs no network, and leaves it where it can. SIGTERM ends it: what is worked on is finished,
    or abandoned after --grace seconds, its charge kept.
    """
    program = [sys.executable, "-P", "-m", "lorica.client.service.main"]
    options = ["--config", str(config), "--isolate", isolate.value, "--grace", str(grace)]
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [*program, *options])  # the network is left before threads start


def site_status(config: ConfigOption = SITE_TOML) -> None:
    """Show what this site's trainer is doing, and what its data have spent.

    Exits with status 17 when no trainer runs.
    """
    import grpc

    from lorica.client.answering.trainer_pb2 import StatusRequest
    from lorica.client.answering.trainer_pb2_grpc import TrainerStub
    from lorica.client.config.site import load_site
    from lorica.client.node.forwarder import OPTIONS

    loaded = load_site(config)
    path = config.absolute().parent / loaded.trainer.socket
    with grpc.insecure_channel(f"unix:{path}", options=OPTIONS) as channel:
        try:
            found = TrainerStub(channel).Status(StatusRequest(), timeout=10)
        except grpc.RpcError as error:
            raise LoricaError(
                Code.TRAINER_DOWN, f"No trainer answers at {path}: {error.code().name}."
            ) from None
    answered = ", ".join(f"{count} {name}" for name, count in sorted(found.answered.items()))
    run = plain(found.run)
    working = f"{found.method} of run {run}, round {found.round}, for {found.working_seconds:.0f} s"
    table = Table(box=None, show_header=False, title=f"The trainer of {found.site}")
    table.add_column(style="dim")
    table.add_column()
    for row in (
        ("process", f"{found.pid}, Lorica {found.version}, up {_span(found.uptime_seconds)}"),
        ("network", found.isolation),
        ("working on", working if found.method else "nothing"),
        ("waiting", f"{max(0, found.in_hand - bool(found.method))}"),
        ("answered", f"{answered or 'nothing'}; {found.refused} of them refusals"),
        ("models loaded", f"{found.backbone_loads}"),
        (
            "ε spent",
            f"{epsilon_text(found.epsilon_spent, 3)} of {found.epsilon_lifetime:g} "
            f"at δ = {found.delta:g}",
        ),
    ):
        table.add_row(*row)
    Console().print(table)


def ledger_create(config: ConfigOption = SITE_TOML) -> None:
    """Make the ledger of a data set that was never used before; does nothing if there is one.

    The site's figure for the number of its units (policy.sampling_units) must be fixed by then:
    without one the records are counted, and a rounded figure is suggested.
    """
    from lorica.client.admission.readiness import count_units, require_figure
    from lorica.client.config.site import load_site
    from lorica.client.data.reading import read_records
    from lorica.client.training.opening import open_ledger

    loaded, folder = load_site(config), config.absolute().parent
    path = folder / loaded.ledger.path
    existed = path.exists()
    if not existed:
        require_figure(loaded, count_units(read_records(loaded, folder), loaded))
    open_ledger(loaded, folder, create=True).close()
    said = "is there already and sound" if existed else "begins, with nothing spent"
    Console().print(f"The ledger {path} {said}.", highlight=False, soft_wrap=True)


def _span(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
