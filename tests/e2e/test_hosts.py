"""Three hosts, their own networks, TLS, keys: from nothing to an adapter by documented commands.

`make e2e` runs this and prints what was measured. It needs root, for network namespaces, and the
real data sets.
"""

from __future__ import annotations

import csv
import os
import re
import signal
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lorica.common.plan import RunPlan
from lorica.common.plan.io import to_toml
from lorica.server.coordinator.certificates import create_authority, issue
from lorica.server.coordinator.home import CoordinatorHome
from lorica.server.coordinator.proxy import REFUSAL
from lorica.server.coordinator.setup import public_pair
from lorica.simulations.run.sites import rounded
from tests.e2e.federation import (
    COORDINATOR,
    Federation,
    Network,
    can_make_hosts,
    charged_rounds,
    furthest_weight,
    wait_for,
)

pytestmark = [
    pytest.mark.slow("a whole run of a real federation"),
    pytest.mark.e2e,
    pytest.mark.skipif(
        not can_make_hosts(), reason="making hosts needs root and the program ip (iproute2)"
    ),
]

RUN = "federation"
ROUNDS, LORA_ROUNDS = int(os.environ.get("LORICA_E2E_ROUNDS", "50")), 2
RECORDS = int(os.environ.get("LORICA_E2E_RECORDS", "1000000"))
"""At most so many records of Banking77, for slow machines."""


@dataclass
class Finished:
    """A federation that has finished one run, its services still on."""

    federation: Federation
    plan: RunPlan
    capture: Path
    clientapp_kib: int
    """Largest resident memory of any ClientApp."""


def halves(source: Path, folder: Path) -> dict[str, Path]:
    """Banking77's training records as two sites' files, and as one with the site's name."""
    folder.mkdir()
    with source.open(newline="", encoding="utf-8") as file:
        rows = [(row["text"], row["category"]) for row in csv.DictReader(file)]
    rows = rows[:: -(-len(rows) // RECORDS)]  # evenly over the file, which is sorted by label
    rows = rows[: len(rows) // 2 * 2]
    parts = {"north": rows[0::2], "south": rows[1::2]}
    with (folder / "both.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", "site"])
        writer.writerows((*row, site) for site, part in parts.items() for row in part)
    for site, part in parts.items():
        with (folder / f"{site}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            writer.writerows(part)
    return {site: folder / f"{site}.csv" for site in parts}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, shared_data: Path) -> Iterator[Finished]:
    """Set everything up, run once, keep the services."""
    root = tmp_path_factory.mktemp("hosts")
    sites = halves(shared_data / "banking77" / "train.csv", root / "data")
    with (root / "data" / "both.csv").open(newline="", encoding="utf-8") as file:
        labels = sorted({row["label"] for row in csv.DictReader(file)})
    plan = RunPlan().replace(
        task={"labels": labels},
        data={"train": "unused.csv"},
        privacy={"delta": 1e-6},  # sites of 5,000 records allow 2e-6
        training={"lora": "always", "lora_rounds": LORA_ROUNDS, "lora_sample_rate": 0.05},
        rounds={"count": ROUNDS, "minimum_sites": 2, "timeout_seconds": 300},
    )
    (root / "plan.toml").write_text(to_toml(plan))
    with sites["north"].open(newline="", encoding="utf-8") as file:
        units = rounded(sum(1 for _ in csv.DictReader(file)))  # as the simulation declares them
    figures = {"sampling_units": units, "declared_units": units}
    settings = {"policy": {"noise": "seeded", **figures}}
    with (
        Network([COORDINATOR, *sites]) as network,
        Federation(root / "hosts", sites, network, settings=settings) as federation,
    ):
        packets = network.capture(root / "packets.pcap")
        watched = _ClientApps(federation)
        try:
            federation.set_up()
            watched.start()
            federation.submit(root / "plan.toml", RUN)
            order = federation.wait_over(RUN, 1200)
            assert order["state"] == "finished", order
        finally:
            watched.stop()
            packets.terminate()
            packets.wait()
        yield Finished(federation, plan, root / "packets.pcap", watched.largest)


class _ClientApps(threading.Thread):
    """Watches the memory of ClientApp processes."""

    def __init__(self, federation: Federation) -> None:
        super().__init__(daemon=True)
        self._root, self._done, self.largest = str(federation.root), threading.Event(), 0

    def run(self) -> None:
        while not self._done.wait(0.05):
            for status in Path("/proc").glob("[0-9]*/status"):
                try:
                    command = (status.parent / "cmdline").read_bytes()
                    if b"lorica.client.node.standby" not in command:  # and what it splits off
                        continue
                    if self._root.encode() not in (status.parent / "environ").read_bytes():
                        continue
                    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
                except OSError:
                    continue
                self.largest = max(self.largest, int(found[1]) if found else 0)

    def stop(self) -> None:
        self._done.set()


def test_the_adapter_equals_the_in_process_simulations_of_the_same_sites(
    finished: Finished, tmp_path: Path
) -> None:
    data = finished.federation.root.parent / "data" / "both.csv"
    test = tmp_path / "test.csv"  # without one, a part of the training data would be set aside
    test.write_text("".join(data.read_text().splitlines(keepends=True)[:100]))
    settings = [
        f"data.train={data}",
        f"data.test={test}",
        "simulation.partition=by-column",
        "simulation.column=site",
        "simulation.declared=rounded",
    ]
    plan = finished.federation.root.parent / "plan.toml"
    arguments = [part for setting in settings for part in ("--set", setting)]
    out = tmp_path / "simulated"
    command = ["simulate", str(plan), *arguments, "--out", str(out)]
    finished.federation.lorica(COORDINATOR, *command, seconds=1500)
    real = finished.federation.home / "runs" / RUN
    furthest = furthest_weight(real, out)
    print(f"\nfurthest weight from the simulation's: {furthest:.2e}")
    assert furthest <= 1e-4
    assert (real / "adapter" / "adapter_model.safetensors").exists()


def test_no_record_travels_in_plain_text(finished: Finished) -> None:
    packets = finished.capture.read_bytes()
    assert len(packets) > 500_000  # it holds the run's traffic
    for site in finished.federation.sites.values():
        with site.open(newline="", encoding="utf-8") as file:
            texts = [row["text"] for row in csv.DictReader(file)]
        seen = [text for text in texts if len(text) > 12 and text.encode() in packets]
        assert seen == []


def test_the_trainers_network_has_no_interface_up(finished: Finished) -> None:
    for site in finished.federation.sites:
        said = finished.federation.lorica(
            site, "site", "status", "--config", str(finished.federation.config(site))
        )
        trainer = re.search(r"process\s+(\d+)", said)
        assert trainer, said
        listed = subprocess.run(
            ["nsenter", "-t", trainer[1], "-n", "ip", "-o", "link"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert "<LOOPBACK>" in listed  # it is there, and down
        assert ",UP" not in listed and "<UP" not in listed


def test_the_backbone_is_loaded_once_and_the_clientapp_is_small(finished: Finished) -> None:
    for site in finished.federation.sites:
        said = finished.federation.lorica(
            site, "site", "status", "--config", str(finished.federation.config(site))
        )
        loads = re.search(r"models loaded\s+(\d+)", said)
        assert loads, said
        print(f"\n{site}: backbone loaded {loads[1]} time(s) in {ROUNDS} rounds")
        assert loads[1] == "1"
    print(f"largest ClientApp: {finished.clientapp_kib / 1024:.0f} MiB")
    assert 0 < finished.clientapp_kib <= 150 * 1024


def test_every_round_had_both_sites_and_its_time_is_told(finished: Finished) -> None:
    rounds = finished.federation.rounds(RUN)
    assert [record["round"] for record in rounds] == list(range(ROUNDS + 1))
    for record in rounds[1:]:
        assert [site["status"] for site in record["sites"]] == ["ok", "ok"]
    head = [record["seconds"] for record in rounds[2 : ROUNDS - LORA_ROUNDS + 1]]
    print(
        f"\na round of the head, whose training takes milliseconds: median "
        f"{statistics.median(head):.2f} s, longest {max(head):.2f} s; all rounds "
        f"{[round(record['seconds'], 1) for record in rounds[1:]]}"
    )


def test_the_ledgers_verify_and_hold_every_round_once(finished: Finished) -> None:
    for site in finished.federation.sites:
        ledger = finished.federation.config(site).parent / "ledger.sqlite"
        finished.federation.lorica(site, "site", "ledger", "verify", "--ledger", str(ledger))
        said = finished.federation.lorica(site, "site", "ledger", "export", "--ledger", str(ledger))
        assert charged_rounds(said) == list(range(1, ROUNDS + 1))


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/start-run",
        "/v1/control/list-runs",
        "/v1/runtime/acquire-task",
        "/v1/fleet/../control/start-run",
        "/v1/fleet/..%2fcontrol/start-run",
        "/v1/fleet/%2e%2e/control/start-run",
        "//v1/control/start-run",
        "/docs",
        "/openapi.json",
        "/",
    ],
)
def test_nothing_but_the_fleet_passes_the_proxy(finished: Finished, path: str) -> None:
    federation = finished.federation
    authority = str(federation.home / "authority" / "ca.crt")
    options = ["--cacert", authority, "-X", "POST", "-H", "content-type: application/x-protobuf"]
    answer = curl(
        federation, *options, "-w", " %{http_code}", f"https://{federation.address}{path}"
    )
    assert REFUSAL in answer.stdout and answer.stdout.endswith("403")


def test_the_private_port_is_not_reached_from_another_host(finished: Finished) -> None:
    federation = finished.federation
    host = federation.address.rpartition(":")[0]
    tried = curl(federation, "-k", "-m", "5", f"https://{host}:{federation.private_port}/health")
    assert tried.returncode == 7  # connection refused


def curl(federation: Federation, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A request from a site's host."""
    assert federation.network is not None
    inside = ["ip", "netns", "exec", federation.network.names["north"]]
    command = [*inside, "curl", "-s", "--path-as-is", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_refusals_say_what_is_wrong(finished: Finished) -> None:
    federation = finished.federation
    north = str(federation.config("north"))

    def check(site: str) -> str:
        return federation.lorica(
            site, "site", "check", "--config", str(federation.config(site)), fails=True
        )

    # A revoked site is out at once, and is told so.
    federation.lorica(COORDINATOR, "coordinator", "revoke", "south")
    assert "does not know this site's key" in check("south")
    wait_for(
        "the revoked site to hear it",
        lambda: "does not know this site's key" in federation.out("south"),
        60,
    )
    assert federation.online() == 1

    # A site that was invited and not admitted.
    federation.lorica(
        COORDINATOR, "coordinator", "invite", "south", "--out", str(federation.root / "again")
    )
    federation.lorica(
        "south",
        "site",
        "init",
        "--token",
        str(federation.root / "again"),
        "--data",
        "unused",
        "--config",
        str(federation.config("south")),
    )
    assert "was not admitted yet" in check("south")

    # Another authority.
    authority = federation.config("north").parent / "ca.crt"
    mine = authority.read_bytes()
    (federation.root / "stranger").mkdir()
    create_authority(federation.root / "stranger", "stranger")
    authority.write_bytes((federation.root / "stranger" / "ca.crt").read_bytes())
    assert "is not signed by the authority" in check("north")
    authority.write_bytes(mine)
    federation.lorica("north", "site", "check", "--config", north, fails=True)  # noise is seeded
    assert "admission" not in check("north").partition("Not as it should be")[2]

    # An expired certificate, then its renewal, while everything runs.
    home = CoordinatorHome(federation.home)
    names = [federation.address.rpartition(":")[0], "localhost"]
    issue(home.authority, public_pair(home), names, days=-1)
    os.kill(int((home.run / "start.lock").read_text()), signal.SIGHUP)
    wait_for("the proxy to take it", lambda: "has expired" in check("north"), 30, poll=1)
    assert "expired" in federation.lorica(COORDINATOR, "coordinator", "check", fails=True)
    federation.lorica(COORDINATOR, "coordinator", "rotate")
    time.sleep(1)
    assert "has expired" not in check("north")
