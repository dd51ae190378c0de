"""Checks of a machine in a federation: each one line, OK or a sentence that helps."""

from __future__ import annotations

import datetime
import http.client
import importlib.metadata
import shutil
import socket
import ssl
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path

from rich.text import Text

from lorica.common.display.console import Console
from lorica.common.errors import Code, LoricaError
from lorica.common.version import __version__

_SECONDS = 10.0
_SKEW_SECONDS = 60.0  # Flower refuses signatures whose time is further off
_LEAST_FREE = 1_000_000_000  # bytes


@dataclass(frozen=True)
class Finding:
    """What a check found."""

    name: str
    ok: bool
    text: str
    """What is as it should be, or what is wrong and how to mend it."""


def report(findings: Iterable[Finding], console: Console) -> None:
    """Print findings as they come.

    Raises:
        LoricaError: LOR-729 at least one is not OK.
    """
    failed = []
    for finding in findings:
        mark = ("OK  ", "green") if finding.ok else ("✗   ", "bold red")
        console.print(Text.assemble(mark, (f"{finding.name}: ", "bold"), finding.text))
        if not finding.ok:
            failed.append(finding.name)
    if failed:
        raise LoricaError(Code.CHECK_FAILED, f"Not as it should be: {', '.join(failed)}.")


def checked(name: str, check: Callable[[], str]) -> Finding:
    """The finding of a check that returns its text or raises a coded error."""
    try:
        return Finding(name, True, check())
    except LoricaError as error:
        return Finding(name, False, f"{error} {error.mend}")


def check_versions() -> str:
    """The versions of what runs here. Raises LOR-729 when Flower is another than Lorica is for."""
    flower = importlib.metadata.version("flwr")
    if not flower.startswith("1.41."):
        raise LoricaError(
            Code.CHECK_FAILED,
            f"Flower {flower} is installed; this version of Lorica needs 1.41.",
            mend="pip install 'flwr>=1.41,<1.42'",
        )
    return f"Lorica {__version__}, Flower {flower}, Python {sys.version.split()[0]}"


def check_disk(folder: Path) -> str:
    """Free space of a folder's disk. Raises LOR-601 when there is little."""
    free = shutil.disk_usage(folder).free
    if free < _LEAST_FREE:
        raise LoricaError(
            Code.STORAGE_FULL,
            f"Only {free / 1e6:.0f} MB are free where {folder} is.",
            mend="Free at least 1 GB.",
        )
    return f"{free / 1e9:.1f} GB free"


def check_reachable(host: str, port: int) -> str:
    """Whether a TCP connection comes about. Raises LOR-727."""
    try:
        with socket.create_connection((host, port), timeout=_SECONDS):
            return f"{host}:{port} answers"
    except socket.gaierror as error:
        raise LoricaError(
            Code.COORDINATOR_DOWN,
            f"The name {host} is not known: {error.strerror}.",
            mend="Check the name, and this machine's DNS.",
        ) from error
    except OSError as error:
        raise LoricaError(
            Code.COORDINATOR_DOWN,
            f"No connection to {host}:{port}: {error.strerror or error}.",
            mend="Check that the coordinator runs, and that a firewall lets this machine reach it.",
        ) from error


def check_certificate(host: str, port: int, authority: Path) -> str:
    """Whether the server shows a certificate by this authority. Raises LOR-724, LOR-727."""
    with _connection(host, port, authority) as connection:
        certificate = connection.getpeercert()
    assert certificate is not None
    ends = ssl.cert_time_to_seconds(str(certificate["notAfter"]))
    days = (ends - datetime.datetime.now(datetime.UTC).timestamp()) / 86400
    return f"good for another {days:.0f} days"


def check_clock(host: str, port: int, authority: Path) -> str:
    """Whether both clocks agree as far as signatures need. Raises LOR-724, LOR-727, LOR-729."""
    context = _context(authority)
    connection = http.client.HTTPSConnection(host, port, timeout=_SECONDS, context=context)
    try:
        connection.request("GET", "/health")
        answer = connection.getresponse()
        answer.read()
    except ssl.SSLError as error:
        raise certificate_error(host, port, error) from error
    except (OSError, http.client.HTTPException) as error:
        raise LoricaError(Code.COORDINATOR_DOWN, f"{host}:{port} broke off: {error}.") from error
    finally:
        connection.close()
    if answer.status != 200:
        raise LoricaError(
            Code.COORDINATOR_DOWN,
            f"The proxy at {host}:{port} answers, the SuperLink behind it does not "
            f"(status {answer.status}).",
            mend="It may be starting; else look at logs/superlink.log at the coordinator.",
        )
    theirs = parsedate_to_datetime(answer.headers["Date"])
    skew = (datetime.datetime.now(datetime.UTC) - theirs).total_seconds()
    if abs(skew) > _SKEW_SECONDS:
        raise LoricaError(
            Code.CHECK_FAILED,
            f"This machine's clock is {abs(skew):.0f} seconds "
            f"{'ahead of' if skew > 0 else 'behind'} the coordinator's.",
            mend="Set both by NTP: signatures are refused when they seem too old or too new.",
        )
    return f"within {max(abs(skew), 1):.0f} s of the coordinator's"


def certificate_error(host: str, port: int, error: ssl.SSLError) -> LoricaError:
    """What is wrong with the certificate that a server showed."""
    reason = getattr(error, "verify_message", "") or str(error)
    code = getattr(error, "verify_code", 0)
    if code == 10:  # X509_V_ERR_CERT_HAS_EXPIRED
        text, mend = "has expired", "At the coordinator: `lorica coordinator rotate`."
    elif code == 9:  # X509_V_ERR_CERT_NOT_YET_VALID
        text, mend = "is not valid yet", "Check this machine's clock."
    elif code in (18, 19, 20, 21):  # self-signed, or its issuer is not the authority that we have
        text = "is not signed by the authority in this site's ca.crt"
        mend = (
            "Somebody may be between the two, or this is another coordinator: ask its operators "
            "for a new invitation."
        )
    elif code in (62, 63, 64):  # host name or address mismatch
        text = f"does not name {host}"
        mend = "At the coordinator: add the name to coordinator.toml, `lorica coordinator rotate`."
    else:
        text, mend = f"cannot be verified: {reason}", "Check address and port."
    return LoricaError(
        Code.CERTIFICATE, f"The certificate that {host}:{port} shows {text}.", mend=mend
    )


def _connection(host: str, port: int, authority: Path) -> ssl.SSLSocket:
    try:
        raw = socket.create_connection((host, port), timeout=_SECONDS)
    except OSError as error:
        raise LoricaError(
            Code.COORDINATOR_DOWN, f"No connection to {host}:{port}: {error.strerror or error}."
        ) from error
    try:
        return _context(authority).wrap_socket(raw, server_hostname=host)
    except ssl.SSLError as error:
        raw.close()
        raise certificate_error(host, port, error) from error
    except OSError as error:
        raw.close()
        raise LoricaError(Code.COORDINATOR_DOWN, f"{host}:{port} broke off: {error}.") from error


def _context(authority: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(authority)
    except (OSError, ssl.SSLError) as error:
        raise LoricaError(Code.CERTIFICATE, f"{authority} holds no certificate in PEM.") from error
    return context
