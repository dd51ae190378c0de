"""Frozen linear layers in 8 or 4 bits a weight.

A linear layer W (out, in) of the backbone is kept as codes and scales, and is put together again,
in float32, for the time of one product:

======  =================================================================  =====================
format  W is                                                               bytes a weight
======  =================================================================  =====================
int8    s_row · c / 127, c in -127 … 127, s_row = max abs of the row       1 + 4/in
int4    s_block · t[c], blocks of 64 weights of a row after the other,     0.5 + 1/16
        s_block = max abs of the block, t the 16 values of NF4
======  =================================================================  =====================

Codes are made on the CPU, from float32, whatever the model runs on later, so that coordinator and
sites have the same weights to the bit. Activations are never rounded: a record's output depends on
no other record's, and gradients are those of plain autograd on the rounded weights. Embeddings,
norms, convolutions and biases stay in float32.

Source of the formats: Dettmers et al., "LLM.int8()" (arXiv 2208.07339, row-wise absmax) and
"QLoRA" (arXiv 2305.14314, NF4); bitsandbytes makes and reads them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from lorica.common.errors import Code, LoricaError
from lorica.common.machine.memory import release_unused
from lorica.common.plan.subject import NumberFormat

BLOCK = 64
"""Weights that share a scale in format "int4"."""


class QuantisedLinear(nn.Linear):
    """A frozen linear layer whose weight is kept as codes.

    ``weight`` holds the codes: int8 (out, in), or uint8 with two of them a byte; ``scales`` is
    float32, one a row or a block.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        number: NumberFormat,
    ) -> None:
        """
        Args:
            weight: (out, in), float32, on the CPU.
            bias: (out,); shared, not copied.
            number: "int8" or "int4".
        """
        super().__init__(1, 1, bias=False, device="meta")
        self.out_features, self.in_features = weight.shape
        self.number = number
        codes, scales = _codes(weight.detach().contiguous(), number)
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.scales: torch.Tensor
        self.register_buffer("scales", scales)
        if bias is not None:
            self.bias = nn.Parameter(bias.detach(), requires_grad=False)

    def dequantised(self) -> torch.Tensor:
        """The weight that the codes stand for, (out, in), float32."""
        bnb: Any = _bitsandbytes()
        if self.number == "int8":
            whole: torch.Tensor = bnb.int8_vectorwise_dequant(self.weight, self.scales)
            return whole
        blocks = bnb.QuantState(
            absmax=self.scales,
            shape=torch.Size((len(self.scales), BLOCK)),
            dtype=torch.float32,
            blocksize=BLOCK,
            quant_type="nf4",
        )
        flat = bnb.dequantize_4bit(self.weight, blocks).flatten()
        count = self.out_features * self.in_features
        return flat[:count].view(self.out_features, self.in_features)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """The linear map; ``input`` is (…, in)."""
        found: torch.Tensor = _Product.apply(input, self)
        return found

    def extra_repr(self) -> str:
        """As of a linear layer, and the number format."""
        return f"{super().extra_repr()}, number={self.number}"


class _Product(torch.autograd.Function):
    """x Wᵀ + b; W is put together anew for the backward pass, not kept for it."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: QuantisedLinear) -> torch.Tensor:
        ctx.layer = layer
        return functional.linear(x, layer.dequantised().to(x.dtype), layer.bias)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, None]:
        if not ctx.needs_input_grad[0]:
            return None, None
        return grad @ ctx.layer.dequantised().to(grad.dtype), None


def quantise(model: nn.Module, number: NumberFormat) -> None:
    """Put codes in place of the weights of all linear layers (in place); the model is frozen.

    Args:
        model: a pretrained model in float32 on the CPU.
        number: "int8" or "int4"; "none" leaves it as it is.

    Raises:
        LoricaError: LOR-207 bitsandbytes is missing, LOR-204 the model has no linear layer.
    """
    if number == "none":
        return
    from transformers.pytorch_utils import Conv1D

    _bitsandbytes()
    linear = [name for name, module in model.named_modules() if type(module) in (nn.Linear, Conv1D)]
    if not linear:
        raise LoricaError(
            Code.BACKBONE_UNSUPPORTED,
            f'backbone.quantize is "{number}", but {type(model).__name__} has no linear layer '
            "whose weights could be kept in fewer bits.",
            mend='Set backbone.quantize to "none".',
        )
    for name in linear:
        module: Any = model.get_submodule(name)
        # GPT-2's Conv1D keeps W as (in, out).
        weight = module.weight.T if type(module) is Conv1D else module.weight
        model.set_submodule(name, QuantisedLinear(weight, module.bias, number).eval())
        del module, weight
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()  # out of the mapped file, which can then be let go
    release_unused()


def weight_bytes(model: nn.Module) -> int:
    """Memory of a model's parameters and buffers, bytes; what two modules share counts once."""
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return sum(t.numel() * t.element_size() for t in tensors.values())


def _codes(weight: torch.Tensor, number: NumberFormat) -> tuple[torch.Tensor, torch.Tensor]:
    bnb: Any = _bitsandbytes()
    if number == "int8":
        codes, scales, _ = bnb.int8_vectorwise_quant(weight)
        return codes, scales
    # In rows of one block: bitsandbytes' kernel for CPUs takes wrong scales where a row of W is
    # no whole number of blocks.
    blocks = functional.pad(weight.flatten(), (0, -weight.numel() % BLOCK)).view(-1, BLOCK)
    codes, state = bnb.quantize_4bit(blocks, blocksize=BLOCK, quant_type="nf4")
    return codes, state.absmax


def _bitsandbytes() -> Any:
    try:
        import bitsandbytes.functional
    except ImportError:
        raise LoricaError(
            Code.PACKAGE_MISSING,
            "backbone.quantize asks for a backbone in fewer bits, which needs bitsandbytes.",
            mend="pip install 'lorica[quantised]', or set backbone.quantize to \"none\".",
        ) from None
    return bitsandbytes.functional
