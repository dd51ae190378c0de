"""The parts of an adapter that each method trains."""

from __future__ import annotations

from typing import get_args

import pytest

from lorica.common.methods import TRAINED_PARTS, Part, factor_pairs, is_trained, part_of
from lorica.common.plan import AggregationPlan

A, B = "base.layer.1.query.lora_A.weight", "base.layer.1.query.lora_B.weight"


def test_every_method_of_a_plan_says_what_it_trains() -> None:
    methods = get_args(AggregationPlan.model_fields["method"].annotation)
    assert set(methods) == set(TRAINED_PARTS)
    for method in methods:
        assert is_trained(method, "head.weight") and is_trained(method, B)
    assert [m for m in sorted(methods) if is_trained(m, A)] == ["fedavg"]


def test_names_belong_to_one_part() -> None:
    parts = {A: Part.A, B: Part.B, "head.weight": Part.HEAD, "head.bias": Part.HEAD}
    assert {name: part_of(name) for name in parts} == parts


@pytest.mark.parametrize(
    "name", ["", "head", "head.scale", "x.head.weight", "lora_A.weight", f"{A}.more", "embeddings"]
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
