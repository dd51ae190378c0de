"""Read-only keys for programs: the JSON API and the metrics, nothing else."""

from __future__ import annotations

import re
import secrets
import time

from sqlalchemy import select, update

from lorica.common.errors import Code, LoricaError
from lorica.server.monitor.access.sessions import digest
from lorica.server.store import RunStore
from lorica.server.store.account_tables import ApiToken

PREFIX = "lorica_"
"""Lets secret scanners know a token when one is published by mistake."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SHOWN = 12  # characters of a token that are kept, to know it by
_NOTE_SECONDS = 60.0
_DAY = 86400.0


class Tokens:
    """The API tokens of one store."""

    def __init__(self, store: RunStore) -> None:
        """``store`` keeps their hashes."""
        self._store = store

    def add(self, name: str, days: float | None = None) -> str:
        """Make a token and return it; only its hash is kept.

        Args:
            name: what it is for.
            days: for how long it is valid; None for ever.

        Raises:
            LoricaError: LOR-825 the name cannot be or is taken, or days are not positive.
        """
        if not _NAME.fullmatch(name):
            raise LoricaError(
                Code.API_TOKEN,
                f"{name!r} cannot be a token's name: up to 64 letters, digits, dots, dashes or "
                "underlines.",
            )
        if days is not None and not days > 0:
            raise LoricaError(Code.API_TOKEN, f"A token cannot be valid for {days:g} days.")
        secret, now = PREFIX + secrets.token_urlsafe(32), time.time()
        with self._store.writing() as session:
            taken = select(ApiToken.id).where(ApiToken.name == name, ApiToken.revoked.is_(None))
            if session.scalar(taken) is not None:
                raise LoricaError(Code.API_TOKEN, f"There is a token {name} already.")
            session.add(
                ApiToken(
                    name=name,
                    prefix=secret[:_SHOWN],
                    sha256=digest(secret),
                    created=now,
                    expires=None if days is None else now + days * _DAY,
                )
            )
        return secret

    def all(self) -> list[ApiToken]:
        """All tokens that were not revoked, by name."""
        with self._store.reading() as session:
            found = select(ApiToken).where(ApiToken.revoked.is_(None)).order_by(ApiToken.name)
            return list(session.scalars(found))

    def revoke(self, name: str) -> None:
        """End a token's validity. Raises LOR-825 when there is none."""
        with self._store.writing() as session:
            valid = ApiToken.name == name, ApiToken.revoked.is_(None)
            found = session.scalar(select(ApiToken).where(*valid))
            if found is None:
                raise LoricaError(Code.API_TOKEN, f"There is no token {name}.")
            found.revoked = time.time()

    def find(self, secret: str) -> str | None:
        """The name of a valid token, None for any other text."""
        if not secret.startswith(PREFIX) or len(secret) > 100:
            return None
        now = time.time()
        valid = ApiToken.sha256 == digest(secret), ApiToken.revoked.is_(None)
        with self._store.reading() as session:
            found = session.scalar(select(ApiToken).where(*valid))
        if found is None or (found.expires is not None and found.expires < now):
            return None
        if found.last_used is None or now - found.last_used > _NOTE_SECONDS:
            with self._store.writing() as session:
                mine = update(ApiToken).where(ApiToken.id == found.id)
                session.execute(mine.values(last_used=now))
        return found.name
