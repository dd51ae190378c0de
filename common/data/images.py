"""Images as arrays: decoded whole, checked for size before they are unpacked."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from lorica.common.data.levels import Levels, png_bits, tiff_bits
from lorica.common.errors import Code, LoricaError

PIXELS = 50_000_000
"""Most pixels of one image; 150 MB once unpacked."""

FILE_BYTES = 200_000_000
"""Largest image file."""

_DEEP = ("I", "F")  # Pillow's modes of 32 bits: whole numbers, fractions


def decode_image(
    source: Path | bytes, name: str, side: int, levels: Levels | None = None
) -> np.ndarray:
    """An image as uint8 (H, W, 3), its shorter side at most ``side`` pixels.

    Colour of 16 bits keeps its high byte; transparency is left out; of several frames the first
    is taken. Grey of more than 8 bits, and fractions, go by ``levels``.

    Args:
        source: a file, or a file's bytes.
        name: how messages call it.
        side: larger images are made smaller; smaller ones stay as they are.
        levels: of the image's source; the rule of :mod:`lorica.common.data.levels` when omitted.

    Raises:
        LoricaError: LOR-207 without pillow, LOR-301, LOR-327 truncated, no image, or grey levels
            that no rule covers, LOR-328 more than ``PIXELS`` pixels.
    """
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ModuleNotFoundError as error:
        raise LoricaError(
            Code.PACKAGE_MISSING,
            "Images need the package pillow.",
            mend="pip install 'lorica[images]'",
        ) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a bomb is refused below, not warned of
            content = _content(source, name)
            with Image.open(io.BytesIO(content)) as image:
                check_size(image.width * image.height, name)
                if side and min(image.size) > side:
                    image.draft("RGB", (side, side))
                bits = png_bits(content) or tiff_bits(getattr(image, "tag_v2", None))
                upright = ImageOps.exif_transpose(image)
                if upright.mode in _DEEP or upright.mode.startswith("I;"):
                    values = np.asarray(upright)
                    grey = (levels or Levels()).grey(values, bits, name)
                    return shrunk(np.repeat(grey[..., None], 3, axis=2), side)
                pixels = np.asarray(upright.convert("RGB"))
                _refuse_drawn_in_alpha(upright, pixels, name)
                return shrunk(pixels, side)
    except Image.DecompressionBombError:
        check_size(PIXELS + 1, name)
        raise
    except UnidentifiedImageError:
        raise LoricaError(Code.DATA_IMAGE, f"{name} is no image that can be read.") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise LoricaError(Code.DATA_IMAGE, f"{name} cannot be read: {error}.") from None


def _refuse_drawn_in_alpha(image: Any, pixels: np.ndarray, name: str) -> None:
    """Return unless what can be seen is in the transparency alone: without it, the image is one
    colour and like any other such. Raises LOR-327."""
    if not image.has_transparency_data or pixels.min() != pixels.max():
        return
    alpha = np.asarray(image.convert("RGBA"))[..., 3]
    if alpha.min() != alpha.max():
        raise LoricaError(
            Code.DATA_IMAGE,
            f"{name} is drawn in its transparency alone; without it, it is of one colour.",
            mend="Lay it on a background first, for example: magick in.png -background white "
            "-flatten out.png",
        )


def check_size(pixels: int, name: str) -> None:
    """Return if an image of so many pixels may be unpacked. Raises LOR-328."""
    if pixels > PIXELS:
        raise LoricaError(
            Code.DATA_TOO_LARGE,
            f"{name} would unpack to more than {PIXELS:,} pixels, the limit of one image.",
        )


def shrunk(pixels: np.ndarray, side: int) -> np.ndarray:
    """uint8 (H, W, 3) with a shorter side of at most ``side``, the ratio kept; 0: unchanged."""
    height, width = pixels.shape[:2]
    if not side or min(height, width) <= side:
        return pixels
    from PIL import Image

    scale = side / min(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))


def _content(source: Path | bytes, name: str) -> bytes:
    if isinstance(source, bytes):
        _check_bytes(len(source), name)
        return source
    try:
        _check_bytes(source.stat().st_size, name)
        return source.read_bytes()
    except OSError as error:
        raise LoricaError(
            Code.DATA_NOT_FOUND, f"{name} cannot be read: {error.strerror}."
        ) from None


def _check_bytes(size: int, name: str) -> None:
    if size > FILE_BYTES:
        raise LoricaError(
            Code.DATA_TOO_LARGE, f"{name} has {size:,} bytes; the limit is {FILE_BYTES:,}."
        )
