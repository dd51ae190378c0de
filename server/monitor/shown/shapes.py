"""What the API answers with, and what pages are drawn from: one model for each thing shown."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from lorica.server.store.tables import LIVE, Round, Run, Site, SiteRun


class Shape(BaseModel):
    """Base: made from the store's rows."""

    model_config = ConfigDict(from_attributes=True)


class RunShape(Shape):
    """A run, as lists show it. Times are seconds since 1970 (UTC)."""

    run_id: str
    name: str
    kind: str = Field(description="federation, simulation, baseline, sweep or sweep-run")
    status: str = Field(
        description="queued, running, stopping, stopped, finished, failed or interrupted"
    )
    created: float
    started: float | None
    ended: float | None
    heartbeat: float | None = Field(description="last sign of life of its process")
    stop_requested: float | None
    stop_requested_by: str
    submitted_by: str
    error_code: str
    error: str
    task: str
    backbone: str
    method: str = Field(description="of aggregation")
    epsilon: float | None = Field(description="the plan's ε; null is no privacy")
    delta: float | None
    unit: str = Field(description="unit of privacy")
    sealed: bool = Field(description="whether the coordinator sees sums over sites alone")
    epsilon_spent: float | None = Field(description="largest over the sites, as declared")
    rounds: int = Field(description="as planned")
    rounds_done: int
    sites: int
    answered: int = Field(description="sites that answered in the round under way")
    problems: int = Field(description="site rounds that were refused, failed or late")
    headline: str = Field(description="the task's metric that runs are compared by")
    score: float | None = Field(description="its latest value, on the coordinator's data")
    site_score: float | None = Field(description="the same by the sites' noised counts")
    loss: float | None
    bytes_up: int
    bytes_down: int
    seconds: float
    energy_kwh: float | None

    @property
    def live(self) -> bool:
        """Whether a process runs it."""
        return self.status in LIVE

    @property
    def title(self) -> str:
        """What people call it."""
        return self.name or self.run_id

    @property
    def share(self) -> float:
        """Part of the rounds that is done, in [0, 1]."""
        return min(1.0, self.rounds_done / self.rounds) if self.rounds else 0.0

    @property
    def seconds_left(self) -> float | None:
        """An estimate by the mean round so far; None when there is nothing to go by."""
        if self.status != "running" or not self.rounds_done:
            return None
        return self.seconds / self.rounds_done * (self.rounds - self.rounds_done)


class RunsShape(BaseModel):
    """A page of runs, the newest first."""

    runs: list[RunShape]
    next: str | None = Field(description="give it as `after` for the next page")


class RunDetailShape(RunShape):
    """A run with its plan and summary."""

    fingerprint: str
    plan: str = Field(description="TOML")
    versions: dict[str, Any]
    summary: dict[str, Any]


class RoundShape(Shape):
    """One round; round 0 is the evaluation of the start."""

    round: int
    ended: float
    stage: str
    score: float | None = Field(description="the headline metric, on the coordinator's data")
    site_score: float | None = Field(description="the same by the sites' noised counts")
    metrics: dict[str, float]
    site_metrics: dict[str, float]
    accuracy: float | None
    macro_f1: float | None
    loss: float | None
    site_accuracy: float | None
    site_accuracy_band: float | None = Field(
        description="half-width of the 95 % band of the privacy noise"
    )
    site_loss: float | None
    asked: int
    ok: int
    bytes_up: int
    bytes_down: int
    seconds: float
    phases: dict[str, float]
    mean_norm: float | None
    noise_norm: float | None
    signal_to_noise: float | None
    exact: bool | None = Field(description="the aggregate equals the mean of the products B·A")
    epsilon: float | None = Field(description="largest over the sites after this round")
    lora_dropped: bool
    kept_own: dict[str, Any] = Field(
        description="how many sites keep a model of their own, by their noised bits; or empty"
    )
    alike: dict[str, Any] = Field(
        description="of class sums: sites, and the cosines of every two, less noise; or empty"
    )


class GridShape(Shape):
    """Sites × rounds: a row of letters per site: o ok, r refused, f failed, l late, space."""

    sites: list[str]
    rounds: list[int]
    cells: list[str]


class CellShape(Shape):
    """One site in one round."""

    site: str
    round: int
    status: str
    reason: str
    update_norm: float | None
    agreement: float | None
    epsilon: float | None
    bytes_up: int
    seconds: float


class SiteShape(Shape):
    """An institution, or a virtual site of simulations."""

    name: str
    virtual: bool
    first_seen: float
    last_seen: float
    version: str
    weight: int = Field(description="declared number of records; 0 when it does not say")
    budget_epsilon: float | None = Field(description="lifetime budget, as the site declares it")
    budget_left: float | None


class SiteRunShape(Shape):
    """What one site did in one run."""

    last_seen: float
    last_round: int
    last_status: str
    last_reason: str
    weight: int
    ok: int
    refused: int
    failed: int
    late: int
    unanswered: int = Field(description="rounds in a row, up to the last, without an update")
    bytes_up: int
    seconds: float
    agreement: float | None = Field(description="mean cosine with the others' mean update")
    epsilon: float | None = Field(description="spent in this run, as declared")


class RunSiteShape(BaseModel):
    """A site and what it did in a run."""

    site: SiteShape
    sums: SiteRunShape
    contribution: float | None = Field(description="its share of all updates' weight so far")


class EventShape(Shape):
    """A line of a log."""

    id: int
    at: float
    level: str
    code: str
    text: str
    round: int | None
    site: str | None


class ArtefactShape(Shape):
    """A file that can be fetched."""

    name: str
    kind: str
    bytes: int
    sha256: str
    created: float


class AlertShape(Shape):
    """Something to look at."""

    kind: str = Field(
        description="site-silent, update-refused, score-falling, budget-low, budget-exceeded, "
        "run-failed or run-interrupted"
    )
    severity: str = Field(description="warning or critical")
    text: str
    at: float
    run_id: str
    site: str


class DifferenceShape(Shape):
    """A plan key whose value is not the same in all compared runs."""

    key: str
    values: list[Any]


class ComparisonShape(BaseModel):
    """Several runs beside each other."""

    runs: list[RunShape]
    differences: list[DifferenceShape]


class ProblemShape(BaseModel):
    """An error: a code of `lorica explain`, what happened, how to mend it."""

    code: str
    message: str
    mend: str


def run_shape(run: Run) -> RunShape:
    """A run as lists show it."""
    return RunShape.model_validate(run)


def round_shape(row: Round) -> RoundShape:
    """A round."""
    return RoundShape.model_validate(row)


def run_site_shapes(found: list[tuple[Site, SiteRun]]) -> list[RunSiteShape]:
    """The sites of a run, with each one's share of the weight of all updates so far.

    A site whose size is not declared counts as one record, as the round loop weighs it when not
    all declare theirs.
    """
    declared = all(sums.weight > 0 for _, sums in found if sums.ok)
    shares = [sums.ok * (sums.weight if declared else 1) for _, sums in found]
    total = sum(shares)
    return [
        RunSiteShape(
            site=SiteShape.model_validate(site),
            sums=SiteRunShape.model_validate(sums),
            contribution=share / total if total else None,
        )
        for (site, sums), share in zip(found, shares, strict=True)
    ]
