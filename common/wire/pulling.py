"""Flower's way of fetching a message's contents, without its pause of a second.

A message arrives in parts: first that it is there, then its objects. Whoever looks in between
finds an object missing, and Flower looks again after a second, then two, and so on to ten. On a
machine that is asked often most messages are met in between. Here the first pause is short; it
doubles up to Flower's own ten seconds.
"""

from __future__ import annotations

from types import ModuleType

_FIRST = 0.05  # seconds
_NAME = "initial_backoff"


def pull_promptly(inflating: ModuleType | None = None) -> bool:
    """Put the short pause in place; False, and nothing changed, if Flower is not as known.

    Args:
        inflating: Flower's module that pulls objects; None imports it.
    """
    if inflating is None:
        from flwr.supercore.inflatable import inflatable_utils

        inflating = inflatable_utils
    defaults = getattr(getattr(inflating, "pull_objects", None), "__kwdefaults__", None)
    if not isinstance(defaults, dict) or not isinstance(defaults.get(_NAME), int | float):
        return False
    defaults[_NAME] = min(_FIRST, defaults[_NAME])
    return True
