"""Grey levels of any depth: the same picture as with 8 bits, or a refusal with the mend."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lorica.common.data.images import decode_image
from lorica.common.data.levels import Levels, png_bits
from lorica.common.errors import Code, LoricaError

SHADES = np.arange(256, dtype=np.uint8).reshape(16, 16)


def file_of(values: np.ndarray, kind: str = "PNG") -> bytes:
    content = io.BytesIO()
    Image.fromarray(values).save(content, kind)
    return content.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_bits(png: bytes, bits: int) -> bytes:
    """The PNG file with a chunk that says how many of its bits are significant."""
    header = 8 + 25
    return png[:header] + chunk(b"sBIT", bytes([bits])) + png[header:]


def colour_of_16_bits(values: np.ndarray, kind: int) -> bytes:
    """A PNG of 16 bits a channel, which Pillow does not write; (H, W, channels)."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, kind, 0, 0, 0)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def grey(content: bytes, levels: Levels | None = None) -> np.ndarray:
    found = decode_image(content, "an image", 0, levels)
    assert (found[..., 0] == found[..., 1]).all()
    assert (found[..., 0] == found[..., 2]).all()
    return found[..., 0]


@pytest.mark.parametrize(
    "content",
    [
        file_of(SHADES),
        file_of(SHADES.astype(np.uint16) * 257),
        file_of(SHADES.astype(np.uint16) * 257, "TIFF"),
        file_of((SHADES.astype(np.uint16) * 257).astype(np.int32), "TIFF"),
        file_of(np.rint(SHADES / 255 * 4095).astype(np.uint16)),
        with_bits(file_of(np.rint(SHADES / 255 * 1023).astype(np.uint16)), 10),
        with_bits(file_of(np.rint(SHADES / 255 * 16383).astype(np.uint16)), 14),
        file_of((SHADES / 255).astype(np.float32), "TIFF"),
    ],
    ids=["8", "16 PNG", "16 TIFF", "32 whole", "12 in 16", "10 said", "14 said", "fractions"],
)
def test_a_picture_is_the_same_whatever_its_depth(content: bytes) -> None:
    assert np.abs(grey(content).astype(int) - SHADES).max() <= 1


@pytest.mark.parametrize(("channels", "kind"), [(3, 2), (4, 6)], ids=["RGB", "RGBA"])
def test_colour_of_16_bits_does_not_wrap(channels: int, kind: int) -> None:
    values = np.stack([SHADES, SHADES.T, 255 - SHADES, SHADES][:channels], axis=2)
    found = decode_image(colour_of_16_bits(values.astype(np.uint16) * 257, kind), "x", 0)
    assert np.abs(found.astype(int) - values[..., :3]).max() <= 1


def test_a_window_says_what_is_black_and_what_is_white() -> None:
    hounsfield = np.array([[-1000, 0, 40, 80, 3000]], dtype=np.int32)
    content = file_of(hounsfield, "TIFF")
    assert grey(content, Levels([40, 80])).tolist() == [[0, 0, 128, 255, 255]]
    tenths = file_of(np.array([[-1.0, 0.0, 1.0]], dtype=np.float32), "TIFF")
    assert grey(tenths, Levels([0, 2])).tolist() == [[0, 128, 255]]


@pytest.mark.parametrize(
    "values",
    [
        np.array([[-5, 100]], dtype=np.int32),
        np.array([[0, 70_000]], dtype=np.int32),
        np.array([[0.0, 255.0]], dtype=np.float32),
        np.array([[0.0, np.nan]], dtype=np.float32),
        np.array([[0.0, np.inf]], dtype=np.float32),
    ],
    ids=["negative", "beyond 16 bits", "fractions above 1", "NaN", "infinity"],
)
def test_values_that_no_rule_covers_are_refused(values: np.ndarray) -> None:
    with pytest.raises(LoricaError) as caught:
        grey(file_of(values, "TIFF"))
    assert caught.value.code is Code.DATA_IMAGE


def test_a_source_of_12_bits_here_and_16_there_is_refused_with_the_mend() -> None:
    levels = Levels()
    grey(file_of(np.full((4, 4), 60_000, np.uint16)), levels)
    with pytest.raises(LoricaError, match="dark or of 12 bits") as caught:
        grey(file_of(np.full((4, 4), 900, np.uint16)), levels)
    assert "data.window" in caught.value.mend
    said = Levels([32767.5, 65535])
    assert grey(file_of(np.full((4, 4), 60_000, np.uint16)), said).max() == 233
    assert grey(file_of(np.full((4, 4), 900, np.uint16)), said).max() == 4


def test_what_a_png_says_of_its_bits_is_found_wherever_the_file_ends() -> None:
    whole = with_bits(file_of(SHADES.astype(np.uint16)), 12)
    assert png_bits(whole) == 12
    assert png_bits(file_of(SHADES)) == 0
    for end in range(len(whole)):
        assert png_bits(whole[:end]) in (0, 12)


def test_12_bits_in_a_turned_and_shrunk_file_keep_their_levels(tmp_path: Path) -> None:
    wide = np.repeat(np.rint(SHADES / 255 * 4095).astype(np.uint16), 40, axis=1)
    path = tmp_path / "x.png"
    Image.fromarray(wide).save(path)
    found = decode_image(path, "x", 8)
    assert found.shape == (8, 320, 3)
    assert abs(float(found.mean()) - float(SHADES.mean())) < 2
