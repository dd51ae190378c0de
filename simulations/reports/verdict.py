"""A sentence where training was for nothing: no better than the start, which costs no ε."""

from __future__ import annotations

from lorica.common.display.wording import epsilon_text, metric_text
from lorica.simulations.reports.tables import Summary, epsilons, headline

_FEW = 20
"""Records per label below which noise at usual budgets drowns what a class's records say."""


def verdict(summary: Summary) -> str:
    """What to say of a federation that is no better than its untrained start; empty if it is."""
    score = summary.get("score", summary.get("accuracy"))
    start = (summary.get("baselines") or {}).get("zero_shot")
    if score is None or start is None or score > start:
        return ""
    metric = headline(summary)
    shown, before = metric_text(metric, score), metric_text(metric, start)
    if score < start:
        said = f"The federation is worse than its untrained start: {shown} against {before}."
        where = summary.get("start")
        at = f" It is the adapter in {where}/, beside the other one." if where else ""
        use = f"Use the start, which costs no ε (zero-shot), rather than this adapter.{at}"
    else:
        said = f"The federation is no better than its untrained start: {shown}."
        use = "No round that was trained is worth its ε."
    return " ".join(part for part in (said, _why(summary), use) if part)


def _why(summary: Summary) -> str:
    counts = [by_label for by_label in (summary.get("label_counts") or {}).values() if by_label]
    labels = {name for by_label in counts for name in by_label}
    records = sum(sum(by_label.values()) for by_label in counts)
    budget = max(epsilons(summary).values(), default=float("inf"))
    if not labels or not counts or budget == float("inf"):
        return ""
    each = records / len(labels)
    if each / len(counts) >= _FEW:
        return ""
    at = f", at {len(counts)} sites" if len(counts) > 1 else ""
    return (
        f"{len(labels):,} labels share {records:,} records{at}: {each:.3g} a label, too few for "
        f"ε = {epsilon_text(budget)}. More records, fewer labels or a higher ε would help."
    )
