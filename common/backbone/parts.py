"""Which part of a pretrained model reads texts, or images, and gives states: the rest is left out.

Of an encoder-decoder (T5, BART) that is the encoder; of a model of two towers (CLIP, SigLIP) or of
a language model with eyes the tower of what the task is about. A part is found again, in plain
transformers, by its path in the whole model.
"""

from __future__ import annotations

from typing import Any

from torch import nn

_TEXTS = ("text_model", "language_model", "text_encoder")
_IMAGES = ("vision_model", "vision_tower", "visual", "vision_encoder", "image_tower")


def part_of(model: Any, *, images: bool) -> str:
    """Path in ``model`` of what reads images, or else texts; "" when it is the model itself."""
    texts, eyes = _first(model, _TEXTS), _first(model, _IMAGES)
    if texts and eyes:
        return eyes if images else texts
    pair = getattr(model, "encoder", None), getattr(model, "decoder", None)
    both = isinstance(pair[0], nn.Module) and type(pair[0]) is type(pair[1])
    # T5 saved as an encoder alone says that it has no decoder, and is loaded with one.
    if getattr(model.config, "is_encoder_decoder", False) or both:
        return _first(model, ("encoder",))
    return ""


def _first(model: Any, names: tuple[str, ...]) -> str:
    found = (name for name in names if isinstance(getattr(model, name, None), nn.Module))
    return next(found, "")
