"""A trial of gradients per record, before anything is charged: made-up records, right or refused.

DP-SGD clips what it takes for one record's gradient. Whether a backbone's layers let it be told is
not a matter of lists of known families: three made-up records are differentiated together by the
rules of :mod:`lorica.client.mechanism.per_sample`, and each alone by plain automatic
differentiation, and both must agree in every parameter.

Formal guarantee:
    None of its own: it reads no private record. It refuses a backbone for which the sensitivity
    that the guarantee of :mod:`lorica.client.mechanism.dp_sgd` rests on would not hold.
"""

from __future__ import annotations

import torch
from torch import nn

from lorica.client.mechanism.per_sample import enable_per_sample_gradients
from lorica.common.backbone.loading import Backbone, made_up_inputs
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.plan.methods import Part, is_trained, part_of
from lorica.common.tasks import task_of
from lorica.common.tasks.model import AdaptedModel

TOLERANCE = 1e-3
"""Largest difference, relative to a parameter's largest gradient, that counts as rounding."""

_TRIED: set[tuple[str, str]] = set()
"""What this process has tried."""


def require_right_gradients(plan: RunPlan, backbone: Backbone) -> None:
    """Return if gradients per record of the plan's adapter are right on this backbone.

    Made once per process, backbone and adapter.

    Raises:
        LoricaError: LOR-404 they are not, naming a parameter; LOR-204, LOR-404 as of the task's
            model.
    """
    key = backbone.identity, f"{plan.filled_adapter.model_dump_json()} {plan.aggregation.method}"
    if plan.adapter.kind == "head" or key in _TRIED:
        return
    inputs = tuple(made_up_inputs(backbone).values())
    together, names = _trial_model(plan, backbone)
    enable_per_sample_gradients(together, names.values())
    weights = _loss(together, inputs, None)
    alone, reference = _trial_model(plan, backbone)
    for parameter in alone.parameters():
        parameter.requires_grad_(False)
    for parameter in reference.values():
        parameter.requires_grad_(True)
    for row in range(len(inputs[0])):
        for parameter in reference.values():
            parameter.grad = None
        _loss(alone, tuple(given[row : row + 1] for given in inputs), weights[row : row + 1])
        for name, parameter in names.items():
            _compare(name, parameter, reference[name].grad, row, len(inputs[0]))
    _TRIED.add(key)


def _trial_model(plan: RunPlan, backbone: Backbone) -> tuple[AdaptedModel, dict[str, nn.Parameter]]:
    """A model of its own with an adapter that is not idle, and what is trained below its head."""
    exact = plan.replace(training={"precision": "float32"})
    model = task_of(exact).model(backbone).eval()
    generator = torch.Generator().manual_seed(0)
    found = {}
    for name, parameter in model.adapter_parameters.items():
        if name.startswith("head."):
            continue
        with torch.no_grad():
            # Were B 0, A would have no gradient; peft draws A anew for every model.
            spread = 0.1 * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(parameter + spread if part_of(name) is Part.BIAS else spread)
        if is_trained(plan.aggregation.method, name):
            found[name] = parameter
    return model, found


def _loss(
    model: AdaptedModel, inputs: tuple[torch.Tensor, ...], weights: torch.Tensor | None
) -> torch.Tensor:
    """Differentiate a random weighing of what is pooled; the weights, made where none are given."""
    pooled = model.pooled_of_ids(*inputs)
    if weights is None:
        weights = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(1))
    if not pooled.requires_grad:
        raise LoricaError(
            Code.PRIVACY_UNSAFE_MODEL,
            "What is adapted plays no part in the features that the head reads.",
            mend="Adapt layers of the encoder itself: `lorica backbone check SOURCE` lists them.",
        )
    (pooled * weights).sum().backward()
    return weights


def _compare(
    name: str, parameter: nn.Parameter, wanted: torch.Tensor | None, row: int, records: int
) -> None:
    found = getattr(parameter, "grad_sample", None)
    if found is None and wanted is None:
        return  # nothing of it reaches what is pooled
    right = found is not None and wanted is not None and len(found) == records
    if right:
        assert found is not None and wanted is not None
        scale = max(float(wanted.abs().max()), float(found.abs().max()), 1e-6)
        right = bool((found[row] - wanted).abs().max() <= TOLERANCE * scale)
    if not right:
        raise LoricaError(
            Code.PRIVACY_UNSAFE_MODEL,
            f"The gradient of {name} cannot be told record by record in this backbone: what a "
            "record gives in a batch is not what it gives alone.",
            mend="Name in adapter.target_modules what can be adapted (`lorica backbone check "
            'SOURCE` lists it), or set adapter.kind to "head".',
        )
