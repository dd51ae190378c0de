"""Records without labels for an adapter of few records or none: labelled by it, where it is sure.

A record's pseudo-label is the label that the adapter holds most probable; it counts if that
probability reaches a threshold (Lee 2013, "Pseudo-Label"). Those that count move the prototypes as
templates do (Iwasawa and Matsuo 2021, "Test-Time Classifier Adjustment Module"): of every label
their mean feature, weighing as much as they are, but not more than what the label had before, its
given records and its name together; so they cannot drown what is known. That is done three times,
each time by the prototypes of the last.

It helps where little is known and harms where more is: on Banking77 labels' names gain some
points, five records a label lose some. So it is judged by labelled records that took no part, if
there are any, and undone where it does harm. No noise: the result tells of all records.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from lorica.common.adapter.state import State
from lorica.common.cache.prefix import PrefixCache, features_of
from lorica.common.data.names.plan_labels import label_indices
from lorica.common.data.records import Records
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.saved.few_shot import FewShot
from lorica.common.tasks import task_of

PASSES = 3


@dataclass(frozen=True)
class PseudoLabelled:
    """What unlabelled records made of an adapter."""

    state: State
    plan: RunPlan
    records: int
    """Unlabelled ones."""
    passed: int
    """Of them, those that reached the threshold in the last pass."""
    labels: int
    """For how many labels."""
    checked: int
    """Labelled records that it was judged by; 0: none, and whether it helps is not known."""
    before: float | None
    """Share of these that was told rightly without the unlabelled ones; None of none."""
    after: float | None
    """The same with them."""
    sure: int
    """Of these, those that reach the threshold in the end."""
    surely_right: float | None
    """Share of those that is told rightly; None of none."""
    kept: bool
    """Whether the state has the unlabelled records in it: it has, unless it tells fewer of the
    labelled ones rightly."""


def pseudo_labelled(
    made: FewShot,
    texts: Sequence[str],
    threshold: float,
    check: Records | None = None,
    seen: Collection[str] = (),
) -> PseudoLabelled:
    """Let unlabelled texts move an adapter's prototypes.

    Args:
        made: the adapter.
        texts: without labels.
        threshold: probability in (0, 1] from which on a pseudo-label counts.
        check: labelled records to judge by, none of which the adapter was made of.
        seen: texts that it was made of: such records do not judge, nor do unlabelled ones.

    Raises:
        LoricaError: LOR-306 a label of ``check`` that is not the plan's, LOR-308 no text.
    """
    if not texts:
        raise LoricaError(Code.DATA_TOO_FEW_RECORDS, "None of the unlabelled records has a text.")
    read = _reader(made)
    features = read(texts)
    sums = made.sums
    for _ in range(PASSES):
        moved, counts = with_pseudo_labels(made.sums, features, sums, made.scale, threshold)
        sums = moved
    held = set(seen) | set(texts)
    rows = [row for row, text in enumerate(check.texts) if text not in held] if check else []
    before = after = surely_right = None
    sure = 0
    if check and rows:
        judged = check.take(rows)
        labels = torch.tensor(label_indices(judged, made.plan.task.labels, where="The check"))
        given = read(judged.texts)
        old, new = (_chances(given, of, made.scale) for of in (made.sums, sums))
        right = new.argmax(1) == labels
        passes = new.max(1).values >= threshold
        before, after = (
            float((old.argmax(1) == labels).double().mean()),
            float(right.double().mean()),
        )
        sure = int(passes.sum())
        surely_right = float(right[passes].double().mean()) if sure else None
    kept = bool(counts.sum()) and (before is None or after is None or after >= before)
    state, plan = made.state, made.plan
    if kept:
        weight = made.scale * functional.normalize(sums, dim=1)
        state = state | {"head.weight": weight}
        plan = plan.replace(privacy={"epsilon": float("inf")})
    return PseudoLabelled(
        state,
        plan,
        len(texts),
        int(counts.sum()),
        int((counts > 0).sum()),
        len(rows),
        before,
        after,
        sure,
        surely_right,
        kept,
    )


def with_pseudo_labels(
    given: torch.Tensor, features: torch.Tensor, by: torch.Tensor, scale: float, threshold: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums of every label with its pseudo-labelled records, and how many these are.

    Args:
        given: sums without them, shape (C, H).
        features: of unlabelled records, unit rows (n, H).
        by: the sums whose prototypes label, shape (C, H).
        scale: of cosines.
        threshold: probability from which on a label counts.
    """
    chances, labels = _chances(features, by, scale).max(1)
    passed = chances >= threshold
    own = torch.zeros_like(given).index_add_(0, labels[passed], features[passed])
    counts = torch.bincount(labels[passed], minlength=len(given))
    most = given.norm(dim=1) / counts.clamp(min=1)
    return given + own * most.clamp(max=1.0)[:, None], counts


def _chances(features: torch.Tensor, sums: torch.Tensor, scale: float) -> torch.Tensor:
    return torch.softmax(scale * features @ functional.normalize(sums, dim=1).T, dim=1)


def _reader(made: FewShot) -> Callable[[Sequence[str]], torch.Tensor]:
    """Texts -> their features by the adapter, unit rows (n, H)."""
    task = task_of(made.plan)
    model = task.model(made.backbone).eval()
    model.load_state(made.state)

    def features(texts: Sequence[str]) -> torch.Tensor:
        nothing = [""] * len(texts)
        records = Records(list(texts), nothing, list(map(str, range(len(texts)))), nothing)
        encoded = task.encode(made.backbone, records)
        return features_of(model, PrefixCache(model, encoded, limit_bytes=0))

    return features
