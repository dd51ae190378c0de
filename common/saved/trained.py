"""What a run trained, which is not what its plan might have trained."""

from __future__ import annotations

from typing import Any

from lorica.common.plan import RunPlan
from lorica.common.plan.lora import lora_sentence
from lorica.common.plan.stages import Stage, place_in_stage, stage_of
from lorica.common.plan.traits import TRAITS


def adapting_rounds(plan: RunPlan, kept_round: int | None = None) -> int:
    """How many rounds trained the factors or biases that a result has; 0: they are as at the start.

    Args:
        plan: the run.
        kept_round: the round after which the state was that the run ended with; the last if None.
    """
    if plan.adapter.kind == "head":
        return 0
    last = plan.rounds.count if kept_round is None else kept_round
    adapts = (Stage.LORA, Stage.LOCAL)
    return place_in_stage(plan, last)[0] if last and stage_of(plan, last) in adapts else 0


def what_is_trained(plan: RunPlan, kept_round: int | None = None) -> str:
    """The trained part in half a sentence, with the number of rounds that trained it."""
    rounds, head = adapting_rounds(plan, kept_round), TRAITS[plan.task.kind].head
    adapter = plan.adapter
    if not rounds:
        return "a task head alone" if head else "nothing"
    where = "all layers"
    if adapter.layers:
        where = "layers " + ", ".join(map(str, adapter.layers))
    if adapter.kind == "bitfit":
        part = f"biases of linear modules of {where}"
    else:
        modules = " and ".join(f"{n} projections" if n == "attention" else n for n in _named(plan))
        part = f"LoRA factors of rank {adapter.rank} on {modules} of {where}"
    many = "round" if rounds == 1 else "rounds"
    return f"{part} (in {rounds} {many})" + (", and a task head" if head else "")


def trained_summary(
    plan: RunPlan, kept_round: int | None, judged: dict[int, float]
) -> dict[str, Any]:
    """What summary.json says of it.

    Args:
        plan: the run.
        kept_round: as in :func:`adapting_rounds`.
        judged: round -> what the judge made of the state after it, where LoRA was on trial.
    """
    whose = "validation data" if plan.data.judge else "the sites' noised counts"
    return {
        "what": what_is_trained(plan, kept_round),
        "adapting_rounds": adapting_rounds(plan, kept_round),
        "kept_round": plan.rounds.count if kept_round is None else kept_round,
        "decision": lora_sentence(plan),
        "judged_by": whose if judged else "",
        "judged": {str(round): score for round, score in judged.items()},
    }


def _named(plan: RunPlan) -> list[str]:
    names = plan.filled_adapter.target_modules
    return [name.replace("feed-forward", "feed-forward modules") for name in names]
