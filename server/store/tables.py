"""The tables of the run store: runs, their rounds, sites, events and artefacts.

Times are seconds since 1970 (UTC), as everywhere in Lorica's files. A run is known outside by its
text id (``Run.run_id``); inside tables it is a small integer, so that millions of site rounds
stay small. Figures that lists show (accuracy, bytes, problems) are kept with the run and with
each site of a run, and updated with every round, so that no list ever adds up site rounds.
"""

from __future__ import annotations

import time
from typing import Any, Literal, get_args

from sqlalchemy import (
    JSON,
    BigInteger,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    String,
    Text,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, column_property, mapped_column

Status = Literal["queued", "running", "stopping", "stopped", "finished", "failed", "interrupted"]
"""Where a run is. "stopping": asked to stop, not yet at the end of a round. "interrupted": its
process is gone without a word."""

STATUSES: tuple[Status, ...] = get_args(Status)
LIVE: tuple[Status, ...] = ("running", "stopping")
"""Statuses of a run that has a process."""
OVER: tuple[Status, ...] = ("stopped", "finished", "failed", "interrupted")
"""Statuses of a run that has none and is not waiting for one."""

Kind = Literal["federation", "simulation", "baseline", "sweep", "sweep-run"]
"""What a run is. A "sweep-run" is one simulation of a "sweep", a "baseline" belongs to one."""

KINDS: tuple[Kind, ...] = get_args(Kind)

Level = Literal["debug", "info", "warning", "error"]

PHASE_BOUNDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)
"""Upper bounds of a phase's histogram, seconds."""

_CASCADE = "CASCADE"
_ID_LENGTH = 100


class Base(DeclarativeBase):
    """Base of every table in the store; constraints have names, so that migrations can."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {float: Double(), dict[str, Any]: JSON(), str: Text()}


class Run(Base):
    """One run. Its plan, versions and summary are only read when asked for."""

    __tablename__ = "runs"
    __table_args__ = (
        UniqueConstraint("run_id"),
        Index(None, "created", "id"),
        Index(None, "status", "created", "id"),
        Index(None, "parent_id"),
        Index(None, "ended"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    run_id: Mapped[str] = mapped_column(String(_ID_LENGTH))
    """Lorica's run id, unique in the store."""
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("runs.id", ondelete=_CASCADE))
    kind: Mapped[str] = mapped_column(String(16))
    status: Mapped[str] = mapped_column(String(16))
    name: Mapped[str] = mapped_column(default="")
    """For people; the sweep's variant, the demo's title."""
    submitted_by: Mapped[str] = mapped_column(default="")

    created: Mapped[float] = mapped_column(default=time.time)
    started: Mapped[float | None] = mapped_column()
    ended: Mapped[float | None] = mapped_column()
    heartbeat: Mapped[float | None] = mapped_column()
    """When its process last gave a sign of life."""
    host: Mapped[str] = mapped_column(default="")
    process: Mapped[int | None] = mapped_column()
    """Process id on ``host``."""
    stop_requested: Mapped[float | None] = mapped_column()
    stop_requested_by: Mapped[str] = mapped_column(default="")
    error_code: Mapped[str] = mapped_column(String(16), default="")
    error: Mapped[str] = mapped_column(default="")

    folder: Mapped[str] = mapped_column(default="")
    """Absolute path of the results folder on ``host``; empty when unknown."""
    fingerprint: Mapped[str] = mapped_column(String(64), default="")
    task: Mapped[str] = mapped_column(default="")
    backbone: Mapped[str] = mapped_column(default="")
    method: Mapped[str] = mapped_column(default="")
    epsilon: Mapped[float | None] = mapped_column()
    """The plan's ε; None is no privacy."""
    delta: Mapped[float | None] = mapped_column()
    unit: Mapped[str] = mapped_column(default="record")

    rounds: Mapped[int] = mapped_column(default=0)
    """As planned."""
    rounds_done: Mapped[int] = mapped_column(default=0)
    sites: Mapped[int] = mapped_column(default=0)
    """That were ready when it started."""
    answered: Mapped[int] = mapped_column(default=0)
    """Sites that have answered in the round that is under way."""
    problems: Mapped[int] = mapped_column(default=0)
    """Site rounds that are not "ok"."""
    headline: Mapped[str] = mapped_column(String(32), default="accuracy")
    """The task's metric that its runs are compared by."""
    score: Mapped[float | None] = mapped_column()
    """The headline metric of the last round that has it; on the coordinator's data."""
    site_score: Mapped[float | None] = mapped_column()
    """The same by the sites' own noised counts."""
    accuracy: Mapped[float | None] = mapped_column()
    """As the score, for tasks that have it."""
    loss: Mapped[float | None] = mapped_column()
    site_accuracy: Mapped[float | None] = mapped_column()
    """The same by the sites' own noised counts."""
    epsilon_spent: Mapped[float | None] = mapped_column()
    """Largest over the sites, as declared by the plan and the rounds each was asked in."""
    bytes_up: Mapped[int] = mapped_column(BigInteger, default=0)
    bytes_down: Mapped[int] = mapped_column(BigInteger, default=0)
    seconds: Mapped[float] = mapped_column(default=0.0)
    energy_kwh: Mapped[float | None] = mapped_column()
    """As measured by codecarbon; None when it was not measured."""

    plan: Mapped[str] = mapped_column(default="", deferred=True)
    """The plan in TOML, labels filled in."""
    sealed: Mapped[bool] = column_property(plan.contains('\ntrust = "sum"', autoescape=True))
    """Whether its plan has privacy.trust "sum": the coordinator saw sums over sites alone."""
    versions: Mapped[dict[str, Any]] = mapped_column(default=dict, deferred=True)
    summary: Mapped[dict[str, Any]] = mapped_column(default=dict, deferred=True)
    """What summary.json holds, of a simulation that ended."""

    @property
    def live(self) -> bool:
        """Whether a process runs it."""
        return self.status in LIVE


class FlowerRun(Base):
    """A Flower run that works or worked on a run; a resumed run has several."""

    __tablename__ = "flower_runs"
    __table_args__ = (Index(None, "run_id"),)

    flower_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    """Flower's run id: an unsigned 64-bit number, as text."""
    run_id: Mapped[int] = mapped_column(ForeignKey("runs.id", ondelete=_CASCADE))
    created: Mapped[float] = mapped_column(default=time.time)


class Round(Base):
    """One round of a run; round 0 is the evaluation of the start."""

    __tablename__ = "rounds"
    __table_args__ = {"sqlite_with_rowid": False}

    run_id: Mapped[int] = mapped_column(
        ForeignKey("runs.id", ondelete=_CASCADE), primary_key=True, autoincrement=False
    )
    round: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    ended: Mapped[float] = mapped_column(default=time.time)
    stage: Mapped[str] = mapped_column(String(32), default="")
    score: Mapped[float | None] = mapped_column()
    """The task's headline metric on the coordinator's data."""
    site_score: Mapped[float | None] = mapped_column()
    """The same by the sites' own noised counts."""
    metrics: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """Every metric of the task on the coordinator's data."""
    site_metrics: Mapped[dict[str, Any]] = mapped_column(default=dict)
    accuracy: Mapped[float | None] = mapped_column()
    macro_f1: Mapped[float | None] = mapped_column()
    loss: Mapped[float | None] = mapped_column()
    site_accuracy: Mapped[float | None] = mapped_column()
    site_accuracy_band: Mapped[float | None] = mapped_column()
    """Half-width of the 95 % band of the privacy noise."""
    site_loss: Mapped[float | None] = mapped_column()
    by_label: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """Label -> accuracy by the sites' noised counts."""
    asked: Mapped[int] = mapped_column(SmallInteger, default=0)
    ok: Mapped[int] = mapped_column(SmallInteger, default=0)
    bytes_up: Mapped[int] = mapped_column(BigInteger, default=0)
    bytes_down: Mapped[int] = mapped_column(BigInteger, default=0)
    seconds: Mapped[float] = mapped_column(default=0.0)
    phases: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """Phase -> seconds."""
    mean_norm: Mapped[float | None] = mapped_column()
    """L2 norm of the mean update."""
    noise_norm: Mapped[float | None] = mapped_column()
    """Expected L2 norm of the privacy noise in it."""
    signal_to_noise: Mapped[float | None] = mapped_column()
    exact: Mapped[bool | None] = mapped_column()
    """Whether the aggregate equals the mean of the products B·A; None where no rule says."""
    epsilon: Mapped[float | None] = mapped_column()
    """Largest over the sites after this round, as declared."""
    lora_dropped: Mapped[bool] = mapped_column(default=False)
    kept_own: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """What sites' bits about their guards say (:mod:`lorica.server.results.kept_own`); or empty."""
    alike: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """How alike the sites' class sums are: "sites", "cosines" and "error"; or empty."""


class PhaseTotal(Base):
    """How long a phase of a round took, over all rounds ever written: a histogram."""

    __tablename__ = "phase_totals"

    phase: Mapped[str] = mapped_column(String(32), primary_key=True)
    count: Mapped[int] = mapped_column(BigInteger, default=0)
    seconds: Mapped[float] = mapped_column(default=0.0)
    buckets: Mapped[list[int]] = mapped_column(JSON, default=list)
    """Rounds by :data:`PHASE_BOUNDS`, each bucket for itself; the last is above all bounds."""


class Site(Base):
    """An institution, or a virtual site of simulations; known by its name."""

    __tablename__ = "sites"
    __table_args__ = (UniqueConstraint("virtual", "name"), Index(None, "virtual", "last_seen"))

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column()
    """As it calls itself: text from others, to be shown escaped."""
    virtual: Mapped[bool] = mapped_column(default=False)
    """Of a simulation."""
    first_seen: Mapped[float] = mapped_column(default=time.time)
    last_seen: Mapped[float] = mapped_column(default=time.time)
    version: Mapped[str] = mapped_column(default="")
    """Of Lorica, as it declared; empty when it does not say."""
    weight: Mapped[int] = mapped_column(BigInteger, default=0)
    """Declared, public number of records; 0 when it does not say."""
    budget_epsilon: Mapped[float | None] = mapped_column()
    """Lifetime budget, as the site declared it; None when it does not say."""
    budget_left: Mapped[float | None] = mapped_column()
    """What is left of it, as the site declared it."""


class SiteRun(Base):
    """One site in one run: what its site rounds add up to."""

    __tablename__ = "site_runs"
    __table_args__ = (Index(None, "site_id", "last_seen"), {"sqlite_with_rowid": False})

    run_id: Mapped[int] = mapped_column(
        ForeignKey("runs.id", ondelete=_CASCADE), primary_key=True, autoincrement=False
    )
    site_id: Mapped[int] = mapped_column(
        ForeignKey("sites.id", ondelete=_CASCADE), primary_key=True, autoincrement=False
    )
    last_seen: Mapped[float] = mapped_column(default=time.time)
    """Last answer, of any status but "late"."""
    last_round: Mapped[int] = mapped_column(default=0)
    last_status: Mapped[str] = mapped_column(String(8), default="")
    last_reason: Mapped[str] = mapped_column(default="")
    weight: Mapped[int] = mapped_column(BigInteger, default=0)
    ok: Mapped[int] = mapped_column(default=0)
    refused: Mapped[int] = mapped_column(default=0)
    failed: Mapped[int] = mapped_column(default=0)
    late: Mapped[int] = mapped_column(default=0)
    unanswered: Mapped[int] = mapped_column(default=0)
    """Rounds in a row, up to the last one, without an update."""
    bytes_up: Mapped[int] = mapped_column(BigInteger, default=0)
    seconds: Mapped[float] = mapped_column(default=0.0)
    agreement_sum: Mapped[float] = mapped_column(default=0.0)
    agreement_count: Mapped[int] = mapped_column(default=0)
    epsilon: Mapped[float | None] = mapped_column()
    """Spent in this run, as declared."""

    @property
    def agreement(self) -> float | None:
        """Mean cosine with the other sites' mean update."""
        return self.agreement_sum / self.agreement_count if self.agreement_count else None


class SiteRound(Base):
    """One site in one round."""

    __tablename__ = "site_rounds"
    __table_args__ = ({"sqlite_with_rowid": False},)

    run_id: Mapped[int] = mapped_column(
        ForeignKey("runs.id", ondelete=_CASCADE), primary_key=True, autoincrement=False
    )
    round: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    site_id: Mapped[int] = mapped_column(
        ForeignKey("sites.id", ondelete=_CASCADE), primary_key=True, autoincrement=False
    )
    status: Mapped[str] = mapped_column(String(8))
    """"ok", "refused", "failed" or "late"."""
    reason: Mapped[str | None] = mapped_column()
    weight: Mapped[int] = mapped_column(BigInteger, default=0)
    update_norm: Mapped[float | None] = mapped_column()
    agreement: Mapped[float | None] = mapped_column()
    """Cosine of its update with the weighted mean of the others'."""
    epsilon: Mapped[float | None] = mapped_column()
    """Spent after this round, as declared by the plan and the rounds it was asked in."""
    bytes_up: Mapped[int] = mapped_column(BigInteger, default=0)
    seconds: Mapped[float] = mapped_column(default=0.0)


class Event(Base):
    """A line of a run's log, or, without a run, of the coordinator's."""

    __tablename__ = "events"
    __table_args__ = (Index(None, "run_id", "id"), Index(None, "at"))

    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    run_id: Mapped[int | None] = mapped_column(ForeignKey("runs.id", ondelete=_CASCADE))
    at: Mapped[float] = mapped_column(default=time.time)
    level: Mapped[str] = mapped_column(String(8), default="info")
    code: Mapped[str] = mapped_column(String(16), default="")
    """Of Lorica's catalogue, where the line has one."""
    text: Mapped[str] = mapped_column()
    round: Mapped[int | None] = mapped_column()
    site: Mapped[str | None] = mapped_column()


class Artefact(Base):
    """A file of a run's folder that is worth fetching."""

    __tablename__ = "artefacts"

    run_id: Mapped[int] = mapped_column(
        ForeignKey("runs.id", ondelete=_CASCADE), primary_key=True, autoincrement=False
    )
    name: Mapped[str] = mapped_column(String(255), primary_key=True)
    """Path relative to the run's folder, with "/"."""
    kind: Mapped[str] = mapped_column(String(16), default="file")
    """"adapter", "plan", "report", "checkpoint", "records" or "file"."""
    bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    sha256: Mapped[str] = mapped_column(String(64), default="")
    created: Mapped[float] = mapped_column(default=time.time)
