"""Where the monitor listens, under which names it answers, and when it refuses to start."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from lorica.common.errors import Code, LoricaError


@dataclass(frozen=True)
class Settings:
    """How one monitor is served."""

    host: str = "127.0.0.1"
    port: int = 8600
    public_url: str = ""
    """The address in people's browsers, where a reverse proxy stands in front."""
    certificate: Path | None = None
    key: Path | None = None
    open_metrics: bool = False
    """/metrics without a token."""
    poll_seconds: float = 1.0
    """How often the store is asked for news while live pages are open."""

    @property
    def public_host(self) -> str:
        """Host of the public address without its port; empty without one."""
        return (urlsplit(self.public_url).hostname or "").lower()

    @property
    def https(self) -> bool:
        """Whether browsers reach the monitor by TLS."""
        return self.certificate is not None or urlsplit(self.public_url).scheme == "https"

    @property
    def local(self) -> bool:
        """Whether only this machine can reach it."""
        return _loopback(self.host) and (not self.public_url or _loopback(self.public_host))

    @property
    def url(self) -> str:
        """Where to point a browser."""
        if self.public_url:
            return self.public_url.rstrip("/")
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.certificate else 'http'}://{host}:{self.port}"

    def answers_to(self, host_header: str) -> bool:
        """Whether a request with this Host header is meant for this monitor.

        A page elsewhere can make its own name point to this address (DNS rebinding), and then
        its requests carry that name. An IP address is never such a name.
        """
        try:
            name = (urlsplit(f"//{host_header}").hostname or "").lower()
        except ValueError:
            return False
        own = {"localhost", self.host.lower(), self.public_host} - {""}
        return name in own or _is_ip(name)

    def own_origin(self, origin: str, host_header: str) -> bool:
        """Whether an Origin header names the monitor itself."""
        try:
            found = urlsplit(origin)
        except ValueError:
            return False
        if found.scheme not in ("http", "https"):
            return False
        public = urlsplit(self.public_url).netloc.lower()
        return found.netloc.lower() in {host_header.lower(), public} - {""}


def check(settings: Settings, *, accounts: bool) -> None:
    """Refuse what would leave the monitor open.

    Raises:
        LoricaError: LOR-820 the public address or the certificate is not well-formed; LOR-821
            others could reach a monitor without an account; LOR-822 passwords would travel in the
            clear.
    """
    found = urlsplit(settings.public_url)
    if settings.public_url and (
        found.scheme not in ("http", "https") or not found.hostname or found.path.strip("/")
    ):
        raise LoricaError(
            Code.MONITOR_SETTINGS,
            f"--public-url {settings.public_url!r} is not an address like "
            "https://monitor.example.org, without a path.",
        )
    if (settings.certificate is None) != (settings.key is None):
        raise LoricaError(
            Code.MONITOR_SETTINGS, "--certificate and --key belong together; one was given."
        )
    for path in (settings.certificate, settings.key):
        if path is not None and not path.is_file():
            raise LoricaError(Code.MONITOR_SETTINGS, f"There is no file {path}.")
    if settings.local:
        return
    where = settings.public_url or f"{settings.host}:{settings.port}"
    if not accounts:
        raise LoricaError(
            Code.MONITOR_OPEN,
            f"At {where} others can reach the monitor, and it has no account yet.",
        )
    if not settings.https and not settings.public_url:
        raise LoricaError(
            Code.MONITOR_PLAINTEXT,
            f"At {where} passwords would travel over the network unencrypted.",
        )


def _is_ip(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _loopback(host: str) -> bool:
    return host == "localhost" or (_is_ip(host) and ipaddress.ip_address(host).is_loopback)
