"""How good an adapter is for each virtual site: also where every site has one of its own.

Two figures, both by the task's headline metric on the test data that all sites have in common:

- *at the site*: the mean over the strata of the targets (for classification: the labels) of the
  metric on each, weighted by the site's own shares, Σ_c p_k(c)·m(c): what the site would see on
  test data distributed like its own. Strata without a test record are left out and the shares
  scaled up.
- *on all test data*: the same without weights. Its mean over sites is what compares with
  methods that have one adapter for all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lorica.client.training.personal import PersonalStore
from lorica.common.adapter.state import State
from lorica.common.plan import RunPlan
from lorica.common.tasks.base import Metrics
from lorica.server.rounds.evaluation import CentralEvaluator

FEWEST = 10
"""Test records of a group that is said to be served worst."""


@dataclass(frozen=True)
class AtSite:
    """Quality of one site's adapter."""

    score: float
    """Headline metric on test data weighted to the site's shares of the strata."""
    on_all_test_data: Metrics


class PersonalEvaluator:
    """Evaluates a shared state with every site's own tensors (methods with ``personal`` parts).

    A run's curve needs a figure after each round, and K sites' adapters on all test data would
    cost K evaluations: so each test record is judged by one site's adapter, in turn. For shares
    such as accuracy that is an unbiased estimate of the mean over sites.
    """

    def __init__(
        self,
        central: CentralEvaluator,
        plan: RunPlan,
        run: str,
        stores: Mapping[str, PersonalStore],
    ) -> None:
        """
        Args:
            central: holds the test data.
            plan: the run's.
            run: its id at the sites.
            stores: where each site keeps its own tensors.
        """
        self._central, self._plan, self._run, self._stores = central, plan, run, stores

    def __call__(self, state: State) -> Metrics:
        """Metrics over the test data, each record judged by one site's adapter."""
        count, found, order = len(self._central.strata), [], []
        for number, site in enumerate(self._stores):
            rows = np.arange(number, count, len(self._stores))
            if len(rows):
                found.append(self._central.judge(self.of(site, state), rows))
                order.append(rows)
        table = torch.cat(found)[np.argsort(np.concatenate(order))]
        return self._central.metrics(table)

    def of(self, site: str, state: State) -> State:
        """The site's whole adapter; before its first local round, the shared state."""
        return state | self._stores[site].load(self._run, self._plan)


class ByStratum:
    """Metrics of one table of judgements, worked out once for each stratum of the test data."""

    def __init__(
        self,
        metrics: Callable[[torch.Tensor], Metrics],
        table: torch.Tensor,
        strata: Sequence[str],
    ) -> None:
        """
        Args:
            metrics: of a table of judgements with at least one row.
            table: an adapter's judgements on all test data, shape (n, S).
            strata: of every test record.
        """
        self._metrics, self._table = metrics, table
        self._rows: dict[str, list[int]] = {}
        for row, stratum in enumerate(strata):
            self._rows.setdefault(stratum, []).append(row)
        self._scores: dict[str, float] = {}
        self._whole = metrics(table)

    def of(self, own: Sequence[str]) -> AtSite:
        """Quality for a site of the adapter; ``own``: strata of every record of the site."""
        counts = Counter(own)
        shares = {stratum: counts[stratum] for stratum in self._rows if counts[stratum]}
        if not shares:
            return AtSite(self._whole.score, self._whole)
        total = sum(shares.values())
        score = sum(share * self._score(stratum) for stratum, share in shares.items()) / total
        return AtSite(score, self._whole)

    def worst(self) -> dict[str, Any] | None:
        """The stratum (for classification: the label) with the lowest headline metric, of those
        with ``FEWEST`` test records; None where there are fewer than two."""
        able = [stratum for stratum, rows in self._rows.items() if len(rows) >= FEWEST]
        if len(able) < 2:
            return None
        name = min(able, key=self._score)
        return {"name": name, "score": self._score(name), "records": len(self._rows[name])}

    def _score(self, stratum: str) -> float:
        if stratum not in self._scores:
            self._scores[stratum] = self._metrics(self._table[self._rows[stratum]]).score
        return self._scores[stratum]


def at_site(
    metrics: Callable[[torch.Tensor], Metrics],
    table: torch.Tensor,
    strata: Sequence[str],
    own: Sequence[str],
) -> AtSite:
    """As :meth:`ByStratum.of`, for one site alone."""
    return ByStratum(metrics, table, strata).of(own)
