"""RunPlan: validation, fingerprint, and what is derived from it."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any, Literal, get_args, get_origin

import numpy as np
import pytest
from pydantic import ValidationError

from lorica.common.config import Section
from lorica.common.plan import RunPlan
from lorica.common.plan.io import plan_fields
from lorica.common.plan.stages import falling, total_steps

FIELDS = sorted(plan_fields())


def another_value(dotted: str) -> Any:
    """A valid value of the field that is not its default; None where there is but one."""
    section, _, key = dotted.partition(".")
    default = getattr(getattr(RunPlan(), section), key)
    annotation = plan_fields()[dotted].annotation
    if get_origin(annotation) is Literal:
        others = [choice for choice in get_args(annotation) if choice != default]
        return others[0] if others else None
    if dotted == "backbone.sha256":
        return "0" * 64
    if dotted == "privacy.evaluation_metrics":
        return ["per_label"]
    if dotted == "training.augment":
        return ["flip"]
    if dotted in ("table.centers", "table.scales", "data.window"):
        return [0.5, 1.5]
    if dotted == "table.categories":
        return ["sex = f | m"]
    if dotted == "simulation.ranks":
        return [4]
    if dotted == "privacy.honest_sites":
        return 2
    if dotted == "adapter.layers":
        return [0, 1]
    if key == "descriptions":
        return ["label = what it means"]
    if isinstance(default, list):
        return [0, 1] if default and isinstance(default[0], int) else ["another", "one more"]
    if isinstance(default, str):
        return f"another {key}"
    return default + 1 if isinstance(default, int) else default / 2 or 0.5


WITH_TABLE = {
    "task": {"kind": "text-table-classification"},
    "table": {"columns": ["column", "two"], "centers": [0.0, 0.0], "scales": [1.0, 1.0]},
}

SEALED = {"rounds": {"minimum_sites": 3}, "simulation": {"sites": 3}}

NEEDS: dict[str, dict[str, dict[str, Any]]] = {
    "aggregation.robust": {
        "training": {"mode": "local"},
        "rounds": {"warm_start": 0, "minimum_sites": 5},
    },
    "simulation.ranks": {
        "training": {"mode": "local"},
        "aggregation": {"method": "flexlora"},
        "rounds": {"warm_start": 0},
        "adapter": {"rank": 8},
    },
    "table.columns": WITH_TABLE,
    "table.centers": WITH_TABLE,
    "table.scales": WITH_TABLE,
    "table.categories": WITH_TABLE,
    "training.augmentations": {"task": {"kind": "image-classification"}},
    "server.local_optimizer": {"training": {"mode": "local"}},
    "privacy.trust": SEALED,
    "privacy.honest_sites": {**SEALED, "privacy": {"trust": "sum"}},
}
"""What other fields must be for a field's other values to be allowed."""

VARIABLE = [dotted for dotted in FIELDS if another_value(dotted) is not None]


def test_nearly_every_field_has_another_value_to_test_with() -> None:
    fixed = set(FIELDS) - set(VARIABLE)
    assert fixed <= {"task.kind"}


@pytest.mark.parametrize("dotted", VARIABLE)
def test_the_fingerprint_changes_with_every_field(dotted: str) -> None:
    section, _, key = dotted.partition(".")
    plan = RunPlan().replace(**NEEDS.get(dotted, {}))
    changed = plan.replace(**{section: {key: another_value(dotted)}})
    assert changed != plan
    assert changed.fingerprint != plan.fingerprint


def test_the_fingerprint_is_the_sha256_of_sorted_compact_json() -> None:
    plan = RunPlan().replace(task={"labels": ["naïve", "日本"]}, privacy={"epsilon": math.inf})
    content = plan.model_dump()
    content["privacy"]["epsilon"] = "inf"
    reference = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    assert plan.canonical().encode() == reference
    assert plan.fingerprint == hashlib.sha256(reference).hexdigest()


def test_whole_numbers_and_decimals_of_one_value_have_one_fingerprint() -> None:
    whole = RunPlan().replace(privacy={"epsilon": 3}, adapter={"rank": 4.0})
    decimal = RunPlan().replace(privacy={"epsilon": 3.0}, adapter={"rank": 4})
    assert whole == decimal
    assert whole.fingerprint == decimal.fingerprint


@pytest.mark.parametrize("name", sorted(RunPlan.model_fields))
def test_every_section_and_field_is_documented(name: str) -> None:
    section = RunPlan.model_fields[name].annotation
    assert isinstance(section, type) and issubclass(section, Section)
    assert RunPlan.model_fields[name].description
    assert section.__doc__
    for key, field in section.model_fields.items():
        assert field.description and field.description.rstrip().endswith("."), f"{name}.{key}"


def test_a_plan_cannot_be_changed() -> None:
    plan = RunPlan()
    with pytest.raises(ValidationError):
        plan.privacy.epsilon = 100.0  # type: ignore[misc]
    with pytest.raises(ValidationError):
        plan.privacy = RunPlan().privacy  # type: ignore[misc]


def test_one_plans_lists_are_not_anothers() -> None:
    RunPlan().task.labels.append("stray")
    RunPlan().adapter.layers.append(7)
    assert RunPlan().task.labels == []
    assert 7 not in RunPlan().adapter.layers


def test_replace_leaves_the_original_and_validates_the_copy() -> None:
    plan = RunPlan()
    before = plan.fingerprint
    assert plan.replace(task={"labels": ["a", "b"]}).task.labels == ["a", "b"]
    assert plan.fingerprint == before
    with pytest.raises(ValidationError, match="epsilon"):
        plan.replace(privacy={"epsilon": -1})
    with pytest.raises(ValidationError, match="epsilom"):
        plan.replace(privacy={"epsilom": 1})


def local(**sections: dict[str, Any]) -> RunPlan:
    """A plan of local steps alone."""
    plan = RunPlan().replace(training={"mode": "local"}, rounds={"warm_start": 0})
    return plan.replace(**sections)


@pytest.mark.parametrize("count", [2, 3, 15, 1000])
@pytest.mark.parametrize("final", [1e-3, 0.2, 1.0])
def test_learning_rates_fall_linearly_from_one_to_the_final_rate(count: int, final: float) -> None:
    plan = local(rounds={"count": count})
    factors = [falling(plan, number, final) for number in range(1, count + 1)]
    np.testing.assert_allclose(factors, np.linspace(1.0, final, count), rtol=1e-12, atol=1e-15)


def test_a_single_round_has_the_full_learning_rate() -> None:
    assert falling(local(rounds={"count": 1}), 1, 0.2) == 1.0


def test_total_steps_are_rounds_times_local_steps() -> None:
    plan = local(rounds={"count": 7}, training={"local_steps": 3})
    assert total_steps(plan) == 21


@pytest.mark.parametrize(("epsilon", "private"), [(1e-3, True), (1e9, True), (math.inf, False)])
def test_only_a_finite_epsilon_is_private(epsilon: float, private: bool) -> None:
    assert RunPlan().replace(privacy={"epsilon": epsilon}).privacy.private is private


@pytest.mark.parametrize(
    ("unit", "column", "expected"),
    [
        ("record", "", ""),
        ("record", "patient_id", "patient_id"),
        ("patient_id", "", "patient_id"),
        ("patient_id", "patient_id", "patient_id"),
    ],
)
def test_the_unit_column_is_the_datas_or_that_of_privacy(
    unit: str, column: str, expected: str
) -> None:
    plan = RunPlan().replace(privacy={"unit": unit}, data={"unit": column})
    assert plan.unit_column == expected


@pytest.mark.parametrize(
    ("count", "every", "expected"),
    [(5, 0, []), (5, 1, [1, 2, 3, 4, 5]), (5, 2, [2, 4, 5]), (4, 2, [2, 4]), (3, 9, [3])],
)
def test_sites_evaluate_every_so_many_rounds_and_after_the_last(
    count: int, every: int, expected: list[int]
) -> None:
    plan = local(rounds={"count": count, "evaluate_every": every})
    assert plan.evaluation_rounds == expected


LOCAL: dict[str, dict[str, Any]] = {"training": {"mode": "local"}, "rounds": {"warm_start": 0}}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"aggregation": {"method": "la-lora"}, "training": {"mode": "gradient"}}, "la-lora"),
        ({"aggregation": {"method": "fedex"}, "training": {"mode": "gradient"}}, "fedex"),
        ({"aggregation": {"robust": "median"}, "training": {"mode": "gradient"}}, "robust"),
        ({"server": {"local_optimizer": "fedadam"}, "training": {"mode": "gradient"}}, "fedadam"),
        (
            {"aggregation": {"method": "fedex"}, "server": {"local_optimizer": "fedavgm"}},
            "averages products",
        ),
        (
            {"aggregation": {"method": "flexlora", "robust": "median"}},
            "averages products",
        ),
        ({"aggregation": {"robust": "norm-bound"}, "rounds": {"warm_start": 0.4}}, "warm start"),
        ({"aggregation": {"robust": "krum", "faulty_sites": 2}}, "at least 7 sites"),
        ({"aggregation": {"robust": "median"}}, "at least 3 sites"),
        ({"aggregation": {"robust": "trimmed-mean", "trim_share": 0.1}}, "at least 10 sites"),
    ],
)
def test_methods_and_rules_that_do_not_go_together_are_refused(
    changes: dict[str, dict[str, Any]], words: str
) -> None:
    sections = {
        section: LOCAL.get(section, {}) | changes.get(section, {}) for section in LOCAL | changes
    }
    with pytest.raises(ValidationError, match=words):
        RunPlan().replace(**sections)


@pytest.mark.parametrize("rule", ["median", "trimmed-mean", "krum", "norm-bound"])
def test_a_robust_plan_for_one_site_has_no_robust_rule(rule: str) -> None:
    plan = RunPlan().replace(
        training={"mode": "local"},
        rounds={"warm_start": 0, "minimum_sites": 5},
        aggregation={"robust": rule},
    )
    alone = plan.for_one_site()
    assert (alone.aggregation.robust, alone.rounds.minimum_sites) == ("none", 1)


def test_a_changed_copy_has_a_fingerprint_of_its_own() -> None:
    """Fingerprints are worked out once a plan, and no copy inherits one."""
    plan = RunPlan()
    before = plan.fingerprint
    other = plan.replace(task={"labels": ["a", "b"]})
    assert plan.model_copy(update={"task": other.task}).fingerprint == other.fingerprint != before
    assert plan.model_copy(deep=True).fingerprint == before == RunPlan().fingerprint


def test_modules_that_a_plan_leaves_open_follow_from_task_and_privacy() -> None:
    entities = {"kind": "token-classification", "labels": ["drug"]}
    both = ["attention", "feed-forward"]
    for task, epsilon, expected in (
        ({}, 8.0, ["attention"]),
        ({}, math.inf, ["attention"]),
        (entities, 8.0, ["attention"]),
        (entities, math.inf, both),
    ):
        plan = RunPlan().replace(task=task, privacy={"epsilon": epsilon})
        assert plan.filled_adapter == plan.adapter.model_copy(update={"target_modules": expected})
        named = plan.replace(adapter={"target_modules": ["query"]})
        assert named.filled_adapter is named.adapter
