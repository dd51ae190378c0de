"""What every request works with: the store, the accounts, the settings, the live feed."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field

from starlette.requests import HTTPConnection

from lorica.server.monitor.access.accounts import Accounts
from lorica.server.monitor.access.log import AuditLog
from lorica.server.monitor.access.login_limit import LoginLimit
from lorica.server.monitor.access.sessions import Sessions
from lorica.server.monitor.access.settings import Settings
from lorica.server.monitor.access.tokens import Tokens
from lorica.server.monitor.feed.live import Live
from lorica.server.monitor.feed.news import Reader, Render
from lorica.server.monitor.feed.watch import AlertWatch
from lorica.server.store import RunStore


@dataclass
class Shared:
    """What all requests to one monitor share."""

    store: RunStore
    settings: Settings
    accounts: Accounts
    sessions: Sessions
    tokens: Tokens
    audit: AuditLog
    limit: LoginLimit
    watch: AlertWatch
    live: Live
    link_key: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    """Opens a monitor without accounts; printed at its start, new every time."""

    @classmethod
    def of(cls, store: RunStore, settings: Settings, render: Render) -> Shared:
        """Over a store; ``render`` draws what live pages show of a run."""
        watch = AlertWatch(store)
        return cls(
            store,
            settings,
            Accounts(store),
            Sessions(store),
            Tokens(store),
            AuditLog(store),
            LoginLimit(store),
            watch,
            Live(Reader(store, render, watch), settings.poll_seconds),
        )


def shared_of(request: HTTPConnection) -> Shared:
    """What the monitor of a request shares."""
    shared = request.app.state.shared
    assert isinstance(shared, Shared)
    return shared


def address_of(request: HTTPConnection) -> str:
    """Where a request comes from; behind a proxy on this machine, what the proxy says."""
    return request.client.host if request.client else ""
