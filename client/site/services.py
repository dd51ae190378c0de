"""``lorica site start``: the trainer and the node, supervised."""

from __future__ import annotations

import logging
import os
import re
import socket
import sys
from collections.abc import Callable
from pathlib import Path

from lorica.client.config.site import SiteConfig, load_site
from lorica.client.node import approved_code
from lorica.client.node.approved_code import prepare
from lorica.client.node.link import NodeLink
from lorica.client.site.check import check_connection
from lorica.common.errors import LoricaError
from lorica.common.machine.disk import DiskWatch
from lorica.common.machine.lock import only_one
from lorica.common.machine.supervisor import Service, Supervisor

_TASK_POLL = "0.1"  # seconds between SuperExec's looks for work
_NODE_ID = re.compile(r"SuperNode ID: (\d+)")
_log = logging.getLogger("lorica.site")


def start(site: Path, *, trainer: bool = True, node: bool = True) -> None:
    """Run a site until SIGTERM or SIGINT.

    Args:
        site: path of site.toml.
        trainer: start the trainer.
        node: start the node; without it this machine needs no network.

    Raises:
        LoricaError: LOR-409 site.toml, LOR-723 part of no federation, LOR-725 it runs already.
    """
    site = site.resolve()
    config = load_site(site)
    os.umask(0o077)
    what = "-".join(name for name, on in (("trainer", trainer), ("node", node)) if on)
    services = [_trainer(site)] if trainer else []
    if node:
        services.append(_node(config, site.parent))
    run = site.parent / "run"
    run.mkdir(mode=0o700, exist_ok=True)
    with only_one(run / f"{what}.lock", f"The {what} of site {config.site.name}"):
        Supervisor(services, site.parent / "logs").run(tick=DiskWatch(site.parent).look)


def _trainer(site: Path) -> Service:
    lorica = [sys.executable, "-c", "from lorica.common.cli import main; main()"]
    return Service(
        "trainer",
        [*lorica, "site", "trainer", "--config", str(site)],
        {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
        longest_wait=10.0,
    )


def _node(config: SiteConfig, root: Path) -> Service:
    link = NodeLink(config, root)
    known: list[int] = []

    def hear(line: str) -> None:
        found = _NODE_ID.search(line)
        if found:
            known[:] = [int(found[1])]
            _log.info("connected to %s as node %s", link.address, found[1])

    last = [""]

    def before_restart() -> None:
        prepare(config, root)  # code that was changed meanwhile ends the service
        try:
            if known:
                link.deactivate(known[0])
            check_connection(link)
            last[0] = ""
        except LoricaError as error:
            if str(error) != last[0]:
                _log.error("%s %s", error, error.mend)
            last[0] = str(error)

    return Service(
        "node",
        node_command(config, root, link),
        node_environment(prepare(config, root)),
        on_line=hear,
        before_restart=before_restart,
        longest_wait=10.0,
    )


def node_command(config: SiteConfig, root: Path, link: NodeLink) -> Callable[[], list[str]]:
    """What makes the node's command: TLS, the site's key, the trainer's socket."""
    trainer = root / config.trainer.socket

    def command() -> list[str]:
        port = config.federation.runtime_port or _free_port()
        return [
            *(sys.executable, "-P", "-m", "lorica.client.node.prompt_supernode"),
            *("--superlink", link.address, "--root-certificates", str(link.authority)),
            *("--auth-supernode-private-key", str(link.key_file)),
            *("--node-config", f'trainer-socket="{trainer}"'),
            *("--host", "127.0.0.1", "--port", str(port)),
        ]

    return command


def node_environment(flower_home: Path) -> dict[str, str]:
    """The node's environment variables: approved code and no other, by the guard on its PATH."""
    own = approved_code.node_environment(flower_home)
    return own | {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": _TASK_POLL}


def _free_port() -> int:
    with socket.socket() as tried:
        tried.bind(("127.0.0.1", 0))
        return int(tried.getsockname()[1])
