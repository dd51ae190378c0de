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

from collections.abc import Callable, Collection
from dataclasses import dataclass

from lorica.common.plan.tensors import Part, part_of

Parts = frozenset[Part]

_WITH_B: Parts = frozenset({Part.B, Part.BIAS, Part.HEAD})
_WITH_A: Parts = frozenset({Part.A, Part.BIAS, Part.HEAD})
_WITH_BOTH: Parts = _WITH_A | _WITH_B


@dataclass(frozen=True)
class Method:
    """What one method asks of sites."""

    turns: tuple[Parts, ...] = (_WITH_BOTH,)
    """The parts that sites train, by round: the first in the first round that trains LoRA factors,
    and so on, again from the first after the last. Sites send all of it but ``personal``."""
    step_turns: tuple[Parts, ...] = ()
    """The same by local step within a round, where steps train less than the round; else empty."""
    personal: Parts = frozenset()
    """The parts that every site keeps for itself between rounds and never sends."""
    averages_biases: bool = False
    """Whether it takes adapters of kind "bitfit". All that do average biases, which have no
    product to be exact about, so that they are one and the same there."""
    averages_products: bool = False
    """Whether it needs every site's product B·A, not the mean of its factors alone."""
    residual: bool = False
    """Whether its adapter has residual weights beside its factors."""
    any_rank: bool = False
    """Whether sites may train at a lower rank than the plan's."""

    @property
    def trained(self) -> Parts:
        """The parts that sites train in any round; the rest stays as the coordinator sent it."""
        return frozenset[Part]().union(*self.turns)

    @property
    def local_only(self) -> bool:
        """Whether it needs training.mode "local": where all sites differentiate at one common
        adapter, once a round, there is no mean of products to correct, no local step to alternate
        with, and no adapter of a site's own."""
        return self.averages_products or bool(self.step_turns) or bool(self.personal)


METHODS: dict[str, Method] = {
    "fedavg": Method(averages_biases=True),
    "ffa": Method(turns=(_WITH_B,), averages_biases=True),
    "fedsvd": Method(turns=(_WITH_B,), averages_biases=True),
    "rolora": Method(turns=(_WITH_B, _WITH_A)),
    "la-lora": Method(step_turns=(_WITH_B, _WITH_A)),
    "fedex": Method(averages_products=True, residual=True),
    "flora": Method(averages_products=True, residual=True, any_rank=True),
    "flexlora": Method(averages_products=True, any_rank=True),
    "fedsa": Method(personal=frozenset({Part.B, Part.HEAD})),
}
"""``aggregation.method`` -> what it is."""


def methods_with(quality: Callable[[Method], object]) -> list[str]:
    """Names of the methods for which ``quality`` is true, sorted."""
    return sorted(name for name, method in METHODS.items() if quality(method))


def at_one_adapter(method: str) -> str:
    """The method whose parts sites train where all of them differentiate at one common adapter
    (training.mode "gradient").

    There is no mean of products to correct there: "fedsvd", which trains B alone so that its mean
    is exact, is "fedavg" then, which trains both factors.
    """
    return "fedavg" if method == "fedsvd" else method


def is_trained(method: str, name: str, turn: int | None = None) -> bool:
    """Whether sites train the tensor ``name`` under ``method``.

    Args:
        method: the plan's ``aggregation.method``.
        name: of a tensor of the adapter state.
        turn: number of the round within those that train LoRA factors, from 1; None asks
            whether any round does.
    """
    found = METHODS[method]
    parts = found.trained if turn is None else found.turns[(turn - 1) % len(found.turns)]
    return part_of(name) in parts


def is_personal(method: str, name: str) -> bool:
    """Whether every site has a value of its own of the tensor ``name`` under ``method``."""
    return part_of(name) in METHODS[method].personal


def is_returned(method: str, name: str, turn: int | None = None) -> bool:
    """Whether sites train the tensor ``name`` and send it back; as :func:`is_trained`."""
    return is_trained(method, name, turn) and not is_personal(method, name)


def alternates(method: str) -> bool:
    """Whether rounds or local steps of the method train different parts in turn."""
    return len(METHODS[method].turns) > 1 or bool(METHODS[method].step_turns)


def step_turns(method: str, names: Collection[str]) -> list[list[str]]:
    """Which of a round's trained tensors each local step trains: the first list in the first
    step and so on, again from the first after the last; one list when all steps train all."""
    turns = METHODS[method].step_turns or (frozenset(Part),)
    return [[name for name in names if part_of(name) in parts] for parts in turns]
