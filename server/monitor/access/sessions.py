"""Signed-in browsers: random ids, kept as hashes in the store, that end by themselves.

A session ends after :data:`IDLE_SECONDS` without a request and at the latest
:data:`LIFE_SECONDS` after it began; signing out, a new password and the account's removal end it
at once. A monitor without accounts has sessions too, opened by the link that it prints at its
start; they live in its memory and end with it.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
import time
from dataclasses import dataclass

from sqlalchemy import delete, select, update

from lorica.server.store import RunStore
from lorica.server.store.account_tables import UserSession

IDLE_SECONDS = 12 * 3600.0
LIFE_SECONDS = 7 * 24 * 3600.0
_NOTE_SECONDS = 60.0  # a session's last request is noted at most once a minute
_LONGEST_ID = 64
_MOST_LOCAL = 100


@dataclass(frozen=True)
class SignedIn:
    """A valid session."""

    digest: str
    user: int | None
    """Id of the account; None: by the start-up link."""
    csrf: str
    """What this session's forms must bring."""


class Sessions:
    """The web sessions of one monitor."""

    def __init__(self, store: RunStore) -> None:
        """``store`` keeps those of accounts."""
        self._store = store
        self._lock = threading.Lock()
        self._local: dict[str, SignedIn] = {}

    def open(self, user: int, address: str) -> str:
        """Begin an account's session and return its id, for the cookie alone."""
        value, now = secrets.token_urlsafe(32), time.time()
        with self._store.writing() as session:
            session.execute(delete(UserSession).where(UserSession.expires < now))
            session.add(
                UserSession(
                    id_sha256=digest(value),
                    user_id=user,
                    csrf=secrets.token_urlsafe(32),
                    created=now,
                    last_seen=now,
                    expires=now + IDLE_SECONDS,
                    address=address[:64],
                )
            )
        return value

    def open_local(self) -> str:
        """Begin a session by the start-up link and return its id."""
        value = secrets.token_urlsafe(32)
        with self._lock:
            while len(self._local) >= _MOST_LOCAL:
                del self._local[next(iter(self._local))]
            self._local[digest(value)] = SignedIn(digest(value), None, secrets.token_urlsafe(32))
        return value

    def find(self, value: str) -> SignedIn | None:
        """The session of this id, None when there is none or it has ended."""
        if not value or len(value) > _LONGEST_ID:
            return None
        hashed, now = digest(value), time.time()
        with self._lock:
            if local := self._local.get(hashed):
                return local
        with self._store.reading() as session:
            found = session.get(UserSession, hashed)
        if found is None or found.expires < now:
            return None
        if now - found.last_seen > _NOTE_SECONDS:
            ends = min(now + IDLE_SECONDS, found.created + LIFE_SECONDS)
            with self._store.writing() as session:
                mine = update(UserSession).where(UserSession.id_sha256 == hashed)
                session.execute(mine.values(last_seen=now, expires=ends))
        return SignedIn(hashed, found.user_id, found.csrf)

    def close(self, digest: str) -> None:
        """End one session."""
        with self._lock:
            self._local.pop(digest, None)
        with self._store.writing() as session:
            session.execute(delete(UserSession).where(UserSession.id_sha256 == digest))

    def close_others(self, user: int, *, keep: str) -> None:
        """End all sessions of an account but one."""
        others = UserSession.user_id == user, UserSession.id_sha256 != keep
        with self._store.writing() as session:
            session.execute(delete(UserSession).where(*others))

    def of(self, user: int) -> list[UserSession]:
        """The running sessions of an account, the latest used first."""
        wanted = UserSession.user_id == user, UserSession.expires >= time.time()
        with self._store.reading() as session:
            found = select(UserSession).where(*wanted).order_by(UserSession.last_seen.desc())
            return list(session.scalars(found))


def digest(secret: str) -> str:
    """SHA-256 of a random secret, as it is kept."""
    return hashlib.sha256(secret.encode()).hexdigest()


def same(expected: str, given: str) -> bool:
    """Whether two secrets are equal and not empty; in constant time."""
    return bool(expected) and hmac.compare_digest(expected.encode(), given.encode())
