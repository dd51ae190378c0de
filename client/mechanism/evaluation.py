"""Evaluate a global adapter on records set aside at the site; only noised counts leave.

Formal guarantee:
    *Neighbouring relation*: one unit added or removed. *Mechanism*: the sum over the units set
    aside of vectors of L2 norm at most Δ (:func:`lorica.common.tasks.noised_metrics.sensitivity`),
    plus N(0, σ²Δ² I): the Gaussian mechanism with noise multiplier σ. Whether a unit is set
    aside depends on its own name (for records without a unit column, on the record's own text)
    and a secret of the site alone, never on a position in the data, so neighbouring data sets
    agree on all other units; and nobody else can tell from a plan which units it trains on. The
    evaluation is charged with its own share of the budget. *Numbers*: a record's judgement depends
    on that record alone, to the bit (:func:`lorica.common.cache.prefix.judgements`), and so do a
    unit's vector, its norm and what it is cut to, in blocks of one shape; the vectors are added on
    a grid, exactly (:mod:`lorica.client.mechanism.clipping`).
"""

from __future__ import annotations

import numpy as np
import torch

from lorica.client.mechanism.clipping import blocks, factors_of, row_norms, scaled_sum
from lorica.client.mechanism.noise import NoiseSource
from lorica.common.data.records import UNNAMED, Records
from lorica.common.machine.secret import derived
from lorica.common.plan import RunPlan
from lorica.common.tasks.noised_metrics import sensitivity, vector_length


def set_aside(records: Records, plan: RunPlan, secret: bytes) -> np.ndarray:
    """Which records are for evaluation: bool (N,); none when the plan has no evaluation.

    Args:
        records: the site's.
        plan: says how large a share is.
        secret: the site's own; of the plan nothing else has a say.
    """
    if not plan.evaluation_rounds:
        return np.zeros(len(records), dtype=np.bool_)
    return aside_by(records, plan.data.validation, secret)


def aside_by(records: Records, share: float, secret: bytes) -> np.ndarray:
    """Whether each record is among this share of the units, by the site's secret: bool (N,)."""
    bound = int(share * 2**64)
    keys = (
        text if unit.startswith(UNNAMED) else unit
        for unit, text in zip(records.units, records.texts, strict=True)
    )
    return np.array([_hashed(secret, key) < bound for key in keys], dtype=np.bool_)


def counts_by_unit(values: torch.Tensor, units: list[str]) -> torch.Tensor:
    """Every unit's contribution to the released vector, shape (units, 1 + L), float64.

    Args:
        values: every record's, as of :meth:`lorica.common.tasks.base.Task.contributions`,
            shape (n, L).
        units: the unit of every record.
    """
    values = torch.cat([torch.ones(len(values), 1, dtype=torch.float64), values], dim=1)
    position = {unit: index for index, unit in enumerate(dict.fromkeys(units))}
    owner = torch.tensor([position[unit] for unit in units], dtype=torch.int64)
    total = torch.zeros(len(position), values.shape[1], dtype=torch.float64)
    total.index_add_(0, owner, values)
    return total / torch.bincount(owner, minlength=len(position)).clamp(min=1)[:, None]


def noised_counts(
    contributions: torch.Tensor, sigma: float, noise: NoiseSource, plan: RunPlan
) -> tuple[float, ...]:
    """The released vector: contributions (units, values), cut to norm Δ, summed, noised."""
    bound = sensitivity(plan)
    total = torch.zeros(vector_length(plan), dtype=torch.float64)
    for block, _ in blocks(contributions):
        factors = factors_of(row_norms([block]), bound, exact=sigma > 0)
        total += scaled_sum(block, factors, bound, exact=sigma > 0)
    return tuple(noise.add_noise(total, sigma * bound).tolist())


def _hashed(secret: bytes, unit: str) -> int:
    return int.from_bytes(derived(secret, "set aside", unit)[:8], "big")
