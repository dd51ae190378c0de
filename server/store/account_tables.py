"""The tables of people and programs that use the store through the web application.

Secrets are never kept: passwords as argon2 hashes, session ids and API tokens as SHA-256.
"""

from __future__ import annotations

import time

from sqlalchemy import ForeignKey, Index, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from lorica.server.store.tables import Base


class User(Base):
    """A person with an account."""

    __tablename__ = "users"
    __table_args__ = (UniqueConstraint("name"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(100))
    role: Mapped[str] = mapped_column(String(16))
    """"viewer" or "operator"."""
    password_hash: Mapped[str] = mapped_column()
    """argon2id, with its parameters."""
    created: Mapped[float] = mapped_column(default=time.time)
    last_login: Mapped[float | None] = mapped_column()
    disabled: Mapped[bool] = mapped_column(default=False)


class UserSession(Base):
    """A browser that is logged in."""

    __tablename__ = "user_sessions"
    __table_args__ = (Index(None, "user_id"), Index(None, "expires"))

    id_sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    csrf: Mapped[str] = mapped_column(String(64))
    created: Mapped[float] = mapped_column(default=time.time)
    last_seen: Mapped[float] = mapped_column(default=time.time)
    expires: Mapped[float] = mapped_column()
    address: Mapped[str] = mapped_column(default="")


class ApiToken(Base):
    """A read-only token for programs."""

    __tablename__ = "api_tokens"
    __table_args__ = (UniqueConstraint("sha256"), Index(None, "user_id"))

    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int | None] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column()
    prefix: Mapped[str] = mapped_column(String(16))
    """Its first characters, to know it by."""
    sha256: Mapped[str] = mapped_column(String(64))
    created: Mapped[float] = mapped_column(default=time.time)
    last_used: Mapped[float | None] = mapped_column()
    expires: Mapped[float | None] = mapped_column()
    revoked: Mapped[float | None] = mapped_column()


class LoginAttempt(Base):
    """A failed login, kept as long as the rate limit needs it."""

    __tablename__ = "login_attempts"
    __table_args__ = (Index(None, "name", "at"), Index(None, "address", "at"))

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(100))
    address: Mapped[str] = mapped_column(String(64))
    at: Mapped[float] = mapped_column(default=time.time)


class AuditEntry(Base):
    """Who did what, when, from where."""

    __tablename__ = "audit_log"
    __table_args__ = (Index(None, "at"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[float] = mapped_column(default=time.time)
    who: Mapped[str] = mapped_column()
    """A user's name, "token NAME", or "command line"; kept when the account is gone."""
    action: Mapped[str] = mapped_column(String(64))
    subject: Mapped[str] = mapped_column(default="")
    """The run, user or token it was done to."""
    detail: Mapped[str] = mapped_column(default="")
    address: Mapped[str] = mapped_column(String(64), default="")
