"""Residual weights beside LoRA factors: the adapted weight is W + s·(R + B·A).

Methods "fedex" and "flora" alone have them. In a model, s·R is added to a copy of W that the
model has for itself: the backbone, which many models share, is never written. In a saved adapter,
R is kept as further columns of B and rows of A, so that plain peft adds it without knowing of it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lorica.common.adapter.state import State
from lorica.common.plan.subject import AdapterPlan
from lorica.common.plan.tensors import factor_pairs, residual_name

_NEGLIGIBLE = 1e-7  # of the largest singular value, the precision of float32


class ResidualWeights:
    """The residuals of a peft model's LoRA modules and the weights they are added to."""

    def __init__(self, peft_model: Any, names: list[str]) -> None:
        """Give every LoRA module among the state's ``names`` a weight of its own; R is 0."""
        self.parameters: dict[str, nn.Parameter] = {}
        """R by name; write to them, then call :meth:`fold`."""
        self._modules: list[tuple[nn.Parameter, torch.Tensor, torch.Tensor, float]] = []
        for path in factor_pairs(names):
            layer = peft_model.get_submodule(path)
            shared = layer.base_layer.weight.detach()
            own = nn.Parameter(shared.clone(), requires_grad=False)
            layer.base_layer.weight = own
            turned = bool(layer.fan_in_fan_out)  # GPT-2's Conv1D keeps W as (in, out)
            shape = shared.T.shape if turned else shared.shape
            residual = nn.Parameter(torch.zeros(shape), requires_grad=False)
            self.parameters[residual_name(path)] = residual
            (scale,) = layer.scaling.values()
            added = residual.T if turned else residual
            self._modules.append((own, shared, added, float(scale)))

    @torch.no_grad()
    def fold(self) -> None:
        """Add the residuals, as they are now, to the backbone's weights."""
        for own, shared, added, scale in self._modules:
            own.copy_(shared + scale * added)

    @torch.no_grad()
    def clear(self) -> None:
        """The backbone's weights as they came."""
        for residual in self.parameters.values():
            residual.zero_()
        self.fold()

    def any(self) -> bool:
        """Whether any residual is not 0."""
        return any(bool(residual.any()) for residual in self.parameters.values())


def widened(lora: State, plan: AdapterPlan) -> tuple[State, AdapterPlan]:
    """The same adapted weights without residuals: LoRA factors of a higher rank.

    With the singular value decomposition R = U Σ Vᵀ, at the number q of singular values that
    float32 can tell from 0 (the largest of all modules): A' = [A; Vᵀ], B' = [B, U Σ], of rank
    r + q <= r + min(in, out), and alpha' = alpha·(r + q)/r, which keeps the scaling.

    Args:
        lora: factors and residuals by name.
        plan: their rank and alpha.
    """
    pairs = factor_pairs(lora)
    found = {path: torch.linalg.svd(lora[residual_name(path)].double()) for path in pairs}
    extra = max(int((s > _NEGLIGIBLE * s.max()).sum()) for _, s, _ in found.values())
    wide: State = {}
    for path, (name_a, name_b) in pairs.items():
        u, s, v_t = found[path]
        held = min(extra, len(s))
        more_a = torch.zeros(extra, lora[name_a].shape[1])
        more_b = torch.zeros(lora[name_b].shape[0], extra)
        more_a[:held], more_b[:, :held] = v_t[:held].float(), (u[:, :held] * s[:held]).float()
        wide[name_a] = torch.cat([lora[name_a], more_a])
        wide[name_b] = torch.cat([lora[name_b], more_b], dim=1)
    rank = plan.rank + extra
    return wide, plan.model_copy(update={"rank": rank, "alpha": plan.alpha * rank / plan.rank})


def narrowed(wide: State, plan: AdapterPlan) -> State:
    """The inverse of :func:`widened`: A and B to the bit, residuals to float32 rounding.

    Args:
        wide: factors of a higher rank.
        plan: the rank to go back to.
    """
    state: State = {}
    for path, (name_a, name_b) in factor_pairs(wide).items():
        a, b = wide[name_a], wide[name_b]
        state[name_a] = a[: plan.rank].contiguous()
        state[name_b] = b[:, : plan.rank].contiguous()
        residual = b[:, plan.rank :].double() @ a[plan.rank :].double()
        state[residual_name(path)] = residual.float()
    return state
