"""What models of images read: pixels of one size, as the model's own processor makes them."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from lorica.common.backbone.loading import Backbone, require_kind
from lorica.common.data.records import Records
from lorica.common.errors import Code, LoricaError

_CHUNK = 64
_PATCH = 16  # pixels that count as a token's side, for networks without patches
VIEW_NUMBERS = 4
"""Random numbers that a view is made from."""

_SHIFT = 1 / 8  # of the side
_CROP = 3 / 4  # of the side
_STAND_INS = ((256, 256), (256, 384), (384, 256))  # heights and widths that are tried


@dataclass(frozen=True)
class Pixels:
    """Images of one size, kept as bytes; scaled when they are asked for."""

    images: torch.Tensor
    """uint8, shape (N, 3, S, S)."""
    scale: torch.Tensor
    """By channel, shape (3, 1, 1): the model reads image · scale + shift."""
    shift: torch.Tensor
    patches: int
    """What an image costs, in tokens."""

    @property
    def lengths(self) -> np.ndarray:
        """The same for all images, shape (N,)."""
        return np.full(len(self), self.patches, dtype=np.int64)

    @property
    def sizes(self) -> np.ndarray:
        """The same for all images, shape (N, 1)."""
        return self.lengths[:, None]

    @property
    def limit(self) -> int:
        """All images have the same size."""
        return self.patches

    def __len__(self) -> int:
        return len(self.images)

    def collate(self, rows: Iterable[int]) -> tuple[torch.Tensor]:
        """float32 pixels (n, 3, S, S) of these rows."""
        chosen = torch.as_tensor(np.asarray(list(rows), dtype=np.int64))
        return (self.images[chosen].float() * self.scale + self.shift,)

    def views(
        self, rows: np.ndarray, kinds: Collection[str], numbers: np.ndarray
    ) -> tuple[torch.Tensor]:
        """As :meth:`collate`, every image changed at random by itself.

        Args:
            rows: one for every view.
            kinds: of "shift", "flip" and "crop".
            numbers: every view's own, in [0, 1), float32, shape (n, ``VIEW_NUMBERS``).
        """
        (pixels,) = self.collate(rows)
        drawn = torch.from_numpy(numbers)
        size = 1 - (1 - _CROP) * drawn[:, 0] if "crop" in kinds else torch.ones(len(rows))
        room = (1 - size)[:, None] + (2 * _SHIFT if "shift" in kinds else 0.0)
        move = (2 * drawn[:, 1:3] - 1) * room  # of half a side
        turn = 1 - 2 * (drawn[:, 3] < 0.5).float() if "flip" in kinds else torch.ones(len(rows))
        theta = torch.zeros(len(rows), 2, 3)
        theta[:, 0, 0], theta[:, 1, 1] = size * turn, size
        theta[:, :, 2] = move
        grid = functional.affine_grid(theta, list(pixels.shape), align_corners=False)
        return (functional.grid_sample(pixels, grid, padding_mode="border", align_corners=False),)

    def contents(self, rows: np.ndarray) -> list[bytes]:
        """SHA-256 of the pixels of each of these rows."""
        found = {
            row: hashlib.sha256(self.images[row].contiguous().numpy().tobytes()).digest()
            for row in np.unique(rows).tolist()
        }
        return [found[row] for row in rows.tolist()]

    def digest(self) -> bytes:
        """SHA-256 of pixels, scale and shift."""
        found = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        for tensor in (self.images, self.scale, self.shift):
            found.update(tensor.contiguous().numpy().tobytes())
        return found.digest()


def pixels_of(backbone: Backbone, records: Records) -> Pixels:
    """The records' images by the backbone's processor; of its size even when there are none.

    Raises:
        LoricaError: LOR-204 the processor gives images of several sizes, or the model reads texts.
    """
    processor, config = require_kind(backbone, images=True).processor, backbone.model.config
    given = list(records.images or [])
    parts = [_resized(processor, given[at : at + _CHUNK]) for at in range(0, len(given), _CHUNK)]
    none = _none(processor)
    if any(part.shape[1:] != none.shape[1:] for part in parts):
        _refuse_sizes()
    images = torch.from_numpy(np.concatenate([*parts, none]))
    factor = float(processor.rescale_factor) if processor.do_rescale else 1.0
    scale, shift = torch.full((3, 1, 1), factor), torch.zeros(3, 1, 1)
    if processor.do_normalize:
        mean, std = (
            torch.tensor(values, dtype=torch.float32).reshape(-1, 1, 1)
            for values in (processor.image_mean, processor.image_std)
        )
        scale, shift = scale / std, -mean / std
    own = getattr(config, "patch_size", None) if backbone.layers else None
    patch = own if isinstance(own, int) else _PATCH
    return Pixels(images, scale, shift, max(1, images.shape[2] * images.shape[3] // patch**2))


@functools.lru_cache(maxsize=8)
def _none(processor: object) -> np.ndarray:
    """No images, of the one size that the processor gives images of any shape: a site tries its
    machine on it before it reads a record.

    Raises:
        LoricaError: LOR-204 it gives several.
    """
    tried = [_resized(processor, [np.zeros((*size, 3), np.uint8)])[:0] for size in _STAND_INS]
    if len({part.shape for part in tried}) > 1:
        _refuse_sizes()
    return tried[0]


def _resized(processor: object, images: list[np.ndarray]) -> np.ndarray:
    # Unless it is told, an image of one or three rows is taken for one with its channels first.
    known = {"do_rescale": False, "do_normalize": False, "input_data_format": "channels_last"}
    made = processor(images, **known)["pixel_values"]  # type: ignore[operator]
    arrays = [np.asarray(image) for image in made]
    if len({image.shape for image in arrays}) > 1:
        _refuse_sizes()
    whole = np.stack(arrays)
    return whole if whole.dtype == np.uint8 else whole.round().clip(0, 255).astype(np.uint8)


def _refuse_sizes() -> None:
    raise LoricaError(
        Code.BACKBONE_UNSUPPORTED,
        "The backbone's image processor gives images of several sizes.",
        mend="In its preprocessor_config.json, set size to a height and a width, or do_center_crop "
        "to true with a crop_size.",
    )
