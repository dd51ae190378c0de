"""Gradient checkpointing: layers are computed twice, so that their activations need not be kept.

What a layer computes between its input and its output is forgotten in the forward pass and
computed anew, layer by layer, in the backward pass. Memory for activations then grows with the
layers' inputs alone; time grows by about a forward pass through the adapted layers. Gradients per
record are the same numbers: the second computation builds no second graph, so every trained layer
still sees one backward pass and its guard against running twice holds.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lorica.common.adapter.lora import layer_list
from lorica.common.backbone.precision import first_and_again
from lorica.common.errors import Code, LoricaError


def checkpoint_layers(encoder: Any, depth: int) -> None:
    """Make the encoder's layers from ``depth`` on forget their activations (in place).

    Args:
        encoder: a transformers model with its adapter, not shared with others, and already split
            (:class:`~lorica.common.backbone.prefix.FrozenPrefix`), whose halves have these layers.
        depth: index of the lowest layer that is differentiated.

    Raises:
        LoricaError: LOR-204 when the encoder has no list of layers.
    """
    path = layer_list(encoder)
    if path is None:
        raise LoricaError(
            Code.BACKBONE_UNSUPPORTED,
            f"training.gradient_checkpointing: {type(encoder).__name__} has no list of "
            f"{encoder.config.num_hidden_layers} layers of its own to compute anew.",
            mend='Set training.gradient_checkpointing to "none".',
        )
    layers = encoder.get_submodule(path)
    assert isinstance(layers, nn.ModuleList)
    for layer in layers[depth:]:
        layer.forward = functools.partial(_recomputed, layer.forward)


def _recomputed(forward: Any, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    # Dropout is 0 in every backbone: there is no random state to keep.
    return checkpoint(
        forward,
        *args,
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=first_and_again,
        **kwargs,
    )
