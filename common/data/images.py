"""Images as arrays: decoded whole, checked for size before they are unpacked."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lorica.common.errors import Code, LoricaError

if TYPE_CHECKING:
    import pyarrow as pa

PIXELS = 50_000_000
"""Most pixels of one image; 150 MB once unpacked."""

FILE_BYTES = 200_000_000
"""Largest image file."""


def decode_image(source: Path | bytes, name: str, side: int) -> np.ndarray:
    """An image as uint8 (H, W, 3), its shorter side at most ``side`` pixels.

    Args:
        source: a file, or a file's bytes.
        name: how messages call it.
        side: larger images are made smaller; smaller ones stay as they are.

    Raises:
        LoricaError: LOR-207 without pillow, LOR-301, LOR-327 truncated or no image, LOR-328 more
            than ``PIXELS`` pixels.
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
            opened = Image.open(io.BytesIO(_content(source, name)))
            with opened as image:
                check_size(image.width * image.height, name)
                if side and min(image.size) > side:
                    image.draft("RGB", (side, side))
                upright = ImageOps.exif_transpose(image)
                return shrunk(np.asarray(upright.convert("RGB")), side)
    except Image.DecompressionBombError:
        check_size(PIXELS + 1, name)
        raise
    except UnidentifiedImageError:
        raise LoricaError(Code.DATA_IMAGE, f"{name} is no image that can be read.") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise LoricaError(Code.DATA_IMAGE, f"{name} cannot be read: {error}.") from None


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


def is_image_type(kind: pa.DataType) -> bool:
    """Whether an Arrow type holds encoded images: bytes, or a struct of bytes and path."""
    import pyarrow as pa

    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return True
    names = {kind.field(i).name for i in range(kind.num_fields)} if is_struct(kind) else set()
    return names == {"bytes", "path"}


def is_struct(kind: pa.DataType) -> bool:
    """Whether an Arrow type is a struct."""
    import pyarrow as pa

    return bool(pa.types.is_struct(kind))


def image_cells(array: pa.Array, where: str, side: int) -> list[np.ndarray]:
    """Images of an Arrow column of bytes, or of ``datasets``' image feature.

    Raises:
        LoricaError: as of :func:`decode_image`; LOR-327 where there is none.
    """
    return [
        decode_image(_bytes_of(value, f"{where}, row {row}"), f"{where}, row {row}", side)
        for row, value in enumerate(array.to_pylist(), 1)
    ]


def _bytes_of(value: Any, name: str) -> Path | bytes:
    if isinstance(value, dict):
        value = value["bytes"] or (Path(value["path"]) if value["path"] else None)
    if value is None:
        raise LoricaError(Code.DATA_IMAGE, f"{name} holds no image.")
    return value if isinstance(value, Path) else bytes(value)


def _content(source: Path | bytes, name: str) -> bytes:
    if isinstance(source, bytes):
        return source
    try:
        size = source.stat().st_size
        if size > FILE_BYTES:
            raise LoricaError(
                Code.DATA_TOO_LARGE, f"{name} has {size:,} bytes; the limit is {FILE_BYTES:,}."
            )
        return source.read_bytes()
    except OSError as error:
        raise LoricaError(
            Code.DATA_NOT_FOUND, f"{name} cannot be read: {error.strerror}."
        ) from None
