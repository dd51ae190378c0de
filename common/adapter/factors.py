"""Low-rank factors of products B·A: re-factorise, truncate, fill up. The scaling alpha / r plays
no part."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from lorica.common.plan.tensors import factor_pairs


def refactorise(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors (A', B') of the same product B·A, with orthonormal rows in A'.

    Row i of A' is the i-th right singular vector of B·A, column i of B' the left one times its
    singular value, in falling order. Where B·A has rank below r (B = 0 at the start of a run),
    the rows left over complete an orthonormal basis of A's row space. When r > in, only ``in``
    rows can be orthonormal: the rest of A', and of B', is zero.

    Each row of A' has its entry of largest magnitude positive. The same input so gives the
    same factors; where singular values coincide, inputs that differ by rounding may give
    factors rotated against each other, of the same product.

    The matrix out × in is never formed: with B = Q_B R_B and Aᵀ = Q_A R_A, the core R_B R_Aᵀ
    (at most r × r) has the same singular values, and its right singular vectors are V in the
    basis Q_A. Cost O((in + out + r)·r²).

    Args:
        a: A, shape (r, in), finite.
        b: B, shape (out, r), finite.

    Returns:
        A' of shape (r, in) and B' of shape (out, r), in float64.
    """
    a, b = a.to(torch.float64), b.to(torch.float64)
    r_b = torch.linalg.qr(b, mode="r").R  # (min(out, r), r)
    q_a, r_a = torch.linalg.qr(a.T)  # (in, n), (n, r) with n = min(in, r)
    v_t = torch.linalg.svd(r_b @ r_a.T, full_matrices=True).Vh  # (n, n), also when out < n
    rows = _signed(v_t @ q_a.T)

    new_a, new_b = torch.zeros_like(a), torch.zeros_like(b)
    new_a[: len(rows)] = rows
    new_b[:, : len(rows)] = b @ (a @ rows.T)
    return new_a, new_b


def factorise(product: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors (A, B) of the closest matrix to ``product`` of at most this rank.

    As those of :func:`refactorise`. The distance, √(Σ_{i > rank} σ_i²) in the Frobenius norm for
    the singular values σ of ``product``, is the least there is (Eckart and Young 1936).

    Args:
        product: shape (out, in), finite.
        rank: at least 1; beyond min(out, in) rows and columns are zero.

    Returns:
        A of shape (rank, in) and B of shape (out, rank), in float64.
    """
    product = product.to(torch.float64)
    v_t = torch.linalg.svd(product, full_matrices=False).Vh
    rows = _signed(v_t[:rank])
    a = torch.zeros(rank, product.shape[1], dtype=torch.float64)
    b = torch.zeros(product.shape[0], rank, dtype=torch.float64)
    a[: len(rows)] = rows
    b[:, : len(rows)] = product @ rows.T
    return a, b


def cut_factors(state: Mapping[str, torch.Tensor], rank: int) -> dict[str, torch.Tensor]:
    """The state with every LoRA pair replaced by the closest product of at most this rank.

    Args:
        state: an adapter state, float32.
        rank: below the state's own.

    Returns:
        A of shape (rank, in) with orthonormal rows and B of shape (out, rank), float32; the
        other tensors as they are.
    """
    cut = dict(state)
    for name_a, name_b in factor_pairs(state).values():
        a, b = refactorise(state[name_a], state[name_b])
        cut[name_a] = a[:rank].float().contiguous()
        cut[name_b] = b[:, :rank].float().contiguous()
    return cut


def filled_up(tensor: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """The tensor with zeros behind it in every axis, up to ``shape``."""
    if tensor.shape == shape:
        return tensor
    full = torch.zeros(shape, dtype=tensor.dtype)
    full[tuple(slice(size) for size in tensor.shape)] = tensor
    return full


def _signed(rows: torch.Tensor) -> torch.Tensor:
    """The rows, each with its entry of largest magnitude positive."""
    largest = rows.gather(1, rows.abs().argmax(dim=1, keepdim=True))
    return torch.where(largest < 0, -rows, rows)
