"""Label names: where a plan takes them from, and as words."""

from __future__ import annotations

from collections.abc import Iterable

from lorica.common.data.names.alike import CHOICE, one_spelling, refuse_alike
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.plan.traits import TRAITS

_SHOWN = 5


def label_text(name: str) -> str:
    """A label's name as words: "card_arrival" -> "card arrival"."""
    return " ".join(name.replace("_", " ").replace("-", " ").split())


def labels_of(plan: RunPlan, found: Iterable[str]) -> RunPlan:
    """The plan with task.labels; those found in the data, sorted, if it names none.

    Raises:
        LoricaError: LOR-307 when there are fewer than the task needs, LOR-332 when some only look
            alike, unless data.alike says what they are.
    """
    labels = list(plan.task.labels)
    if not labels:
        names = list(found)
        if plan.data.alike == "merge":
            spelling = one_spelling([], [names])
            names = [spelling[name] for name in names]
        elif plan.data.alike == "refuse":
            refuse_alike(names, f"The labels in column '{plan.data.label}'", CHOICE)
        labels = sorted(set(names))
    fewest = TRAITS[plan.task.kind].fewest_labels
    if len(labels) < fewest:
        raise LoricaError(
            Code.DATA_TOO_FEW_LABELS,
            f"The data have {len(labels)} label(s) in column '{plan.data.label}': "
            f"{', '.join(map(repr, labels[:_SHOWN]))}; the task needs at least {fewest}.",
        )
    return plan if plan.task.labels else plan.replace(task={"labels": labels})
