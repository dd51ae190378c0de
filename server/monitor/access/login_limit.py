"""How often a password may be tried: per account and address, per address, and per account."""

from __future__ import annotations

import time
from collections.abc import Callable

from sqlalchemy import ColumnElement, delete, select
from sqlalchemy.orm import Session

from lorica.server.store import RunStore
from lorica.server.store.account_tables import LoginAttempt

WINDOW_SECONDS = 15 * 60.0
TRIES_OF_PAIR, TRIES_OF_ADDRESS, TRIES_OF_ACCOUNT = 5, 30, 100


class LoginLimit:
    """Counts tries within a sliding window, in the store; a success takes its own back.

    Five for one account from one address; thirty from one address, whatever the accounts; a
    hundred for one account from anywhere, high enough that a stranger who wants to lock an
    account's own people out needs many addresses.
    """

    def __init__(self, store: RunStore, clock: Callable[[], float] = time.time) -> None:
        """
        Args:
            store: keeps the tries, so that a restart forgets none.
            clock: gives seconds since 1970.
        """
        self._store, self._clock = store, clock

    def attempt(self, account: str, address: str) -> float:
        """Count a try and return 0, or return the seconds to wait, when there were too many.

        A try counts before its password is checked: tries at the same time cannot slip through.
        """
        now, name = self._clock(), _shown(account)
        of_name, of_address = LoginAttempt.name == name, LoginAttempt.address == address
        with self._store.writing() as session:
            session.execute(delete(LoginAttempt).where(LoginAttempt.at <= now - WINDOW_SECONDS))
            wait = max(
                _wait(session, now, TRIES_OF_PAIR, of_name, of_address),
                _wait(session, now, TRIES_OF_ADDRESS, of_address),
                _wait(session, now, TRIES_OF_ACCOUNT, of_name),
            )
            if not wait:
                session.add(LoginAttempt(name=name, address=address, at=now))
        return wait

    def succeeded(self, account: str, address: str) -> None:
        """Forget the tries of this account from this address."""
        mine = LoginAttempt.name == _shown(account), LoginAttempt.address == address
        with self._store.writing() as session:
            session.execute(delete(LoginAttempt).where(*mine))


def _wait(session: Session, now: float, most: int, *which: ColumnElement[bool]) -> float:
    """Until fewer than ``most`` of these tries lie within the window, seconds."""
    newest = select(LoginAttempt.at).where(*which).order_by(LoginAttempt.at.desc())
    decisive = session.scalar(newest.limit(1).offset(most - 1))
    return 0.0 if decisive is None else max(0.0, decisive + WINDOW_SECONDS - now)


def _shown(account: str) -> str:
    return account.strip().lower()[:64]
