"""Per-record gradients, written during the one backward pass.

A trainable ``nn.Linear`` is turned into a :class:`PerSampleLinear` by changing its class, so
parameters, names and ``state_dict`` stay as they are. Its backward pass writes
``weight.grad_sample`` (n, out, in) and ``bias.grad_sample`` (n, out), the layout of Opacus, and
computes no plain weight gradient. Other layers are watched
(:mod:`lorica.client.mechanism.per_sample_layers`). The first axis of a layer's input is the record.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from lorica.client.mechanism.per_sample_layers import has_rule, store, watch
from lorica.common.backbone.batch_norm import couples_records
from lorica.common.errors import Code, LoricaError


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
            rows, columns = (_by_record(t, weight.dtype) for t in (grad, x))
            store(weight, torch.bmm(rows.transpose(1, 2), columns))
        if bias is not None and bias.requires_grad:
            store(bias, _by_record(grad, bias.dtype).sum(1))
        if not ctx.needs_input_grad[0]:
            return None, None, None
        return (grad @ weight.to(grad.dtype)).to(x.dtype), None, None


def _by_record(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(n, …, K) as (n, T, K), in the parameter's number format: sums over tokens are made in it,
    whatever the forward pass computed in."""
    return values.reshape(len(values), -1, values.shape[-1]).to(dtype)


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
        LoricaError: LOR-404 for a trainable parameter in a layer without a rule, or in two layers;
            for a layer that couples the records of a batch (batch normalisation), trainable or
            not.
    """
    wanted = {id(parameter) for parameter in trainable}
    owners: dict[int, str] = {}
    for name, module in model.named_modules():
        if couples_records(module):
            raise LoricaError(
                Code.PRIVACY_UNSAFE_MODEL,
                f"Layer {name} ({type(module).__name__}) couples the records of a batch.",
                mend='Set adapter.batch_norm to "fixed" (the statistics of pre-training, which no '
                'record changes) or "group" (group normalisation), or use another backbone.',
            )
        for parameter in module.parameters(recurse=False):
            train = id(parameter) in wanted
            parameter.requires_grad_(train)
            if train and id(parameter) in owners:
                raise LoricaError(
                    Code.PRIVACY_UNSAFE_MODEL,
                    f"Layers {owners[id(parameter)]} and {name} share a parameter that is to be "
                    "trained: a record's gradient would be counted in two parts.",
                )
            if train:
                _enable(name, module)
                owners[id(parameter)] = name
    if owners.keys() != wanted:
        raise LoricaError(
            Code.PRIVACY_UNSAFE_MODEL, "A parameter to be trained is not part of the model."
        )


def _enable(name: str, module: nn.Module) -> None:
    if type(module) in (nn.Linear, PerSampleLinear):
        module.__class__ = PerSampleLinear
    elif has_rule(module):
        watch(module)
    else:
        raise LoricaError(
            Code.PRIVACY_UNSAFE_MODEL,
            f"Layer {name} ({type(module).__name__}) has no per-record gradient.",
            mend="Leave its parameters frozen: linear, convolution, normalisation and embedding "
            "layers can be trained.",
        )
