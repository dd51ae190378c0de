"""The arithmetic of a merge: what an adapter makes of its backbone's tensors.

Formal guarantee:
    The merged weights, W + s·(B·A + R) or the adapter's biases in the place of the backbone's, are
    a function of the public backbone and of the adapter, which has the (ε, δ) of its run at every
    site: post-processing, at no further cost. A run that starts from them adds its own (ε, δ) for
    the records that both runs use.

Of a run whose backbone was kept in fewer bits (backbone.quantize), W is what the codes stand for,
in all linear layers: the result computes what the run trained, in float32. It is not the original
model with the adapter added, whose weights the adapter never saw.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lorica.common.backbone.loading import Backbone, backbone_of
from lorica.common.backbone.quantised import QuantisedLinear
from lorica.common.plan.tensors import Part, factor_pairs, part_of, residual_name
from lorica.common.saved.folder import SavedAdapter

_PEFT_PREFIX = "base_model.model."


@dataclass(frozen=True)
class Folded:
    """A backbone's tensors with an adapter in them, by their names in the model."""

    backbone: Backbone
    """In float32, without the adapter."""
    own: dict[str, torch.Tensor]
    """All tensors of the model that the adapter was trained beside."""
    changed: dict[str, torch.Tensor]
    """Those that the adapter gives another value."""
    rounded: dict[str, torch.Tensor]
    """Those of ``own`` with rounded values, because the run's backbone had them."""


def fold(saved: SavedAdapter, backbone: Backbone) -> Folded:
    """Merge an adapter into the tensors of its backbone, which stays as it is."""
    backbone, rounded = _plain(saved, backbone)
    own = backbone.model.state_dict() | rounded
    return Folded(backbone, own, _changed(saved, backbone, own), rounded)


def _plain(saved: SavedAdapter, backbone: Backbone) -> tuple[Backbone, dict[str, torch.Tensor]]:
    """The backbone in float32, and what its rounded weights are, by their names in the model."""
    if backbone.quantize == "none":
        return backbone, {}
    source = {"source": str(backbone.folder), "sha256": "", "quantize": "none"}
    plain = backbone_of(saved.plan.replace(backbone=source))
    rounded = {}
    for name, module in backbone.model.named_modules():
        if isinstance(module, QuantisedLinear):
            weight = module.dequantised()
            # GPT-2's Conv1D keeps W as (in, out).
            linear = isinstance(plain.model.get_submodule(name), torch.nn.Linear)
            rounded[f"{name}.weight"] = weight if linear else weight.T.contiguous()
    return plain, rounded


@torch.no_grad()
def _changed(
    saved: SavedAdapter, backbone: Backbone, own: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The encoder's tensors that the adapter gives another value than ``own``, by their names in
    the model."""
    adapter = saved.plan.adapter
    found = {name: bias for name, bias in saved.state.items() if part_of(name) is Part.BIAS}
    for path, (name_a, name_b) in factor_pairs(saved.state).items():
        module = path.removeprefix(_PEFT_PREFIX)
        change = saved.state[name_b].double() @ saved.state[name_a].double()
        residual = saved.state.get(residual_name(path))
        if residual is not None:
            change = change + residual.double()
        if not isinstance(backbone.model.get_submodule(module), torch.nn.Linear):
            change = change.T  # GPT-2's Conv1D keeps W as (in, out)
        weight = own[f"{module}.weight"].double()
        found[f"{module}.weight"] = (weight + adapter.alpha / adapter.rank * change).float()
    return {name: tensor for name, tensor in found.items() if not torch.equal(tensor, own[name])}
