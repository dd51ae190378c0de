"""Accounts with a role and a password, in the run store."""

from __future__ import annotations

import re
import threading
import time
from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from lorica.common.errors import Code, LoricaError
from lorica.server.store import RunStore
from lorica.server.store.account_tables import User, UserSession

Role = Literal["viewer", "operator"]
"""A viewer reads; an operator also stops runs and reads the audit log."""

SHORTEST_PASSWORD = 12
_LONGEST_PASSWORD = 1024
_LEAST_DIFFERENT = 5
_NAME = re.compile(r"[a-z0-9][a-z0-9._@-]{0,63}")
_HASHER = PasswordHasher()  # argon2id with the parameters of RFC 9106 for little memory
_AT_ONCE = threading.BoundedSemaphore(2)  # a check takes 64 MiB: a flood of logins must not


@dataclass(frozen=True)
class Person:
    """An account without its password."""

    id: int
    name: str
    role: Role
    created: float
    last_login: float | None


class Accounts:
    """The accounts of one store."""

    def __init__(self, store: RunStore) -> None:
        """``store`` holds them."""
        self._store = store

    def any(self) -> bool:
        """Whether there is at least one account."""
        with self._store.reading() as session:
            return session.scalar(select(User.id).limit(1)) is not None

    def all(self) -> list[Person]:
        """All accounts by name."""
        with self._store.reading() as session:
            return [_person(user) for user in session.scalars(select(User).order_by(User.name))]

    def get(self, id: int) -> Person | None:
        """The account of this id, None without one."""
        with self._store.reading() as session:
            found = session.get(User, id)
            return _person(found) if found and not found.disabled else None

    def add(self, name: str, role: str, password: str) -> Person:
        """Make an account.

        Raises:
            LoricaError: LOR-823 the name cannot be or is taken, or there is no such role; LOR-824
                the password is too weak.
        """
        name = checked_name(name)
        if role not in get_args(Role):
            raise LoricaError(Code.ACCOUNT, f"There is no role {role!r}: viewer or operator.")
        check_password(name, password)
        hashed = _HASHER.hash(password)
        with self._store.writing() as session:
            if session.scalar(select(User.id).where(User.name == name)) is not None:
                raise LoricaError(Code.ACCOUNT, f"There is an account {name} already.")
            user = User(name=name, role=role, password_hash=hashed)
            session.add(user)
            session.flush()
            return _person(user)

    def remove(self, name: str) -> None:
        """Remove an account and sign it out everywhere. Raises LOR-823 when there is none."""
        with self._store.writing() as session:
            user = _existing(session, name)
            session.execute(delete(UserSession).where(UserSession.user_id == user.id))
            session.delete(user)

    def set_password(self, name: str, password: str, *, keep: str = "") -> None:
        """Set a new password and sign the account out everywhere.

        Args:
            name: of the account.
            password: the new one.
            keep: digest of a session that stays.

        Raises:
            LoricaError: LOR-823 no such account, LOR-824 too weak.
        """
        check_password(name, password)
        hashed = _HASHER.hash(password)
        with self._store.writing() as session:
            user = _existing(session, name)
            user.password_hash = hashed
            others = UserSession.user_id == user.id, UserSession.id_sha256 != keep
            session.execute(delete(UserSession).where(*others))

    def check(self, name: str, password: str) -> Person | None:
        """The account whose name and password these are, else None.

        Takes as long for a name that does not exist, so that names cannot be found by timing.
        """
        with self._store.reading() as session:
            named = User.name == name.strip().lower()[:64]
            user = session.scalar(select(User).where(named, User.disabled.is_(False)))
        expected = user.password_hash if user else _nobody()
        with _AT_ONCE:
            try:
                _HASHER.verify(expected, password[:_LONGEST_PASSWORD])
            except (VerificationError, InvalidHashError):
                return None
            if user is None:
                return None
            stale = _HASHER.check_needs_rehash(expected)
            fresh = _HASHER.hash(password) if stale else expected
        with self._store.writing() as session:
            found = session.get(User, user.id)
            if found is None:
                return None
            found.password_hash, found.last_login = fresh, time.time()
            return _person(found)


def checked_name(name: str) -> str:
    """The name as accounts have it. Raises LOR-823 for one that cannot be."""
    name = name.strip().lower()
    if not _NAME.fullmatch(name) or name == "local":
        raise LoricaError(
            Code.ACCOUNT,
            f"{name!r} cannot be an account's name: up to 64 letters a-z, digits, dots, dashes, "
            "underlines or @, the first a letter or digit; and not 'local'.",
        )
    return name


def check_password(name: str, password: str) -> None:
    """Raise LOR-824 for a password that is too short, too long, or easy to guess."""
    if not SHORTEST_PASSWORD <= len(password) <= _LONGEST_PASSWORD:
        raise LoricaError(
            Code.PASSWORD_WEAK,
            f"A password has {SHORTEST_PASSWORD} to {_LONGEST_PASSWORD} characters; this one has "
            f"{len(password)}.",
        )
    if len(set(password)) < _LEAST_DIFFERENT or (len(name) > 2 and name in password.lower()):
        raise LoricaError(
            Code.PASSWORD_WEAK,
            "The password is easy to guess: it holds the account's name, or few different "
            "characters.",
        )


@cache
def _nobody() -> str:
    """What is checked for a name without an account."""
    return _HASHER.hash("a password that no account has")


def _existing(session: Session, name: str) -> User:
    user = session.scalar(select(User).where(User.name == name.strip().lower()))
    if user is None:
        raise LoricaError(Code.ACCOUNT, f"There is no account {name}.")
    return user


def _person(user: User) -> Person:
    role: Role = "operator" if user.role == "operator" else "viewer"
    return Person(user.id, user.name, role, user.created, user.last_login)
