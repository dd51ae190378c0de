"""Who sent a request, and what they may do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Form, Request

from lorica.common.errors import Code, LoricaError
from lorica.server.monitor.access.accounts import Role
from lorica.server.monitor.access.sessions import same
from lorica.server.monitor.request.shared import Shared, address_of, shared_of

LOCAL = "local"
"""How the audit log names whoever came by the start-up link."""


class NotSignedInError(Exception):
    """The request carries no valid session or token."""


@dataclass(frozen=True)
class Caller:
    """A person with a session, or a program with a token."""

    name: str
    role: Role
    digest: str = ""
    """SHA-256 of the session's id; empty for a token."""
    csrf: str = ""
    """What the caller's forms must bring."""
    user: int | None = None
    """Id of the account; None for a token and for the start-up link."""

    @property
    def operator(self) -> bool:
        """Whether the caller may act."""
        return self.role == "operator"


def cookie_name(shared: Shared) -> str:
    """Name of the session cookie; over TLS with the prefix that binds it to this host.

    Cookies do not know ports: on one machine several monitors must not share one.
    """
    return "__Host-lorica" if shared.settings.https else f"lorica-{shared.settings.port}"


def person(request: Request) -> Caller:
    """Whoever is signed in, by the session cookie.

    Raises:
        NotSignedInError: there is no valid session.
    """
    shared = shared_of(request)
    value = request.cookies.get(cookie_name(shared), "")
    found = shared.sessions.find(value)
    if found is None:
        raise NotSignedInError
    if found.user is None:
        if shared.accounts.any():
            raise NotSignedInError  # the link ends with the first account
        return Caller(LOCAL, "operator", found.digest, found.csrf)
    account = shared.accounts.get(found.user)
    if account is None:
        raise NotSignedInError
    return Caller(account.name, account.role, found.digest, found.csrf, account.id)


def reader(request: Request) -> Caller:
    """A person, or a program with a token in the Authorization header.

    Raises:
        NotSignedInError: neither is there.
    """
    kind, _, secret = request.headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer":
        name = shared_of(request).tokens.find(secret.strip())
        if name is None:
            raise NotSignedInError
        return Caller(f"token {name}", "viewer")
    return person(request)


def metrics_reader(request: Request) -> None:
    """Anyone where the metrics are open, else a reader."""
    if not shared_of(request).settings.open_metrics:
        reader(request)


Person = Annotated[Caller, Depends(person)]
Reader = Annotated[Caller, Depends(reader)]


def operator(request: Request, caller: Person) -> Caller:
    """An operator. Raises LOR-826 for others."""
    if not caller.operator:
        _refuse(request, caller, Code.ACCESS_DENIED)
    return caller


Operator = Annotated[Caller, Depends(operator)]


def acting_person(request: Request, caller: Person, csrf: Annotated[str, Form()] = "") -> Caller:
    """A person whose form brought its session's token. Raises LOR-828 without it."""
    if not same(caller.csrf, csrf):
        _refuse(request, caller, Code.FORM_FORGED)
    return caller


ActingPerson = Annotated[Caller, Depends(acting_person)]


def acting_operator(request: Request, caller: ActingPerson) -> Caller:
    """An operator whose form brought its session's token. Raises LOR-826, LOR-828."""
    return operator(request, caller)


ActingOperator = Annotated[Caller, Depends(acting_operator)]


def _refuse(request: Request, caller: Caller, code: Code) -> None:
    shared = shared_of(request)
    where = f"{request.method} {request.url.path}"
    shared.audit.add(caller.name, "refused", where, detail=code.value, address=address_of(request))
    raise LoricaError(code, f"{where}: {code.entry.title}")
