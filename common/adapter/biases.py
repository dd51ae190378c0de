"""BitFit: the biases of an encoder's linear modules are what is trained, and nothing else of it.

The model has copies of its own of these biases; the backbone, which many models share, is never
written. In an adapter state they stand by the backbone's own names, with their values (not their
distance from the backbone's), so that ``model.load_state_dict(biases, strict=False)`` of plain
transformers takes them as they are.

Source: Ben Zaken, Goldberg, Ravfogel, "BitFit: Simple Parameter-efficient Fine-tuning for
Transformer-based Masked Language-models" (arXiv 2106.10199).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from lorica.common.adapter.lora import fit_of, layer_list
from lorica.common.errors import Code, LoricaError


class OwnBiases:
    """The biases that one model has for itself, and what they were in the backbone."""

    def __init__(self, encoder: Any, layers: Sequence[int]) -> None:
        """Give the linear modules with a bias in the layers a bias of their own (in place): all
        that can be adapted (:func:`lorica.common.adapter.lora.fit_of`).

        Args:
            encoder: a transformers model that shares its parameters with the backbone.
            layers: indices, from 0.

        Raises:
            LoricaError: LOR-204 when the encoder has no list of layers, or they no bias.
        """
        self.parameters: dict[str, nn.Parameter] = {}
        """Biases by their names in the encoder."""
        self._shared: dict[str, torch.Tensor] = {}
        path = layer_list(encoder)
        above = tuple(f"{path}.{index}" for index in layers) if path is not None else ()
        linear = {
            name: module
            for place in above
            for name, module in encoder.get_submodule(place).named_modules(prefix=place)
            if isinstance(module, nn.Linear) and module.bias is not None
        }
        for place in fit_of(encoder, linear):
            module, name = linear[place], f"{place}.bias"
            self._shared[name] = module.bias.detach()
            module.bias = nn.Parameter(module.bias.detach().clone(), requires_grad=False)
            self.parameters[name] = module.bias
        if not self.parameters:
            raise LoricaError(
                Code.BACKBONE_UNSUPPORTED,
                f'adapter.kind "bitfit" trains biases of linear modules; the chosen layers of '
                f"{type(encoder).__name__} have none.",
                mend='Set adapter.kind to "lora".',
            )

    @torch.no_grad()
    def clear(self) -> None:
        """The backbone's biases as they came."""
        for name, parameter in self.parameters.items():
            parameter.copy_(self._shared[name])

    def any(self) -> bool:
        """Whether any bias is another than the backbone's."""
        return any(not torch.equal(p, self._shared[name]) for name, p in self.parameters.items())
