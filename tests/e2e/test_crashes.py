"""Each way to die or be cut off, alone: the run ends as if nothing had happened, or says why not.

One federation of real processes stays up for all of them, on hosts of its own where the system
allows (root, network namespaces, mounts). Every run is compared with the same run in this
process, where nothing happens to anybody.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lorica.common.plan import RunPlan
from lorica.common.plan.io import to_toml
from tests.conftest import make_small_backbone
from tests.e2e.faults import (
    VICTIMS,
    entries,
    full_disk,
    in_hand,
    kill,
    many_runs,
    power_cut,
    records,
    small_disk,
    small_plan,
    undisturbed,
    victims,
)
from tests.e2e.federation import (
    COORDINATOR,
    Federation,
    Network,
    can_make_hosts,
    charged_rounds,
    furthest_weight,
    wait_for,
)

pytestmark = [pytest.mark.slow("many runs of a real federation"), pytest.mark.chaos]

ROUNDS = 4
SITE_DISK, COORDINATOR_DISK = 160, 200
"""Sizes of the hosts' file systems, MiB."""

needs_hosts = pytest.mark.skipif(
    not can_make_hosts(), reason="making hosts and mounting disks needs root and iproute2"
)


@dataclass
class Standing:
    """A federation that stays up, and where its runs are compared."""

    federation: Federation
    folder: Path
    backbone: Path
    plans: dict[str, RunPlan] = field(default_factory=dict)

    def submit(self, run: str, **sections: Mapping[str, Any]) -> None:
        """Submit a run of the usual plan with some sections changed."""
        usual: dict[str, Mapping[str, Any]] = {
            "training": {"lora": "always", "lora_rounds": 1},
            "rounds": {"count": ROUNDS},
        }
        plan = small_plan(self.backbone, **{**usual, **sections})
        self.plans[run] = plan
        (self.folder / f"{run}.toml").write_text(to_toml(plan))
        self.federation.submit(self.folder / f"{run}.toml", run)

    def wait_rounds(self, run: str, count: int) -> None:
        """Until so many rounds are whole."""

        def there() -> bool:
            order = self.federation.order(run)
            assert order["state"] not in ("failed", "stopped"), order
            return len(self.federation.rounds(run)) > count

        wait_for(f"{count} whole rounds of {run}", there, 600)

    def ledger(self, site: str) -> Path:
        """A site's ledger."""
        return self.federation.config(site).parent / "ledger.sqlite"

    def charged(self, site: str, run: str) -> list[int]:
        """Rounds of the run that the site's ledger was charged for; the ledger verifies."""
        ledger = str(self.ledger(site))
        self.federation.lorica(site, "site", "ledger", "verify", "--ledger", ledger)
        said = self.federation.lorica(site, "site", "ledger", "export", "--ledger", ledger)
        return charged_rounds(said, run)

    def finish(self, run: str, lost: Mapping[str, Collection[int]] | None = None) -> None:
        """Wait for the run's end, and see that it is as it would have been.

        Args:
            run: its id.
            lost: site -> rounds that it must have been left out of.
        """
        lost = lost or {}
        order = self.federation.wait_over(run, 900)
        assert order["state"] == "finished", order
        plan, rounds = self.plans[run], self.federation.rounds(run)
        assert [record["round"] for record in rounds] == list(range(plan.rounds.count + 1))
        for record in rounds[1:]:
            ok = {site["site"]: site["status"] == "ok" for site in record["sites"]}
            assert ok == {s: record["round"] not in lost.get(s, ()) for s in ("north", "south")}
        for site in self.federation.sites:
            charged, left_out = self.charged(site, run), set(lost.get(site, ()))
            assert len(charged) == len(set(charged))
            assert set(charged) | left_out == set(range(1, plan.rounds.count + 1))
        undisturbed(plan, self.federation.sites, run, self.folder / run, lost)
        furthest = furthest_weight(self.federation.home / "runs" / run, self.folder / run)
        print(f"\n{run}: furthest weight from the undisturbed run's {furthest:.1e}")
        assert furthest <= 1e-6


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standing]:
    """Coordinator and two sites, each host's folder on a small disk of its own."""
    root = tmp_path_factory.mktemp("crashes")
    sites = records(root)
    backbone = make_small_backbone(root / "backbone")
    with ExitStack() as stack:
        network = None
        if can_make_hosts():
            stack.enter_context(small_disk(root / "hosts" / COORDINATOR, COORDINATOR_DISK))
            for site in sites:
                stack.enter_context(small_disk(root / "hosts" / site, SITE_DISK))
            network = stack.enter_context(Network([COORDINATOR, *sites]))
        federation = stack.enter_context(
            Federation(root / "hosts", sites, network, settings=many_runs(backbone))
        )
        federation.set_up()
        yield Standing(federation, root, backbone)


@pytest.mark.parametrize("kind", list(VICTIMS))
def test_a_run_outlasts_the_kill_of_one_process(standing: Standing, kind: str) -> None:
    federation, run = standing.federation, f"without-{kind.lower()}"
    standing.submit(run)
    standing.wait_rounds(run, 1)
    killed = wait_for(f"a {kind}", lambda: victims(federation, kind), 120, poll=0.05)[0]
    assert kill(killed)
    assert len(federation.rounds(run)) <= ROUNDS  # it was not over
    standing.finish(run)
    again = len(federation.order(run)["flower_runs"])
    assert (again > 1) == (kind in ("ServerApp", "SuperLink"))


def test_a_trainer_that_is_killed_within_a_private_step_pays_once_and_answers_once(
    standing: Standing,
) -> None:
    federation, run = standing.federation, "within-a-step"
    standing.submit(
        run,
        training={"mode": "local", "local_steps": 300, "expected_batch_size": 24},
        rounds={"count": 3},
    )
    ledger = standing.ledger("south")
    # the second round: the first, of class sums, takes no longer than it takes to kill
    lasting = partial(in_hand, ledger, run, charges=2)
    wait_for("a step that is charged", lasting, 300, poll=0.01)
    for trainer in victims(federation, "trainer", "south"):
        kill(trainer)
    assert in_hand(ledger, run)  # it died with the charge written and nothing answered
    standing.finish(run)
    assert ("retry", "") in entries(ledger)[-12:]


@pytest.mark.parametrize("host", [COORDINATOR, "south"])
def test_a_run_outlasts_a_power_cut(standing: Standing, host: str) -> None:
    run = f"power-cut-{host}"
    standing.submit(run)
    standing.wait_rounds(run, 2)
    power_cut(standing.federation, host)
    standing.finish(run)


def test_a_run_outlasts_a_power_cut_of_all_hosts_together(standing: Standing) -> None:
    standing.submit("power-cut")
    standing.wait_rounds("power-cut", 2)
    for host in (COORDINATOR, *standing.federation.sites):
        power_cut(standing.federation, host)
    standing.finish("power-cut")


@needs_hosts
def test_a_site_whose_cable_was_out_for_longer_than_flower_waits_is_asked_again(
    standing: Standing,
) -> None:
    network = standing.federation.network
    assert network is not None
    standing.submit("cable")
    standing.wait_rounds("cable", 2)
    network.cut("south")
    begun, whole = time.monotonic(), len(standing.federation.rounds("cable"))
    wait_for("Flower to give the site up", lambda: standing.federation.online() < 2, 180, poll=2)
    time.sleep(max(0.0, begun + 100 - time.monotonic()))
    assert len(standing.federation.rounds("cable")) <= whole + 1  # what was on its way
    network.mend("south")
    standing.finish("cable")


@needs_hosts
def test_a_run_that_may_goes_on_without_a_site_and_takes_it_in_again(standing: Standing) -> None:
    network = standing.federation.network
    assert network is not None
    standing.submit(
        "left-out",
        rounds={"count": 12, "minimum_sites": 1, "reconnect_seconds": 5.0},
    )
    standing.wait_rounds("left-out", 2)
    network.cut("south")

    def missed() -> list[int]:
        return [
            record["round"]
            for record in standing.federation.rounds("left-out")[1:]
            if [s for s in record["sites"] if s["site"] == "south" and s["status"] != "ok"]
        ]

    wait_for("a round without it", missed, 240, poll=1)
    network.mend("south")
    order = standing.federation.wait_over("left-out", 900)
    assert order["state"] == "finished", order
    last = standing.federation.rounds("left-out")[-1]
    assert [site["status"] for site in last["sites"]] == ["ok", "ok"]
    standing.finish("left-out", {"south": missed()})


@needs_hosts
def test_a_sites_full_disk_ends_the_run_with_a_sentence_and_resume_goes_on(
    standing: Standing,
) -> None:
    federation, run = standing.federation, "site-disk"
    standing.submit(run)
    standing.wait_rounds(run, 1)
    with full_disk(federation.root / "south"):
        order = federation.wait_over(run, 300)
        assert order["state"] == "failed"
        assert "LOR-601" in order["reason"] and "south" in order["reason"]
        wait_for("the site to say so", lambda: "LOR-601" in federation.out("south"), 30)
        said = federation.lorica(
            "south", "site", "check", "--config", str(federation.config("south")), fails=True
        )
        assert "Only 0 MB are free" in said
    federation.lorica(COORDINATOR, "run", "resume", run)
    standing.finish(run)


@needs_hosts
def test_a_coordinators_full_disk_loses_nothing_and_the_run_goes_on(standing: Standing) -> None:
    federation, run = standing.federation, "coordinator-disk"
    standing.submit(run)
    standing.wait_rounds(run, 1)
    with full_disk(federation.home):
        wait_for("the sentence", lambda: "LOR-601" in federation.out(COORDINATOR), 240)
        said = federation.lorica(COORDINATOR, "coordinator", "check", fails=True)
        assert "Only 0 MB are free" in said
        whole = len(federation.rounds(run))
        assert whole <= ROUNDS
    if federation.order(run)["state"] == "failed":
        federation.lorica(COORDINATOR, "run", "resume", run)
    standing.finish(run)
