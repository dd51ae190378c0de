"""Ways to hurt a federation, small data for it, and the run that nothing happened to."""

from __future__ import annotations

import contextlib
import csv
import os
import re
import signal
import sqlite3
import subprocess
import tomllib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import tomli_w

from lorica.client.answering.protocol import Trainer
from lorica.client.training.trainer import LocalTrainer
from lorica.common.backbone.files import backbone_sha256
from lorica.common.backbone.loading import load_backbone
from lorica.common.data.records import UNNAMED, Records
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.tasks import task_of
from lorica.common.wire.messages import Reply, Request
from lorica.server.results.folder import RunFolder
from lorica.server.results.observers import Silent
from lorica.server.rounds.loop import RoundLoop
from lorica.simulations.run.engines import run_in_process
from lorica.simulations.run.sites import make_trainer, rounded
from tests.e2e.federation import COORDINATOR, Federation

VICTIMS = {
    "ServerApp": "flwr-serverapp",
    "SuperLink": "flower-superlink",
    "proxy": "nginx: master",
    "SuperNode": "lorica.client.node.prompt_supernode",
    "ClientApp": "client/node/launch.py",
    "trainer": "lorica.client.service.main",
}
"""What is killed -> what its command line holds."""


UNITS = 120
"""Records of a site."""
THREE, UNITS_OF_THREE = ("east", "north", "south"), 128
"""Three sites for sealed sums, and what each declares of its 160 records: as simulations round."""


def records(folder: Path) -> dict[str, Path]:
    """Two sites' small data, and both together with the site's name (both.csv)."""
    words = ["lost", "new", "old", "red", "tired"]
    sites: dict[str, Path] = {}
    rows = []
    for site, letters in (("north", "abcdefghijkl"), ("south", "mnopqrstuvwx")):
        mine = [(f"my card is {w} {c}", "money") for w in words for c in letters]
        mine += [(f"my heart has {w} {c}", "health") for w in words for c in letters]
        assert len(mine) == UNITS
        sites[site] = folder / f"{site}.csv"
        with sites[site].open("w", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *mine])
        rows += [(*row, site) for row in mine]
    with (folder / "both.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label", "site"), *rows])
    return sites


def records_of_three(folder: Path) -> dict[str, Path]:
    """Three sites' small data, of 160 records each."""
    words = ["blue", "hot", "lost", "new", "old", "red", "sore", "tired", "torn", "worn"]
    sites = {}
    for site, letters in zip(THREE, ("abcdefgh", "ijklmnop", "qrstuvwx"), strict=True):
        rows = [(f"my card is {w} {c}", "money") for w in words for c in letters]
        rows += [(f"my heart has {w} {c}", "health") for w in words for c in letters]
        sites[site] = folder / f"{site}.csv"
        with sites[site].open("w", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *rows])
    return sites


def small_plan(backbone: Path, **sections: Mapping[str, Any]) -> RunPlan:
    """A plan for those records; sites that break off are waited for."""
    plan = RunPlan().replace(
        backbone={"source": str(backbone)},
        task={"labels": ["health", "money"]},
        data={"train": "unused.csv"},
        rounds={
            "minimum_sites": 2,
            "timeout_seconds": 1200,
            "reconnect_seconds": 600,
        },
    )
    return plan.replace(**sections)


def many_runs(backbone: Path) -> dict[str, dict[str, Any]]:
    """Settings of sites that take part in any number of runs, with noise that can be repeated."""
    return {
        "policy": {
            "noise": "seeded",
            # As a simulation with simulation.declared = "rounded" has it of these records.
            "sampling_units": rounded(UNITS),
            "declared_units": rounded(UNITS),
            "minimum_units": 50,
            "backbones": [backbone_sha256(backbone)],
            "backbone_folders": [str(backbone)],
        },
        "ledger": {"lifetime_epsilon": 1e6, "period_epsilon": 1e6},
    }


def sealed_runs(backbone: Path) -> dict[str, dict[str, Any]]:
    """The same for :func:`records_of_three`."""
    settings = many_runs(backbone)
    settings["policy"] |= {"sampling_units": UNITS_OF_THREE, "declared_units": UNITS_OF_THREE}
    return settings


def introduce(federation: Federation) -> None:
    """What the sites' people do by telephone: every site lists the others' fingerprints."""
    prints = {}
    for site in federation.sites:
        config = str(federation.config(site))
        said = federation.lorica(site, "site", "peers", "show", "--config", config)
        found = re.search(rf"^\s*{site}\s+(\S.*?)\s{{2,}}this site", said, re.MULTILINE)
        assert found, said
        prints[site] = found[1]
    for site in federation.sites:
        content = tomllib.loads(federation.config(site).read_text())
        content["policy"]["peers"] = {o: text for o, text in prints.items() if o != site}
        federation.config(site).write_text(tomli_w.dumps(content))


def victims(federation: Federation, kind: str, host: str = "") -> list[int]:
    """Processes of a kind that live now, of one host if it is named."""
    folder = str(federation.home if host == COORDINATOR else federation.root / host)
    found = federation.processes().items()
    return [
        p for p, command in found if VICTIMS[kind] in command and (not host or folder in command)
    ]


def kill(pid: int) -> bool:
    """SIGKILL; whether there was such a process."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def power_cut(federation: Federation, host: str) -> None:
    """Every process of a host at once; its service manager starts the services again."""
    folder = str(federation.home if host == COORDINATOR else federation.root / host)
    supervisor = federation.running.pop(host)
    everything = federation.processes()
    leaders = {pid for pid, command in everything.items() if folder in command}
    mine = [pid for pid in everything if pid in leaders or _session(pid) in leaders]
    for pid in [supervisor.pid, *mine]:
        kill(pid)
    supervisor.wait()
    federation.start(host)


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return 0


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[None]:
    """A file system of its own, of a fixed size, at ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    size = f"size={megabytes}m,mode=700"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextlib.contextmanager
def full_disk(folder: Path) -> Iterator[None]:
    """Not a byte is left on the folder's file system, whatever is removed from it meanwhile."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        with contextlib.suppress(OSError):
            while True:
                file.write(bytes(65536))
        with contextlib.suppress(OSError):
            while True:
                file.write(bytes(512))
    try:
        yield
    finally:
        ballast.unlink()


def entries(ledger: Path) -> list[tuple[str, str]]:
    """A ledger's entries: kind and run (that of a retry is empty), read beside whoever writes."""
    with contextlib.closing(sqlite3.connect(f"file:{ledger}?mode=ro", uri=True)) as connection:
        query = "SELECT body ->> 'entry', coalesce(body ->> 'run', '') FROM entries ORDER BY number"
        return [(str(kind), str(run)) for kind, run in connection.execute(query)]


def in_hand(ledger: Path, run: str, *, charges: int = 1) -> bool:
    """Whether a private step of the run, after at least so many ``charges``, is charged and not
    answered yet."""
    kinds = [kind for kind, of in entries(ledger) if of == run]
    return kinds.count("charge") >= charges and kinds[-1] == "charge"


class _Absent:
    """A site that is out of reach in some rounds."""

    def __init__(self, trainer: LocalTrainer, rounds: Collection[int]) -> None:
        self.site, self._trainer, self._rounds = trainer.site, trainer, rounds
        self.capabilities = trainer.capabilities

    def train(self, request: Request) -> Reply:
        if request.round in self._rounds:
            raise LoricaError(Code.TRAINER_DOWN, "It is out of reach.")
        return self._trainer.train(request)

    def evaluate(self, request: Request) -> Reply:
        return self._trainer.evaluate(request)


def undisturbed(
    plan: RunPlan,
    sites: Mapping[str, Path],
    run: str,
    folder: Path,
    lost: Mapping[str, Collection[int]] | None = None,
) -> None:
    """The same run in this process, where nothing happens to anybody.

    Args:
        plan: the run's.
        sites: their records.
        run: its id, which the seeded noise depends on.
        folder: gets its results.
        lost: site -> rounds in which it takes no part.
    """
    trainers: dict[str, Trainer] = {}
    figures = plan.replace(simulation={"declared": "rounded"})
    for site, file in sites.items():
        with file.open(newline="", encoding="utf-8") as rows:
            held = list(csv.DictReader(rows))
        found = Records(
            [row["text"] for row in held],
            [row["label"] for row in held],
            [f"{UNNAMED}{number}" for number in range(len(held))],
            [""] * len(held),
        )
        trainers[site] = _Absent(make_trainer(site, found, figures), (lost or {}).get(site, ()))
    place, backbone = RunFolder(folder), load_backbone(plan.backbone)
    place.create(plan)

    def start() -> Any:
        return task_of(plan).start(backbone)

    run_in_process(
        lambda grid: RoundLoop(
            grid,
            plan.replace(rounds={"reconnect_seconds": 0.0}),
            place,
            run=run,
            start=start,
            evaluate=None,
            observer=Silent(),
            nodes=len(sites),
            wait_seconds=10,
        ).run(),
        trainers,
    )
