"""LoRA on trial: the best state that LoRA rounds came to is kept, which may be the one before."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace

import torch

from lorica.common.adapter.state import State
from lorica.common.plan import RunPlan
from lorica.common.plan.lora import judged_after
from lorica.common.plan.traits import TRAITS
from lorica.server.results.round import RoundRecord

_KEPT, _SCORES = "kept/", "kept.scores"  # in the coordinator's memory
_DIFFERENT = 0.1  # share of records that two states of one run are right about differently
_NORMAL_BAND = 1.96
_OF_OTHERS = 0.02  # tolerance for scores that are no shares, of their size


@dataclass(frozen=True)
class Score:
    """What a judge makes of a state."""

    value: float
    """Higher is better: the task's headline metric, else its accuracy, else less its loss."""
    error: float
    """Standard error of the difference between two of them."""


class LoraTrial:
    """Holds the states before, amid and after LoRA rounds against each other.

    LoRA is on trial under ``training.lora = "auto"``. The judge is the coordinator's validation
    data (``data.judge``), or the sites' noised counts on records that they set aside, whose ε every
    site has charged; never the test data that results are reported on. What a later state gains is
    rarely more than the judge's error, and what it loses by chance is as much: a later state is
    kept unless it is beaten by an earlier one by more than that error.
    """

    def __init__(self, plan: RunPlan) -> None:
        """``plan``: the run."""
        self._rounds = judged_after(plan)
        self._last = plan.rounds.count
        self._headline = TRAITS[plan.task.kind].headline

    def judges(self, round: int) -> bool:
        """Whether the state after this round is judged."""
        return round in self._rounds

    def of_sites(self, record: RoundRecord, units: float) -> Score | None:
        """A round's score by the sites' noised counts; None where they give none.

        Args:
            record: of the round.
            units: about how many the sites set aside together; 0: not known.
        """
        named = replace(record, headline=self._headline)
        values = record.site_metrics
        found = named.site_headline
        if found is None:
            found = values.get("accuracy", record.site_accuracy)
        if found is None:
            return of_others(named.site_score)
        band = record.site_accuracy_band or 0.0
        chance = math.sqrt(_DIFFERENT / units) if units else _OF_OTHERS
        return Score(found, math.hypot(chance, math.sqrt(2.0) * band / _NORMAL_BAND))

    def keep(self, round: int, state: State, score: Score | None, memory: State) -> State:
        """The coordinator's memory after a judged round: with the state, unless it is beaten."""
        earlier = memory[_SCORES].tolist() if _SCORES in memory else []
        if score is None and earlier:
            return memory
        given = score or Score(-math.inf, 0.0)
        found = dict(memory)
        beaten = any(value > given.value + given.error for _, value, _ in earlier)
        scores = [*earlier, [float(round), given.value, float(not beaten)]]
        found[_SCORES] = torch.tensor(scores, dtype=torch.float64)
        if not beaten:
            found |= {f"{_KEPT}{name}": tensor.clone() for name, tensor in state.items()}
        return found

    def kept_round(self, round: int, memory: State) -> int | None:
        """Once the run has ended: the round whose state it ends with, if one was judged."""
        if round != self._last or _SCORES not in memory:
            return None
        return max(int(number) for number, _, kept in memory[_SCORES].tolist() if kept)

    def kept(self, names: Collection[str], memory: State) -> State:
        """The tensors ``names`` of the state that was kept."""
        return {name: memory[f"{_KEPT}{name}"].clone() for name in names}


def of_others(value: float | None) -> Score | None:
    """The score of a metric whose error nobody knows."""
    return None if value is None else Score(value, _OF_OTHERS * abs(value))


def of_validation(value: float | None, records: int) -> Score | None:
    """The score of a headline metric on so many validation records."""
    if value is None or not 0.0 <= value <= 1.0:
        return of_others(value)
    return Score(value, math.sqrt(_DIFFERENT / records))
