"""Incremental composition: never below the exact ε, close to it, quick, and safe to cache."""

from __future__ import annotations

import contextlib
import math
import os
import random
import sqlite3
import time
from pathlib import Path

import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import norm

from lorica.client.ledger import composer as composing
from lorica.client.ledger.blocks import BlockFile, _digest, _pack, cache_path
from lorica.client.ledger.composer import Composer, Grown
from lorica.client.ledger.losses import Block, Loss, coarsen, cut
from lorica.common.privacy.accountant import epsilon
from lorica.common.privacy.event import PrivacyEvent
from tests.client.ledger.helpers import OPEN, charge, open_ledger

DELTA = 1e-5


def mixed(count: int, seed: int = 0) -> list[PrivacyEvent]:
    """Heterogeneous rounds, each with its own σ and q, cheap to discretise."""
    draw = random.Random(seed)
    return [
        PrivacyEvent(draw.uniform(4, 10), draw.uniform(0.02, 0.2), draw.randint(1, 8))
        for _ in range(count)
    ]


def optimistic(events: list[PrivacyEvent]) -> float:
    """A lower bound on the exact ε, by dp-accounting's optimistic discretisation."""
    total = None
    for event in events:
        part = privacy_loss_distribution.from_gaussian_mechanism(
            event.noise_multiplier,
            pessimistic_estimate=False,
            use_connect_dots=False,
            value_discretization_interval=2e-5,
            sampling_prob=event.sample_rate,
        ).self_compose(event.steps)
        total = part if total is None else total.compose(part)
    return total.get_epsilon_for_delta(DELTA)


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Exact ε of the Gaussian mechanism (Balle and Wang 2018, theorem 8)."""

    def excess(value: float) -> float:
        tail = norm.logcdf(-mu / 2 - value / mu) + value
        return norm.cdf(mu / 2 - value / mu) - math.exp(tail) - delta

    return brentq(excess, 0, 500, xtol=1e-12)


class TestBounds:
    @pytest.mark.parametrize("seed", range(3))
    def test_never_below_the_exact_composition_and_within_a_percent(self, seed):
        events = mixed(7, seed)
        found = Composer(DELTA).epsilon(events)
        assert optimistic(events) <= found <= 1.01 * epsilon(events, DELTA)

    @pytest.mark.parametrize(
        "events",
        [
            [PrivacyEvent(1.0, 0.02, 3), PrivacyEvent(1.3, 0.01, 5), PrivacyEvent(0.8, 0.03, 2)],
            [PrivacyEvent(50, 0.01, 2), PrivacyEvent(2.0, 0.05, 1), PrivacyEvent(3, 0.5, 7)],
            [PrivacyEvent(0.7, 0.005, 10), PrivacyEvent(0.8, 0.02, 5), PrivacyEvent(30, 1, 9)],
        ],
    )
    def test_rounds_of_very_different_size_compose_within_a_percent(self, events):
        found, direct = Composer(DELTA).epsilon(events), epsilon(events, DELTA)
        assert 0.9999 * direct <= found <= 1.01 * direct

    @pytest.mark.parametrize("delta", [1e-5, 1e-8])
    @pytest.mark.parametrize("sigmas", [[1.0, 2.0, 3.0], [9.0, 30.0, 12.0, 80.0, 7.0], [0.5, 4, 6]])
    def test_unsampled_gaussians_match_the_closed_form(self, sigmas, delta):
        events = [PrivacyEvent(sigma, 1.0, n + 1) for n, sigma in enumerate(sigmas)]
        mu = math.sqrt(sum(e.steps / e.noise_multiplier**2 for e in events))
        exact = gaussian_epsilon(mu, delta)
        found = Composer(delta).epsilon(events)
        assert exact <= found <= 1.005 * exact

    def test_what_is_shown_of_simple_histories_is_the_accountant_of_record_s(self):
        events = [PrivacyEvent(5.0, 0.1, 4), PrivacyEvent(15.0, 0.1, 1)] * 6
        assert Composer(DELTA).record(events) == epsilon(events, DELTA)
        assert Composer(DELTA).record(mixed(9)) == Composer(DELTA).epsilon(mixed(9))

    def test_repeated_rounds_share_their_blocks(self):
        composer, direct = Composer(DELTA), epsilon([PrivacyEvent(5.0, 0.1, 2048)], DELTA)
        assert direct <= composer.epsilon([PrivacyEvent(5.0, 0.1, 4)] * 512) <= 1.01 * direct
        assert len(composer._memory) == 10

    def test_a_bound_just_above_the_budget_is_refined(self):
        events = mixed(5)
        exact = epsilon(events, DELTA)
        rough = Composer(DELTA).epsilon(events)
        assert rough > exact  # else this test shows nothing
        assert Composer(DELTA).epsilon(events, budget=exact) == exact

    def test_no_events_cost_nothing_and_no_noise_costs_everything(self):
        assert Composer(DELTA).epsilon([]) == 0.0
        assert Composer(DELTA).epsilon([*mixed(3), PrivacyEvent(0.0, 0.1, 1)]) == math.inf

    def test_epsilon_never_falls_as_rounds_are_added(self):
        events, composer = mixed(40), Composer(DELTA)
        found = [composer.epsilon(events[:count]) for count in range(len(events) + 1)]
        assert found == sorted(found)


def divergence(loss: Loss, at: float) -> float:
    """δ(ε) of a discretised loss."""
    losses = (loss.lower + np.arange(len(loss.masses))) * loss.interval
    return loss.infinity + float(loss.masses @ np.maximum(0.0, -np.expm1(at - losses)))


losses = st.builds(
    lambda masses, lower: Loss(2.0**-6, lower, np.array(masses) / sum(masses), 1e-7),
    st.lists(st.floats(0.001, 1.0), min_size=1, max_size=60),
    st.integers(-50, 20),
)


class TestPessimism:
    @settings(deadline=None, max_examples=60)
    @given(losses, st.integers(1, 5), st.floats(-1.0, 1.5))
    def test_coarsening_lowers_no_divergence_and_keeps_both_masses(self, loss, doublings, at):
        coarse = coarsen(loss, loss.interval * 2**doublings)
        assert divergence(coarse, at) >= divergence(loss, at) - 1e-12

        def masses(of: Loss) -> tuple[float, float]:
            grid = (of.lower + np.arange(len(of.masses))) * of.interval
            return float(of.masses.sum()), float(of.masses @ np.exp(-grid))

        assert masses(coarse) == pytest.approx(masses(loss), rel=1e-12)

    @settings(deadline=None, max_examples=60)
    @given(losses, st.floats(1e-14, 0.2), st.floats(-1.0, 1.5))
    def test_cutting_tails_lowers_no_divergence(self, loss, tail, at):
        assert divergence(cut(loss, tail), at) >= divergence(loss, at) - 1e-12


class TestCache:
    def test_a_history_grown_round_by_round_equals_one_composed_at_once(self, tmp_path):
        events, grown = mixed(21), Composer(DELTA, BlockFile(tmp_path / "blocks"))
        for count in range(1, 22):
            last = grown.epsilon(events[:count])
        assert last == Composer(DELTA).epsilon(events)

    def test_blocks_survive_a_restart_unchanged(self, tmp_path, monkeypatch):
        events = mixed(16)
        before = Composer(DELTA, BlockFile(tmp_path / "blocks")).epsilon(events)
        monkeypatch.setattr("lorica.client.ledger.composer.leaf", None)  # nothing to compose
        assert Composer(DELTA, BlockFile(tmp_path / "blocks")).epsilon(events) == before

    def test_a_damaged_block_is_composed_anew(self, tmp_path):
        events, file = mixed(16), tmp_path / "blocks"
        store = BlockFile(file)
        before = Composer(DELTA, store).epsilon(events)
        store.close()
        with sqlite3.connect(file) as connection:
            (block,) = connection.execute("SELECT block FROM blocks LIMIT 1").fetchone()
            connection.execute("UPDATE blocks SET block = ?", (block[:200] + b"\0" * 800,))
        assert Composer(DELTA, BlockFile(file)).epsilon(events) == before

    @staticmethod
    def understating(file):
        """A file whose blocks say, with digests that are right, that nothing was lost."""
        nothing = Loss(2.0**-12, 0, np.ones(1), 0.0)
        store = BlockFile(file)
        Composer(DELTA, store).epsilon(mixed(16))
        store.close()
        data = _pack(Block(nothing, nothing))
        with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as connection:
            for (key,) in connection.execute("SELECT key FROM blocks").fetchall():
                new = (data, _digest(key, data), key)
                connection.execute("UPDATE blocks SET block = ?, digest = ? WHERE key = ?", new)

    @pytest.mark.parametrize("read_only", [False, True])
    @pytest.mark.parametrize("whose", ["a link's", "a group's", "a folder's", "another's"])
    def test_blocks_that_others_can_write_are_not_believed(
        self, tmp_path, monkeypatch, whose, read_only
    ):
        file, honest = tmp_path / "blocks", Composer(DELTA).epsilon(mixed(16))
        self.understating(file)
        believed = Composer(DELTA, BlockFile(file, read_only=read_only)).epsilon(mixed(16))
        assert believed < honest / 2, "else this shows nothing"
        if whose == "a link's":
            file.rename(tmp_path / "elsewhere")
            file.symlink_to(tmp_path / "elsewhere")
        elif whose == "a group's":
            file.chmod(0o620)
        elif whose == "a folder's":
            tmp_path.chmod(0o1777)
        elif os.geteuid() == 0:
            os.chown(file, 54321, -1)
        else:
            monkeypatch.setattr(os, "geteuid", lambda: 54321)
        assert Composer(DELTA, BlockFile(file, read_only=read_only)).epsilon(mixed(16)) == honest

    def test_blocks_of_another_version_are_not_believed(self, tmp_path, monkeypatch):
        file, honest = tmp_path / "blocks", Composer(DELTA).epsilon(mixed(16))
        with monkeypatch.context() as older:
            older.setattr("lorica.client.ledger.composer._code", lambda: "older")
            self.understating(file)
            assert Composer(DELTA, BlockFile(file)).epsilon(mixed(16)) < honest / 2
        assert Composer(DELTA, BlockFile(file)).epsilon(mixed(16)) == honest

    def test_a_cache_file_of_noise_changes_nothing(self, tmp_path):
        path = tmp_path / "ledger.sqlite"
        ledger = open_ledger(path)
        ledger.charge(*(charge(r, sigma=8.0 + r) for r in range(9)))
        before = ledger.spending("run")
        ledger.close()
        cache_path(path).write_bytes(random.Random(0).randbytes(9000))
        again = open_ledger(path)
        assert again.spending("run") == before
        assert again.charge(charge(9)).lifetime > before.lifetime

    def test_a_cache_that_cannot_be_written_stops_nothing(self, tmp_path):
        path = tmp_path / "ledger.sqlite"
        cache_path(path).mkdir()
        ledger = open_ledger(path)
        assert ledger.charge(*(charge(r, sigma=8.0 + r) for r in range(9))).lifetime > 0


class TestGrown:
    @pytest.mark.parametrize("at", range(8))
    def test_keys_that_were_half_made_when_memory_ran_out_are_made_anew(self, monkeypatch, at):
        """Else later events would be composed under the keys of others."""
        events, made = mixed(9), []
        grown, composer = Grown(events[:4]), Composer(DELTA)
        node_key = composing._node_key

        def fails(left, right):
            made.append(left)
            if len(made) == at + 1:
                raise MemoryError
            return node_key(left, right)

        with monkeypatch.context() as full:
            full.setattr(composing, "_node_key", fails)
            with pytest.raises(MemoryError):
                for _ in range(8):
                    composer.epsilon(grown, more=events[4:6])
        grown.add(events[4:])
        assert composer.epsilon(grown) == Composer(DELTA).epsilon(events)

    @pytest.mark.parametrize(
        "events",
        [
            mixed(7),
            [PrivacyEvent(7.0, 0.1, 4)] * 13,
            [PrivacyEvent(sigma, 1.0, 1) for sigma in (9, 8, 9)],
            [*mixed(2), PrivacyEvent.of_response(0.25), *mixed(3), PrivacyEvent.of_response(0.5)],
        ],
        ids=["all different", "all alike", "unsampled", "bits among them"],
    )
    def test_what_grew_and_what_comes_after_cost_to_the_bit_what_all_cost_at_once(self, events):
        grown, composer = Grown(), Composer(DELTA)
        for count in range(len(events) + 1):
            assert composer.epsilon(grown) == Composer(DELTA).epsilon(events[:count])
            for other in (mixed(3, seed=count), events[count:], []):
                expected = Composer(DELTA).epsilon([*events[:count], *other])
                assert composer.epsilon(grown, more=other) == expected
            grown.add(events[count : count + 1])

    def test_two_composers_may_ask_of_the_same_events(self):
        grown, others = Grown(mixed(5)), [Composer(DELTA), Composer(1e-7)]
        for _ in range(2):
            found = [one.epsilon(grown, more=mixed(2, seed=1)) for one in others]
            grown.add(mixed(1, seed=2))
        now = [*mixed(5), *mixed(1, seed=2), *mixed(2, seed=1)]
        assert found == [Composer(delta).epsilon(now) for delta in (DELTA, 1e-7)]

    def test_one_event_more_hashes_no_more_than_a_tree_is_high(self, monkeypatch):
        grown, composer = Grown([PrivacyEvent(9.0, 0.05, 1)] * 4095), Composer(DELTA)
        composer.epsilon(grown)
        hashed = []
        node_key, leaf_key = composing._node_key, composing._leaf_key
        monkeypatch.setattr(composing, "_node_key", lambda *a: hashed.append(1) or node_key(*a))
        monkeypatch.setattr(composing, "_leaf_key", lambda *a: hashed.append(1) or leaf_key(*a))
        composer.epsilon(grown, more=[PrivacyEvent(9.0, 0.05, 1)])
        assert 1 <= len(hashed) <= 13


class TestSpeed:
    def test_one_round_more_takes_well_under_a_second(self, tmp_path):
        self._one_round_more(tmp_path / "ledger.sqlite", 150)

    @pytest.mark.slow("a thousand rounds are charged first")
    def test_one_round_more_on_a_thousand_takes_well_under_a_second(self, tmp_path):
        self._one_round_more(tmp_path / "ledger.sqlite", 1000)

    @staticmethod
    def _one_round_more(path: Path, rounds: int) -> None:
        draw = random.Random(0)

        def asked(round: int):
            sigma, rate = draw.uniform(4, 10), draw.uniform(0.02, 0.2)
            return charge(round, sigma=sigma, rate=rate)

        ledger = open_ledger(path)
        ledger.charge(*(asked(round) for round in range(rounds)))
        start = time.perf_counter()
        ledger.charge(asked(rounds))
        warm = time.perf_counter() - start
        ledger.close()
        start = time.perf_counter()
        ledger = open_ledger(path, budgets=OPEN)
        ledger.charge(asked(rounds + 1))
        restarted = time.perf_counter() - start
        assert warm < 1.0
        assert restarted < 2.0
