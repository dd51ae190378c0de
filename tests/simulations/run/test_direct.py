"""Direct messages and many sites in one pass: the same bits, charges and refusals as real ones."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, load_file
from torch import Tensor

from lorica.client.ledger import Ledger
from lorica.client.training import models, session, together
from lorica.client.training.session import Session
from lorica.client.training.together import train_together
from lorica.client.training.trainer import LocalTrainer
from lorica.common.adapter.state import State, pack_state
from lorica.common.backbone.loading import backbone_of
from lorica.common.cache.shelf import CacheShelf
from lorica.common.display.console import Console
from lorica.common.plan import RunPlan
from lorica.common.tasks import task_of
from lorica.common.tasks.model import AdaptedModel
from lorica.common.tasks.run_data import load_data
from lorica.common.wire.messages import Reply, Request
from lorica.server.rounds import evaluation
from lorica.simulations.run import sites
from lorica.simulations.run.simulate import Simulation
from lorica.simulations.run.sites import make_trainers, share_cache
from lorica.simulations.run.summary import FEDERATION

LABELS = ["alpha", "beta", "gamma"]


def write_records(path: Path, count: int) -> None:
    words = {"alpha": "one two three", "beta": "red green blue", "gamma": "north south"}
    lines = ["text,label,patient"]
    for number in range(count):
        label = LABELS[number % 3]
        text = f"{words[label]} {number} " * (1 + number % 4)
        lines.append(f"{text},{label},patient {number // 2}")
    path.write_text("\n".join(lines), encoding="utf-8")


def plan_of(backbone: Path, tmp_path: Path, **sections: dict[str, Any]) -> RunPlan:
    path = tmp_path / "data.csv"
    write_records(path, 60)
    plan = RunPlan().replace(
        backbone={"source": str(backbone)},
        data={"train": str(path)},
        privacy={"delta": 1e-3},
        adapter={"kind": "head"},
        rounds={"count": 3},
        simulation={"sites": 4, "workers": 1},
    )
    content = plan.model_dump()
    for name, values in sections.items():
        content[name] |= values
    return RunPlan.model_validate(content)


CASES: dict[str, dict[str, dict[str, Any]]] = {
    "sums and head": {},
    "sampled": {"training": {"sample_rate": 0.5}},
    "without privacy": {"privacy": {"epsilon": float("inf")}},
    "int8": {"wire": {"update": "int8"}},
    "units": {"privacy": {"unit": "patient", "max_records_per_unit": 3}},
    "evaluated": {"rounds": {"evaluate_every": 1, "count": 3}},
    "some of the sites": {"rounds": {"fraction": 0.5, "count": 3}},
    "more than are wanted": {"rounds": {"fraction": 0.5, "over_provision": 0.5, "count": 3}},
    "sealed": {"privacy": {"trust": "sum", "honest_sites": 3}},
    "local steps": {
        "training": {"mode": "local", "expected_batch_size": 4, "local_steps": 2},
        "adapter": {"kind": "lora", "layers": [-1], "rank": 2},
        "aggregation": {"method": "fedavg"},
        "rounds": {"count": 2, "warm_start": 0},
    },
    "lora after the head": {
        "training": {"lora": "always", "lora_rounds": 1, "lora_sample_rate": 0.5},
        "adapter": {"kind": "lora", "layers": [-1], "rank": 2},
        "rounds": {"count": 3},
    },
}
SLOW = {"int8", "without privacy", "more than are wanted", "lora after the head", "local steps"}


THREE_RUNS = pytest.mark.slow("three whole simulations")


def outcome(plan: RunPlan, out: Path) -> tuple[State, list[Any], list[Any], list[Any]]:
    """The last state, the rounds' records, every site's chain, and every site's results."""
    simulation = Simulation(plan, out, Console(file=io.StringIO(), width=100))
    summary = simulation.run(report=False)
    rounds = [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]
    for row in rounds:
        for part in (row, *row["sites"]):
            for key in [key for key in part if key.startswith("seconds")]:
                del part[key]
    state = load_file(out / "checkpoint.safetensors")
    chains = [chain_of(trainer) for trainer in simulation._trainers.values()]
    return state, rounds, chains, [summary["score_at_sites"], summary["epsilon"]]


def chain_of(trainer: LocalTrainer) -> list[Any]:
    """What a virtual site's ledger holds, but for times, the plan and what follows from them."""
    found: list[Any] = []
    for ledger in trainer._ledgers.values():
        history = ledger.history()
        for charged in history.charges:
            charge = charged.charge
            found.append((charge.key, charge.events, charge.whole, charge.shared, charged.spent))
        found += [(key, done.charge, done.size) for key, done in history.done.items()]
    return found


def assert_same(one: State, other: State) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize("case", [pytest.param(c, marks=[THREE_RUNS] * (c in SLOW)) for c in CASES])
def test_direct_messages_end_in_the_bits_of_real_ones(
    case: str, small_backbone: Path, tmp_path: Path
) -> None:
    plan = plan_of(small_backbone, tmp_path, **CASES[case])
    real = outcome(plan.replace(simulation={"messages": "real"}), tmp_path / "real")
    direct = outcome(plan, tmp_path / "direct")
    two = outcome(plan.replace(simulation={"workers": 2}), tmp_path / "two")
    for found in (direct, two):
        assert_same(real[0], found[0])
        assert real[1] == found[1]
        assert real[3] == found[3]
    assert real[2] == direct[2]
    assert any(chain for chain in direct[2])


def sites_of(plan: RunPlan) -> list[LocalTrainer]:
    whole = load_data(plan)
    share_cache(plan, backbone_of(plan), whole.train)
    return list(make_trainers(whole.train, plan).values())


def first_request(plan: RunPlan, round: int = 1) -> Request:
    state = task_of(plan).start(backbone_of(plan))
    sent = {name: tensor for name, tensor in state.items() if name.startswith("head.")}
    return Request(plan, FEDERATION, round, pack_state(sent))


def with_labels_of(plan: RunPlan) -> RunPlan:
    return plan.replace(task={"labels": LABELS})


@pytest.mark.parametrize("round", [1, 2])
def test_sites_in_one_pass_release_what_each_does_alone(
    round: int, small_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reference: LocalTrainer.train, site by site. Passes end in the middle of the sites."""
    monkeypatch.setattr(together, "_MOST_RECORDS", 20)
    plan = with_labels_of(plan_of(small_backbone, tmp_path, simulation={"sites": 7, "workers": 1}))
    request = first_request(plan, round)
    virtual = sites_of(plan)
    for site in virtual:
        site._models = None  # each has a model of its own
    alone = [site.train(request) for site in virtual]
    assert train_together(sites_of(plan), request) == alone
    assert {reply.status for reply in alone} == {"ok"}
    assert len({reply.blob for reply in alone}) == 7


def test_sites_in_one_pass_share_one_model(small_backbone: Path, tmp_path: Path) -> None:
    plan = with_labels_of(plan_of(small_backbone, tmp_path))
    virtual = sites_of(plan)
    train_together(virtual, first_request(plan))
    sessions = [site._session for site in virtual]
    assert len({id(one._classifier) for one in sessions if one is not None}) == 1


def test_every_site_charges_before_anything_is_computed(
    small_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = with_labels_of(plan_of(small_backbone, tmp_path))
    virtual = sites_of(plan)
    seen: list[int] = []
    read, charge = Session.read, Ledger.charge

    def reading(self: Session) -> None:
        seen.append(0)
        read(self)

    def charging(self: Ledger, *charges: Any) -> Any:
        seen.append(1)
        return charge(self, *charges)

    monkeypatch.setattr(Session, "read", reading)
    monkeypatch.setattr(Ledger, "charge", charging)
    train_together(virtual, first_request(plan))
    assert seen.index(0) == 4
    assert seen[:4] == [1] * 4


def test_a_site_that_fails_refuses_and_leaves_the_others_as_they_are(
    small_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = with_labels_of(plan_of(small_backbone, tmp_path))
    request = first_request(plan, 2)
    whole = [site.train(request) for site in sites_of(plan)]
    contributions = Session.contributions_of

    def failing(self: Session, stage: Any, features: Tensor, targets: Any, rows: Any) -> Any:
        if bool((targets.of(rows) == 1).sum() > 4):  # of all together, and of no site but one
            raise RuntimeError("as from a single record")
        return contributions(self, stage, features, targets, rows)

    monkeypatch.setattr(Session, "contributions_of", failing)
    virtual = sites_of(plan)
    found = train_together(virtual, request)
    refused = [place for place, reply in enumerate(found) if reply.status == "refused"]
    assert 0 < len(refused) < 4
    assert {found[place].code for place in refused} == {"LOR-335"}
    for place, reply in enumerate(found):
        assert place in refused or reply == whole[place]
    assert train_together(virtual, request) == found  # the stored replies, refusals as well


def test_a_request_that_comes_again_gets_the_stored_reply(
    small_backbone: Path, tmp_path: Path
) -> None:
    plan = with_labels_of(plan_of(small_backbone, tmp_path))
    virtual, request = sites_of(plan), first_request(plan)
    first = train_together(virtual, request)
    assert train_together(virtual, request) == first
    assert [len(chain_of(site)) for site in virtual] == [2] * 4  # one charge, one answer


def test_what_another_request_loads_is_not_taken_for_the_last(
    small_backbone: Path, tmp_path: Path
) -> None:
    """Sites share a model: round 2 with one head, then with another, then a single site alone."""
    plan = with_labels_of(plan_of(small_backbone, tmp_path))
    one = first_request(plan, 2)
    state = {n: 2.0 * t for n, t in load(one.blob).items()}
    other = replace(one, run="another run", blob=pack_state(state))
    reference = [[site.train(r) for site in sites_of(plan)] for r in (one, other)]
    virtual = sites_of(plan)
    assert train_together(virtual[:2], one) == reference[0][:2]
    assert train_together(virtual, other) == reference[1]
    assert [site.train(one) for site in virtual[2:]] == reference[0][2:]


def test_a_round_that_is_none_of_the_plans_is_refused_by_every_site(
    small_backbone: Path, tmp_path: Path
) -> None:
    plan = with_labels_of(plan_of(small_backbone, tmp_path))
    found: list[Reply] = train_together(sites_of(plan), first_request(plan, 4))
    assert [reply.code for reply in found] == ["LOR-403"] * 4


def test_sites_beyond_those_that_are_open_are_opened_anew(
    small_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(small_backbone, tmp_path)
    whole = outcome(plan, tmp_path / "whole")
    monkeypatch.setattr(models, "MOST_OPEN", 2)
    simulation = Simulation(plan, tmp_path / "few", Console(file=io.StringIO(), width=100))
    simulation.run(report=False)
    assert_same(load_file(tmp_path / "few" / "checkpoint.safetensors"), whole[0])
    assert sum(site._session is not None for site in simulation._trainers.values()) == 2


def test_features_beyond_the_caches_memory_are_computed_once(
    small_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are kept on disk; the reference has them in memory."""
    plan = plan_of(small_backbone, tmp_path, rounds={"count": 4})
    whole = outcome(plan, tmp_path / "whole")
    shelf = CacheShelf(limit_bytes=64)
    for module in (sites, session, evaluation):
        monkeypatch.setattr(module, "SHELF", shelf)
    encoded = AdaptedModel.pooled_of_ids
    rows: list[int] = []

    def counting(self: AdaptedModel, ids: Tensor, mask: Tensor) -> Tensor:
        rows.append(len(ids))
        return encoded(self, ids, mask)

    simulation = Simulation(plan, tmp_path / "disk", Console(file=io.StringIO(), width=100))
    monkeypatch.setattr(AdaptedModel, "pooled_of_ids", counting)
    simulation.run(report=False)
    assert_same(load_file(tmp_path / "disk" / "checkpoint.safetensors"), whole[0])
    assert shelf.in_files
    many = sum(rows)
    rows.clear()
    longer = plan.replace(rounds={"count": 8})
    Simulation(longer, tmp_path / "longer", Console(file=io.StringIO(), width=100)).run(
        report=False
    )
    assert sum(rows) <= many  # four head rounds more run the encoder no more often
