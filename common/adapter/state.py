"""An adapter's state: its tensors by name, as one blob."""

from __future__ import annotations

from collections.abc import Mapping

import safetensors.numpy
import safetensors.torch
import torch
from torch import nn

from lorica.common.errors import Code, LoricaError

State = dict[str, torch.Tensor]


def write_state(parameters: Mapping[str, nn.Parameter], state: Mapping[str, torch.Tensor]) -> None:
    """Copy a state into the parameters of the same names.

    Raises:
        LoricaError: LOR-205 when names or shapes differ.
    """
    check_shapes(state, {name: p.shape for name, p in parameters.items()})
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(state[name])


def read_state(parameters: Mapping[str, nn.Parameter]) -> State:
    """A copy of the parameters as a float32 CPU state."""
    return {
        name: parameter.detach().to("cpu", torch.float32, copy=True)
        for name, parameter in parameters.items()
    }


def check_shapes(state: Mapping[str, torch.Tensor], shapes: Mapping[str, torch.Size]) -> None:
    """Refuse a state whose names or shapes are not exactly ``shapes``.

    Raises:
        LoricaError: LOR-205, naming the first difference.
    """
    for name in sorted(set(shapes) - set(state)):
        raise LoricaError(Code.ADAPTER_MISMATCH, f"The adapter lacks the tensor {name}.")
    for name in sorted(set(state) - set(shapes)):
        raise LoricaError(Code.ADAPTER_MISMATCH, f"The adapter has an unexpected tensor {name}.")
    for name, shape in shapes.items():
        if state[name].shape != shape:
            raise LoricaError(
                Code.ADAPTER_MISMATCH,
                f"The adapter's {name} has shape {tuple(state[name].shape)}, "
                f"the plan's {tuple(shape)}.",
            )


def pack_state(state: Mapping[str, torch.Tensor]) -> bytes:
    """The state as one safetensors blob; every torch dtype that safetensors has, bf16 included."""
    held = {name: tensor.detach().contiguous() for name, tensor in state.items()}
    if all(one.dtype == torch.float32 and one.device.type == "cpu" for one in held.values()):
        return safetensors.numpy.save({name: one.numpy() for name, one in held.items()})  # quicker
    return safetensors.torch.save(held)


def unpack_state(blob: bytes) -> State:
    """The state in a safetensors blob; dtypes as stored.

    Raises:
        LoricaError: LOR-501 when the blob is no safetensors.
    """
    try:
        return safetensors.torch.load(blob)
    except Exception as error:  # hostile bytes raise many kinds
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise LoricaError(
            Code.MESSAGE_MALFORMED, f"The adapter blob is not valid safetensors: {reason}."
        ) from error
