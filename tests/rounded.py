"""Weights rounded to 8 or 4 bits by their formulas, in numpy: what the library is compared with."""

from __future__ import annotations

import numpy as np

NF4 = np.array(
    [
        *[-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453],
        *[-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0],
        *[0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224],
        *[0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0],
    ],
    dtype=np.float32,
)
"""The 16 values of NF4, from the appendix of arXiv 2305.14314."""


def rounded(weight: np.ndarray, number: str) -> np.ndarray:
    """Independent reference: nearest code by the formulas of the module's docstring."""
    if number == "int8":
        scale = np.abs(weight).max(1, keepdims=True)
        safe = np.where(scale == 0, 1, scale)
        return (np.rint(weight * (np.float32(1) / safe * np.float32(127))) * scale / 127).astype(
            np.float32
        )
    flat = np.concatenate([weight.ravel(), np.zeros(-weight.size % 64, np.float32)]).reshape(-1, 64)
    scale = np.abs(flat).max(1, keepdims=True)
    nearest = np.abs((flat / np.where(scale == 0, 1, scale))[..., None] - NF4).argmin(-1)
    return (NF4[nearest] * scale).ravel()[: weight.size].reshape(weight.shape)
