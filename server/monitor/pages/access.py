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
from lorica.server.monitor.request.room import Room, address_of, room_of
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
    room, address = room_of(request), address_of(request)
    if not same(request.cookies.get(_door_cookie(room), ""), csrf):
        raise LoricaError(Code.FORM_FORGED, "The sign-in form does not belong to this browser.")
    wait = room.limit.attempt(name, address)
    if wait:
        room.audit.add(name or "nobody", "sign-in held back", address=address)
        minutes = math.ceil(wait / 60)
        said = f"Too many attempts. Try again in {minutes} minute{'s' if minutes > 1 else ''}."
        answer = _form(request, next=next, name=name, problem=said, status=429)
        answer.headers["Retry-After"] = str(math.ceil(wait))
        return answer
    person = room.accounts.check(name, password)
    if person is None:
        room.audit.add(name or "nobody", "sign-in failed", address=address)
        said = "The account or the password is not right."
        return _form(request, next=next, name=name, problem=said, status=401)
    room.limit.succeeded(name, address)
    room.audit.add(person.name, "signed in", address=address)
    return _entered(room, room.sessions.open(person.id, address), next)


@router.get("/open")
def open_by_link(request: Request, key: str = "") -> Response:
    """The link that a monitor without accounts prints at its start."""
    room, address = room_of(request), address_of(request)
    local = room.settings.local and not room.accounts.any()
    if not local or not same(room.link_key, key):
        room.audit.add("nobody", "link refused", address=address)
        said = "This link is not valid (any more). The monitor prints a new one at every start."
        return _form(request, problem=said, status=403)
    room.audit.add(LOCAL, "signed in", detail="by the start-up link", address=address)
    return _entered(room, room.sessions.open_local(), "")


@router.post("/logout")
def logout(request: Request, caller: ActingPerson) -> Response:
    """End this session."""
    room = room_of(request)
    room.sessions.close(caller.digest)
    room.audit.add(caller.name, "signed out", address=address_of(request))
    answer = RedirectResponse("/login", 303)
    answer.delete_cookie(cookie_name(room), secure=room.settings.https, httponly=True)
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
    room, address = room_of(request), address_of(request)
    if caller.user is None:
        raise LoricaError(Code.ACCOUNT, "This session has no account, and so no password.")
    if room.limit.attempt(caller.name, address):
        return _account(request, caller, problem="Too many attempts. Try again later.", status=429)
    if room.accounts.check(caller.name, current) is None:
        room.audit.add(caller.name, "password change failed", address=address)
        return _account(request, caller, problem="The current password is not right.", status=401)
    room.limit.succeeded(caller.name, address)
    if new != again:
        return _account(request, caller, problem="The new passwords differ.", status=422)
    try:
        room.accounts.set_password(caller.name, new, keep=caller.digest)
    except LoricaError as error:
        return _account(request, caller, problem=error.detail, status=422)
    room.audit.add(caller.name, "password changed", address=address)
    return RedirectResponse("/account?done=password", 303)


@router.post("/account/sessions")
def close_sessions(request: Request, caller: ActingPerson) -> Response:
    """Sign out everywhere else."""
    room = room_of(request)
    if caller.user is not None:
        room.sessions.close_others(caller.user, keep=caller.digest)
        room.audit.add(caller.name, "signed out elsewhere", address=address_of(request))
    return RedirectResponse("/account?done=sessions", 303)


@router.get("/audit")
def audit(
    request: Request, caller: Operator, number: Annotated[int, Query(alias="page", ge=1)] = 1
) -> HTMLResponse:
    """Who did what; for operators."""
    entries, total = room_of(request).audit.page(number, _PAGE)
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
    room = room_of(request)
    door = request.cookies.get(_door_cookie(room)) or secrets.token_urlsafe(32)
    answer = page(
        request,
        "login",
        None,
        http_status=status,
        csrf=door,
        next=_inside(next),
        name=name[:64],
        problem=problem,
        accounts=room.accounts.any(),
    )
    _set_cookie(answer, room, _door_cookie(room), door, 3600)
    return answer


def _account(
    request: Request, caller: Person, *, done: str = "", problem: str = "", status: int = 200
) -> HTMLResponse:
    room = room_of(request)
    sessions = [] if caller.user is None else room.sessions.of(caller.user)
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


def _entered(room: Room, value: str, next: str) -> Response:
    answer = RedirectResponse(_inside(next) or "/runs", 303)
    _set_cookie(answer, room, cookie_name(room), value, int(LIFE_SECONDS))
    answer.delete_cookie(_door_cookie(room), secure=room.settings.https, httponly=True)
    return answer


def _set_cookie(answer: Response, room: Room, name: str, value: str, seconds: int) -> None:
    answer.set_cookie(
        name,
        value,
        max_age=seconds,
        path="/",
        secure=room.settings.https,
        httponly=True,
        samesite="lax",  # strict would sign out whoever comes by a link in a mail
    )


def _door_cookie(room: Room) -> str:
    return cookie_name(room) + "-door"


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
