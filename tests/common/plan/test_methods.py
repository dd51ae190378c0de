"""The parts of an adapter that each method trains."""

from __future__ import annotations

from typing import get_args

import pytest

from lorica.common.plan.course import AggregationPlan
from lorica.common.plan.methods import METHODS, alternates, is_trained, step_turns
from lorica.common.plan.tensors import Part, factor_pairs, part_of, residual_name

A, B = "base.layer.1.query.lora_A.weight", "base.layer.1.query.lora_B.weight"


def test_every_method_of_a_plan_says_what_it_trains() -> None:
    methods = get_args(AggregationPlan.model_fields["method"].annotation)
    assert set(methods) == set(METHODS)
    for method in methods:
        assert is_trained(method, "head.weight") and is_trained(method, B)
    assert [m for m in sorted(methods) if not is_trained(m, A)] == ["fedsvd", "ffa"]


def test_rolora_trains_b_in_odd_rounds_and_a_in_even_ones() -> None:
    """B first: A has no gradient while B is 0."""
    for turn in range(1, 8):
        assert is_trained("rolora", B, turn) == bool(turn % 2)
        assert is_trained("rolora", A, turn) == (not turn % 2)
        assert is_trained("rolora", "head.bias", turn)


def test_la_lora_alternates_local_steps_within_a_round() -> None:
    names = [A, B, "head.weight"]
    assert step_turns("la-lora", names) == [[B, "head.weight"], [A, "head.weight"]]
    assert all(is_trained("la-lora", name, 1) for name in names)
    assert step_turns("fedavg", names) == [names]


def test_the_methods_whose_trained_values_change_are_known() -> None:
    methods = get_args(AggregationPlan.model_fields["method"].annotation)
    assert [m for m in sorted(methods) if alternates(m)] == ["la-lora", "rolora"]


def test_names_belong_to_one_part() -> None:
    parts = {A: Part.A, B: Part.B, "head.weight": Part.HEAD, "head.bias": Part.HEAD}
    parts |= {residual_name("base.layer.1.query"): Part.RESIDUAL, "head.center": Part.CENTER}
    assert {name: part_of(name) for name in parts} == parts


@pytest.mark.parametrize(
    "name", ["", "head", "headscale", "x.head.weight", "lora_A.weight", f"{A}.more", "embeddings"]
)
def test_a_name_of_no_adapter_is_refused(name: str) -> None:
    with pytest.raises(KeyError):
        part_of(name)


def test_factors_are_paired_by_module_in_sorted_order() -> None:
    names = ["head.bias", "b.lora_B.weight", "b.lora_A.weight", "a.lora_A.weight"]
    assert list(factor_pairs(names).items()) == [
        ("a", ("a.lora_A.weight", "a.lora_B.weight")),
        ("b", ("b.lora_A.weight", "b.lora_B.weight")),
    ]
