"""What form an update must have, and its norm."""

from __future__ import annotations

import math
from collections.abc import Collection

import torch

from lorica.common.adapter.state import State
from lorica.common.errors import Code, LoricaError

ACCEPTED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""The number formats an update may come in."""


def update_norm(update: State) -> float:
    """L2 norm over all values of all tensors, computed in float64; 0.0 for no tensors."""
    return math.hypot(
        *(
            float(torch.linalg.vector_norm(tensor.detach(), dtype=torch.float64))
            for tensor in update.values()
        )
    )


class CheckedUpdate(dict[str, torch.Tensor]):
    """An update whose form was checked (:func:`check_form`) against the state that its round starts
    from. Whoever makes one vouches for it, and changes nothing in it."""

    def __init__(self, update: State, norm: float) -> None:
        """``norm``: its L2 norm."""
        super().__init__(update)
        self.norm = norm


def check_form(update: State, start: State, trained: Collection[str]) -> float:
    """Check names, shapes, dtypes and that all values are finite; the names alone of a
    :class:`CheckedUpdate`.

    Returns:
        As of :func:`update_norm`, which is how the values are looked at.

    Raises:
        LoricaError: LOR-502 with a sentence on the first thing found wrong.
    """
    extra = sorted(update.keys() - set(trained))
    if extra:
        raise _refused(f"The update holds tensors that are not trained: {_listed(extra)}.")
    missing = [name for name in trained if name not in update]
    if missing:
        raise _refused(f"The update lacks tensors that are trained: {_listed(missing)}.")
    if isinstance(update, CheckedUpdate):
        return update.norm
    norms = {name: _check_tensor(name, update[name], start[name].shape) for name in trained}
    return math.hypot(*(norms[name] for name in update))


def _check_tensor(name: str, tensor: torch.Tensor, shape: torch.Size) -> float:
    """The tensor's norm."""
    if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided:
        raise _refused(f"The update's '{name}' is not a dense tensor.")
    if tensor.shape != shape:
        raise _refused(
            f"The update's '{name}' has shape {tuple(tensor.shape)}, expected {tuple(shape)}."
        )
    if tensor.dtype not in ACCEPTED_DTYPES:
        raise _refused(
            f"The update's '{name}' is {_plain(tensor.dtype)}, expected one of "
            f"{', '.join(map(_plain, ACCEPTED_DTYPES))}."
        )
    # float64 holds the square of any value of these formats: the norm is finite if all of them are
    norm = float(torch.linalg.vector_norm(tensor.detach(), dtype=torch.float64))
    if not math.isfinite(norm):
        raise _refused(f"The update's '{name}' holds NaN or infinite values.")
    return norm


def _refused(detail: str) -> LoricaError:
    return LoricaError(Code.UPDATE_REFUSED, detail)


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _listed(names: Collection[str], most: int = 3) -> str:
    """The first few names, quoted and cut: a site may send many, long or unprintable ones."""
    shown = [repr(name if len(name) <= 80 else f"{name[:77]}...") for name in list(names)[:most]]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
