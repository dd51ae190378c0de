"""Bounds of policy on what a global adapter may be: refused before anything is charged.

The second line behind exact arithmetic (:mod:`lorica.common.cache.batching`): an adapter that is
built to make features of rounding has to amplify by 10^6 or more, which training never does. The
bounds are far above what training makes, and tell nothing of the records.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from lorica.client.config.site import Policy
from lorica.common.errors import Code, LoricaError
from lorica.common.plan.tensors import factor_pairs


def check_adapter(state: Mapping[str, torch.Tensor], policy: Policy) -> None:
    """Return if a state that a coordinator sent is within the policy's bounds.

    Args:
        state: whole, or the head alone.
        policy: adapter_entry, adapter_product, adapter_center, adapter_head.

    Raises:
        LoricaError: LOR-412, with the first tensor that is not.
    """
    for what, value, key in _measures(state):
        bound = float(getattr(policy, key))
        if not value <= bound:  # so that NaN is refused, too
            raise LoricaError(
                Code.ADAPTER_REFUSED,
                f"{what} of the global adapter is {value:.3g}; policy.{key} allows {bound:g}.",
            )


def _measures(state: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, float, str]]:
    """What is measured, its value, and the policy's key of its bound."""
    for name, tensor in state.items():
        values = tensor.double()
        if name == "head.center":
            yield f"The norm of {name}", float(values.norm()), "adapter_center"
        elif name.startswith("head."):
            yield f"The norm of {name}", float(values.norm()), "adapter_head"
        else:
            largest = float(values.abs().max()) if values.numel() else 0.0
            yield f"The largest number in {name}", largest, "adapter_entry"
            if ".lora_" not in name:  # residuals, which are added to weights as they are
                yield f"The norm of {name}", float(values.norm()), "adapter_product"
    for path, (name_a, name_b) in factor_pairs(state).items():
        a, b = state[name_a].double(), state[name_b].double()
        if a.dim() == b.dim() == 2 and len(a) == b.shape[1]:
            # ‖BA‖² = tr((BᵀB)(AAᵀ)): of r × r matrices alone.
            square = ((b.T @ b) * (a @ a.T)).sum().clamp(min=0.0)
            yield f"The norm of B·A of {path}", float(square.sqrt()), "adapter_product"
