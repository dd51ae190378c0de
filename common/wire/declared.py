"""What is believed of a number of units that a site declares."""

from __future__ import annotations

_SLACK = 10  # declared figures are rounded, or fixed by hand once


def believed_units(declared: int, undeclared: float) -> float:
    """The most units that a site is taken to have: ten times what it declares.

    Args:
        declared: what the site tells as its number of units; 0: nothing.
        undeclared: what is believed of a site that tells nothing.
    """
    return float(_SLACK * declared) if declared else undeclared
