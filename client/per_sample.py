"""Per-record gradients of linear layers, written during the one backward pass.

A trainable ``nn.Linear`` is turned into a :class:`PerSampleLinear` by changing its class, so
parameters, names and ``state_dict`` stay as they are. Its backward pass writes
``weight.grad_sample`` (n, out, in) and ``bias.grad_sample`` (n, out), the layout of Opacus, and
computes no plain weight gradient. The first axis of the input is the record.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from lorica.common.errors import Code, LoricaError

_COUPLING = (nn.modules.batchnorm._NormBase,)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.save_for_backward(x)
        ctx.weight, ctx.bias = weight, bias
        return nn.functional.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, None, None]:
        (x,) = ctx.saved_tensors
        weight, bias = ctx.weight, ctx.bias
        if weight.requires_grad:
            rows, columns = (t.reshape(len(t), -1, t.shape[-1]) for t in (grad, x))
            _store(weight, torch.bmm(rows.transpose(1, 2), columns))
        if bias is not None and bias.requires_grad:
            _store(bias, grad.reshape(len(grad), -1, grad.shape[-1]).sum(1))
        return (grad @ weight if ctx.needs_input_grad[0] else None), None, None


class PerSampleLinear(nn.Linear):
    """A linear layer whose backward pass leaves per-record gradients in ``grad_sample``."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """The linear map; ``input`` is (n, …, in) with the record first."""
        if not torch.is_grad_enabled():
            return nn.functional.linear(input, self.weight, self.bias)
        return _Linear.apply(input, self.weight, self.bias)


def enable_per_sample_gradients(model: nn.Module, trainable: Iterable[nn.Parameter]) -> None:
    """Turn every layer that holds a trainable parameter into one with per-record gradients.

    Parameters outside ``trainable`` get ``requires_grad=False``.

    Raises:
        LoricaError: LOR-404 for a trainable parameter outside linear layers, or a layer that
            couples the records of a batch (batch normalisation), trainable or not.
    """
    wanted = {id(parameter) for parameter in trainable}
    seen: set[int] = set()
    for name, module in model.named_modules():
        if isinstance(module, _COUPLING):
            raise LoricaError(
                Code.PRIVACY_UNSAFE_MODEL,
                f"Layer {name} ({type(module).__name__}) couples the records of a batch.",
                mend="Use a model with layer or group normalisation.",
            )
        for parameter in module.parameters(recurse=False):
            train = id(parameter) in wanted
            parameter.requires_grad_(train)
            if train and type(module) not in (nn.Linear, PerSampleLinear):
                raise LoricaError(
                    Code.PRIVACY_UNSAFE_MODEL,
                    f"Layer {name} ({type(module).__name__}) has no per-record gradient.",
                )
            if train:
                module.__class__ = PerSampleLinear
                seen.add(id(parameter))
    if seen != wanted:
        raise LoricaError(
            Code.PRIVACY_UNSAFE_MODEL, "A parameter to be trained is not part of the model."
        )


def _store(parameter: Any, per_record: torch.Tensor) -> None:
    if getattr(parameter, "grad_sample", None) is not None:
        raise LoricaError(
            Code.PRIVACY_UNSAFE_MODEL,
            "A trainable layer ran twice in one forward pass, or gradients were not cleared: "
            "one record would count as two.",
        )
    parameter.grad_sample = per_record
