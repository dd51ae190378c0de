"""Whatever is killed at whatever moment, the run ends as if nothing had happened.

LORICA_CHAOS_KILLS says how many kills (`make chaos`: 100), LORICA_CHAOS_SEED which.
"""

from __future__ import annotations

import collections
import os
import random
import time
from pathlib import Path

import pytest

from lorica.common.plan import RunPlan
from lorica.common.plan.io import to_toml
from tests.conftest import make_small_backbone
from tests.e2e.faults import (
    VICTIMS,
    introduce,
    kill,
    many_runs,
    power_cut,
    records,
    records_of_three,
    sealed_runs,
    small_plan,
    undisturbed,
    victims,
)
from tests.e2e.federation import COORDINATOR, Federation, charged_rounds, furthest_weight, wait_for

pytestmark = [pytest.mark.slow("many runs of a real federation"), pytest.mark.chaos]

KILLS = int(os.environ.get("LORICA_CHAOS_KILLS", "6"))
SEED = int(os.environ.get("LORICA_CHAOS_SEED", "0"))
RUN, ROUNDS = "federation", 20

HOST = "host"


def test_a_run_outlasts_kills_at_random_and_ends_as_if_undisturbed(tmp_path: Path) -> None:
    sites = records(tmp_path)
    backbone = make_small_backbone(tmp_path / "backbone")
    plan = small_plan(backbone, rounds={"count": ROUNDS})
    with Federation(tmp_path / "hosts", sites, settings=many_runs(backbone)) as federation:
        federation.set_up()
        outlast(federation, plan)
        out, test = tmp_path / "undisturbed", tmp_path / "test.csv"
        test.write_text("".join((tmp_path / "both.csv").read_text().splitlines(True)[:20]))
        federation.lorica(
            COORDINATOR,
            "simulate",
            str(federation.root / "plan.toml"),
            *("--set", f"data.train={tmp_path / 'both.csv'}"),
            *("--set", f"data.test={test}"),
            *("--set", "simulation.partition=by-column", "--set", "simulation.column=site"),
            *("--set", "simulation.declared=rounded"),
            *("--out", str(out)),
            seconds=600,
        )
        furthest = furthest_weight(federation.home / "runs" / RUN, out)
    print(f"furthest weight from the undisturbed run's: {furthest:.2e}")
    assert furthest <= 1e-4


def test_a_run_of_sealed_sums_outlasts_kills_at_random(tmp_path: Path) -> None:
    sites = records_of_three(tmp_path)
    backbone = make_small_backbone(tmp_path / "backbone")
    sealed = {"trust": "sum", "honest_sites": 2}
    plan = small_plan(
        backbone, privacy=sealed, rounds={"count": ROUNDS, "minimum_sites": len(sites)}
    )
    with Federation(tmp_path / "hosts", sites, settings=sealed_runs(backbone)) as federation:
        federation.set_up(lambda: introduce(federation))
        outlast(federation, plan)
        assert {record["sealed"] for record in federation.rounds(RUN)[1:]} == {len(sites)}
        undisturbed(plan, sites, RUN, tmp_path / "undisturbed")
        furthest = furthest_weight(federation.home / "runs" / RUN, tmp_path / "undisturbed")
    print(f"furthest weight from the undisturbed run's: {furthest:.2e}")
    assert furthest <= 1e-4


def outlast(federation: Federation, plan: RunPlan) -> None:
    """Run the plan while processes and hosts are killed; every site is in every round, once."""
    sites, chance = sorted(federation.sites), random.Random(SEED)
    done: collections.Counter[str] = collections.Counter()
    file = federation.root / "plan.toml"
    file.write_text(to_toml(plan))
    federation.submit(file, RUN)
    wait_for("the first round", lambda: federation.rounds(RUN)[1:], 600)
    kinds = [*VICTIMS, HOST]
    while sum(done.values()) < KILLS and federation.order(RUN)["state"] != "finished":
        kind = chance.choice(kinds)
        if kind == HOST:
            host = chance.choice([COORDINATOR, *sites])
            power_cut(federation, host)
            done[f"{HOST} {host}" if host == COORDINATOR else HOST] += 1
        else:
            found = victims(federation, kind)
            if not found:  # a ClientApp or ServerApp between two of them
                time.sleep(0.1)
                continue
            done[kind] += kill(chance.choice(sorted(found)))
        time.sleep(chance.expovariate(1 / 4.0))
    order = federation.wait_over(RUN, 600 + 60 * KILLS)
    print(f"\n{sum(done.values())} kills: {dict(done)}; {len(order['flower_runs'])} Flower runs")
    assert order["state"] == "finished", order
    rounds = federation.rounds(RUN)
    assert [record["round"] for record in rounds] == list(range(ROUNDS + 1))
    for record in rounds[1:]:
        assert sorted((s["site"], s["status"]) for s in record["sites"]) == [
            (site, "ok") for site in sites
        ]
    for site in sites:
        ledger = str(federation.config(site).parent / "ledger.sqlite")
        federation.lorica(site, "site", "ledger", "verify", "--ledger", ledger)
        said = federation.lorica(site, "site", "ledger", "export", "--ledger", ledger)
        assert charged_rounds(said) == list(range(1, ROUNDS + 1))
