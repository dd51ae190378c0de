"""What the monitor costs: every page on a full store, and 200 open live pages beside a run.

    python benchmarks/speed/monitor.py [--store FILE] [--runs 1000] [--rounds 100] [--sites 50]

Pages: a real server over 1,000 runs × 100 rounds × 50 sites (filled as by store.py, or an SQLite
file that was), asked over HTTP by a signed-in client; every page together with what its scripts
fetch. Live pages: a run of the default plan's rounds with the store, while a monitor serves N
server-sent event streams to a process of their own; blocks of rounds with the streams open and
closed take turns. Every block with the streams open is compared with the mean of the blocks before
and after it, by the time a round takes on average (the slowest tenth of each left out). Where the
cores are full, rounds scatter by a tenth from block to block whatever else runs, so the ratio is
the bound from processor time: the monitor's while the pages are open, over that of the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
from rich.table import Table

from lorica.common.display.console import Console
from lorica.server.store import RunStore

fill = runpy.run_path(str(Path(__file__).with_name("store.py")))["fill"]

LORICA = Path(sys.executable).with_name("lorica")
REPEATS = 15
LIMIT_MS = 300.0
NAME = "watched"


def places(middle: str, live: str, several: list[str]) -> dict[str, list[str]]:
    """Every page, and what its scripts fetch when it opens."""
    api = "/api/v1/runs"

    def fetched(run: str) -> list[str]:
        curves = [f"{api}/{run}/site-curves?name={name}" for name in ("update_norm", "agreement")]
        return [f"{api}/{run}/rounds", f"{api}/{run}/grid", *curves]

    return {
        "runs": ["/runs"],
        "runs, searched": ["/runs?q=trial+77"],
        "runs, failed": ["/runs?status=failed"],
        "a run": [f"/runs/{middle}"],
        "a run, with its curves and grid": [f"/runs/{middle}", *fetched(middle)],
        "the live run, with its curves": [f"/runs/{live}", *fetched(live)],
        "its report": [f"/runs/{middle}/report"],
        f"compare {len(several)} runs, with curves": [
            "/compare?" + "&".join(f"run={run}" for run in several),
            *(f"{api}/{run}/rounds" for run in several),
        ],
        "sites": ["/sites"],
        "a site": ["/site?name=hospital-000"],
        "alerts": ["/alerts"],
        "audit log": ["/audit"],
        "account": ["/account"],
        "API": ["/api/docs"],
        "/metrics": ["/metrics"],
    }


class Monitor:
    """A monitor of its own process, and a client that its link has let in."""

    def __init__(self, store: str) -> None:
        """Start it and sign in."""
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115 - lives as long as the process
        self.process = subprocess.Popen(
            [str(LORICA), "monitor", "--port", "0", "--store", store],
            stderr=self._said,
            stdout=self._said,
        )
        self.url, link = self._link()
        self.client = httpx.Client(base_url=self.url, timeout=60)
        self.client.get(link)

    def _link(self) -> tuple[str, str]:
        for _ in range(600):
            self._said.seek(0)
            if found := re.search(r"(http://\S+?)(/open\?key=\S+)", self._said.read()):
                return found.group(1), found.group(2)
            time.sleep(0.1)
        raise SystemExit("The monitor did not start.")

    @property
    def cookies(self) -> dict[str, str]:
        """What a browser of this session sends."""
        return dict(self.client.cookies)

    @property
    def cpu_seconds(self) -> float:
        """What it has taken of a core so far."""
        times = psutil.Process(self.process.pid).cpu_times()
        return float(times.user + times.system)

    def close(self) -> None:
        """End it."""
        self.client.close()
        self.process.terminate()
        self.process.wait()
        self._said.close()


def ask_pages(monitor: Monitor, runs: int) -> Table:
    """Median milliseconds of every page, its scripts' requests one after another."""
    several = [f"run-{number:05d}" for number in range(min(4, runs))]
    wanted = places(f"run-{runs // 2:05d}", f"run-{runs - 1:05d}", several)
    table = Table(box=None, title=f"median of {REPEATS}, one client")
    for head, side in (("page", "left"), ("ms", "right"), ("÷ 300 ms", "right")):
        table.add_column(head, justify=side)  # type: ignore[arg-type]
    times: dict[str, list[float]] = {name: [] for name in wanted}
    for turn in range(REPEATS + 1):  # the pages take turns; the first turn warms up
        for name, paths in wanted.items():
            begun = time.perf_counter()
            for path in paths:
                monitor.client.get(path).raise_for_status()
            if turn:
                times[name].append(1000 * (time.perf_counter() - begun))
    for name, found in times.items():
        middle = statistics.median(found)
        table.add_row(name, f"{middle:.0f}", f"{middle / LIMIT_MS:.2f}")
    return table


async def hold(url: str, run: str, cookies: dict[str, str], count: int) -> None:
    """Keep so many live pages of a run open until standard input ends.

    Plain sockets: on this machine a client that parses would cost more than what is measured.
    """
    parts = urlsplit(url)
    held = "; ".join(f"{name}={value}" for name, value in cookies.items())
    ask = f"GET /api/v1/live?run={run} HTTP/1.1\r\nHost: {parts.netloc}\r\nCookie: {held}\r\n\r\n"
    heard = 0

    async def one() -> None:
        nonlocal heard
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        writer.write(ask.encode())
        while found := await reader.read(65536):
            heard += found.count(b"event: ")

    streams = [asyncio.create_task(one()) for _ in range(count)]
    await asyncio.to_thread(sys.stdin.read)
    for stream in streams:
        stream.cancel()
    await asyncio.gather(*streams, return_exceptions=True)
    sys.stdout.write(f"{heard}\n")


class Watchers:
    """A process with N open live pages, as observer of the run: on and off in turns."""

    def __init__(self, monitor: Monitor, store: RunStore, count: int, block: int) -> None:
        self._monitor, self._store, self._count, self._block = monitor, store, count, block
        self._process: subprocess.Popen[str] | None = None
        self._ended = 0.0
        self._settling = 0
        self.blocks: list[list[float]] = [[]]
        """Seconds of rounds: blocks with no page open and with all open, in turns."""
        self.cpu = 0.0
        """Seconds of one core that the monitor took while all pages were open."""
        self._cpu = 0.0
        self.heard = 0

    def started(self, *_: Any) -> None:
        """The first round begins."""
        self._ended = time.perf_counter()

    def site_answered(self, *_: Any) -> None:
        """Nothing to do."""

    def round_ended(self, record: Any) -> None:
        """Time the round; at the end of a block, open or close the pages."""
        now = time.perf_counter()
        if self._settling:
            self._settling -= 1  # rounds right after the change are of neither kind
        elif record.round > 1:
            self.blocks[-1].append(now - self._ended)
        if record.round and record.round % self._block == 0:
            self.close() if self._process else self._open()
            self.blocks.append([])
            self._settling = 2
        self._ended = time.perf_counter()

    def _open(self) -> None:
        run = self._store.list_runs().items[0].run_id
        pairs = [f"{name}={value}" for name, value in self._monitor.cookies.items()]
        command = [sys.executable, __file__, "--hold", self._monitor.url, run, str(self._count)]
        self._process = subprocess.Popen(
            [*command, *pairs],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: os.nice(19),  # browsers are on machines of their own
        )
        time.sleep(4)  # all streams are open
        self._cpu = self._monitor.cpu_seconds

    def usual(self, open_: bool) -> float:
        """Median over the blocks of a kind, seconds of a round."""
        return statistics.median(_usual(block) for block in self.blocks[open_::2] if block)

    def ratios(self) -> list[float]:
        """Every block with pages open, against its neighbours without."""
        usual = [_usual(block) for block in self.blocks if len(block) > self._block // 2]
        return [
            2 * usual[at] / (usual[at - 1] + usual[at + 1]) for at in range(1, len(usual) - 1, 2)
        ]

    def close(self) -> None:
        """Close the pages."""
        if self._process is not None:
            self.cpu += self._monitor.cpu_seconds - self._cpu
            out, _ = self._process.communicate("")
            self.heard += int(out or 0)
            self._process = None


def _usual(block: list[float]) -> float:
    kept = sorted(block)[: max(1, round(0.9 * len(block)))]
    return statistics.fmean(kept)


def watch_a_run(folder: Path, count: int, rounds: int, block: int) -> Watchers:
    """A run whose rounds are timed with and without live pages."""
    from lorica.common.plan.io import load_plan
    from lorica.server.recording.recording import Recording
    from lorica.server.results.observers import Observers
    from lorica.simulations.run.keep import Keep
    from lorica.simulations.run.simulate import Simulation

    os.environ["HF_HUB_OFFLINE"] = "1"
    url = str(folder / "watched.sqlite")
    store, monitor = RunStore.open(url), Monitor(url)
    watchers = Watchers(monitor, store, count, block)

    class Watched(Keep):
        def run(self, *given: Any, **named: Any) -> Any:
            from contextlib import contextmanager

            @contextmanager
            def kept() -> Any:
                with Keep.run(self, *given, **named) as found:
                    both = Observers(found.observer, watchers)
                    yield Recording(found.run_id, both, found.stop)

            return kept()

    plan = load_plan(None, [f"rounds.count={rounds}", "training.lora=never"])
    console = Console(quiet=True)
    try:
        Simulation(plan, folder / NAME, console, keep=Watched(store)).run()
    finally:
        watchers.close()
        monitor.close()
        store.close()
    return watchers


def main() -> None:
    """Fill, ask, watch, print."""
    if sys.argv[1:2] == ["--hold"]:
        url, run, count, *pairs = sys.argv[2:]
        cookies = dict(pair.split("=", 1) for pair in pairs)
        asyncio.run(hold(url, run, cookies, int(count)))
        return
    options = argparse.ArgumentParser()
    options.add_argument("--store", default="", help="a filled SQLite file; else one is made")
    for name, default in (("runs", 1000), ("rounds", 100), ("sites", 50)):
        options.add_argument(f"--{name}", type=int, default=default)
    options.add_argument("--watchers", type=int, default=200)
    options.add_argument("--watched-rounds", type=int, default=1150)
    options.add_argument("--block", type=int, default=50)
    options.add_argument("--only", choices=("pages", "live"), default=None)
    given = options.parse_args()
    console = Console(width=100)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        if given.only != "live":
            file = given.store or str(folder / "runs.sqlite")
            if not given.store:
                store = RunStore.open(file)
                seconds = fill(store, given.runs, given.rounds, given.sites)
                console.print(f"filled in {seconds:.0f} s")
                store.close()
            monitor = Monitor(file)
            console.print(ask_pages(monitor, given.runs))
            monitor.close()
        if given.only != "pages":
            found = watch_a_run(folder, given.watchers, given.watched_rounds, given.block)
            closed, opened = (1000 * found.usual(kind) for kind in (False, True))
            ratios, rounds = found.ratios(), sum(map(len, found.blocks[1::2]))
            taken = 1000 * found.cpu / rounds
            console.print(
                f"a round with {given.watchers} live pages open {opened:.1f} ms, with none "
                f"{closed:.1f} ms; pair by pair {statistics.median(ratios):.3f} ({len(ratios)} "
                f"pairs of blocks, from {min(ratios):.3f} to {max(ratios):.3f}); "
                f"{found.heard:,} events received"
            )
            console.print(
                f"monitor ratio: {1 + taken / closed:.3f} (at most: {taken:.2f} ms of a core for a "
                f"round, as if the round had waited for all of it)"
            )


if __name__ == "__main__":
    main()
