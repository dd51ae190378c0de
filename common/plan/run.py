"""RunPlan: the one model of a run that coordinator and sites share.

A plan is loaded from a TOML file, from defaults, from ``section.key=value`` settings and from
Flower's flat run config; all four give the same object (:mod:`lorica.common.plan.io`). Its
fingerprint travels with every message, so that nobody trains under another plan than agreed.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Self

from pydantic import model_validator

from lorica.common.config import Section
from lorica.common.plan.course import (
    AggregationPlan,
    RoundsPlan,
    ServerPlan,
    SimulationPlan,
    TrainingPlan,
    WirePlan,
)
from lorica.common.plan.lora import decide, judged_after
from lorica.common.plan.methods import METHODS, methods_with
from lorica.common.plan.rules import (
    check_aggregation,
    check_lora_trial,
    check_quantised,
    check_table,
    check_task,
    check_trust,
    robust_minimum,
)
from lorica.common.plan.subject import AdapterPlan, BackbonePlan, DataPlan, PrivacyPlan, TaskPlan
from lorica.common.plan.table import TablePlan
from lorica.common.plan.traits import TRAITS

_RATE_UNDER_NOISE, _RATE_WITHOUT_NOISE = 0.1, 0.05  # of a LoRA round, where the plan names none
_LEAST_BATCH = 128  # units of all sites in a LoRA round's batch, then


class RunPlan(Section):
    """One run, whole. All fields have defaults; the defaults are the demo's recipe."""

    backbone: BackbonePlan = BackbonePlan()
    """The pretrained model."""
    adapter: AdapterPlan = AdapterPlan()
    """The trained part."""
    task: TaskPlan = TaskPlan()
    """The task and its labels."""
    table: TablePlan = TablePlan()
    """Columns beside text or image."""
    data: DataPlan = DataPlan()
    """Data and columns."""
    privacy: PrivacyPlan = PrivacyPlan()
    """The guarantee."""
    training: TrainingPlan = TrainingPlan()
    """Local training."""
    aggregation: AggregationPlan = AggregationPlan()
    """The aggregation rule."""
    server: ServerPlan = ServerPlan()
    """The coordinator's optimiser."""
    rounds: RoundsPlan = RoundsPlan()
    """The round loop."""
    wire: WirePlan = WirePlan()
    """The wire."""
    simulation: SimulationPlan = SimulationPlan()
    """The simulation."""

    @model_validator(mode="after")
    def _consistent(self) -> RunPlan:
        evaluated = bool(self.rounds.evaluate_every)
        views = self.training.augmentations
        check_task(self.task, self.adapter, self.privacy, evaluated=evaluated, views=views)
        check_table(self.table, self.task, self.data, self.unit_column)
        if not self.data.label and TRAITS[self.task.kind].labelled:
            raise ValueError(f'the task "{self.task.kind}" needs data.label')
        if self.lora_on_trial and not self.data.judge:
            check_lora_trial(self.task, self.privacy)
        check_quantised(self.backbone, self.adapter, self.aggregation)
        check_aggregation(self.aggregation, self.server, self.training, self.rounds)
        check_trust(self.privacy, self.training, self.rounds, self.wire)
        if METHODS[self.aggregation.method].personal and self.adapter.kind == "head":
            raise ValueError(
                f'aggregation.method "{self.aggregation.method}" shares LoRA factors alone: '
                'adapter.kind must be "lora"'
            )
        if self.adapter.kind == "bitfit" and not METHODS[self.aggregation.method].averages_biases:
            those = methods_with(lambda method: method.averages_biases)
            raise ValueError(
                f'aggregation.method "{self.aggregation.method}" works on LoRA factors: with '
                f'adapter.kind "bitfit" use {" or ".join(those)}, which all '
                "average the biases"
            )
        if self.simulation.ranks and not METHODS[self.aggregation.method].any_rank:
            those = methods_with(lambda method: method.any_rank)
            raise ValueError(
                f'aggregation.method "{self.aggregation.method}" needs one rank at all sites: '
                f"simulation.ranks is for {' and '.join(those)}"
            )
        if self.simulation.ranks and max(self.simulation.ranks) > self.adapter.rank:
            raise ValueError(
                f"simulation.ranks has {max(self.simulation.ranks)}, above adapter.rank, which is "
                f"{self.adapter.rank}"
            )
        if self.privacy.unit != "record" and self.data.unit not in ("", self.privacy.unit):
            raise ValueError(
                f'privacy.unit names the column "{self.privacy.unit}", data.unit another '
                f'("{self.data.unit}")'
            )
        return self

    @property
    def robust_minimum(self) -> int:
        """Fewest updates that the robust rule can do its work on."""
        return robust_minimum(self.aggregation)

    def for_one_site(self) -> RunPlan:
        """The same run with a single site: no minimum of sites, no rule that needs several, and
        nobody to hide among."""
        return self.replace(
            rounds={"minimum_sites": 1},
            aggregation={"robust": "none"},
            privacy={"trust": "none", "honest_sites": 0},
        )

    @property
    def sealed(self) -> bool:
        """Whether the coordinator sees sums over sites alone."""
        return self.privacy.trust == "sum"

    @property
    def honest_sites(self) -> int:
        """How many honest sites have the noise that the plan promises; 1 where each has it."""
        return (self.privacy.honest_sites or self.rounds.minimum_sites) if self.sealed else 1

    @property
    def unit_column(self) -> str:
        """The column that says whose record it is; empty: every record is its own unit."""
        return self.data.unit or ("" if self.privacy.unit == "record" else self.privacy.unit)

    @property
    def columns(self) -> DataPlan:
        """Section data as the task reads it: without a label's column where it has no labels."""
        if TRAITS[self.task.kind].labelled:
            return self.data
        return self.data.model_copy(update={"label": ""})

    @property
    def filled_adapter(self) -> AdapterPlan:
        """Section adapter with the modules that it leaves to the plan."""
        if self.adapter.target_modules:
            return self.adapter
        both = not self.privacy.private and not TRAITS[self.task.kind].head_first
        modules = ["attention", "feed-forward"] if both else ["attention"]
        return self.adapter.model_copy(update={"target_modules": modules})

    @property
    def warm_rounds(self) -> int:
        """1 if the run begins with the sums of its labels' features, 0 otherwise."""
        return int(self.rounds.warm_start > 0 and TRAITS[self.task.kind].class_sums)

    @property
    def lora_rounds(self) -> int:
        """How many of the last rounds train LoRA factors on the coordinator's steps."""
        return decide(self).rounds

    @property
    def lora_on_trial(self) -> bool:
        """Whether LoRA rounds count only as far as whoever judges does not see them lose."""
        return bool(judged_after(self))

    @property
    def lora_sample_rate(self) -> float:
        """q of a LoRA round."""
        if asked := self.training.lora_sample_rate:
            return asked
        rate = _RATE_UNDER_NOISE if self.privacy.private else _RATE_WITHOUT_NOISE
        units = self.rounds.expected_units
        return max(rate, min(1.0, _LEAST_BATCH / units)) if units else rate

    @property
    def evaluation_rounds(self) -> list[int]:
        """The rounds after which sites evaluate; among them the last before LoRA."""
        every, last = self.rounds.evaluate_every, self.rounds.count
        judged = [] if self.data.judge else judged_after(self)
        if not every:
            return judged
        before_lora = {last - self.lora_rounds} if last > self.lora_rounds else set()
        return sorted({*range(every, last + 1, every), *before_lora, *judged, last})

    @property
    def benefit_round(self) -> int:
        """Number of the evaluation after the last round, in which sites tell one bit about their
        guards; 0 where the plan asks for none."""
        return self.rounds.count + 1 if self.privacy.benefit_epsilon else 0

    def evaluations_until(self, round: int) -> int:
        """How many evaluations the rounds up to this one have, itself included.

        Each asks every site that takes part, also those that its round did not ask to train: so
        many may have been charged at any site, whichever rounds it trained in.
        """
        return sum(number <= round for number in self.evaluation_rounds)

    def canonical(self) -> str:
        """The plan as JSON with sorted keys and no spaces; ``inf`` is written "inf"."""
        return self._canonical

    @cached_property
    def _canonical(self) -> str:
        return json.dumps(
            _json_safe(self.model_dump()), sort_keys=True, separators=(",", ":"), allow_nan=False
        )

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of :meth:`canonical`, 64 hex digits."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """As of pydantic, without what was worked out for the original."""
        made = super().model_copy(update=update, deep=deep)
        for name in ("_canonical", "fingerprint"):
            made.__dict__.pop(name, None)
        return made

    def replace(self, **sections: dict[str, Any]) -> RunPlan:
        """A copy with some keys of some sections changed, validated anew.

        Example: ``plan.replace(task={"labels": ["a", "b"]})``.
        """
        content = self.model_dump()
        for name, values in sections.items():
            content[name] |= values
        return RunPlan.model_validate(content)


def _json_safe(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _json_safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_safe(item) for item in value]
    if isinstance(value, float) and math.isinf(value):
        return "inf"
    return value
