"""Divide a data set among virtual sites. Records of one unit always stay together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from lorica.common.data.records import Records
from lorica.common.errors import Code, LoricaError
from lorica.common.plan.course import SimulationPlan

_ATTEMPTS = 200
_SMALLEST = 0.5


def partition(
    records: Records, plan: SimulationPlan, strata: Sequence[str] | None = None
) -> dict[str, list[int]]:
    """Rows of every site by its name, in the plan's way.

    Args:
        records: the training data.
        plan: how to divide, among how many, with which seed.
        strata: the class of every record that "dirichlet" divides unevenly; its label when
            omitted.

    Returns:
        Site name -> rows, every row at exactly one site. Names are "site-00" … or, by column,
        the column's values.

    Raises:
        LoricaError: LOR-309 when the data cannot be divided so.
    """
    if plan.partition == "by-column":
        return _by_column(records)
    units = _units(records)
    if len(units) < plan.sites:
        raise LoricaError(
            Code.DATA_PARTITION,
            f"{len(units)} units cannot be divided among {plan.sites} sites.",
        )
    generator = np.random.default_rng(plan.seed)
    if plan.partition == "iid":
        assigned = _iid(units, plan.sites, generator)
    else:
        assigned = _dirichlet(strata or records.labels, units, plan, generator)
    width = max(2, len(str(plan.sites - 1)))
    return {f"site-{i:0{width}d}": sorted(rows) for i, rows in enumerate(assigned)}


def _units(records: Records) -> list[list[int]]:
    rows: dict[str, list[int]] = {}
    for row, unit in enumerate(records.units):
        rows.setdefault(unit, []).append(row)
    return list(rows.values())


def _iid(units: list[list[int]], sites: int, generator: np.random.Generator) -> list[list[int]]:
    parts = np.array_split(generator.permutation(len(units)), sites)
    return [[row for unit in part for row in units[unit]] for part in parts]


def _dirichlet(
    strata: Sequence[str],
    units: list[list[int]],
    plan: SimulationPlan,
    generator: np.random.Generator,
) -> list[list[int]]:
    """Every label's units are divided by shares drawn from Dirichlet(alpha, …, alpha).

    Self-balancing, as in NIID-Bench (Li et al. 2022, arXiv 2102.02079) and Flower Datasets: a
    site that has its equal share of records gets none of the labels still to be divided. Drawn
    anew while a site is left with less than ``_SMALLEST`` of an equal share; after
    ``_ATTEMPTS`` draws the one whose smallest site is largest is taken.
    """
    by_label: dict[str, list[list[int]]] = {}
    for rows in units:
        label = Counter(strata[row] for row in rows).most_common(1)[0][0]
        by_label.setdefault(label, []).append(rows)
    equal = len(strata) / plan.sites
    best: list[list[int]] = []
    most = 0
    for _ in range(_ATTEMPTS):
        sites: list[list[int]] = [[] for _ in range(plan.sites)]
        for label in generator.permutation(sorted(by_label)):
            members = by_label[str(label)]
            shares = generator.dirichlet([plan.alpha] * plan.sites)
            shares *= [len(site) < equal for site in sites]
            if shares.sum() == 0:  # a tiny alpha put all on sites that are full
                shares = np.array([len(site) < equal for site in sites], dtype=float)
            cuts = np.rint(np.cumsum(shares / shares.sum())[:-1] * len(members)).astype(int)
            for site, part in enumerate(np.split(generator.permutation(len(members)), cuts)):
                sites[site] += [row for unit in part for row in members[unit]]
        fewest = min(map(len, sites))
        if fewest > most:
            best, most = sites, fewest
        if most >= _SMALLEST * equal:
            break
    if not best:
        raise LoricaError(
            Code.DATA_PARTITION,
            f"In {_ATTEMPTS} Dirichlet draws with simulation.alpha={plan.alpha:g} one of "
            f"{plan.sites} sites was always left without a record.",
        )
    return best


def _by_column(records: Records) -> dict[str, list[int]]:
    sites: dict[str, list[int]] = {}
    for row, value in enumerate(records.groups):
        if not value.strip():
            raise LoricaError(
                Code.DATA_PARTITION, f"Record {row + 1} has no value in simulation.column."
            )
        sites.setdefault(value, []).append(row)
    owner: dict[str, str] = {}
    for site, rows in sites.items():
        for row in rows:
            if owner.setdefault(records.units[row], site) != site:
                raise LoricaError(
                    Code.DATA_PARTITION,
                    f"Unit '{records.units[row]}' has records at two sites, '{site}' and "
                    f"'{owner[records.units[row]]}'; its guarantee would be that of both together.",
                )
    return {site: sites[site] for site in sorted(sites)}
