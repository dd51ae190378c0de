"""Flower's pause before it looks again for a message's contents is short."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import cast

import pytest
from flwr.supercore.inflatable import inflatable_utils
from flwr.supercore.inflatable.inflatable_utils import ObjectUnavailableError, pull_objects

from lorica.common.wire.pulling import pull_promptly


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    before = copy.copy(pull_objects.__kwdefaults__)
    yield
    pull_objects.__kwdefaults__ = before


def test_an_object_that_comes_late_is_found_soon_after() -> None:
    pauses = []

    def pull(_: str) -> bytes:
        pauses.append(time.monotonic())
        if len(pauses) < 4:
            raise ObjectUnavailableError("not yet")
        return b"here"

    assert pull_promptly()
    assert pull_objects(["one"], pull) == {"one": b"here"}
    assert len(pauses) == 4
    assert pauses[-1] - pauses[0] < 3  # Flower's own pauses are 1 + 2 + 4 s, a fifth less at least


def test_a_pause_is_never_made_longer() -> None:
    pull_objects.__kwdefaults__["initial_backoff"] = 0.01
    assert pull_promptly(inflatable_utils)
    assert pull_objects.__kwdefaults__["initial_backoff"] == 0.01


@pytest.mark.parametrize(
    "other",
    [
        SimpleNamespace(),
        SimpleNamespace(pull_objects=lambda ids: ids),
        SimpleNamespace(pull_objects=SimpleNamespace(__kwdefaults__={"initial_backoff": "soon"})),
    ],
)
def test_another_flower_stays_as_it_is(other: SimpleNamespace) -> None:
    before = copy.deepcopy(other)
    assert not pull_promptly(cast(ModuleType, other))
    assert vars(other).keys() == vars(before).keys()
