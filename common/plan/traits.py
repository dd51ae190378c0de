"""What of a task decides the course of a run; known without loading torch."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal, get_args

TaskKind = Literal[
    "text-classification",
    "image-classification",
    "text-table-classification",
    "image-table-classification",
    "multi-label-classification",
    "text-regression",
    "token-classification",
    "causal-lm",
    "masked-lm",
]
"""The tasks there are."""

SiteMetric = Literal["accuracy", "loss", "per_label", "f1", "mae", "r2"]
"""What sites can be asked to count, noise and send; which of them, a task's traits say."""


@dataclass(frozen=True)
class Traits:
    """What the plan, the stages and the policy need to know of a task."""

    module: str
    """Module of ``lorica.common.tasks`` that holds the task's class."""
    name: str
    """Name of that class."""
    class_sums: bool = False
    """Whether a warm start from noised sums of every label's features exists. A plan's warm
    start is left out where it does not."""
    head_first: bool = True
    """Whether a head on features as they came is worth rounds of its own before LoRA rounds."""
    head: bool = True
    """Whether the adapter has a head of its own; without one, every round trains LoRA factors."""
    fewest_labels: int = 2
    """Fewest names in task.labels; 0: the task has no labels and its plan must name none."""
    one_label_each: bool = False
    """Whether every record has exactly one of task.labels."""
    labelled: bool = True
    """Whether records need the column data.label."""
    site_metrics: tuple[SiteMetric, ...] = ("accuracy", "loss")
    """What sites can count for it."""
    headline: str = "accuracy"
    """The metric that runs are compared by, at most 1; higher is better."""
    headline_from: tuple[SiteMetric, ...] = ("accuracy",)
    """Which of site_metrics give the headline metric, each of them alone."""
    images: bool = False
    """Whether records are images; texts otherwise."""
    table: bool = False
    """Whether columns of a table, which the plan's section table names, are read beside them."""
    lists: frozenset[str] = frozenset()
    """Which of a record's columns ("text", "label") may hold a list, in JSON."""


_CLASSES = functools.partial(
    Traits,
    class_sums=True,
    one_label_each=True,
    site_metrics=("accuracy", "loss", "per_label"),
    headline_from=("accuracy", "per_label"),
)

TRAITS: dict[TaskKind, Traits] = {
    "text-classification": _CLASSES("text_classification", "TextClassification"),
    "image-classification": _CLASSES("images.task", "ImageClassification", images=True),
    "text-table-classification": _CLASSES("fusion.task", "TextTableClassification", table=True),
    "image-table-classification": _CLASSES(
        "fusion.task", "ImageTableClassification", images=True, table=True
    ),
    "multi-label-classification": Traits(
        "multi_label",
        "MultiLabelClassification",
        fewest_labels=1,
        site_metrics=("accuracy", "loss", "per_label", "f1"),
        headline="micro_f1",
        headline_from=("f1",),
        lists=frozenset({"label"}),
    ),
    "text-regression": Traits(
        "regression",
        "TextRegression",
        fewest_labels=0,
        site_metrics=("loss", "mae", "r2"),
        headline="r2",
        headline_from=("r2",),
    ),
    "token-classification": Traits(
        "tokens.task",
        "TokenClassification",
        head_first=False,
        fewest_labels=1,
        site_metrics=("accuracy", "loss", "f1"),
        headline="entity_f1",
        headline_from=("f1",),
        lists=frozenset({"text", "label"}),
    ),
    "causal-lm": Traits("language.causal_lm", "CausalLM", head=False, fewest_labels=0),
    "masked-lm": Traits(
        "language.masked_lm", "MaskedLM", head=False, fewest_labels=0, labelled=False
    ),
}
"""Every task's traits."""

TASK_KINDS: tuple[str, ...] = get_args(TaskKind)
"""Names of the tasks, as in task.kind."""
