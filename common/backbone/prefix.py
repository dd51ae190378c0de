"""Split an encoder below its lowest adapted layer, so that the frozen part runs once.

``FrozenPrefix.hidden`` computes the token states that enter layer k (no gradients);
``FrozenPrefix.finish`` runs the layers from k on. Together they equal the whole encoder. That
holds by construction for models that feed embeddings through one list of layers; it is
*checked* on a probe when the split is made, and an encoder that fails the check is not split
(k = 0: nothing is cached and every step runs all layers).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lorica.common.adapter.lora import layer_list, structural_copy

_PROBE_TOLERANCE = 1e-4


class _Reached(Exception):  # noqa: N818 - control flow, not an error
    def __init__(self, hidden: torch.Tensor) -> None:
        self.hidden = hidden


class _Stop(nn.Module):
    """A layer that ends the forward pass and hands out what would enter it."""

    def forward(self, hidden: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        raise _Reached(hidden)


class _Given(nn.Module):
    """Embeddings that are given instead of computed."""

    def forward(self, *_: Any, inputs_embeds: torch.Tensor, **__: Any) -> torch.Tensor:
        return inputs_embeds


class _Nothing(nn.Module):
    """Embeddings that add nothing."""

    def forward(self, *_: Any, **__: Any) -> torch.Tensor:
        return torch.zeros(1)


class FrozenPrefix:
    """The two halves of an encoder, sharing all modules from layer ``depth`` on with it."""

    def __init__(self, encoder: Any, depth: int) -> None:
        """Split ``encoder`` (a transformers model, LoRA already attached) before layer
        ``depth``; ``depth`` equal to the number of layers leaves nothing above."""
        self.encoder = encoder
        self.depth = depth if depth and self._split(depth) else 0

    def hidden(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Token states that enter layer ``depth``, shape (n, T, H); needs ``depth`` > 0."""
        with torch.no_grad():
            try:
                self._lower(input_ids=input_ids, attention_mask=attention_mask)
            except _Reached as reached:
                return reached.hidden
        raise RuntimeError("the encoder never reached the layer it was split at")

    def finish(self, hidden: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Token states after the last layer, shape (n, T, H), from those of :meth:`hidden`."""
        output = self._upper(inputs_embeds=hidden, attention_mask=attention_mask)
        return output.last_hidden_state

    def _split(self, depth: int) -> bool:
        path = layer_list(self.encoder)
        if path is None:
            return False
        layers = self.encoder.get_submodule(path)
        assert isinstance(layers, nn.ModuleList)
        self._lower: Any = structural_copy(self.encoder)
        _replace(self._lower, path, nn.ModuleList([*layers[:depth], _Stop()]))
        self._upper: Any = structural_copy(self.encoder)
        _replace(self._upper, path, nn.ModuleList(layers[depth:]))
        if hasattr(self.encoder, "embeddings"):
            self._upper.embeddings = _Given()
        if hasattr(self.encoder, "wpe"):  # GPT-2 adds positions to what it is given
            self._upper.wpe = _Nothing()
        return self._agrees()

    def _agrees(self) -> bool:
        vocabulary = int(getattr(self.encoder.config, "vocab_size", 0))
        if not vocabulary:
            return False
        ids = (torch.arange(6).reshape(2, 3) + vocabulary // 2) % vocabulary
        mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
        with torch.no_grad():
            try:
                whole = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
                split = self.finish(self.hidden(ids, mask), mask)
            except (TypeError, AttributeError, RuntimeError, ValueError):
                return False
        return bool(((whole - split) * mask[..., None]).abs().max() <= _PROBE_TOLERANCE)


def _replace(model: Any, path: str, layers: nn.ModuleList) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, layers)
