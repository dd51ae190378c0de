"""A real federation on this machine, started by the documented commands alone.

Every host is a folder and, where asked for, a network namespace of its own: a bridge joins them.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
import tomli_w

from lorica.client.training.opening import SEEDED_VARIABLE, SEEDED_WORDS

BIN = Path(sys.executable).parent
COORDINATOR = "coordinator"
Found = TypeVar("Found")


def free_port() -> int:
    """A port of this machine that nobody listens on now."""
    with socket.socket() as tried:
        tried.bind(("127.0.0.1", 0))
        return int(tried.getsockname()[1])


def can_make_hosts() -> bool:
    """Whether network namespaces can be made here."""
    if os.geteuid() or shutil.which("ip") is None:
        return False
    name = f"lorica-try-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False)
    subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
    return made.returncode == 0


def wait_for(
    what: str, look: Callable[[], Found], seconds: float = 60.0, poll: float = 0.2
) -> Found:
    """The first true value of ``look``; fails after ``seconds``."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = look()
        if found:
            return found
        time.sleep(poll)
    raise AssertionError(f"waited {seconds:g} s in vain for {what}")


def charged_rounds(exported: str, run: str = "") -> list[int]:
    """Rounds of every training, of one run if it is named, that an exported ledger was charged
    for, in order."""
    entries = [json.loads(entry["body"]) for entry in json.loads(exported)["entries"]]
    charges = [e for e in entries if e["entry"] == "charge" and e["kind"] == "train"]
    return [e["round"] for e in charges if not run or e["run"] == run]


def furthest_weight(run: Path, other: Path) -> float:
    """Largest difference of any adapter weight between two runs' last rounds.

    0 where every sum was added in the same order. One last bit of a feature can move a noised sum
    to the next point of the noise's grid, which is 1e-4 and more of a weight at a few hundred
    records; features are therefore the same to the bit whatever they are computed with
    (lorica.common.cache.batching). What the optimiser remembers is left out: it is in
    other units.
    """
    first, second = (
        {
            name: tensor
            for name, tensor in safetensors.torch.load_file(path / "checkpoint.safetensors").items()
            if not name.startswith("optimizer/")
        }
        for path in (run, other)
    )
    assert first and first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


class Network:
    """Namespaces for hosts, joined by a bridge in a namespace of its own. A context manager."""

    def __init__(self, hosts: list[str]) -> None:
        """``hosts``: their names; addresses are given in this order."""
        self._tag = f"lo{os.getpid()}{secrets.token_hex(2)}"
        self.names = {host: f"{self._tag}-{host}" for host in hosts}
        self.addresses = {host: f"10.77.0.{10 + i}" for i, host in enumerate(hosts)}
        self.hub = f"{self._tag}-hub"

    def __enter__(self) -> Network:
        try:
            self._make()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _make(self) -> None:
        _ip("netns", "add", self.hub)
        _ip("-n", self.hub, "link", "add", "bridge", "type", "bridge")
        _ip("-n", self.hub, "link", "set", "bridge", "up")
        for number, (host, name) in enumerate(self.names.items()):
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
            cable = f"to{number}"
            _ip("-n", self.hub, "link", "add", cable, "type", "veth", "peer", "eth0", "netns", name)
            _ip("-n", self.hub, "link", "set", cable, "master", "bridge")
            _ip("-n", self.hub, "link", "set", cable, "up")
            _ip("-n", name, "addr", "add", f"{self.addresses[host]}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "up")

    def __exit__(self, *error: object) -> None:
        for name in [*self.names.values(), self.hub]:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)

    def cut(self, host: str) -> None:
        """Pull a host's cable."""
        _ip("-n", self.names[host], "link", "set", "eth0", "down")

    def mend(self, host: str) -> None:
        """Put it back."""
        _ip("-n", self.names[host], "link", "set", "eth0", "up")

    def capture(self, file: Path) -> subprocess.Popen[bytes]:
        """Write every packet on the bridge to a file, until the process is ended."""
        command = ["tcpdump", "-i", "bridge", "-U", "-s", "0", "-w", str(file)]
        return subprocess.Popen(
            ["ip", "netns", "exec", self.hub, *command],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"


@dataclass
class Federation:
    """One coordinator and its sites. A context manager that ends all it started."""

    root: Path
    sites: dict[str, Path]
    """Name -> file with its records, columns text and label."""
    network: Network | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What an institution edits in its site.toml: section -> key -> value."""
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        self.home = self.root / COORDINATOR
        self.port, self.private_port = free_port(), free_port()
        host = self.network.addresses[COORDINATOR] if self.network else "127.0.0.1"
        self.address = f"{host}:{self.port}"

    def __enter__(self) -> Federation:
        return self

    def __exit__(self, *error: object) -> None:
        for host in reversed(list(self.running)):
            self.end(host)

    def config(self, site: str) -> Path:
        """A site's site.toml."""
        return self.root / site / "site.toml"

    def command(self, host: str, *arguments: str) -> list[str]:
        """A command of a host, in its namespace."""
        inside = ["ip", "netns", "exec", self.network.names[host]] if self.network else []
        return [*inside, str(BIN / "lorica"), *arguments]

    def lorica(self, host: str, *arguments: str, fails: bool = False, seconds: float = 240) -> str:
        """Run a command on a host; its output and error output."""
        done = subprocess.run(
            self.command(host, *arguments),
            env=self._environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=seconds,
        )
        said = done.stdout + done.stderr
        assert bool(done.returncode) == fails, f"lorica {' '.join(arguments)}: {said}"
        return said

    def _environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("LORICA_", "FLWR_"))}
        own = {
            "LORICA_COORDINATOR_HOME": str(self.home),
            "OMP_NUM_THREADS": "1",  # trainers and simulations add floats in the same order
        }
        if self.settings.get("policy", {}).get("noise") == "seeded":
            own[SEEDED_VARIABLE] = SEEDED_WORDS
        return {**kept, **own, **self.environment}

    def set_up(self, joined: Callable[[], None] = lambda: None) -> None:
        """The documented steps from nothing to services that are ready for a run; ``joined`` is
        done when all sites have joined and none has started."""
        self.lorica(
            COORDINATOR,
            "coordinator",
            "init",
            self.address,
            "--private-port",
            str(self.private_port),
        )
        self.no_monitor()
        self.start(COORDINATOR)
        self.wait_ready()
        for site in self.sites:
            self.join(site)
        joined()
        for site in self.sites:
            self.start(site)
        self.wait_online(len(self.sites))

    def no_monitor(self) -> None:
        """Leave the web pages out: they are tested elsewhere."""
        file = self.home / "coordinator.toml"
        file.write_text(file.read_text().replace('monitor = "yes"', 'monitor = "no"'))

    def join(self, site: str, *, admit: bool = True) -> None:
        """Invitation, the site's key and settings, its ledger, the code it approves, admission."""
        folder = self.root / site
        folder.mkdir(exist_ok=True)
        token, fab = folder / "invitation", folder / "lorica.fab"
        self.lorica(COORDINATOR, "coordinator", "invite", site, "--out", str(token))
        data, config = str(self.sites[site]), str(self.config(site))
        self.lorica(site, "site", "init", "--token", str(token), "--data", data, "--config", config)
        content = tomllib.loads(self.config(site).read_text())
        for section, values in self.settings.items():
            content[section] |= values
        self.config(site).write_text(tomli_w.dumps(content))
        self.lorica(site, "site", "ledger", "create", "--config", config)
        self.lorica(site, "coordinator", "bundle", "--out", str(fab))
        self.lorica(site, "site", "approve", str(fab), "--config", config, "--yes")
        if admit:
            request = folder / "registration.json"
            self.lorica(COORDINATOR, "coordinator", "admit", str(request))

    def start(self, host: str) -> None:
        """Start a host's services, as its service manager would."""
        arguments = (
            ["coordinator", "start"]
            if host == COORDINATOR
            else ["site", "start", "--config", str(self.config(host))]
        )
        with (self.root / f"{host}.out").open("ab") as out:
            self.running[host] = subprocess.Popen(
                self.command(host, *arguments),
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )

    def end(self, host: str) -> int:
        """Stop a host's services cleanly; their exit status."""
        process = self.running.pop(host)
        process.send_signal(signal.SIGTERM)
        try:
            return process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            raise

    def out(self, host: str) -> str:
        """What a host's services said."""
        return (self.root / f"{host}.out").read_text()

    def wait_ready(self) -> None:
        """Until the coordinator says that sites can come."""
        wait_for("the coordinator", lambda: "ready: " in self.out(COORDINATOR), 90)

    def online(self) -> int:
        """How many sites are online."""
        listed = self.lorica(COORDINATOR, "coordinator", "sites")
        return sum(" yes " in line for line in listed.splitlines())

    def wait_online(self, count: int) -> None:
        """Until so many sites are online."""
        wait_for(f"{count} sites", lambda: self.online() >= count, 120, poll=1.0)

    def submit(self, plan: Path, run: str) -> None:
        """Submit a run under an id."""
        self.lorica(COORDINATOR, "run", "submit", str(plan), "--id", run)

    def order(self, run: str) -> dict[str, Any]:
        """The run's order."""
        found: dict[str, Any] = json.loads((self.home / "runs" / run / "order.json").read_text())
        return found

    def wait_over(self, run: str, seconds: float) -> dict[str, Any]:
        """Until the run is over; its order."""
        over = ("finished", "failed", "stopped")
        try:
            wait_for(
                f"run {run}", lambda: self.order(run)["state"] in over, seconds=seconds, poll=0.5
            )
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.order(run)} {self.rounds(run)[-1:]}") from None
        return self.order(run)

    def rounds(self, run: str) -> list[dict[str, Any]]:
        """The run's whole rounds."""
        file = self.home / "runs" / run / "rounds.jsonl"
        if not file.exists():
            return []
        return [json.loads(line) for line in file.read_text().splitlines() if line.endswith("}")]

    def processes(self) -> dict[int, str]:
        """All processes of this federation by id: their command lines."""
        parents = {process.pid for process in self.running.values()}
        table = dict(_process_table())
        found: dict[int, str] = {}
        grew = True
        while grew:
            grew = False
            for pid, (parent, command) in table.items():
                if pid not in found and (parent in found or parent in parents or pid in parents):
                    found[pid] = command
                    grew = True
        for pid, (_, command) in table.items():  # detached ones carry the folder in their words
            if str(self.root) in command:
                found[pid] = command
        for pid, (_, command) in table.items():  # a proxy's workers stay in its master's session
            with contextlib.suppress(ProcessLookupError):
                if os.getsid(pid) in found:
                    found[pid] = command
        return found


def _process_table() -> Iterator[tuple[int, tuple[int, str]]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                stat = (entry / "stat").read_text().rpartition(")")[2].split()
                if stat[0] == "Z":
                    continue
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                yield int(entry.name), (int(stat[1]), command)
