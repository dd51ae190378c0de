"""Runs in the tools where researchers keep theirs: MLflow and TensorBoard.

Trackers get what the plan and the rounds say, metric by metric, as steps. One that fails is
warned about and left; the run goes on.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.server.recording.spending import Spending
from lorica.server.results.observers import Observer
from lorica.server.results.round import RoundRecord, SiteRound
from lorica.server.store.site_rows import finite

_log = logging.getLogger("lorica.tracking")
_EXPERIMENT = "lorica"


class Tracker(Protocol):
    """A place that takes parameters once and metrics by step."""

    def begin(self, parameters: dict[str, str]) -> None:
        """Take the plan, key by key."""

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Take a round's metrics."""

    def end(self, status: str) -> None:
        """ "finished" or "failed"."""


@contextlib.contextmanager
def track(wanted: Sequence[str], name: str, run_id: str) -> Iterator[list[Observer]]:
    """Observers for trackers such as "mlflow:URI" and "tensorboard:DIR".

    Args:
        wanted: one for each tracker.
        name: of the run there.
        run_id: in the store, a tag.

    Raises:
        LoricaError: LOR-809 no such tracker, or it cannot be opened; LOR-207 its package is
            missing.
    """
    made = [_Tracking(_opened(text, name, run_id), text) for text in wanted]
    try:
        yield list(made)
    except BaseException:
        for tracking in made:
            tracking.end("failed")
        raise
    for tracking in made:
        tracking.end("finished")


class _Tracking:
    """An observer in front of a tracker."""

    def __init__(self, tracker: Tracker, text: str) -> None:
        self._tracker: Tracker | None = tracker
        self._text = text
        self._spending: Spending | None = None

    def started(self, plan: RunPlan, sites: list[SiteRound], first_round: int) -> None:
        """Send the plan.

        Who was asked before a run was resumed is not known here: all its earlier rounds count at
        every site, which is the most that can have been spent.
        """
        self._spending = Spending(plan)
        self._spending.meet(sites)
        for round in range(1, first_round):
            self._spending.skip(RoundRecord(round, [s for s in sites if s.status == "ok"]))
        content = plan.model_dump(mode="json")
        parameters = {
            f"{s}.{k}": str(v) for s, values in content.items() for k, v in values.items()
        }
        self._try("begin", parameters)

    def site_answered(self, round: int, site: SiteRound) -> None:
        """Nothing: trackers take whole rounds."""

    def round_ended(self, record: RoundRecord) -> None:
        """Send a round."""
        spent = self._spending.after(record) if self._spending else {}
        self._try("log", record.round, metrics_of(record, spent))

    def end(self, status: str) -> None:
        """Close the run there."""
        self._try("end", status)

    def _try(self, what: str, *arguments: Any) -> None:
        if self._tracker is None:
            return
        try:
            getattr(self._tracker, what)(*arguments)
        except Exception as error:  # noqa: BLE001 - whatever a tracker raises must not end a run
            self._tracker = None
            _log.warning(
                "[%s] The tracker %s failed and is left out from here on: %s",
                Code.TRACKER_FAILED.value,
                self._text,
                error,
            )


def metrics_of(record: RoundRecord, spent: dict[str, float]) -> dict[str, float]:
    """A round's finite figures by name, "/" between a group and its part."""
    found: dict[str, float | None] = {
        **record.metrics,
        **{f"sites/{name}": value for name, value in record.site_metrics.items()},
        "accuracy": record.accuracy,
        "macro_f1": record.macro_f1,
        "loss": record.loss,
        "sites/accuracy": record.site_accuracy,
        "sites/loss": record.site_loss,
        "sites/ok": float(sum(site.status == "ok" for site in record.sites)),
        "sites/asked": float(len(record.sites)),
        "bytes/up": float(record.bytes_up),
        "bytes/down": float(record.bytes_down),
        "seconds/round": record.seconds,
        **{f"seconds/{name}": value for name, value in record.seconds_by_phase.items()},
        "update/mean_norm": record.mean_norm,
        "update/signal_to_noise": record.signal_to_noise,
        "privacy/epsilon": max(spent.values()) if spent else None,
    }
    return {name: value for name, value in found.items() if finite(value) is not None}  # type: ignore[misc]


def _opened(text: str, name: str, run_id: str) -> Tracker:
    kind, _, place = text.partition(":")
    makers: dict[str, Callable[[str, str, str], Tracker]]
    makers = {"mlflow": _Mlflow, "tensorboard": _Tensorboard}
    if kind not in makers or not place:
        raise LoricaError(
            Code.TRACKER_FAILED,
            f"{text!r} names no tracker; expected mlflow:URI or tensorboard:DIR.",
        )
    try:
        return makers[kind](place, name, run_id)
    except ModuleNotFoundError as error:
        raise LoricaError(
            Code.PACKAGE_MISSING,
            f"--track {kind} needs the package {error.name}.",
            mend=f"pip install 'lorica[{kind}]'",
        ) from error
    except Exception as error:
        raise LoricaError(Code.TRACKER_FAILED, f"{text} cannot be used: {error}") from error


class _Mlflow:
    """An MLflow run; by the client class, so that nothing global is touched."""

    def __init__(self, uri: str, name: str, run_id: str) -> None:
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient(tracking_uri=uri)
        experiment = self._client.get_experiment_by_name(_EXPERIMENT)
        key = experiment.experiment_id if experiment else None
        key = key or self._client.create_experiment(_EXPERIMENT)
        tags = {"lorica.run": run_id} if run_id else {}
        self._run = self._client.create_run(key, run_name=name, tags=tags).info.run_id

    def begin(self, parameters: dict[str, str]) -> None:
        from mlflow.entities import Param

        params = [Param(key, value[:6000]) for key, value in parameters.items()]
        self._client.log_batch(self._run, params=params)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        import time

        from mlflow.entities import Metric

        now = int(1000 * time.time())
        rows = [Metric(name.replace(" ", "_"), v, now, step) for name, v in metrics.items()]
        self._client.log_batch(self._run, metrics=rows)

    def end(self, status: str) -> None:
        self._client.set_terminated(self._run, "FINISHED" if status == "finished" else "FAILED")


class _Tensorboard:
    """Event files of TensorBoard in a folder of the run's own."""

    def __init__(self, folder: str, name: str, run_id: str) -> None:
        from torch.utils.tensorboard import SummaryWriter

        place = Path(folder) / (run_id or name)
        self._writer = SummaryWriter(str(place))

    def begin(self, parameters: dict[str, str]) -> None:
        rows = "\n".join(f"| {key} | `{value}` |" for key, value in parameters.items())
        self._writer.add_text("plan", f"| key | value |\n| --- | --- |\n{rows}")

    def log(self, step: int, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def end(self, status: str) -> None:
        self._writer.close()
