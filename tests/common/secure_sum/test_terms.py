"""The numbers of a sum, against what their proofs need and against simulated graphs."""

from __future__ import annotations

import random

import pytest

from lorica.common.errors import Code, LoricaError
from lorica.common.secure_sum.graph import Neighbours
from lorica.common.secure_sum.terms import COMPLETE, MOST_SITES, terms


def test_every_allowed_choice_has_what_the_proofs_need() -> None:
    for sites in range(2, COMPLETE + 1):
        for honest in range(2, sites + 1):
            for fewest in range(1, sites + 1):
                found = terms(sites, honest, fewest)
                assert found.threshold >= max(honest, fewest)
                assert 2 * found.threshold > sites + found.colluders
                assert found.colluders < found.shares == found.threshold <= sites
                # A site outside of the survivors: shares of its mask by those told "everybody".
                assert found.dropouts + found.colluders < found.shares


@pytest.mark.parametrize(
    ("sites", "honest", "fewest"), [(50, 45, 1), (200, 150, 160), (1000, 900, 1), (1000, 800, 850)]
)
def test_a_sparse_graph_holds_colluders_and_dropouts_drawn_at_random(
    sites: int, honest: int, fewest: int
) -> None:
    found = terms(sites, honest, fewest)
    assert found.neighbours < sites - 1
    assert found.shares > found.neighbours // 2 + 1
    chance = random.Random(3)
    for trial in range(5):
        graph = Neighbours(bytes([trial]) * 32, found)
        bad = set(chance.sample(range(sites), found.colluders))
        gone = set(chance.sample(range(sites), found.dropouts))
        for site in range(sites):
            around = graph.of(site)
            assert len(around) == found.neighbours
            assert len(bad.intersection(around)) <= found.shares - found.neighbours // 2 - 2
            if site not in gone:
                assert 1 + len(set(around) - gone) >= found.shares


def test_neighbours_are_mutual_and_depend_on_the_context() -> None:
    found = terms(60, 50)
    graph, other = Neighbours(b"a" * 32, found), Neighbours(b"b" * 32, found)
    for site in range(60):
        assert all(site in graph.of(neighbour) for neighbour in graph.of(site))
    assert any(graph.of(site) != other.of(site) for site in range(60))


def test_no_part_of_a_circle_can_be_cut_off_and_opened() -> None:
    # Whatever part of the survivors a coordinator drops: where the rest falls apart, an end of
    # each part has too few shares left.
    found = terms(60, 50)
    graph = Neighbours(b"c" * 32, found)
    half = found.neighbours // 2
    circle = graph._circle
    cut = set(circle[:half]) | set(circle[30 : 30 + half])
    for end in (circle[half], circle[29], circle[30 + half], circle[59]):
        left = {end, *graph.of(end)} - cut
        assert len(left) < found.shares


@pytest.mark.parametrize(
    ("sites", "honest", "fewest"),
    [(3, 1, 1), (3, 4, 1), (3, 3, 4), (MOST_SITES + 1, 9_000, 1), (100, 51, 75)],
)
def test_numbers_that_cannot_be_are_refused(sites: int, honest: int, fewest: int) -> None:
    with pytest.raises(LoricaError) as caught:
        terms(sites, honest, fewest)
    assert caught.value.code is Code.PLAN_BAD_VALUE
