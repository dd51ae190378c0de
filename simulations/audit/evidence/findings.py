"""What an audit finds: lower bounds on ε with their hypotheses, and checks of the mechanism."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from lorica.common.errors import Code, LoricaError

ERROR_SHARES = {
    "release-dp": 0.05,
    "release-f-dp": 0.25,
    "release-mechanism": 0.05,
    "gradient-dp": 0.05,
    "gradient-f-dp": 0.20,
    "gradient-mechanism": 0.05,
    "update-f-dp": 0.05,
    "membership": 0.05,
    "sum-dp": 0.03,
    "sum-f-dp": 0.17,
    "sum-mechanism": 0.05,
}
"""Bound -> its share of the allowed error, 1 - confidence. They add up to 1, so all bounds hold
*together*, and the largest with them, with the confidence asked for (Bonferroni). "mechanism"
gets less: it is nearly tight, and so would pass a true claim by chance about that often."""


@dataclass(frozen=True)
class Finding:
    """One lower bound on ε."""

    method: str
    """A key of :data:`ERROR_SHARES`."""
    lower_bound: float
    confidence: float
    """1 - probability that this bound alone exceeds the true ε."""
    rejected: str
    """The hypothesis that the observations refute: what is proven to be false."""
    seconds: float
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Check:
    """Whether the mechanism is of the kind that its ε was computed for.

    Checks see what no lower bound can: a mechanism that is not the claimed one, though these
    canaries do not show it to leak more.
    """

    name: str
    passed: bool
    detail: str
    p_value: float | None = None


@dataclass(frozen=True)
class Scatter:
    """Scores to plot."""

    title: str
    included: np.ndarray
    excluded: np.ndarray


@dataclass(frozen=True)
class Audit:
    """A whole audit."""

    claimed_epsilon: float
    delta: float
    confidence: float
    findings: Sequence[Finding]
    checks: Sequence[Check]
    scatters: Sequence[Scatter]
    facts: dict[str, Any]
    """Site, seed, noise, plan fingerprint and so on."""

    @property
    def strongest(self) -> Finding:
        """The finding with the largest lower bound."""
        return max(self.findings, key=lambda finding: finding.lower_bound)

    @property
    def exceeded(self) -> bool:
        """Whether more leakage was found than claimed."""
        return self.strongest.lower_bound > self.claimed_epsilon

    @property
    def failed(self) -> list[Check]:
        """The checks that failed."""
        return [check for check in self.checks if not check.passed]

    def refuse(self) -> None:
        """Return if the claim stands.

        Raises:
            LoricaError: LOR-407 when a bound exceeds the claim or a check failed.
        """
        reasons = [f"{check.name}: {check.detail}" for check in self.failed]
        if self.exceeded:
            reasons.insert(
                0,
                f"epsilon is at least {self.strongest.lower_bound:.2f} (method "
                f"'{self.strongest.method}', all bounds together {self.confidence:.0%} "
                f"confident), but {self.claimed_epsilon:g} is claimed.",
            )
        if reasons:
            raise LoricaError(Code.AUDIT_EXCEEDED, " ".join(reasons))

    def to_dict(self) -> dict[str, Any]:
        """As in audit.json."""
        return {
            "claimed_epsilon": self.claimed_epsilon,
            "lower_bound": self.strongest.lower_bound,
            "confidence": self.confidence,
            "method": self.strongest.method,
            "delta": self.delta,
            "passed": not (self.exceeded or self.failed),
            "methods": [asdict(finding) for finding in self.findings],
            "checks": [asdict(check) for check in self.checks],
            **self.facts,
        }


def share_of_error(method: str, confidence: float) -> float:
    """The error that a bound may make so that all hold together with ``confidence``."""
    return ERROR_SHARES[method] * (1.0 - confidence)
