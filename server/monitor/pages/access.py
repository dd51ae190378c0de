"""Signing in and out, one's own account, and the audit log."""

from __future__ import annotations

import math
import secrets
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from lorica.common.errors import Code, LoricaError
from lorica.server.monitor.access.sessions import LIFE_SECONDS, same
from lorica.server.monitor.request.callers import (
    LOCAL,
    ActingPerson,
    Operator,
    Person,
    cookie_name,
)
from lorica.server.monitor.request.shared import Shared, address_of, shared_of
from lorica.server.monitor.request.templating import page

router = APIRouter(include_in_schema=False)
_PAGE = 100
_LONGEST = 2048


@router.get("/")
def root() -> RedirectResponse:
    """To the runs."""
    return RedirectResponse("/runs", 303)


@router.get("/login")
def login_form(request: Request, next: str = "") -> HTMLResponse:
    """The form; its token is bound to this browser by a cookie."""
    return _form(request, next=next)


@router.post("/login")
def login(
    request: Request,
    name: Annotated[str, Form(max_length=200)] = "",
    password: Annotated[str, Form(max_length=_LONGEST)] = "",
    csrf: Annotated[str, Form(max_length=200)] = "",
    next: Annotated[str, Form(max_length=_LONGEST)] = "",
) -> Response:
    """Check name and password, and open a session."""
    shared, address = shared_of(request), address_of(request)
    if not same(request.cookies.get(_door_cookie(shared), ""), csrf):
        raise LoricaError(Code.FORM_FORGED, "The sign-in form does not belong to this browser.")
    wait = shared.limit.attempt(name, address)
    if wait:
        shared.audit.add(name or "nobody", "sign-in held back", address=address)
        minutes = math.ceil(wait / 60)
        said = f"Too many attempts. Try again in {minutes} minute{'s' if minutes > 1 else ''}."
        answer = _form(request, next=next, name=name, problem=said, status=429)
        answer.headers["Retry-After"] = str(math.ceil(wait))
        return answer
    person = shared.accounts.check(name, password)
    if person is None:
        shared.audit.add(name or "nobody", "sign-in failed", address=address)
        said = "The account or the password is not right."
        return _form(request, next=next, name=name, problem=said, status=401)
    shared.limit.succeeded(name, address)
    shared.audit.add(person.name, "signed in", address=address)
    return _entered(shared, shared.sessions.open(person.id, address), next)


@router.get("/open")
def open_by_link(request: Request, key: str = "") -> Response:
    """The link that a monitor without accounts prints at its start."""
    shared, address = shared_of(request), address_of(request)
    local = shared.settings.local and not shared.accounts.any()
    if not local or not same(shared.link_key, key):
        shared.audit.add("nobody", "link refused", address=address)
        said = "This link is not valid (any more). The monitor prints a new one at every start."
        return _form(request, problem=said, status=403)
    shared.audit.add(LOCAL, "signed in", detail="by the start-up link", address=address)
    return _entered(shared, shared.sessions.open_local(), "")


@router.post("/logout")
def logout(request: Request, caller: ActingPerson) -> Response:
    """End this session."""
    shared = shared_of(request)
    shared.sessions.close(caller.digest)
    shared.audit.add(caller.name, "signed out", address=address_of(request))
    answer = RedirectResponse("/login", 303)
    answer.delete_cookie(cookie_name(shared), secure=shared.settings.https, httponly=True)
    answer.headers["Clear-Site-Data"] = '"cache"'
    return answer


@router.get("/account")
def account(request: Request, caller: Person, done: str = "") -> HTMLResponse:
    """One's own account: password and sessions."""
    return _account(request, caller, done=done)


@router.post("/account/password")
def change_password(
    request: Request,
    caller: ActingPerson,
    current: Annotated[str, Form(max_length=_LONGEST)] = "",
    new: Annotated[str, Form(max_length=_LONGEST)] = "",
    again: Annotated[str, Form(max_length=_LONGEST)] = "",
) -> Response:
    """Set a new password; the current one is asked for, and its tries are limited."""
    shared, address = shared_of(request), address_of(request)
    if caller.user is None:
        raise LoricaError(Code.ACCOUNT, "This session has no account, and so no password.")
    if shared.limit.attempt(caller.name, address):
        return _account(request, caller, problem="Too many attempts. Try again later.", status=429)
    if shared.accounts.check(caller.name, current) is None:
        shared.audit.add(caller.name, "password change failed", address=address)
        return _account(request, caller, problem="The current password is not right.", status=401)
    shared.limit.succeeded(caller.name, address)
    if new != again:
        return _account(request, caller, problem="The new passwords differ.", status=422)
    try:
        shared.accounts.set_password(caller.name, new, keep=caller.digest)
    except LoricaError as error:
        return _account(request, caller, problem=error.detail, status=422)
    shared.audit.add(caller.name, "password changed", address=address)
    return RedirectResponse("/account?done=password", 303)


@router.post("/account/sessions")
def close_sessions(request: Request, caller: ActingPerson) -> Response:
    """Sign out everywhere else."""
    shared = shared_of(request)
    if caller.user is not None:
        shared.sessions.close_others(caller.user, keep=caller.digest)
        shared.audit.add(caller.name, "signed out elsewhere", address=address_of(request))
    return RedirectResponse("/account?done=sessions", 303)


@router.get("/audit")
def audit(
    request: Request, caller: Operator, number: Annotated[int, Query(alias="page", ge=1)] = 1
) -> HTMLResponse:
    """Who did what; for operators."""
    entries, total = shared_of(request).audit.page(number, _PAGE)
    pages = max(1, math.ceil(total / _PAGE))
    return page(
        request,
        "audit",
        caller,
        here="audit",
        entries=entries,
        total=total,
        number=number,
        pages=pages,
    )


def _form(
    request: Request, *, next: str = "", name: str = "", problem: str = "", status: int = 200
) -> HTMLResponse:
    shared = shared_of(request)
    door = request.cookies.get(_door_cookie(shared)) or secrets.token_urlsafe(32)
    answer = page(
        request,
        "login",
        None,
        http_status=status,
        csrf=door,
        next=_inside(next),
        name=name[:64],
        problem=problem,
        accounts=shared.accounts.any(),
    )
    _set_cookie(answer, shared, _door_cookie(shared), door, 3600)
    return answer


def _account(
    request: Request, caller: Person, *, done: str = "", problem: str = "", status: int = 200
) -> HTMLResponse:
    shared = shared_of(request)
    sessions = [] if caller.user is None else shared.sessions.of(caller.user)
    return page(
        request,
        "account",
        caller,
        here="account",
        http_status=status,
        sessions=sessions,
        done=done,
        problem=problem,
    )


def _entered(shared: Shared, value: str, next: str) -> Response:
    answer = RedirectResponse(_inside(next) or "/runs", 303)
    _set_cookie(answer, shared, cookie_name(shared), value, int(LIFE_SECONDS))
    answer.delete_cookie(_door_cookie(shared), secure=shared.settings.https, httponly=True)
    return answer


def _set_cookie(answer: Response, shared: Shared, name: str, value: str, seconds: int) -> None:
    answer.set_cookie(
        name,
        value,
        max_age=seconds,
        path="/",
        secure=shared.settings.https,
        httponly=True,
        samesite="lax",  # strict would sign out whoever comes by a link in a mail
    )


def _door_cookie(shared: Shared) -> str:
    return cookie_name(shared) + "-door"


def _inside(address: str) -> str:
    """The address, if it is a page of this monitor; a sign-in must not lead elsewhere."""
    try:
        found = urlsplit(address)
    except ValueError:
        return ""
    inside = not found.scheme and not found.netloc and address.startswith("/")
    return (
        address if inside and not address.startswith(("//", "/\\")) and "\\" not in address else ""
    )
