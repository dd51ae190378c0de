"""Three hosts in sealed sums (privacy.trust "sum"), one site killed in each exchange of a round.

Of a site's vector nothing may be seen but the sum it is in: neither on the wire nor in the memory
of the coordinator, which is frozen and searched when all masked vectors are in.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sqlite3
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import safetensors.torch

from lorica.common.plan import RunPlan
from lorica.common.plan.io import to_toml
from lorica.common.privacy.sealed import training_grid
from lorica.common.secure_sum.masks import pack
from lorica.common.wire.messages import reply_from_bytes
from lorica.server.results.folder import SUM
from tests.conftest import make_small_backbone
from tests.e2e.faults import (
    THREE,
    introduce,
    records_of_three,
    sealed_runs,
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

pytestmark = [
    pytest.mark.slow("a whole run of a real federation"),
    pytest.mark.e2e,
    pytest.mark.skipif(
        not can_make_hosts(), reason="making hosts needs root and the program ip (iproute2)"
    ),
]

RUN, ROUNDS = "sealed", 5
STEADY, STEADY_ROUNDS = "steady", 12
"""A run that nothing happens to, whose rounds are timed."""
LATE = 45.0
"""Seconds after which a round does without a site."""


@dataclass
class Seen:
    """A run that is over, and what was searched while it went on."""

    federation: Federation
    plan: RunPlan
    capture: Path
    vectors: dict[tuple[str, int], npt.NDArray[np.int64]] = field(default_factory=dict)
    """(site, round) -> the site's vector with its noise, as its ledger stored it."""
    found: list[str] = field(default_factory=list)
    """Vectors that were found in the coordinator's memory."""
    searched: int = 0
    """Bytes of its memory."""
    opened_without_north: int = 0
    """The round in which north died after it was in the sum."""
    control: bool = False
    """Whether the global weights were found there in the same way."""

    def note(self) -> dict[str, Any]:
        """What the coordinator noted of the newest sum."""
        path = self.federation.home / "runs" / RUN / SUM
        with contextlib.suppress(OSError, ValueError):
            return dict(json.loads(path.read_text()))
        return {"round": 0, "survivors": None}

    def wait_fixed(self, round: int) -> list[str]:
        """Until a round's survivors are fixed; their names."""

        def fixed() -> dict[str, Any] | None:
            order = self.federation.order(RUN)
            assert order["state"] not in ("failed", "stopped"), order
            note = self.note()
            assert note["round"] <= round, f"missed round {round}"
            return note if note["round"] == round and note["survivors"] is not None else None

        note = wait_for(f"round {round}'s survivors", fixed, 240, poll=0.002)
        assert note is not None
        return [note["roster"][position][0] for position in note["survivors"]]

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """While the coordinator's processes stand still."""
        held = coordinators(self.federation)
        for pid in held:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in held:
                os.kill(pid, signal.SIGCONT)

    def keep(self) -> None:
        """Read what ledgers stored."""
        for site in THREE:
            path = self.federation.config(site).parent / "ledger.sqlite"
            with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as ledger:
                for (content,) in ledger.execute("SELECT reply FROM replies"):
                    reply = reply_from_bytes(bytes(content))
                    if reply.sealed:
                        vector = np.frombuffer(reply.sealed, dtype="<i8").astype(np.int64)
                        self.vectors[site, reply.round] = vector

    def search(self) -> None:
        """Look for all vectors in the memory of the coordinator's processes."""
        wanted = {
            f"{site}'s of round {round}, {form}": part
            for (site, round), vector in self.vectors.items()
            for form, part in self.forms(round, vector)
        }
        state = self.federation.home / "runs" / RUN / "checkpoint.safetensors"
        weights = safetensors.torch.load_file(state)["head.weight"].numpy().tobytes()
        for pid in coordinators(self.federation):
            for block in memory(pid):
                self.searched += len(block)
                self.control |= bool(weights.strip(b"\0")) and weights[:64] in block
                self.found += [name for name, part in wanted.items() if part in block]

    def forms(self, round: int, vector: npt.NDArray[np.int64]) -> Iterator[tuple[str, bytes]]:
        """A part of a vector in every form that the coordinator could hold it in."""
        grid = training_grid(self.plan, round, len(vector), len(THREE))
        some = vector[len(vector) // 2 :][:12]
        yield "as integers", some.astype("<i8").tobytes()
        yield "packed", pack(some.view(np.uint64).copy(), grid.bits)
        yield "as float64", grid.reals(some).astype("<f8").tobytes()
        yield "as float32", grid.reals(some).astype("<f4").tobytes()


def coordinators(federation: Federation) -> list[int]:
    """Processes that hold what sites send: those of the coordinator that are Python's."""
    kinds = ("ServerApp", "SuperLink")
    return [pid for kind in kinds for pid in victims(federation, kind, COORDINATOR)]


def memory(pid: int) -> Iterator[bytes]:
    """All writable memory of a process, by mapping."""
    maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as file:
        for line in maps:
            place = re.match(r"([0-9a-f]+)-([0-9a-f]+) rw", line)
            if place is None:
                continue
            start, end = (int(part, 16) for part in place.groups())
            with contextlib.suppress(OSError, OverflowError):
                file.seek(start)
                yield file.read(end - start)


def trainers(federation: Federation, site: str, action: signal.Signals) -> None:
    """Send a signal to a site's trainer."""
    held = victims(federation, "trainer", site)
    assert held
    for pid in held:
        os.kill(pid, action)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    """The whole run, with a site killed in each exchange."""
    root = tmp_path_factory.mktemp("sealed")
    sites, backbone = records_of_three(root), make_small_backbone(root / "backbone")
    plan = small_plan(
        backbone,
        privacy={"trust": "sum", "honest_sites": 2},
        rounds={
            "count": ROUNDS,
            "minimum_sites": 2,
            "timeout_seconds": LATE,
            "reconnect_seconds": LATE,
        },
    )
    (root / "plan.toml").write_text(to_toml(plan))
    begun = time.monotonic()
    with (
        Network([COORDINATOR, *THREE]) as network,
        Federation(root / "hosts", sites, network, settings=sealed_runs(backbone)) as federation,
    ):
        packets = network.capture(root / "packets.pcap")
        found = Seen(federation, plan, root / "packets.pcap")
        try:
            federation.set_up(lambda: introduce(federation))
            print(f"\nset up in {time.monotonic() - begun:.0f} s")
            begun = time.monotonic()
            federation.submit(root / "plan.toml", RUN)
            # From here on east says nothing, and dies while it is asked for round 2's vector.
            assert found.wait_fixed(1) == [*THREE]
            trainers(federation, "east", signal.SIGSTOP)
            assert found.wait_fixed(2) == ["north", "south"]
            trainers(federation, "east", signal.SIGKILL)
            # All three are in the sum, north dies before it opens it.
            round = next(r for r in range(3, ROUNDS) if found.wait_fixed(r) == [*THREE])
            with found.frozen():
                trainers(federation, "north", signal.SIGKILL)
                found.keep()
                found.search()
            found.opened_without_north = round
            order = federation.wait_over(RUN, 240)
            assert order["state"] == "finished", order
            print(f"run of {ROUNDS} rounds in {time.monotonic() - begun:.0f} s")
            found.keep()
            steady = plan.replace(rounds={"count": STEADY_ROUNDS})
            (root / "steady.toml").write_text(to_toml(steady))
            federation.submit(root / "steady.toml", STEADY)
            order = federation.wait_over(STEADY, 240)
            assert order["state"] == "finished", order
        finally:
            packets.terminate()
            packets.wait()
        yield found


def test_the_run_finishes_without_the_site_that_died_before_its_vector(seen: Seen) -> None:
    rounds = seen.federation.rounds(RUN)
    assert [record["round"] for record in rounds] == list(range(ROUNDS + 1))
    left_out = {r["round"]: absent(r) for r in rounds[1:] if absent(r)}
    print(f"\nleft out: {left_out}; {[round(r['seconds'], 1) for r in rounds[1:]]} s a round")
    assert left_out[2] == ["east"]
    assert rounds[2]["sealed"] == 2
    assert rounds[seen.opened_without_north]["sealed"] == len(THREE)
    assert all(record["sealed"] == len(THREE) - len(absent(record)) for record in rounds[1:])


def test_a_round_of_two_exchanges_is_told_with_its_time(seen: Seen) -> None:
    rounds = seen.federation.rounds(STEADY)[1:]
    assert [record["sealed"] for record in rounds] == [len(THREE)] * STEADY_ROUNDS
    head = [record["seconds"] for record in rounds[1:]]
    print(
        f"\na round of the head in two exchanges, {len(THREE)} sites on {os.cpu_count()} cores: "
        f"median {statistics.median(head):.2f} s, longest {max(head):.2f} s"
    )


def absent(record: dict[str, Any]) -> list[str]:
    """Sites that a round did without."""
    ok = {site["site"] for site in record["sites"] if site["status"] == "ok"}
    return [site for site in THREE if site not in ok]


def test_nothing_is_charged_twice(seen: Seen) -> None:
    rounds = {record["round"]: record for record in seen.federation.rounds(RUN)[1:]}
    for site in THREE:
        ledger = str(seen.federation.config(site).parent / "ledger.sqlite")
        seen.federation.lorica(site, "site", "ledger", "verify", "--ledger", ledger)
        said = seen.federation.lorica(site, "site", "ledger", "export", "--ledger", ledger)
        charged = charged_rounds(said, RUN)
        assert len(charged) == len(set(charged))
        assert {r for r, record in rounds.items() if site not in absent(record)} <= set(charged)


def test_every_sum_is_exact_over_its_survivors(seen: Seen, tmp_path: Path) -> None:
    rounds = seen.federation.rounds(RUN)[1:]
    lost = {site: [r["round"] for r in rounds if site in absent(r)] for site in THREE}
    plan = seen.plan.replace(simulation={"declared": "rounded"})
    undisturbed(plan, seen.federation.sites, RUN, tmp_path / "same", lost)
    furthest = furthest_weight(seen.federation.home / "runs" / RUN, tmp_path / "same")
    print(f"\nfurthest weight from the undisturbed run's: {furthest:.1e}")
    assert furthest <= 1e-6


def test_the_coordinators_memory_holds_sums_and_no_sites_vector(seen: Seen) -> None:
    print(f"\n{seen.searched / 2**20:.0f} MiB of memory searched for {len(seen.vectors)} vectors")
    assert {(site, seen.opened_without_north) for site in THREE} <= seen.vectors.keys()
    assert seen.control  # the global weights were found there
    assert seen.found == []


def test_packets_hold_no_vector(seen: Seen) -> None:
    packets = seen.capture.read_bytes()
    assert len(packets) > 100_000
    for (site, round), vector in seen.vectors.items():
        found = [form for form, part in seen.forms(round, vector) if part in packets]
        assert found == [], f"{site}'s vector of round {round}"
