"""What an update costs on the wire, by number format: bytes, rounding error, milliseconds.

    python benchmarks/speed/wire.py [--zstd]

Updates are noised sums of two rounds of Banking77: the head (77 x 384 and bias) and the head with
LoRA of rank 8 on query and value of the last layer. Values are Gaussian noise of σ·C on its grid
(:mod:`lorica.client.mechanism.noise`) on top of a small signal: what sites send at ε = 8 is mostly
noise. The error is the root mean square of what rounding changes over the noise's standard
deviation. ``--zstd`` adds the size after zstd at level 3, where the package zstandard is installed.
The last line is the bytes of an int8 round of the head over those of a float32 message with the
whole adapter (LoRA on all six layers, and the head); the target is at most 0.1.
"""

from __future__ import annotations

import importlib
import sys
import time
from typing import get_args

import torch
from rich.table import Table

from lorica.client.mechanism.noise import SeededNoise
from lorica.common.adapter.state import State, pack_state, unpack_state
from lorica.common.display.console import Console
from lorica.common.wire.rounding import Format, decode, encode

STD = 1.7
"""σ·C."""
REPEATS = 30


def update_of(layers: list[int]) -> State:
    """A noised update of the head and of LoRA factors on some layers."""
    torch.manual_seed(0)
    shapes = {"head.weight": (77, 384), "head.bias": (77,)}
    for layer in layers:
        for module in ("query", "value"):
            name = f"base_model.model.encoder.layer.{layer}.attention.self.{module}"
            shapes[f"{name}.lora_A.weight"] = (8, 384)
            shapes[f"{name}.lora_B.weight"] = (384, 8)
    noise = SeededNoise("wire")
    return {
        name: noise.add_noise(0.2 * STD * torch.randn(shape), STD) for name, shape in shapes.items()
    }


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    zstd = importlib.import_module("zstandard") if "--zstd" in sys.argv else None
    table = Table(box=None, title="One site's update in one round, one core")
    columns = ["update", "format", "bytes", "÷ float32", "rounding ÷ noise", "ms"]
    for head in columns + (["after zstd"] if zstd else []):
        table.add_column(head, justify="right")
    sizes: dict[tuple[str, Format], int] = {}
    for what, layers in (("head", []), ("head and LoRA", [5])):
        update = update_of(layers)
        shapes = {name: tensor.shape for name, tensor in update.items()}
        values = torch.cat([tensor.flatten() for tensor in update.values()])
        for format in get_args(Format):
            begun = time.perf_counter()
            for number in range(REPEATS):
                blob = pack_state(encode(update, format, "bench", number, "site"))
                read = decode(unpack_state(blob), format, shapes)
            milliseconds = 1000 * (time.perf_counter() - begun) / REPEATS
            back = torch.cat([read[name].flatten() for name in update])
            error = float((back - values).double().square().mean().sqrt()) / STD
            sizes[what, format] = len(blob)
            share = len(blob) / sizes[what, "float32"]
            row = [what, format, f"{len(blob):,}", f"{share:.3f}", f"{error:.5f}"]
            row.append(f"{milliseconds:.2f}")
            if zstd:
                packed = len(zstd.ZstdCompressor(level=3).compress(blob))
                row.append(f"{packed:,} ({packed / len(blob):.0%})")
            table.add_row(*row)
    Console(width=110).print(table)
    whole = len(pack_state(update_of(list(range(6)))))
    print(f"float32 message with the whole adapter: {whole:,} bytes")
    print(f"wire ratio: {sizes['head', 'int8'] / whole:.4f}")


if __name__ == "__main__":
    main()
