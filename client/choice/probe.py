"""What linear heads on several backbones' frozen features are worth, at one ε for all of them.

Formal guarantee:
    *Neighbouring relation*: one unit added or removed. Whether a unit is set aside follows from its
    own name (or text) and a secret alone
    (:func:`~lorica.client.mechanism.evaluation.aside_by`), so neighbouring data sets differ in one
    of the two parts, and the parts compose in parallel: the whole is (ε, δ)-DP where each part is.
    *Training part*: for each of K backbones one release of the sums of every label's extended
    features (:mod:`lorica.client.mechanism.frozen_features`, *Label sums*, sampling rate 1) with
    noise multiplier σ: K Gaussian mechanisms, for which the accountant of record calibrates σ.
    Heads are made of the released sums alone. *Judging part*: one release of
    Σ_u (1, a_u1, …, a_uK), where a_uk in [0, 1] is the share of unit u's records that head k
    answers rightly, of L2 norm at most √(1 + K), with noise multiplier σ' for one step. Accuracies
    are quotients of its numbers: post-processing.

    Not covered: time and memory; and the list of labels, which has to be public. Where it is read
    from the data, a single unit that brings a new label changes every answer by the noise of a
    label nobody else has, and no (ε, δ) holds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lorica.client.mechanism.clipping import blocks, factors_of, row_norms, scaled_sum
from lorica.client.mechanism.frozen_features import label_contributions, noised_sum
from lorica.client.mechanism.noise import NoiseSource
from lorica.client.mechanism.row_products import RowProducts
from lorica.common.privacy.accountant import calibrate_noise
from lorica.common.privacy.event import PrivacyEvent

_COUNTING = 0.3
"""The constant by which features are extended, so that sums hold numbers of records. A larger one
counts better, and leaves less of the unit norm to the features."""


@dataclass(frozen=True)
class Probed:
    """Accuracies of K heads by noised counts."""

    accuracies: list[float]
    band: float
    """Half-width of a 95 % band of one accuracy for the noise; 0 without."""
    training_noise: float
    """σ of every backbone's sums."""
    judging_noise: float
    """σ' of the counts."""


def label_means(
    features: torch.Tensor,
    labels: torch.Tensor,
    count: int,
    owner: torch.Tensor,
    noise_multiplier: float,
    noise: NoiseSource,
) -> torch.nn.Linear:
    """A head whose row for a label is the noised mean of its features less that of all records.

    Features are extended by a constant and scaled to norm 1, so that one release holds every
    label's sum and its number of records. A number is taken to be at least what noise alone gives,
    so that rare labels do not win by their noise.

    Args:
        features: unit norm, of the records to train on, shape (n, H).
        labels: theirs, shape (n,), int64.
        count: number of labels C.
        owner: number of every record's unit, from 0 without gaps.
        noise_multiplier: σ.
        noise: its source.
    """
    length = math.sqrt(1 + _COUNTING**2)
    constant = torch.full((len(features), 1), _COUNTING, dtype=torch.float64)
    extended = torch.cat([features.double(), constant], 1) / length
    given = label_contributions(extended, labels, count)
    event = PrivacyEvent(noise_multiplier, 1.0, 1)
    released = noised_sum(given, owner, event, noise).double() * length
    counts = released[:, -1] / _COUNTING
    middle = released[:, :-1].sum(0) / counts.sum().clamp(min=1.0)
    apart = released[:, :-1] - counts.clamp(min=0.0)[:, None] * middle
    apart /= counts.clamp(min=max(1.0, noise_multiplier * length / _COUNTING))[:, None]
    head = torch.nn.Linear(features.shape[1], count).requires_grad_(False)
    head.weight.copy_(apart)
    head.bias.copy_(-apart @ middle)  # what is read is a record's feature less the middle
    return head


def probe(
    features: Sequence[torch.Tensor],
    labels: torch.Tensor,
    count: int,
    aside: np.ndarray,
    units: Sequence[str],
    epsilon: float,
    delta: float,
    noise: NoiseSource,
) -> Probed:
    """Train a head on every backbone's features and judge all of them.

    Args:
        features: of all records by every backbone, unit norm, shape (N, H) each.
        labels: of all records, shape (N,), int64.
        count: number of labels.
        aside: records to judge on, bool (N,), whole units.
        units: of all records.
        epsilon: of the whole; inf: no noise.
        delta: of the whole.
        noise: source of the noise.
    """
    train, judged = np.flatnonzero(~aside), np.flatnonzero(aside)
    sigma = calibrate_noise(epsilon, delta, 1.0, len(features))
    sigma_judging = calibrate_noise(epsilon, delta, 1.0, 1)
    owner = _numbers([units[int(row)] for row in train])
    owner_judged = _numbers([units[int(row)] for row in judged])
    columns = [torch.ones(len(judged), dtype=torch.float64)]
    at, judged_at = torch.from_numpy(train), torch.from_numpy(judged)
    for own in features:
        head = label_means(own[at], labels[at], count, owner, sigma, noise)
        products, bias = RowProducts(head.weight.double()), head.bias.double()
        parts = [
            (products(rows.double()) + bias)[:given].argmax(1)
            for rows, given in blocks(own[judged_at])
        ]
        answers = torch.cat(parts) if parts else labels[:0]
        columns.append((answers == labels[judged_at]).double())
    sizes = torch.bincount(owner_judged).double()
    shares = torch.zeros(len(sizes), 1 + len(features), dtype=torch.float64)
    shares.index_add_(0, owner_judged, torch.stack(columns, 1))
    norm, total = math.sqrt(1 + len(features)), torch.zeros(1 + len(features), dtype=torch.float64)
    exact = sigma_judging > 0
    for rows, _ in blocks(shares / sizes[:, None]):
        factors = factors_of(row_norms([rows]), norm, exact=exact)
        total += scaled_sum(rows, factors, norm, exact=exact)
    released = noise.add_noise(total, sigma_judging * norm).double()
    held = max(1.0, float(released[0]))
    band = 1.96 * sigma_judging * norm / held
    accuracies = [min(max(float(right) / held, 0.0), 1.0) for right in released[1:]]
    return Probed(accuracies, band, sigma, sigma_judging)


def _numbers(units: Sequence[str]) -> torch.Tensor:
    place = {unit: number for number, unit in enumerate(dict.fromkeys(units))}
    return torch.tensor([place[unit] for unit in units], dtype=torch.int64)
