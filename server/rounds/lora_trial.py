"""LoRA on trial: its rounds count only if the sites' noised score rose by them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import replace

from lorica.common.adapter.state import State
from lorica.common.plan import RunPlan
from lorica.common.plan.traits import TRAITS
from lorica.server.results.round import RoundRecord

_KEPT = "before-lora/"  # prefix of the kept state in the coordinator's memory


class LoraTrial:
    """Keeps the state that LoRA rounds start from, and says in the end which of the two it is.

    LoRA is on trial under ``training.lora = "auto"`` with privacy, when head rounds come before
    LoRA rounds: under noise LoRA gains little, and can lose. The evidence is the task's headline
    metric by the sites' noised counts before and after (``rounds.evaluate_every``), or their loss
    where the plan asks for no counts that give it; it costs no more epsilon than those
    evaluations, which every site has charged.
    """

    def __init__(self, plan: RunPlan) -> None:
        """``plan``: the run."""
        self._last = plan.rounds.count
        self._before = self._last - plan.lora_rounds
        self._on = plan.lora_on_trial
        self._headline = TRAITS[plan.task.kind].headline

    def keep(self, round: int, state: State, memory: State) -> State:
        """The coordinator's memory after a round, with the round's state in it if LoRA begins."""
        if not self._on or round != self._before:
            return memory
        return memory | {f"{_KEPT}{name}": tensor.clone() for name, tensor in state.items()}

    def lost(self, last: RoundRecord, earlier: Callable[[], Iterable[RoundRecord]]) -> bool:
        """Whether the run has ended and nothing shows that LoRA gained.

        Args:
            last: the round that has just been evaluated.
            earlier: reads the rounds before it.
        """
        if not self._on or last.round != self._last:
            return False
        found = [self._score(record) for record in earlier() if record.round == self._before]
        after = self._score(last)
        if not found or found[0] is None or after is None:
            return bool(found)
        return after <= found[0]

    def _score(self, record: RoundRecord) -> float | None:
        """By the task's headline metric, whatever a record of an earlier version says it is."""
        return replace(record, headline=self._headline).site_score

    def before(self, names: Collection[str], memory: State) -> State:
        """The tensors ``names`` of the state that was kept."""
        return {name: memory[f"{_KEPT}{name}"].clone() for name in names}
