"""What a global adapter may be: honest ones pass, crafted ones are refused and cost nothing."""

from __future__ import annotations

import pytest
import torch

from lorica.client.admission.adapter_bounds import check_adapter
from lorica.client.config.site import Policy
from lorica.common.errors import Code, LoricaError

PATH = "base_model.model.layer.0.query"
A, B = f"{PATH}.lora_A.weight", f"{PATH}.lora_B.weight"


def honest() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        A: torch.linalg.qr(torch.randn(32, 4, generator=generator))[0].T.contiguous(),
        B: 0.1 * torch.randn(16, 4, generator=generator),
        "head.weight": 16.0 * torch.eye(5, 32),
        "head.bias": torch.zeros(5),
        "head.center": torch.full((32,), 32**-0.5),
    }


def test_an_honest_adapter_passes() -> None:
    check_adapter(honest(), Policy())
    check_adapter({"head.weight": torch.zeros(3, 4)}, Policy())


@pytest.mark.parametrize(
    ("name", "value", "key"),
    [
        (A, 1e9, "adapter_entry"),
        (B, 101.0, "adapter_entry"),
        (B, float("nan"), "adapter_entry"),
        ("head.center", 11.0, "adapter_center"),
        ("head.weight", 1e9, "adapter_head"),
        ("head.bias", float("inf"), "adapter_head"),
    ],
)
def test_a_number_beyond_its_bound_is_refused(name: str, value: float, key: str) -> None:
    state = honest()
    state[name].view(-1)[0] = value
    with pytest.raises(LoricaError, match=key) as caught:
        check_adapter(state, Policy())
    assert caught.value.code is Code.ADAPTER_REFUSED


def test_the_norm_of_the_product_is_that_of_the_matrices_multiplied() -> None:
    """Just within the bound and just beyond it, by numpy's product."""
    state = honest()
    norm = float((state[B].double() @ state[A].double()).norm())
    check_adapter(state, Policy(adapter_product=norm * 1.0001))
    with pytest.raises(LoricaError, match=r"B·A of .*query"):
        check_adapter(state, Policy(adapter_product=norm * 0.9999))


def test_factors_that_are_small_may_not_have_a_large_product() -> None:
    state = honest()
    state[A].fill_(90.0)
    state[B].fill_(90.0)
    with pytest.raises(LoricaError, match="adapter_product"):
        check_adapter(state, Policy())
