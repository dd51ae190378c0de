"""A person's consent to every single run, where the site's policy asks for it.

With ``policy.consent = "per-run"`` a run is refused with LOR-717 until somebody at the site has
looked at it and decided. The refused request is noted, so that the person sees what is asked and
what it would cost; the coordinator asks again by itself. Only signed requests are noted, of plans
that the policy admits, and so many of each coordinator: a newer one never takes an older one's
place, and one coordinator's never another's.

A decision holds for one run id under one plan (its fingerprint): the same run id under another
plan awaits a decision of its own. Requests and decisions are files of their own, each written
whole or not at all, so trainer and commands need no lock between them, and a decision is durable
when the command returns.
"""

from __future__ import annotations

import getpass
import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from lorica.common.errors import Code, LoricaError
from lorica.common.machine.files import storage_errors, write_atomically
from lorica.common.plan import RunPlan
from lorica.common.plan.io import from_canonical
from lorica.common.wire.messages import Request

MOST_PENDING = 20
"""Undecided requests of one coordinator that are kept; further ones are refused."""

Decision = Literal["approved", "denied"]


@dataclass(frozen=True)
class Pending:
    """A run that awaits a decision."""

    run: str
    plan: RunPlan
    coordinator: str
    """Public key of whoever signed the request."""
    asked: str
    """When it was asked first, ISO 8601 in UTC."""


@dataclass(frozen=True)
class Decided:
    """What somebody decided."""

    run: str
    fingerprint: str
    decision: Decision
    by: str
    """The user of this machine who decided."""
    time: str


class Consent:
    """The decisions about runs, in a folder."""

    def __init__(self, folder: Path) -> None:
        """``folder``: beside the ledger; made when something is written."""
        self._pending, self._decided = folder / "pending", folder / "decided"

    def check(self, request: Request) -> None:
        """Return if the request's run is approved; note it when nobody has decided.

        Args:
            request: whose signature was verified.

        Raises:
            LoricaError: LOR-717 nobody has decided, LOR-718 it was denied, LOR-507 it is not
                signed, LOR-732 too many of its coordinator's await a decision, LOR-60x.
        """
        if not request.coordinator:
            raise LoricaError(
                Code.REQUEST_UNSIGNED,
                f"Run {request.run!r:.100} is asked for by nobody: people cannot decide about it.",
            )
        key = _key(request.run, request.plan.fingerprint)
        decided = self._decision(key)
        if decided is None:
            self._note(key, request)
            raise LoricaError(
                Code.AWAITING_APPROVAL, f"Run {request.run!r:.100} awaits somebody's decision."
            )
        if decided.decision == "denied":
            raise LoricaError(
                Code.RUN_DENIED, f"Run {request.run!r:.100} was denied by {decided.by}."
            )

    def pending(self) -> list[Pending]:
        """The runs that nobody has decided about, the oldest first."""
        found = []
        for path in _files(self._pending):
            if self._decision(path.stem) is None:
                body = _read(path)
                plan = from_canonical(body["plan"])
                found.append(Pending(body["run"], plan, body["coordinator"], body["asked"]))
        return sorted(found, key=lambda item: item.asked)

    def decided(self) -> list[Decided]:
        """All decisions, the oldest first."""
        found = [Decided(**_read(path)) for path in _files(self._decided)]
        return sorted(found, key=lambda item: item.time)

    def decide(self, run: str, decision: Decision, fingerprint: str = "") -> Decided:
        """Decide about a run that was asked for, or change an earlier decision.

        Args:
            run: Lorica's run id.
            decision: what holds from now on.
            fingerprint: of the plan, or its first digits; needed where several were asked under
                one run id.

        Raises:
            LoricaError: LOR-719 no such run, or several; LOR-60x.
        """
        known = {(item.run, item.plan.fingerprint) for item in self.pending()}
        known |= {(item.run, item.fingerprint) for item in self.decided()}
        plans = sorted(print for name, print in known if name == run)
        plans = [found for found in plans if found.startswith(fingerprint.lower())]
        if len(plans) != 1:
            raise LoricaError(
                Code.RUN_NOT_ASKED,
                f"{len(plans)} plans were asked for under the run id {run!r}"
                + (f": {', '.join(found[:12] for found in plans)}." if plans else "."),
            )
        who, now = getpass.getuser(), _now()
        body = Decided(run, plans[0], decision, who, now)
        _write(self._decided / f"{_key(run, plans[0])}.json", vars(body))
        return body

    def _decision(self, key: str) -> Decided | None:
        path = self._decided / f"{key}.json"
        return Decided(**_read(path)) if path.exists() else None

    def _note(self, key: str, request: Request) -> None:
        path = self._pending / f"{key}.json"
        if path.exists():
            return
        waiting = sum(item.coordinator == request.coordinator for item in self.pending())
        if waiting >= MOST_PENDING:
            raise LoricaError(
                Code.TOO_MANY_PENDING,
                f"{waiting} runs of the coordinator {request.coordinator[:16]}… await a decision; "
                "no further one is noted.",
            )
        _write(
            path,
            {
                "run": request.run,
                "plan": request.plan.canonical(),
                "coordinator": request.coordinator,
                "asked": _now(),
            },
        )


def _key(run: str, fingerprint: str) -> str:
    return hashlib.sha256(json.dumps([run, fingerprint]).encode()).hexdigest()[:40]


def _files(folder: Path) -> list[Path]:
    with storage_errors(folder):
        return sorted(folder.glob("*.json")) if folder.is_dir() else []


def _read(path: Path) -> dict[str, Any]:
    with storage_errors(path):
        text = path.read_text(encoding="utf-8")
    try:
        body = json.loads(text)
        if not isinstance(body, dict):
            raise ValueError("no object")
    except ValueError as error:
        raise LoricaError(
            Code.RUN_NOT_ASKED,
            f"{path} is damaged: {error}.",
            mend="Remove the file and decide about the run again when it is asked for anew.",
        ) from error
    return body


def _write(path: Path, body: dict[str, Any]) -> None:
    with storage_errors(path):
        path.parent.parent.mkdir(mode=0o700, exist_ok=True)
        path.parent.mkdir(mode=0o700, exist_ok=True)
    write_atomically(path, json.dumps(body, indent=1))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
