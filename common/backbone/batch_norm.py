"""Batch normalisation, which joins the records of a batch, and what may stand in its place.

In training a batch norm scales every record by the mean and variance over all records of the batch:
one record's gradient then depends on the others, and clipping it bounds nothing. Two layers may
stand in for it: the affine map that it is in use (*fixed*: the statistics of pre-training, which
are part of the public backbone and which no record changes), or a group norm (*group*), which
computes statistics over one record. The second changes what the backbone computes.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from lorica.common.errors import Code, LoricaError

BatchNorm = Literal["refuse", "fixed", "group"]
"""What is done about batch norms."""

_GROUPS = 32


class FixedNorm(nn.Module):
    """x · scale + shift by channel, from a batch norm's statistics, weight and bias."""

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, norm: nn.modules.batchnorm._BatchNorm) -> None:
        super().__init__()
        assert norm.running_mean is not None and norm.running_var is not None
        scale = (norm.running_var + norm.eps).rsqrt()
        shift = -norm.running_mean * scale
        if norm.affine:
            scale, shift = scale * norm.weight, shift * norm.weight + norm.bias
        self.register_buffer("scale", scale.detach().clone())
        self.register_buffer("shift", shift.detach().clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` is (n, channels, …)."""
        shape = (1, -1, *[1] * (x.dim() - 2))
        return x * self.scale.reshape(shape) + self.shift.reshape(shape)


def couples_records(module: nn.Module) -> bool:
    """Whether the layer is a batch norm: its output for a record can depend on other records."""
    batch = nn.modules.batchnorm._BatchNorm
    instance = nn.modules.instancenorm._InstanceNorm
    return isinstance(module, batch) or (
        isinstance(module, instance) and module.track_running_stats
    )


def replace_batch_norms(model: nn.Module, how: BatchNorm) -> int:
    """Put what ``how`` says in the place of every batch norm; the number of them.

    Args:
        model: changed in place; its tensors are not.
        how: as in adapter.batch_norm.

    Raises:
        LoricaError: LOR-404 when there is one and ``how`` is "refuse", or it has no statistics to
            be fixed at.
    """
    found = [(name, m) for name, m in model.named_modules() if couples_records(m)]
    for name, norm in found:
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, _instead(name, norm, how))
    return len(found)


def _instead(name: str, norm: nn.Module, how: BatchNorm) -> nn.Module:
    kind = type(norm).__name__
    if how == "refuse" or not isinstance(norm, nn.modules.batchnorm._BatchNorm):
        raise LoricaError(
            Code.PRIVACY_UNSAFE_MODEL,
            f"Layer {name} of the backbone ({kind}) couples the records of a batch.",
            mend='Set adapter.batch_norm to "fixed" (the statistics of pre-training, which no '
            'record changes) or "group" (group normalisation), or use another backbone.',
        )
    if how == "group":
        return group_norm(norm)
    if norm.running_mean is None:
        raise LoricaError(
            Code.PRIVACY_UNSAFE_MODEL,
            f"Layer {name} of the backbone ({kind}) keeps no statistics that it could be fixed at.",
            mend='Set adapter.batch_norm to "group", or use another backbone.',
        )
    return FixedNorm(norm)


def group_norm(norm: nn.modules.batchnorm._BatchNorm) -> nn.GroupNorm:
    """A group norm with the batch norm's weight and bias, in at most 32 groups."""
    groups = next(n for n in range(_GROUPS, 0, -1) if norm.num_features % n == 0)
    made = nn.GroupNorm(groups, norm.num_features, eps=norm.eps, affine=norm.affine)
    if norm.affine:
        with torch.no_grad():
            made.weight.copy_(norm.weight)
            made.bias.copy_(norm.bias)
    return made
