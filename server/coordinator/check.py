"""``lorica coordinator check``: everything that a coordinator needs, looked at one by one."""

from __future__ import annotations

import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

from lorica.common.errors import Code, LoricaError
from lorica.common.machine.checks import (
    Finding,
    check_certificate,
    check_clock,
    check_disk,
    check_reachable,
    check_versions,
    checked,
)
from lorica.common.machine.lock import holder
from lorica.common.wire.bundle import build_bundle, bundle_sha256
from lorica.common.wire.signing import CoordinatorKey
from lorica.server.coordinator.certificates import (
    WARN_DAYS,
    authority_pair,
    days_left,
    read_certificate,
)
from lorica.server.coordinator.control import Control
from lorica.server.coordinator.home import CoordinatorConfig, CoordinatorHome
from lorica.server.coordinator.proxy import find_nginx, proxy_command, write_proxy
from lorica.server.coordinator.register import Register
from lorica.server.coordinator.setup import private_pair, public_pair


def check_coordinator(home: CoordinatorHome) -> Iterator[Finding]:
    """Findings on a coordinator, as they come; nothing is changed but nginx.conf, anew.

    Raises:
        LoricaError: LOR-723 there is none: nothing can be looked at.
    """
    config = home.config()
    yield Finding("coordinator.toml", True, f"sites reach it at {config.address}")
    yield checked("versions", check_versions)
    yield checked("code", lambda: f"sites approve the bundle {bundle_sha256(build_bundle())}")
    yield checked(
        "signing key", lambda: f"public half {CoordinatorKey.load(home.signing_key).public}"
    )
    yield checked("permissions", lambda: _permissions(home))
    for name, path in (
        ("authority", authority_pair(home.authority).certificate),
        ("public certificate", public_pair(home).certificate),
        ("private certificate", private_pair(home).certificate),
    ):
        yield checked(name, lambda path=path: _expiry(path))  # type: ignore[misc]
    yield checked("disk", lambda: check_disk(home.path))
    yield checked("proxy", lambda: _proxy(home, config))
    yield checked("sites", lambda: _sites(home))
    if holder(home.lock) is None:
        yield Finding("services", False, "They do not run: `lorica coordinator start`.")
        return
    yield checked("SuperLink", lambda: f"{len(Control(home).nodes())} nodes registered")
    host, port, authority = "127.0.0.1", config.port, authority_pair(home.authority).certificate
    yield checked("port", lambda: check_reachable(host, port))
    yield checked("TLS", lambda: check_certificate(host, port, authority))
    yield checked("fleet", lambda: "served; clock " + check_clock(host, port, authority))


def _permissions(home: CoordinatorHome) -> str:
    private = [home.signing_key, home.register, home.config_file]
    private += [authority_pair(home.authority).key, public_pair(home).key, private_pair(home).key]
    for path in [*private, *home.folders]:
        if path.exists() and stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise LoricaError(
                Code.CHECK_FAILED,
                f"Others than its owner may use {path}.",
                mend=f"chmod go= {path}",
            )
    return "keys and register are for their owner alone"


def _expiry(path: Path) -> str:
    left = days_left(read_certificate(path))
    if left < WARN_DAYS:
        state = f"expires in {left:.0f} days" if left > 0 else f"expired {-left:.0f} days ago"
        raise LoricaError(
            Code.CERTIFICATE, f"{path} {state}.", mend="`lorica coordinator rotate` renews it."
        )
    return f"good for another {left:.0f} days"


def _proxy(home: CoordinatorHome, config: CoordinatorConfig) -> str:
    nginx = find_nginx()
    tested = subprocess.run(
        [*proxy_command(nginx, write_proxy(home, config)), "-t"],
        capture_output=True,
        text=True,
        check=False,
    )
    if tested.returncode:
        raise LoricaError(
            Code.CHECK_FAILED, f"nginx does not take its settings: {tested.stderr.strip()[-500:]}"
        )
    return f"{nginx} takes its settings"


def _sites(home: CoordinatorHome) -> str:
    sites = Register(home.register).sites().values()
    states = [site.state for site in sites]
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)) or "none"
