"""The trainer's process: leave the network, open ledger and data, serve until told to end.

Run as a program of its own (``python -m lorica.client.service.main``), because the network can be
left only before the first thread starts, and numpy and torch start threads when they are
imported: this module imports neither until the network is gone.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lorica.client.config.site import SiteConfig, load_site
from lorica.client.data.fetched import fetch
from lorica.client.service.isolation import Isolation, isolate
from lorica.client.service.safety import close_doors, require_safe
from lorica.client.service.socket_file import SocketFile
from lorica.common.errors import Code, LoricaError
from lorica.common.machine.logs import set_up_logging

if TYPE_CHECKING:
    from lorica.client.ledger import Ledger
    from lorica.client.service.meter import Meter
    from lorica.client.training.trainer import LocalTrainer

GRACE_SECONDS = 30.0
_ENDING = (signal.SIGTERM, signal.SIGINT)
_log = logging.getLogger("lorica.site")


def main(arguments: list[str] | None = None) -> int:
    """Serve a site until SIGTERM or SIGINT; returns the process's exit status."""
    parser = argparse.ArgumentParser(prog="lorica site trainer")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--isolate", choices=["auto", "require", "off"], default="auto")
    parser.add_argument("--grace", type=float, default=GRACE_SECONDS)
    given = parser.parse_args(arguments)
    try:
        set_up_logging()
        return _run(given.config, given.isolate, given.grace)
    except LoricaError as error:
        from lorica.common.cli.errors import print_error
        from lorica.common.display.console import Console

        print_error(error, Console(stderr=True))
        return error.exit_status


def _run(path: Path, isolation: str, grace: float) -> int:
    config, root = load_site(path), path.absolute().parent
    require_safe(path, config)
    fetched = fetch(path, config)  # what lies at a server, while there is a network
    others = bool(set(config.trainer.users) - {os.geteuid()})
    network = isolate(_wanted(isolation, config), other_users=others)
    close_doors()
    (_log.info if network.startswith("isolated") else _log.warning)("network: %s", network)
    os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", OMP_WAIT_POLICY="PASSIVE")
    file = SocketFile(root / config.trainer.socket, others=others)
    try:
        from lorica.client.ledger.reports.effort import effort_file
        from lorica.client.service.meter import Meter
        from lorica.client.training.opening import open_trainer
        from lorica.common.machine.effort import Effort

        trainer, ledger = open_trainer(config, root, fetched)
        with Effort() as effort:
            meter = Meter(effort_file(root / config.ledger.path), effort)
            return asyncio.run(_serve(config, file, trainer, ledger, network, grace, meter))
    finally:
        file.close()


def _wanted(given: str, config: SiteConfig) -> Isolation:
    """What site.toml says; the command line can ask for more, never for less."""
    written = config.trainer.isolation
    if given == "require" or written == "require":
        if given == "off":
            raise LoricaError(
                Code.TRAINER_NOT_ISOLATED,
                'The trainer was told to keep the network, and trainer.isolation is "require".',
                mend='Write trainer.isolation = "off" in site.toml: that is where it is decided.',
            )
        return "require"
    return "off" if given == "off" else written


async def _serve(
    config: SiteConfig,
    file: SocketFile,
    trainer: LocalTrainer,
    ledger: Ledger,
    network: str,
    grace: float,
    meter: Meter,
) -> int:
    """Serve until a signal; what is worked on then has ``grace`` seconds, or until another one."""
    from lorica.client.service.queue import Spent, TrainerService
    from lorica.client.service.serving import Serving
    from lorica.common.backbone.loading import loads

    def spent() -> Spent:
        return Spent(ledger.spending().lifetime, ledger.budgets.lifetime, ledger.delta)

    service = TrainerService(trainer, spent=spent, loads=loads, isolation=network, meter=meter)
    serving = Serving(
        service,
        file,
        users=config.trainer.users,
        message_bytes=config.trainer.message_bytes,
    )
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in _ENDING:
        loop.add_signal_handler(number, told.set)
    await serving.start()
    _log.info("site %s: the trainer listens on %s", config.site.name, file.path)
    await told.wait()
    for number in _ENDING:
        loop.remove_signal_handler(number)
    _log.info("ending; what is worked on has %g seconds", grace)
    if not await serving.end(grace):
        _log.warning("a request was abandoned; its charge stays and pays for another attempt")
        file.close()
        logging.shutdown()
        os._exit(0)  # the thread that works on it cannot be ended otherwise
    ledger.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
