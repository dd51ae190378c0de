"""The number format that an encoder computes in: float32, or bfloat16 where there are units for it.

bfloat16 is for what an encoder multiplies, layers and LoRA factors alike. Weights and adapters stay
float32, and so does everything after the encoder: heads, losses, gradients per record, norms,
clipping, noise, the optimizer. On processors so is attention: torch's kernel for it has no bfloat16
units behind it, and takes 16 times as long for the gradient of 16 tokens as in float32.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

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


@contextlib.contextmanager
def computing_in(numbers: torch.dtype, device: str = "cpu") -> Iterator[None]:
    """Within, the encoder's products are made in this format."""
    if numbers == torch.float32:
        yield
        return
    attention = _Float32Attention() if device == "cpu" else contextlib.nullcontext()
    with torch.autocast(device, numbers), attention:
        yield


def first_and_again() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """What a checkpointed layer runs in, and what it is computed anew in, which
    :func:`torch.utils.checkpoint.checkpoint` sees to for ``torch.autocast`` alone."""
    again = _Float32Attention() if torch.is_autocast_enabled("cpu") else contextlib.nullcontext()
    return contextlib.nullcontext(), again


class _Float32Attention(TorchFunctionMode):
    """Within, attention computes in float32, whatever it is given."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is not functional.scaled_dot_product_attention:
            return func(*args, **kwargs)
        with torch.autocast("cpu", enabled=False):
            return func(*map(_widened, args), **{name: _widened(v) for name, v in kwargs.items()})


def _widened(value: Any) -> Any:
    wide = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.float() if wide else value
