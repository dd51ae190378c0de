"""The task interface: all that a run needs to know of what the adapted model is for.

Site, coordinator, prediction and the adapter folder use a task through this class alone, so the
DP engine, the stages and every aggregation rule take any task.

A *record's loss* is one number per record, whatever the record's length: a long note weighs as
much as a short one, and one record's clipped gradient is bounded alike.

A *judgement* is a row of numbers about one record from which every metric can be made: metrics
at the coordinator are functions of the table of judgements, and what a site releases is a sum of
bounded parts of its rows (:mod:`lorica.common.tasks.noised_metrics`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
import torch

from lorica.common.plan.traits import TRAITS, Traits

if TYPE_CHECKING:
    from lorica.common.adapter.state import State
    from lorica.common.backbone.loading import Backbone
    from lorica.common.data.records import Records
    from lorica.common.plan import RunPlan
    from lorica.common.tasks.inputs import Inputs
    from lorica.common.tasks.model import AdaptedModel
    from lorica.common.tasks.views import ViewNumbers


@dataclass(frozen=True)
class Metrics:
    """Quality on a labelled set."""

    values: dict[str, float]
    """Metric -> value; shares lie in [0, 1]."""
    headline: str = "accuracy"
    """The metric that runs of the task are compared by; higher is better."""

    @property
    def score(self) -> float:
        """The headline metric's value."""
        return self.values[self.headline]


@dataclass(frozen=True)
class Released:
    """One part of the vector that a site releases when it evaluates."""

    name: str
    width: int = 1
    """Number of values."""
    norm: float = 1.0
    """Largest L2 norm of one record's values in this part; a mean over records keeps it."""


@dataclass(frozen=True)
class SiteMetrics:
    """Quality by the sites' own, noised counts."""

    values: dict[str, float]
    """Metric -> value, of those that follow from what the plan asks for."""
    headline: str = "accuracy"
    """The metric that runs of the task are compared by, if it is among them."""
    band: float | None = None
    """Half-width of a 95 % band of the headline metric for the noise (not for the sampling of
    records); None where none is known."""
    per_label: dict[str, float] = field(default_factory=dict)
    """Headline metric by label; empty when not asked for."""

    @property
    def score(self) -> float | None:
        """The headline metric's value, None when it was not asked for."""
        return self.values.get(self.headline)

    @property
    def accuracy(self) -> float | None:
        """Share of records answered rightly, where that was asked for."""
        return self.values.get("accuracy")

    @property
    def accuracy_band(self) -> float | None:
        """:attr:`band`, where accuracy is the headline metric."""
        return self.band if self.headline == "accuracy" else None

    @property
    def loss(self) -> float | None:
        """Mean loss, each record's cut at the task's bound, where that was asked for."""
        return self.values.get("loss")


class Prediction(Protocol):
    """What the adapted model says of one record."""

    @property
    def shown(self) -> str:
        """The answer in one line of text."""
        ...

    @property
    def certainty(self) -> float | None:
        """Probability of the answer, if the task has one."""
        ...

    def columns(self) -> dict[str, str]:
        """Columns to add to a row of a table."""
        ...

    def content(self) -> dict[str, Any]:
        """Keys to add to a JSON object."""
        ...


@dataclass(frozen=True)
class TensorTargets:
    """Targets of which every record has as many."""

    tensor: torch.Tensor
    """Shape (N,) or (N, …)."""

    def __len__(self) -> int:
        return len(self.tensor)

    def of(self, rows: np.ndarray) -> torch.Tensor:
        """Those of these rows, shape (n, …)."""
        return self.tensor[torch.from_numpy(rows)]


class Task(ABC):
    """One task under one plan."""

    kind: ClassVar[str]
    """As in task.kind."""
    pipeline_tag: ClassVar[str]
    """The Hugging Face hub's name for the task."""

    closed_head: ClassVar[bool] = False
    """Whether the head is one linear map of one feature vector per record, and
    :meth:`residuals` gives what its gradient is made of."""
    generates: ClassVar[bool] = False
    """Whether answers are made step by step, by :meth:`generate`, and not read off one pass."""
    judgement_width: ClassVar[int]
    """Numbers in a judgement, S."""

    def __init__(self, plan: RunPlan) -> None:
        self.plan = plan

    @property
    def traits(self) -> Traits:
        """What of the task decides the course of a run."""
        return TRAITS[self.plan.task.kind]

    @property
    def headline(self) -> str:
        """The metric that runs are compared by, in [0, 1] or at most 1; higher is better."""
        return self.traits.headline

    # Records

    @abstractmethod
    def check(self, records: Records, *, where: str) -> None:
        """Return if every record has a target that the plan admits.

        Args:
            records: labelled.
            where: begins the message: "Site a", "The test data".

        Raises:
            LoricaError: LOR-306 a label that the plan lacks, LOR-311 a target that is none.
        """

    def with_labels(self, parts: Sequence[Records]) -> RunPlan:
        """The plan with task.labels filled in from the data, if it needs labels and names none.

        Raises:
            LoricaError: LOR-307 when there are too few labels.
        """
        return self.plan

    @abstractmethod
    def strata(self, records: Records) -> list[str]:
        """A coarse class of every record by its target, for dividing sites unevenly."""

    @abstractmethod
    def encode(self, backbone: Backbone, records: Records) -> Inputs:
        """What the model reads of the records; targets are not looked at."""

    def encode_for_use(self, backbone: Backbone, records: Records) -> Inputs:
        """The same for records whose targets nobody knows, to predict them."""
        return self.encode(backbone, records)

    @abstractmethod
    def targets(self, records: Records, inputs: Inputs) -> Any:
        """The records' targets, in the form that the other methods take; after :meth:`check`."""

    # Model

    @abstractmethod
    def model(self, backbone: Backbone) -> AdaptedModel:
        """The backbone with the plan's adapter; weights are shared with the backbone."""

    def outputs_of_views(
        self,
        model: AdaptedModel,
        inputs: Inputs,
        rows: np.ndarray,
        views: np.ndarray,
        random: ViewNumbers,
    ) -> torch.Tensor:
        """The model's outputs for random views of ``rows`` (training.augmentations above 1), of
        these numbers (n,); a row's view depends on that record, the number and the step alone."""
        raise NotImplementedError(f"{self.kind} has no augmented views")

    @abstractmethod
    def start(self, backbone: Backbone) -> State:
        """The common start of a run, from the plan and its seed alone; the adapted encoder
        equals the backbone."""

    # Learning

    @abstractmethod
    def losses(self, outputs: torch.Tensor, targets: Any, rows: np.ndarray) -> torch.Tensor:
        """Every record's loss, shape (n,), differentiable; outputs are the model's for ``rows``."""

    def loss_sum(self, outputs: torch.Tensor, targets: Any, rows: np.ndarray) -> torch.Tensor:
        """The loss summed over records: what is differentiated, record by record."""
        return self.losses(outputs, targets, rows).sum()

    def residuals(self, outputs: torch.Tensor, targets: Any, rows: np.ndarray) -> torch.Tensor:
        """The derivative (n, C) of every record's loss by its outputs (n, C), of the outputs'
        number format; asked for of tasks with ``closed_head`` alone.

        With it the head's clipped gradient sum needs no gradient per record
        (:mod:`lorica.client.mechanism.frozen_features`).
        """
        raise NotImplementedError(f"{self.kind} has no gradient of its head in closed form")

    # Quality

    @abstractmethod
    def judge(self, outputs: torch.Tensor, targets: Any, rows: np.ndarray) -> torch.Tensor:
        """Judgements (n, S) of records by their outputs, float64."""

    @abstractmethod
    def metrics(self, table: torch.Tensor) -> Metrics:
        """Metrics of a table of judgements (n, S) with at least one row."""

    @abstractmethod
    def released(self) -> list[Released]:
        """The parts of the vector that sites release, of those metrics that the plan asks for,
        in their order. Formal guarantee: :meth:`contributions` gives every record at most
        ``norm`` in each part, whatever the record and the adapter."""

    @abstractmethod
    def contributions(self, table: torch.Tensor) -> torch.Tensor:
        """What records add to that vector, from their judgements: (n, total width), float64,
        finite for any judgements."""

    @abstractmethod
    def site_metrics(
        self, parts: Mapping[str, np.ndarray], count: float, noise: float
    ) -> SiteMetrics:
        """Metrics from the noised sums.

        Args:
            parts: name -> the part's values, summed over all sites.
            count: the noised number of units.
            noise: standard deviation of the noise on every value.
        """

    # Use

    @abstractmethod
    def predictions(
        self, outputs: torch.Tensor, inputs: Inputs, rows: np.ndarray
    ) -> Sequence[Prediction]:
        """Predictions for ``rows`` from the model's outputs for them."""

    def generate(
        self, backbone: Backbone, model: AdaptedModel, texts: Sequence[str]
    ) -> Sequence[Prediction]:
        """Predictions for texts; asked for of tasks with ``generates`` alone."""
        raise NotImplementedError(f"{self.kind} generates nothing")

    @abstractmethod
    def about(self, backbone: Backbone) -> dict[str, Any]:
        """What ``lorica.json`` must say for the adapter to be used without Lorica."""

    @abstractmethod
    def usage(self, backbone: Backbone) -> str:
        """Python lines that go on from ``model``, ``tokenizer``, ``head`` (tensors by name) and
        ``about`` to a printed prediction, with torch alone."""

    @property
    def answer(self) -> str:
        """Python lines that go on from ``outputs``, the head's, of torch or of numpy, to a printed
        prediction; asked for of tasks that do not model language."""
        raise NotImplementedError(f"{self.kind} has no head whose outputs are the answer")

    @property
    @abstractmethod
    def subject(self) -> str:
        """What the adapter tells, as in "Adapter for …"."""
