"""Per-record gradients of layers other than linear ones: convolutions, norms, embeddings.

A watched layer runs as it is. What it read is kept, and when the backward pass brings the
gradient of what it gave, both make ``grad_sample`` (n, …) of its parameters: by Opacus' rule for
layers of exactly the classes that Opacus knows, else by differentiating the layer on every record
alone (``torch.func``), which is right for any layer that reads one tensor.

The plain gradient, summed over records, is computed, too, and thrown away.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from lorica.common.errors import Code, LoricaError

_BUSY = "_lorica_differentiated"


def has_rule(module: nn.Module) -> bool:
    """Whether :func:`watch` can give the layer's own parameters gradients per record."""
    leaf = next(module.children(), None) is None and not isinstance(module, nn.RNNBase)
    return leaf or type(module) in _rules()


def watch(module: nn.Module) -> None:
    """Let the layer's trainable parameters get ``grad_sample`` in every backward pass."""
    if _watched not in module._forward_hooks.values():
        module.register_forward_hook(_watched)


def store(parameter: Any, per_record: torch.Tensor) -> None:
    """Leave a parameter's gradients per record in ``grad_sample``.

    Raises:
        LoricaError: LOR-404 when there are some already.
    """
    if getattr(parameter, "grad_sample", None) is not None:
        raise LoricaError(
            Code.PRIVACY_UNSAFE_MODEL,
            "A trainable layer ran twice in one forward pass, or gradients were not cleared: "
            "one record would count as two.",
        )
    parameter.grad_sample = per_record


def _watched(module: nn.Module, given: tuple[Any, ...], output: Any) -> None:
    if getattr(module, _BUSY, False) or not torch.is_grad_enabled():
        return
    if not any(p.requires_grad for p in module.parameters(recurse=False)):
        return
    if not isinstance(output, torch.Tensor) or len(given) != 1 or given[0].dim() < 2:
        raise LoricaError(
            Code.PRIVACY_UNSAFE_MODEL,
            f"A layer to be trained ({type(module).__name__}) reads or gives something else than "
            "one tensor with the record first.",
        )
    output.register_hook(functools.partial(_differentiate, module, given[0].detach()))


def _differentiate(module: nn.Module, x: torch.Tensor, grad: torch.Tensor) -> None:
    if len(grad) != len(x):
        raise LoricaError(
            Code.PRIVACY_UNSAFE_MODEL,
            f"A layer to be trained ({type(module).__name__}) does not keep the record first.",
        )
    # Opacus' rule for convolutions reads memory by strides, and misreads permuted tensors.
    x, grad = x.contiguous(), grad.contiguous()
    own = next(module.parameters(recurse=False)).dtype  # not bfloat16, whatever came and went
    grad = grad.to(own)
    if x.is_floating_point():
        x = x.to(own)
    rule = _rules().get(type(module))
    with torch.no_grad():
        found = rule(module, [x], grad) if rule else None
    if found is None:
        found = _by_functions(module, x, grad)
    for parameter, per_record in found.items():
        if parameter.requires_grad:
            store(parameter, per_record.detach())


def _rules() -> dict[type[nn.Module], Callable[..., Any]]:
    """Opacus' rule of every class of layer that it knows; not imported before one is asked for."""
    from opacus import GradSampleModule

    rules: dict[type[nn.Module], Callable[..., Any]] = GradSampleModule.GRAD_SAMPLERS
    return rules


def _by_functions(
    module: nn.Module, x: torch.Tensor, grad: torch.Tensor
) -> dict[nn.Parameter, torch.Tensor]:
    """Every record's vector-Jacobian product, of the layer applied to it alone."""
    parameters = dict(module.named_parameters(recurse=False))
    values = {name: parameter.detach() for name, parameter in parameters.items()}

    def product(own: dict[str, torch.Tensor], one: torch.Tensor, back: torch.Tensor) -> Any:
        output = torch.func.functional_call(module, own, (one[None],))
        return (output[0] * back).sum()

    setattr(module, _BUSY, True)
    try:
        with torch.enable_grad():
            found = torch.func.vmap(torch.func.grad(product), in_dims=(None, 0, 0))(values, x, grad)
    finally:
        delattr(module, _BUSY)
    return {parameters[name]: per_record for name, per_record in found.items()}
