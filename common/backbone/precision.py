"""The number format that an encoder computes in: float32, or bfloat16 where there are units for it.

bfloat16 is for what an encoder multiplies, layers and LoRA factors alike. Weights and adapters stay
float32, and so does everything after the encoder: heads, losses, gradients per record, norms,
clipping, noise, the optimizer.
"""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager

import torch

from lorica.common.errors import Code, LoricaError
from lorica.common.plan.course import Precision

_CPU_UNITS = ("avx512_bf16", "amx_bf16", "bf16")
"""torch's names of what a processor of x86 or Arm multiplies bfloat16 with."""


def has_bf16(device: str = "cpu") -> bool:
    """Whether the device ("cpu", "cuda") multiplies bfloat16 itself, without emulation."""
    if device == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    found = torch.cpu.get_capabilities()
    return any(found.get(name, False) for name in _CPU_UNITS)


def number_format(precision: Precision, device: str = "cpu") -> torch.dtype:
    """What an encoder computes in on a device, by the plan's ``training.precision``.

    Raises:
        LoricaError: LOR-208 bfloat16 is asked for and the device has no units for it.
    """
    if precision == "float32" or (precision == "auto" and not has_bf16(device)):
        return torch.float32
    if not has_bf16(device):
        raise LoricaError(
            Code.HARDWARE_MISSING,
            f'training.precision is "bf16", but this {device} has no bfloat16 units.',
            mend='Set training.precision to "auto" (bfloat16 where there are units) or "float32".',
        )
    return torch.bfloat16


def computing_in(numbers: torch.dtype, device: str = "cpu") -> AbstractContextManager[object]:
    """Within, the encoder's products are made in this format."""
    if numbers == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device, numbers)
