"""Split an encoder below its lowest adapted layer, so that the frozen part runs once.

``FrozenPrefix.hidden`` computes the token states that enter layer k (no gradients);
``FrozenPrefix.finish`` runs the layers from k on. Both are the encoder's own forward pass over its
own list of layers, of which none changes its place: transformers gives a layer its mask, window,
RoPE and kind of attention by the number that it has in that list. ``hidden`` ends the pass after
layer k - 1; ``finish`` puts its states where layer k - 1 gives its own, and the layers below do
nothing.

That the halves together equal the whole holds for encoders whose layers read the states of the
layer before and nothing else of it. It is *checked* on a probe, longer than every window that a
text within the length limit can pass. An encoder that fails is not split (k = 0: nothing is cached
and every step runs all layers).
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import torch
from torch import nn

from lorica.common.adapter.lora import layer_list, structural_copy

_TOLERANCE = 1e-6
"""Of the largest state: both ways run the same operations on the same numbers."""

_BEYOND = 16  # tokens by which the probe is longer than the longest window
_SHORT = 64  # tokens of the probe where no window is known

_FOUND: dict[tuple[str, int, int], bool] = {}
"""(what the backbone computes, depth, limit) -> whether it can be split, of this process."""


class _Reached(Exception):  # noqa: N818 - control flow, not an error
    def __init__(self, hidden: torch.Tensor) -> None:
        self.hidden = hidden


class FrozenPrefix:
    """The two halves of an encoder, sharing all modules from layer ``depth`` on with it."""

    def __init__(self, encoder: Any, depth: int, *, limit: int = 32, known_as: str = "") -> None:
        """
        Args:
            encoder: a transformers model, LoRA already attached.
            depth: the layer to split before, counted from 0; the number of layers leaves nothing
                above.
            limit: tokens of the longest text that will be read.
            known_as: names what the frozen encoder computes. Of encoders of one name the probe
                is made once per process; "" makes it anew.
        """
        self.encoder = encoder
        self.limit = limit
        self._given: list[torch.Tensor] = []
        self._tuple = 0  # values that layer ``depth`` - 1 gives; 0: its states alone
        self.depth = depth if depth > 0 and self._split(depth, known_as) else 0

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
        self._given.append(hidden)
        try:
            # Of these tokens nothing but their number and places reaches a layer.
            output = self._upper(
                input_ids=torch.zeros(hidden.shape[:2], dtype=torch.int64, device=hidden.device),
                attention_mask=attention_mask,
            )
        finally:
            self._given.clear()
        found: torch.Tensor = output.last_hidden_state
        return found

    def _split(self, depth: int, known_as: str) -> bool:
        path = layer_list(self.encoder)
        if path is None:
            return False
        layers = self.encoder.get_submodule(path)
        assert isinstance(layers, nn.ModuleList)
        form = self._form_of(layers[depth - 1])
        if form is None:
            return False
        self._tuple = form
        last = _acting_as(layers[depth - 1], self._ending(layers[depth - 1]))
        self._lower: Any = structural_copy(self.encoder, same=layers)
        _replace(self._lower, path, [*layers[: depth - 1], last, *layers[depth:]])
        self._upper: Any = structural_copy(self.encoder, same=layers)
        below = [_acting_as(layer, self._entering) for layer in layers[:depth]]
        _replace(self._upper, path, [*below, *layers[depth:]])
        key = known_as, depth, self.limit
        if not known_as:
            return self._agrees()
        if key not in _FOUND:
            _FOUND[key] = self._agrees()
        return _FOUND[key]

    def _ending(self, layer: nn.Module) -> Any:
        def forward(*args: Any, **kwargs: Any) -> Any:
            given = layer(*args, **kwargs)
            raise _Reached(given[0] if isinstance(given, tuple | list) else given)

        return forward

    def _entering(self, *_: Any, **__: Any) -> Any:
        (hidden,) = self._given
        return (hidden, *[None] * (self._tuple - 1)) if self._tuple else hidden

    def _form_of(self, layer: nn.Module) -> int | None:
        """How many values a layer gives, 0 for its states alone; None when they are no states
        (n, T, H) or it does not run once."""
        seen: list[Any] = []
        hook = layer.register_forward_hook(lambda _module, _args, output: seen.append(output))
        try:
            with torch.no_grad():
                ids, mask = self._probe(3)
                self.encoder(input_ids=ids, attention_mask=mask)
        except (TypeError, AttributeError, RuntimeError, ValueError, IndexError):
            return None
        finally:
            hook.remove()
        if len(seen) != 1:
            return None
        states = seen[0][0] if isinstance(seen[0], tuple | list) else seen[0]
        if not isinstance(states, torch.Tensor) or states.dim() != 3 or states.shape[:2] != (2, 3):
            return None
        return len(seen[0]) if isinstance(seen[0], tuple | list) else 0

    def _probe(self, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and mask (2, length) of two made-up texts, the second shorter by a third."""
        words = int(getattr(self.encoder.get_input_embeddings(), "num_embeddings", 0))
        if not words:
            raise ValueError("the encoder reads no tokens")
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(words, (2, length), generator=generator)
        mask = torch.ones_like(ids)
        mask[1, length - length // 3 :] = 0
        return ids, mask

    def _agrees(self) -> bool:
        windows = windows_of(self.encoder.config)
        longest = max(windows) + _BEYOND if windows else _SHORT
        ids, mask = self._probe(max(3, min(self.limit, longest)))
        with torch.no_grad():
            try:
                whole = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
                split = self.finish(self.hidden(ids, mask), mask)
            except (TypeError, AttributeError, RuntimeError, ValueError, IndexError, KeyError):
                return False
        if split.shape != whole.shape or whole.shape[:2] != ids.shape:
            return False
        away = ((whole - split) * mask[..., None]).abs().max()
        return bool(away <= _TOLERANCE * whole.abs().max())


def windows_of(config: Any) -> list[int]:
    """Lengths, in tokens, beyond which some layer of a model attends otherwise, as far as its
    config says; ascending."""
    found: set[int] = set()
    for name, value in config.to_dict().items():
        if ("window" in name and "layer" not in name) or name in _WINDOWS:
            values = value if isinstance(value, list) else [value]
            found |= {int(v) for v in values if isinstance(v, int) and not isinstance(v, bool)}
    return sorted(length for length in found if length > 0)


_WINDOWS = ("local_attention", "attention_chunk_size", "block_size", "global_block_size")


def _acting_as(layer: nn.Module, forward: Any) -> nn.Module:
    """A layer with everything that others ask of it (its kind, its number), computing another
    thing."""
    acting = copy.copy(layer)
    acting.forward = forward
    acting._forward_hooks, acting._forward_pre_hooks = OrderedDict(), OrderedDict()
    return acting


def _replace(model: Any, path: str, layers: list[nn.Module]) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, nn.ModuleList(layers))
