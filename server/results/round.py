"""What the round loop reports: one record per round, one per site in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Protocol, TypeVar

from lorica.common.plan.stages import Stage

SiteStatus = Literal["ok", "refused", "failed", "late"]


@dataclass(frozen=True)
class SiteRound:
    """One site in one round."""

    site: str
    status: SiteStatus
    """"ok"; "refused" by the site or by screening; "failed": an error or malformed reply;
    "late": no answer in time."""
    reason: str = ""
    weight: int = 0
    """Declared, public number of records."""
    update_norm: float | None = None
    """L2 norm of the update, as received."""
    bytes_up: int = 0
    seconds: float = 0.0
    """From sending the request to the answer."""
    version: str = ""
    """Of Lorica, as the site said when it was asked whether it takes part; else empty."""
    budget: tuple[float, float] | None = None
    """Lifetime ε of its data and what is left, as it then declared; None if it did not."""
    agreement: float | None = None
    """Cosine of the update with the weighted mean of the other sites' updates; None when there is
    no other."""


@dataclass(frozen=True)
class RoundRecord:
    """One round, as written to rounds.jsonl."""

    round: int
    """From 1; round 0 is the evaluation of the start."""
    sites: list[SiteRound] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    """Every metric of the task on the coordinator's test data, where it has any."""
    headline: str = "accuracy"
    """The task's metric that runs are compared by."""
    accuracy: float | None = None
    """Of the metrics, for tasks that have it; so are the next two."""
    macro_f1: float | None = None
    loss: float | None = None
    site_metrics: dict[str, float] = field(default_factory=dict)
    """Metrics by the sites' own noised counts, after rounds that have an evaluation there."""
    site_accuracy: float | None = None
    """Of the site metrics, for tasks that have it; so is the loss."""
    site_accuracy_band: float | None = None
    """Half-width of the 95 % band of that accuracy's privacy noise."""
    site_loss: float | None = None
    site_accuracy_by_label: dict[str, float] = field(default_factory=dict)
    stage: str = ""
    """What the round was for, as :class:`~lorica.common.plan.stages.Stage` names it."""
    alike: list[list[float | None]] = field(default_factory=list)
    """Of a round of class sums, for every two of the sites that were "ok", in their order: the
    cosine of their sums, less what noise takes from it; None where noise is all there is. Empty
    where the coordinator saw no single site's sums, or more than
    :data:`~lorica.server.rounds.alike.MOST`."""
    alike_error: float | None = None
    """Largest standard error of these cosines from noise."""
    mean_norm: float | None = None
    """L2 norm of the weighted mean of the updates."""
    noise_norm: float | None = None
    """Expected L2 norm of the privacy noise in that mean, where the plan alone decides it."""
    signal_to_noise: float | None = None
    """Norm of what is not noise in the mean over that of the noise, both estimated."""
    exact: bool | None = None
    """Whether the rule's next product B·A equals the weighted mean of the sites' products."""
    judged: float | None = None
    """What decides whether the state after the round is kept, where LoRA is on trial: the headline
    metric on the coordinator's validation data, or by the sites' noised counts."""
    kept_round: int | None = None
    """In the last round, where LoRA was on trial: the round after which the state was that the run
    ends with. The coordinator's metrics are of that state, the sites' of the last one."""
    sealed: int = 0
    """Over so many sites the coordinator saw a sum alone, nothing of a single site: their norms and
    agreement are sealed. 0: it saw every site's release."""
    lora_dropped: bool = False
    """That state is the one before the LoRA rounds: they were given up."""
    kept_own: dict[str, Any] = field(default_factory=dict)
    """Of the last round, where the plan asks: how many sites keep a model of their own, as of
    :class:`~lorica.server.results.kept_own.KeptOwn`."""
    bytes_up: int = 0
    """Update blobs received, bytes."""
    bytes_down: int = 0
    """Adapter blobs sent, bytes."""
    seconds: float = 0.0
    seconds_by_phase: dict[str, float] = field(default_factory=dict)
    """Seconds of "sites" (exchange), "aggregate", "evaluate" and "save"."""

    @property
    def score(self) -> float | None:
        """The headline metric on the coordinator's test data."""
        return self.metrics.get(self.headline, self.accuracy)

    @property
    def site_headline(self) -> float | None:
        """The headline metric by the sites' own counts; never another one in its place."""
        accuracy = self.site_accuracy if self.headline == "accuracy" else None
        return self.site_metrics.get(self.headline, accuracy)

    @property
    def site_score(self) -> float | None:
        """The headline metric by the sites' own counts, else less their loss."""
        loss, found = self.site_metrics.get("loss", self.site_loss), self.site_headline
        return found if found is not None or loss is None else -loss

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values, in dicts and lists of their own."""
        found = {one.name: _plain(getattr(self, one.name)) for one in fields(self)}
        return found | {"sites": [dict(vars(site)) for site in self.sites]}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> RoundRecord:
        """The inverse of :meth:`to_dict`."""
        return cls(**{**content, "sites": [SiteRound(**site) for site in content["sites"]]})


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, dict) else value


class _Round(Protocol):
    """A round in a list or in the store."""

    @property
    def round(self) -> int: ...
    @property
    def stage(self) -> str: ...
    @property
    def lora_dropped(self) -> bool: ...


_AnyRound = TypeVar("_AnyRound", bound=_Round)


def measured_result(rounds: Sequence[_AnyRound]) -> list[_AnyRound]:
    """The rounds after which sites measured what the run ended with, or came from: all of them, or
    those before LoRA where LoRA was given up."""
    dropped = any(round.lora_dropped for round in rounds)
    kept = next((k for r in rounds if (k := getattr(r, "kept_round", None)) is not None), None)
    if kept is not None:
        return [round for round in rounds if round.round <= kept]
    return [round for round in rounds if not dropped or round.stage != Stage.LORA.value]
