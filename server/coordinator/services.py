"""``lorica coordinator start``: SuperLink, proxy and monitor, supervised; runs are kept going."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import signal
import socket
import sys
import threading
import time
from importlib.metadata import entry_points
from pathlib import Path

from lorica.common.errors import Code, LoricaError
from lorica.common.machine.disk import DiskWatch
from lorica.common.machine.home import STORE_VARIABLE
from lorica.common.machine.lock import only_one
from lorica.common.machine.supervisor import Service, Supervisor
from lorica.common.wire.signing import KEY_VARIABLE
from lorica.server.coordinator.certificates import days_left, read_certificate
from lorica.server.coordinator.control import Control
from lorica.server.coordinator.home import HOME_VARIABLE, CoordinatorConfig, CoordinatorHome
from lorica.server.coordinator.keeper import Keeper
from lorica.server.coordinator.orders import RunPlace
from lorica.server.coordinator.proxy import end_orphans, find_nginx, proxy_command, write_proxy
from lorica.server.coordinator.register import Register
from lorica.server.coordinator.setup import align, private_pair, public_pair

_TASK_POLL = "0.5"  # seconds between SuperExec's looks for a run to start
_LOOK_SECONDS = 2.0
_PORT_SECONDS = 15.0  # how long programs of a coordinator that was killed may take to end
_log = logging.getLogger("lorica.coordinator")


def coordinator_environment(home: CoordinatorHome) -> dict[str, str]:
    """Environment variables of everything that runs for this coordinator."""
    programs = str(Path(sys.executable).parent)
    return {
        "PATH": f"{programs}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "FLWR_HOME": str(home.flower),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": _TASK_POLL,
        HOME_VARIABLE: str(home.path),
        KEY_VARIABLE: str(home.signing_key),
        STORE_VARIABLE: home.store_url,
    }


def flower_program(name: str) -> str:
    """Path of one of Flower's programs. Raises LOR-726."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise LoricaError(
            Code.PROGRAM_MISSING, f"Flower's {name} was not found.", mend="pip install flwr"
        )
    return found


def superlink_command(home: CoordinatorHome, config: CoordinatorConfig) -> list[str]:
    """The SuperLink: private interface, authentication on, nothing installed at run time.

    What it knows is in its memory alone: every request would write to a database, which is most of
    what a short round takes. What must outlast it is Lorica's: the register of sites, orders and
    their rounds; and messages, noised or masked, lie on no disk of the coordinator's.
    """
    pair = private_pair(home)
    return [
        flower_program("flower-superlink"),
        *("--host", "127.0.0.1", "--port", str(config.private_port)),
        *("--fleet-api-address", "127.0.0.1:0"),  # the old interface that nobody uses
        *("--ssl-certfile", str(pair.certificate), "--ssl-keyfile", str(pair.key)),
        *("--ssl-ca-certfile", str(home.authority / "ca.crt")),
        "--enable-supernode-auth",
        "--disable-runtime-dependency-installation",
    ]


def services(
    home: CoordinatorHome, config: CoordinatorConfig, forgotten: threading.Event
) -> list[Service]:
    """All programs of a coordinator.

    Args:
        home: the coordinator's.
        config: its settings.
        forgotten: is set when the SuperLink died, and with it what it knew.

    Raises:
        LoricaError: LOR-726 one is not installed.
    """
    environment = coordinator_environment(home)
    found = [
        Service(
            "superlink",
            superlink_command(home, config),
            environment,
            before_restart=forgotten.set,
            longest_wait=5.0,
        ),
        Service(
            "proxy",
            proxy_command(find_nginx(), write_proxy(home, config)),
            environment,
            longest_wait=5.0,
        ),
    ]
    commands = {point.name for point in entry_points(group="lorica.commands")}
    if config.monitor == "yes" and "monitor" in commands:
        found.append(Service("monitor", monitor_command(config), environment))
    return found


def monitor_command(config: CoordinatorConfig) -> list[str]:
    """The monitor, which itself refuses to be open to others (LOR-821, LOR-822)."""
    lorica = [sys.executable, "-c", "from lorica.common.cli import main; main()"]
    public = ["--public-url", config.monitor_url] if config.monitor_url else []
    where = ["--host", config.monitor_host, "--port", str(config.monitor_port)]
    return [*lorica, "monitor", *where, *public]


def start(home: CoordinatorHome) -> None:
    """Run a coordinator until SIGTERM or SIGINT.

    Raises:
        LoricaError: LOR-723 no coordinator here, LOR-724 an expired certificate, LOR-725 it runs
            already, LOR-726 a program is missing, LOR-730 a port is taken.
    """
    config = home.config()
    os.umask(0o077)
    _require_certificates(home)
    home.run.mkdir(mode=0o700, exist_ok=True)
    with only_one(home.lock, f"The coordinator in {home.path}"):
        for worker in end_orphans(home):
            _log.warning("process %d, a worker of a proxy that was killed, is ended", worker)
        _require_ports(config)
        os.environ.update(coordinator_environment(home))
        forgotten, done = threading.Event(), threading.Event()
        supervisor = Supervisor(services(home, config, forgotten), home.logs)
        keeper = threading.Thread(target=_keep, args=(home, forgotten, done), daemon=True)
        keeper.start()
        try:
            supervisor.run(
                tick=DiskWatch(home.path).look,
                reload=lambda: supervisor.signal("proxy", signal.SIGHUP),
            )
        finally:
            done.set()
            keeper.join(timeout=5)
            _end_serverapps(home)


def _end_serverapps(home: CoordinatorHome) -> None:
    """End ServerApps that outlived their SuperLink; their runs go on at the next start."""
    for place in RunPlace.all(home.runs):
        process = place.served_by
        if process:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)


def _keep(home: CoordinatorHome, forgotten: threading.Event, done: threading.Event) -> None:
    """Bring SuperLink and register in line, and runs on their way, again and again."""
    control, register = Control(home), Register(home.register)
    keeper = Keeper(home, control)
    aligned = down = False
    while not done.wait(_LOOK_SECONDS if aligned else 0.5):
        if forgotten.is_set():  # though it may have been away too shortly to be missed
            forgotten.clear()
            aligned = False
        try:
            if not aligned:
                for change in align(control, register):
                    _log.info("%s", change)
                if down:
                    _log.info("the SuperLink answers again")
                _log.info("ready: sites reach this coordinator at %s", home.config().address)
            aligned, down = True, False
            keeper.look()
        except LoricaError as error:
            if not down:
                (_log.info if error.code is Code.COORDINATOR_DOWN else _log.error)("%s", error)
            aligned, down = False, True
        except Exception as error:  # noqa: BLE001 - it must go on whatever happens to one run
            _log.error("while looking after runs", exc_info=error)


def _require_certificates(home: CoordinatorHome) -> None:
    for pair in (private_pair(home), public_pair(home)):
        left = days_left(read_certificate(pair.certificate))
        if left <= 0:
            raise LoricaError(Code.CERTIFICATE, f"{pair.certificate} expired {-left:.0f} days ago.")


def _require_ports(config: CoordinatorConfig) -> None:
    listen = "127.0.0.1" if config.listen in ("0.0.0.0", "::") else config.listen
    for host, port, key in (
        (listen, config.port, "port"),
        ("127.0.0.1", config.private_port, "private_port"),
    ):
        if (problem := _taken(host, port)) is not None:
            raise LoricaError(
                Code.PORT_TAKEN,
                f"Port {port} of {host} cannot be served: {problem}.",
                mend=f"Stop what listens there, or set {key} in coordinator.toml.",
            )


def _taken(host: str, port: int) -> str | None:
    """Why a port cannot be listened on, after a wait for whoever ends just now; else None."""
    deadline = time.monotonic() + _PORT_SECONDS
    while True:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                tried.bind((host, port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE or time.monotonic() > deadline:
                    return error.strerror or str(error)
            else:
                return None
        time.sleep(0.2)
