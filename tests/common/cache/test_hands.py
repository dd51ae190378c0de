"""Several processes fill one array: the values of one process, to the bit."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from lorica.common.cache.files import CacheFolder
from lorica.common.cache.hands import filled, shared_empty
from lorica.common.cache.shelf import CacheShelf
from tests.common.cache.test_prefix import made


@pytest.mark.parametrize("kept", ["in memory", "in files"])
@pytest.mark.parametrize("adapter", [{"kind": "head"}, {"layers": [-1]}], ids=str)
def test_more_hands_give_the_same_bits(
    small_backbone: Path, tmp_path: Path, adapter: dict[str, object], kept: str
) -> None:
    backbone, classifier, encoded = made(small_backbone, **adapter)
    classifier.make_idle()
    found = []
    for hands in (1, 3):
        shelf = CacheShelf()
        if kept == "in files":
            shelf.keep_in(CacheFolder(tmp_path / str(hands), 2**30))
        states = adapter["kind"] != "head" if "kind" in adapter else True
        shelf.lay_out(
            classifier, encoded, backbone=backbone, states=states, pooled=True, hands=hands
        )
        (cache,) = shelf._held.values()
        rows = np.arange(len(cache.encoded))
        with torch.no_grad():
            found.append((cache._pooled, cache._states, cache.features(classifier, rows[:8])))
    assert (found[0][1] is not None) == states
    for one, other in zip(*found, strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one, other)


def test_every_process_writes_its_part() -> None:
    table = shared_empty((7, 2))

    def part(mine: slice) -> None:
        for number in range(7)[mine]:
            table[number] = torch.tensor([number, os.getpid()], dtype=torch.float64).float()

    filled(part, 3)
    assert table[:, 0].tolist() == list(range(7))
    assert len(set(table[:, 1].tolist())) == 3


def test_what_another_process_leaves_undone_this_one_does() -> None:
    table, here = shared_empty((6, 1)), os.getpid()

    def part(mine: slice) -> None:
        if os.getpid() != here:
            os._exit(9)  # as one that the system ends for its memory
        table[mine] = 1.0

    filled(part, 2)
    assert bool((table == 1).all())


def test_what_fails_everywhere_is_raised_here() -> None:
    def part(mine: slice) -> None:
        if 1 in range(4)[mine]:
            raise ValueError("batch 1")

    with pytest.raises(ValueError, match="batch 1"):
        filled(part, 2)
