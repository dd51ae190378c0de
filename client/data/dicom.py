"""DICOM images: pixel values to grey or colour, labels by folder or by a table.

A file is measured before it is unpacked: what its header says of rows, columns and frames, and,
where the whole file is deflated, how much comes out of it.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lorica.common.data.batches import Batch
from lorica.common.data.image_folder import inside, labelled, with_table
from lorica.common.data.images import FILE_BYTES, check_size, shrunk
from lorica.common.data.kinds import IMAGE
from lorica.common.data.levels import Levels
from lorica.common.data.request import DataRequest
from lorica.common.errors import Code, LoricaError

if TYPE_CHECKING:
    from pydicom import Dataset

ENDINGS = frozenset({".dcm", ".dicom"})
_DEFLATED = "1.2.840.10008.1.2.1.99"
_CHUNK = 1 << 20
_WIDEST = 16  # bits: room that says nothing of what is stored in it


def batches(request: DataRequest) -> Iterator[Batch]:
    """Batches with the columns "image", "file", and the label's, or the table's columns.

    Raises:
        LoricaError: LOR-207 without pydicom, LOR-301, LOR-302, LOR-327 damaged or without one
            image, LOR-328, LOR-329.
    """
    try:
        import pydicom  # noqa: F401
    except ModuleNotFoundError as error:
        raise LoricaError(
            Code.PACKAGE_MISSING,
            "DICOM images need the package pydicom.",
            mend="pip install 'lorica[dicom]'",
        ) from error
    folder = request.path
    if not folder.is_dir():
        raise LoricaError(Code.DATA_NOT_FOUND, f"There is no folder {folder}.")
    rows = with_table(request, folder) if request.table else labelled(request, folder, ENDINGS)
    for batch in rows:
        images = [_image(inside(folder, name), request) for name in batch[request.file]]
        yield {**batch, IMAGE: images}


def _image(path: Path, request: DataRequest) -> np.ndarray:
    pixels = decode_dicom(path, list(request.options["window"]), request.levels)
    return shrunk(pixels, request.image_side)


def decode_dicom(path: Path, window: list[float], levels: Levels | None = None) -> np.ndarray:
    """One image as uint8 (H, W, 3): modality rescale, then the window of DICOM PS3.3 C.11.2.1.2.

    Args:
        path: the file.
        window: centre and width, in rescaled values; empty: the file's first; where it has none,
            what its stored bits can hold, so that images of one source keep their grey levels;
            of 16 bits that are signed or rescaled, from its least value to its greatest.
        levels: of the source, which tell how many of 16 unsigned bits are used.

    Raises:
        LoricaError: LOR-301, LOR-327, LOR-328.
    """
    try:
        size = path.stat().st_size
        if size > FILE_BYTES:
            raise _too_large(path, size)
        header = _header(path)
        _measure(header, path)
        return _grey_or_colour(header, window, levels or Levels(), str(path))
    except LoricaError:
        raise
    except OSError as error:
        raise LoricaError(
            Code.DATA_NOT_FOUND, f"{path} cannot be read: {error.strerror or error}."
        ) from None
    except MemoryError:
        raise _too_large(path, FILE_BYTES + 1) from None
    except Exception as error:  # whatever a damaged file makes a decoder raise
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise LoricaError(
            Code.DATA_IMAGE, f"{path} cannot be read as DICOM: {lines[0].rstrip('.')}."
        ) from error


def _header(path: Path) -> Dataset:
    import pydicom
    from pydicom.filereader import read_file_meta_info

    if read_file_meta_info(str(path)).get("TransferSyntaxUID") == _DEFLATED:
        _measure_deflated(path)
    return pydicom.dcmread(path, defer_size=1024)


def _measure_deflated(path: Path) -> None:
    """Unpack a deflated file in pieces, keeping none, and stop at the limit."""
    content = path.read_bytes()
    (length,) = struct.unpack_from("<I", content, 140)  # of group 2, after the prefix and its tag
    packed, total = zlib.decompressobj(-zlib.MAX_WBITS), 0
    rest = content[144 + length :]
    while rest and not packed.eof:
        total += len(packed.decompress(rest, _CHUNK))
        rest = packed.unconsumed_tail
        if total > FILE_BYTES:
            raise _too_large(path, total)


def _measure(header: Any, path: Path) -> None:
    frames = int(header.get("NumberOfFrames", 1) or 1)
    rows, columns = int(header.get("Rows", 0) or 0), int(header.get("Columns", 0) or 0)
    if frames != 1 or rows < 1 or columns < 1:
        what = f"{frames} frames" if frames != 1 else "no image"
        raise LoricaError(Code.DATA_IMAGE, f"{path} holds {what}; one image is expected.")
    check_size(rows * columns, str(path))


def _grey_or_colour(data: Any, window: list[float], levels: Levels, name: str) -> np.ndarray:
    from pydicom.pixels import apply_color_lut, apply_modality_lut, pixel_array

    pixels = pixel_array(data)
    if data.PhotometricInterpretation == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, data)
        pixels = (pixels.astype(np.float64) / np.iinfo(pixels.dtype).max * 255).round()
        pixels = pixels.astype(np.uint8)
    if pixels.ndim == 3:
        return np.ascontiguousarray(_colour(pixels, int(data.BitsStored)))
    values = apply_modality_lut(pixels, data).astype(np.float64)
    grey = in_window(values, *(window or _window_of(data, pixels, values, levels, name)))
    if data.PhotometricInterpretation == "MONOCHROME1":
        grey = 255 - grey
    return np.repeat(grey.round().astype(np.uint8)[..., None], 3, axis=2)


def _colour(pixels: np.ndarray, bits: int) -> np.ndarray:
    """Colour of ``bits`` bits as uint8."""
    if pixels.dtype == np.uint8:
        return pixels
    share = np.clip(pixels.astype(np.float64) / ((1 << bits) - 1), 0, 1)
    return (share * 255).round().astype(np.uint8)


def in_window(values: np.ndarray, centre: float, width: float) -> np.ndarray:
    """Values to 0 … 255, linear over the window, float64; a width is at least 1."""
    width = max(width, 1.0 + 1e-9)
    return np.clip((values - (centre - 0.5)) / (width - 1) + 0.5, 0, 1) * 255


def _window_of(
    data: Any, pixels: np.ndarray, values: np.ndarray, levels: Levels, name: str
) -> tuple[float, float]:
    centre, width = data.get("WindowCenter"), data.get("WindowWidth")
    if centre is not None and width is not None:
        return _first(centre), _first(width)
    bits, signed = int(data.BitsStored), bool(data.PixelRepresentation)
    slope, intercept = float(data.get("RescaleSlope", 1)), float(data.get("RescaleIntercept", 0))
    if bits == _WIDEST and not signed and np.array_equal(pixels, values):
        bits = levels.depth(pixels, bits, name)
    low, high = float(values.min()), float(values.max())
    if bits < _WIDEST and "ModalityLUTSequence" not in data:
        least = -(1 << (bits - 1)) if signed else 0
        ends = [slope * end + intercept for end in (least, least + (1 << bits) - 1)]
        low, high = min(ends), max(ends)
    elif bits == _WIDEST and not signed and np.array_equal(pixels, values):
        low, high = 0.0, float((1 << _WIDEST) - 1)
    return (low + high + 1) / 2, high - low + 1


def _first(value: Any) -> float:
    return float(value[0] if hasattr(value, "__len__") else value)


def _too_large(path: Path, size: int) -> LoricaError:
    return LoricaError(
        Code.DATA_TOO_LARGE,
        f"{path} has, or unpacks to, {size:,} bytes or more; the limit is {FILE_BYTES:,}.",
    )
