"""Whatever is killed at whatever moment, the run ends as if nothing had happened.

LORICA_CHAOS_KILLS says how many kills (`make chaos`: 100), LORICA_CHAOS_SEED which.
"""

from __future__ import annotations

import collections
import csv
import os
import random
import signal
import time
from pathlib import Path

import pytest
from federation import COORDINATOR, Federation, charged_rounds, furthest_weight, wait_for

from lorica.common.backbones import backbone_sha256
from lorica.common.plan import RunPlan
from lorica.common.plan_io import to_toml
from tests.conftest import make_small_backbone

pytestmark = [pytest.mark.slow, pytest.mark.chaos]

KILLS = int(os.environ.get("LORICA_CHAOS_KILLS", "6"))
SEED = int(os.environ.get("LORICA_CHAOS_SEED", "0"))
RUN, ROUNDS = "federation", 20

VICTIMS = {
    "ServerApp": "flwr-serverapp",
    "SuperLink": "flower-superlink",
    "proxy": "nginx: master",
    "SuperNode": "flower-supernode",
    "ClientApp": "lorica.client.guarded_clientapp",
    "trainer": "lorica.client.trainer_main",
}
HOST = "host"


def records(folder: Path) -> dict[str, Path]:
    """Two sites' small data, and both together with the site's name."""
    words = ["lost", "new", "old", "red", "tired"]
    sites: dict[str, Path] = {}
    rows = []
    for site, letters in (("north", "abcdefghijkl"), ("south", "mnopqrstuvwx")):
        mine = [(f"my card is {w} {c}", "money") for w in words for c in letters]
        mine += [(f"my heart has {w} {c}", "health") for w in words for c in letters]
        sites[site] = folder / f"{site}.csv"
        with sites[site].open("w", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *mine])
        rows += [(*row, site) for row in mine]
    with (folder / "both.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label", "site"), *rows])
    return sites


def victims(federation: Federation, kind: str) -> list[int]:
    """Processes of a kind that live now."""
    return [pid for pid, command in federation.processes().items() if VICTIMS[kind] in command]


def power_cut(federation: Federation, host: str) -> None:
    """Every process of a host at once; its service manager starts the services again."""
    folder = str(federation.home if host == COORDINATOR else federation.root / host)
    supervisor = federation.running.pop(host)
    everything = federation.processes()
    leaders = {pid for pid, command in everything.items() if folder in command}
    mine = [pid for pid in everything if pid in leaders or os.getsid(pid) in leaders]
    for pid in [supervisor.pid, *mine]:
        kill(pid)
    supervisor.wait()
    federation.start(host)


def kill(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def test_a_run_outlasts_kills_at_random_and_ends_as_if_undisturbed(tmp_path: Path) -> None:
    sites = records(tmp_path)
    backbone = make_small_backbone(tmp_path / "backbone")
    plan = RunPlan().replace(
        backbone={"source": str(backbone)},
        task={"labels": ["health", "money"]},
        data={"train": "unused.csv"},
        rounds={
            "count": ROUNDS,
            "minimum_sites": 2,
            "timeout_seconds": 1200,
            "reconnect_seconds": 600,
        },
    )
    (tmp_path / "plan.toml").write_text(to_toml(plan))
    policy = {
        "noise": "seeded",
        "backbones": [backbone_sha256(backbone)],
        "backbone_folders": [str(backbone)],
    }
    chance = random.Random(SEED)
    done: collections.Counter[str] = collections.Counter()
    with Federation(tmp_path / "hosts", sites, settings={"policy": policy}) as federation:
        federation.set_up()
        federation.submit(tmp_path / "plan.toml", RUN)
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
        print(
            f"\n{sum(done.values())} kills: {dict(done)}; {len(order['flower_runs'])} Flower runs"
        )
        assert order["state"] == "finished", order
        rounds = federation.rounds(RUN)
        assert [record["round"] for record in rounds] == list(range(ROUNDS + 1))
        for record in rounds[1:]:
            assert [(s["site"], s["status"]) for s in record["sites"]] == [
                ("north", "ok"),
                ("south", "ok"),
            ]
        for site in sites:
            ledger = str(federation.config(site).parent / "ledger.sqlite")
            federation.lorica(site, "site", "ledger", "verify", "--ledger", ledger)
            said = federation.lorica(site, "site", "ledger", "export", "--ledger", ledger)
            assert charged_rounds(said) == list(range(1, ROUNDS + 1))
        out, test = tmp_path / "undisturbed", tmp_path / "test.csv"
        test.write_text("".join((tmp_path / "both.csv").read_text().splitlines(True)[:20]))
        federation.lorica(
            COORDINATOR,
            "simulate",
            str(tmp_path / "plan.toml"),
            *("--set", f"data.train={tmp_path / 'both.csv'}"),
            *("--set", f"data.test={test}"),
            *("--set", "simulation.partition=by-column", "--set", "simulation.column=site"),
            *("--out", str(out)),
            seconds=600,
        )
        folder = federation.home / "runs" / RUN
    furthest, share = furthest_weight(folder, out)
    print(f"furthest weight from the undisturbed run's: {furthest:.2e}, {share:.2e} of the largest")
    assert share <= 1e-4  # furthest_weight says why not every weight to 1e-4
