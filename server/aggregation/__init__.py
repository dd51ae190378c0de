"""Aggregation rules: from the sites' updates of one round to the next global adapter.

One module per rule, each a class registered with
:func:`~lorica.server.aggregation.means.weighted.rule`: :mod:`fedavg`, :mod:`ffa`, :mod:`fedsvd`,
:mod:`rolora`, :mod:`la_lora`, :mod:`fedex`, :mod:`flora`, :mod:`flexlora`, :mod:`fedsa`. What a
rule asks of the sites (which tensors they train, send and keep) is the table in
:mod:`lorica.common.plan.methods`. Before any of them may come a robust rule (:mod:`robust`), which
decides which updates it gets to see; after the mean a server optimiser (:mod:`server_optimizer`).

Notation in the docstrings: site k has weight w_k and share p_k = w_k / Σ w; B_k (out, r) and
A_k (r, in) are its LoRA factors after local training, B̄ = Σ p_k B_k and Ā = Σ p_k A_k. The
adapted weight is W + s·B·A with the scaling s = alpha / r. A rule is *exact* when its product
equals Σ p_k B_k A_k; s multiplies both sides and plays no part.

Every rule is post-processing of what the sites have noised and sent: it costs no epsilon beyond
the sites' own.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection

from lorica.common.adapter.state import State
from lorica.common.errors import Code, LoricaError
from lorica.server.aggregation.aggregator import Aggregator
from lorica.server.aggregation.means import (  # noqa: F401  (fill RULES)
    fedavg,
    fedex,
    fedsa,
    fedsvd,
    ffa,
    flexlora,
    flora,
    la_lora,
    rolora,
)
from lorica.server.aggregation.means.server_optimizer import ServerOptimizer
from lorica.server.aggregation.means.weighted import RULES, rule

__all__ = ["RULES", "Aggregator", "State", "aggregator", "rule"]


def aggregator(
    method: str,
    start: State,
    names: Collection[str] | None = None,
    optimizer: ServerOptimizer | None = None,
) -> Aggregator:
    """A fresh aggregator for one round.

    Args:
        method: name of the rule, the plan's ``aggregation.method``.
        start: the global state that the round starts from: all tensors, float32.
        names: the tensors that the round trains; those of the method's first round when omitted.
        optimizer: makes a move of the mean update; None takes it as it is.

    Raises:
        LoricaError: LOR-103 when there is no such rule.
    """
    if method not in RULES:
        close = difflib.get_close_matches(method, RULES, n=1, cutoff=0.5)
        hint = f" Did you mean '{close[0]}'?" if close else ""
        raise LoricaError(
            Code.PLAN_BAD_VALUE,
            f"aggregation.method must be one of {', '.join(RULES)}, got {method!r}.{hint}",
        )
    return RULES[method](start, names, optimizer)
