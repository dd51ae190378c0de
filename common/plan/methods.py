"""What each aggregation method asks of sites: which parts of the adapter they train and send.

The rules themselves are the coordinator's (``lorica.server.aggregation``); a site needs only
this table. An adapter state maps names to tensors:

- ``"<module path>.lora_A.weight"``: A, shape (r, in)
- ``"<module path>.lora_B.weight"``: B, shape (out, r)
- ``"<module path>.residual"``: R, shape (out, in), added to the product B·A; "fedex", "flora"
- ``"<module path>.bias"``: a bias of the encoder, shape (out,); adapter kind "bitfit"
- ``"head.weight"``, ``"head.bias"``: shape (labels, hidden), (labels,); a head of several layers
  has more names under ``"head."``
- ``"head.center"``: shape (hidden,), taken from every feature; never trained
"""

from __future__ import annotations

from collections.abc import Collection

from lorica.common.plan.tensors import Part, part_of

_WITH_B = frozenset({Part.B, Part.BIAS, Part.HEAD})
_WITH_A = frozenset({Part.A, Part.BIAS, Part.HEAD})
_WITH_BOTH = _WITH_A | _WITH_B

TURNS: dict[str, tuple[frozenset[Part], ...]] = {
    "fedavg": (_WITH_BOTH,),
    "ffa": (_WITH_B,),
    "fedsvd": (_WITH_B,),
    "rolora": (_WITH_B, _WITH_A),
    "la-lora": (_WITH_BOTH,),
    "fedex": (_WITH_BOTH,),
    "flora": (_WITH_BOTH,),
    "flexlora": (_WITH_BOTH,),
    "fedsa": (_WITH_BOTH,),
}
"""Method -> the parts that sites train, by round: the first set in the first round that trains
LoRA factors, and so on, again from the first after the last. They send all of it but PERSONAL."""

STEP_TURNS: dict[str, tuple[frozenset[Part], ...]] = {"la-lora": (_WITH_B, _WITH_A)}
"""The same by local step within a round, for methods whose steps train less than the round."""

TRAINED_PARTS: dict[str, frozenset[Part]] = {
    method: frozenset().union(*turns) for method, turns in TURNS.items()
}
"""Method -> the parts that sites train in any round; the rest stays as the coordinator sent it."""

PERSONAL: dict[str, frozenset[Part]] = {"fedsa": frozenset({Part.B, Part.HEAD})}
"""Method -> the parts that every site keeps for itself between rounds and never sends, for
methods that have any."""

AVERAGES_BIASES = frozenset({"fedavg", "ffa", "fedsvd"})
"""Methods for adapters of kind "bitfit": all average biases, which have no product to be exact
about, so that they are one and the same there."""

AVERAGES_PRODUCTS = frozenset({"fedex", "flora", "flexlora"})
"""Methods that need every site's product B·A, not the mean of its factors alone."""

HAS_RESIDUAL = frozenset({"fedex", "flora"})
"""Methods whose adapter has residual weights beside its factors."""

ANY_RANK = frozenset({"flora", "flexlora"})
"""Methods under which sites may train at a lower rank than the plan's."""

LOCAL_ONLY = AVERAGES_PRODUCTS | STEP_TURNS.keys() | PERSONAL.keys()
"""Methods that need training.mode "local": where all sites differentiate at one common adapter,
once a round, there is no mean of products to correct, no local step to alternate with, and no
adapter of a site's own."""


def is_trained(method: str, name: str, turn: int | None = None) -> bool:
    """Whether sites train the tensor ``name`` under ``method``.

    Args:
        method: the plan's ``aggregation.method``.
        name: of a tensor of the adapter state.
        turn: number of the round within those that train LoRA factors, from 1; None asks
            whether any round does.
    """
    turns = TURNS[method]
    parts = TRAINED_PARTS[method] if turn is None else turns[(turn - 1) % len(turns)]
    return part_of(name) in parts


def is_personal(method: str, name: str) -> bool:
    """Whether every site has a value of its own of the tensor ``name`` under ``method``."""
    return part_of(name) in PERSONAL.get(method, ())


def is_returned(method: str, name: str, turn: int | None = None) -> bool:
    """Whether sites train the tensor ``name`` and send it back; as :func:`is_trained`."""
    return is_trained(method, name, turn) and not is_personal(method, name)


def alternates(method: str) -> bool:
    """Whether rounds or local steps of the method train different parts in turn."""
    return len(TURNS[method]) > 1 or method in STEP_TURNS


def step_turns(method: str, names: Collection[str]) -> list[list[str]]:
    """Which of a round's trained tensors each local step trains: the first list in the first
    step and so on, again from the first after the last; one list when all steps train all."""
    turns = STEP_TURNS.get(method, (frozenset(Part),))
    return [[name for name in names if part_of(name) in parts] for parts in turns]
