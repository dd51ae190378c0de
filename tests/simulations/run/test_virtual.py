"""Virtual sites that are made when they are asked for: nothing spent is forgotten, nothing else
kept, and a run over them ends in the same bits."""

from __future__ import annotations

import gc
import io
import json
import os
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lorica.client.training.together import train_together
from lorica.client.training.trainer import LocalTrainer
from lorica.common.adapter.state import pack_state
from lorica.common.backbone.loading import backbone_of
from lorica.common.cache.prefix import PrefixCache
from lorica.common.display.console import Console
from lorica.common.plan import RunPlan
from lorica.common.tasks import task_of
from lorica.common.tasks.model import AdaptedModel
from lorica.common.tasks.run_data import load_data
from lorica.common.wire.messages import Request
from lorica.simulations.run import virtual
from lorica.simulations.run.simulate import Simulation
from lorica.simulations.run.sites import make_trainers, share_cache
from lorica.simulations.run.summary import FEDERATION

LABELS = ["alpha", "beta"]
SITES = 12


@pytest.fixture
def plan(small_backbone: Path, tmp_path: Path) -> RunPlan:
    """Few texts, each of them many times, at twelve sites."""
    texts = [f"the {word} of the card {number % 3}" for number in range(20) for word in LABELS]
    lines = [f"{text},{text.split()[1]}" for text in texts * 2]
    path = tmp_path / "data.csv"
    path.write_text("\n".join(["text,label", *lines]), encoding="utf-8")
    return RunPlan().replace(
        backbone={"source": str(small_backbone)},
        data={"train": str(path)},
        privacy={"delta": 1e-3},
        adapter={"kind": "head"},
        task={"labels": LABELS},
        rounds={"count": 4, "fraction": 0.25},
        simulation={"sites": SITES, "workers": 1},
    )


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the sites that have spent nothing the last one alone is kept."""
    monkeypatch.setattr(virtual, "_NEWEST", 1)


def run(plan: RunPlan, out: Path) -> tuple[dict[str, torch.Tensor], list[Any], dict[str, Any]]:
    """The last state, who was asked in every round with what came of it, and the summary."""
    summary = Simulation(plan, out, Console(file=io.StringIO(), width=100)).run(report=False)
    rounds = [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]
    told = [[(s["site"], s["status"], s["update_norm"]) for s in one["sites"]] for one in rounds]
    return load_file(out / "checkpoint.safetensors"), told, summary


@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_over_sites_that_are_made_anew_ends_in_the_same_bits(
    workers: int, plan: RunPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reference: every site is kept from the beginning."""
    monkeypatch.setattr(virtual, "_NEWEST", SITES)
    state, told, summary = run(plan, tmp_path / "kept")
    monkeypatch.setattr(virtual, "_NEWEST", 1)
    plan = plan.replace(simulation={"workers": workers})
    other, other_told, other_summary = run(plan, tmp_path / "anew")
    assert len({site for round in told for site, _, _ in round}) > 3, "others were asked in turn"
    assert state.keys() == other.keys()
    assert all(torch.equal(state[name], other[name]) for name in state)
    assert told == other_told
    for part in ("privacy", "label_counts", "score_at_sites"):
        assert summary[part] == other_summary[part]


@pytest.mark.usefixtures("few")
def test_a_site_that_has_spent_stays_and_one_that_has_not_goes(plan: RunPlan) -> None:
    sites = make_trainers(load_data(plan).train, plan)
    state = task_of(plan).start(backbone_of(plan))
    request = Request(plan, FEDERATION, 1, pack_state({n: state[n] for n in state if "head" in n}))
    names = list(sites)
    asked = [sites[name] for name in names]
    spent = asked[:2]
    replies = train_together(spent, request)
    seen = [weakref.ref(site) for site in asked]
    ledgers = [site._ledger_of(plan) for site in spent]
    del asked, spent
    gc.collect()
    assert [one() is None for one in seen] == [False, False, *[True] * (SITES - 3), False]
    again = [sites[name] for name in names[:2]]
    assert [site._ledger_of(plan) for site in again] == ledgers
    assert train_together(again, request) == replies
    assert [len(ledger.history().charges) for ledger in ledgers] == [1, 1], "nothing is paid twice"


@pytest.mark.usefixtures("few")
def test_a_site_that_is_held_elsewhere_is_the_one_that_is_found(plan: RunPlan) -> None:
    """Else one site could have two ledgers."""
    sites = make_trainers(load_data(plan).train, plan)
    first, *others = list(sites)
    held = sites[first]
    for name in others:
        sites[name].capabilities(Request(plan, FEDERATION))
    gc.collect()
    assert sites[first] is held


@pytest.mark.usefixtures("few")
def test_identities_of_sealed_sums_are_kept(plan: RunPlan) -> None:
    sealed = plan.replace(privacy={"trust": "sum", "honest_sites": 3}, rounds={"fraction": 1.0})
    sites = make_trainers(load_data(sealed).train, sealed)
    seen = [weakref.ref(site) for site in sites.values()]
    gc.collect()
    assert all(one() is not None for one in seen)


@pytest.mark.usefixtures("few")
def test_a_site_that_is_asked_for_nothing_is_never_made_in_a_round(
    plan: RunPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: set[str] = set()
    begin = LocalTrainer.begin_training

    def beginning(self: LocalTrainer, request: Request) -> Any:
        trained.add(self.site)
        return begin(self, request)

    monkeypatch.setattr(LocalTrainer, "begin_training", beginning)
    simulation = Simulation(plan, tmp_path / "run", Console(file=io.StringIO(), width=100))
    simulation.run(report=False)
    gc.collect()
    there = {number for number in range(SITES) if number in simulation._trainers._made}
    spent = {number for number, name in enumerate(simulation._trainers) if name in trained}
    assert len(spent) < SITES
    assert spent <= there and len(there - spent) <= 1


def test_a_text_that_many_sites_have_is_encoded_once(
    plan: RunPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    records, backbone = load_data(plan).train, backbone_of(plan)
    rows: list[int] = []
    encoded = AdaptedModel.pooled_of_ids

    def counting(self: AdaptedModel, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        rows.append(len(ids))
        return encoded(self, ids, mask)

    monkeypatch.setattr(AdaptedModel, "pooled_of_ids", counting)
    distinct = len(set(records.texts))
    assert distinct * 8 < len(records)
    share_cache(plan, backbone, records)
    assert sum(rows) <= distinct + 8  # and what fills canonical batches


def test_workers_read_what_was_computed_before_they_began(
    plan: RunPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With fewer threads than the process that they come from, whose bits could be others."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        console = Console(file=io.StringIO(), width=100)
        two = plan.replace(simulation={"workers": 2})
        simulation = Simulation(two, tmp_path / "run", console)
        encoded, log = AdaptedModel.pooled_of_ids, tmp_path / "encoded.txt"

        def counting(self: AdaptedModel, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            with log.open("a") as file:  # of workers, too
                file.write(f"{os.getpid()} {len(ids)}\n")
            return encoded(self, ids, mask)

        cache = PrefixCache._through

        def through(self: PrefixCache, *arguments: Any) -> Any:
            with monkeypatch.context() as patch:
                patch.setattr(AdaptedModel, "pooled_of_ids", counting)
                return cache(self, *arguments)

        monkeypatch.setattr(PrefixCache, "_through", through)
        simulation.run(report=False)
    finally:
        torch.set_num_threads(before)
    rows = log.read_text().splitlines() if log.exists() else []
    assert [row for row in rows if int(row.split()[0]) != os.getpid()] == []
    assert rows, "the test data are encoded here"
