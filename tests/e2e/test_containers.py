"""The compose files' own commands as they run in containers, without an engine.

For every service: the root file system read-only, the volumes of its compose file at their places
(read-only where it says so), user 10001, no capability, no network where it says none. What an
engine adds (images, limits, restarts) is not tried here.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import make_small_backbone
from tests.e2e.faults import records
from tests.e2e.federation import BIN, can_make_hosts, free_port, wait_for
from tests.saved_adapters import random_adapter

pytestmark = [
    pytest.mark.slow("starts the real services"),
    pytest.mark.e2e,
    pytest.mark.skipif(not can_make_hosts(), reason="mounts and namespaces need root"),
]

DOCKER = Path(__file__).resolve().parents[2] / "docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text().replace("\\\n", " ")
USER = "10001"
SCRATCH = "/scratch"  # stands for the container's /tmp, below which this checkout may lie


def stage(target: str) -> str:
    """The Dockerfile's lines of one image."""
    return DOCKERFILE.partition(f" AS {target}\n")[2].partition("\nFROM ")[0]


def listed(target: str, instruction: str) -> list[str]:
    """The JSON list of an instruction, such as ENTRYPOINT."""
    found = re.search(rf"^{instruction}.*?(\[.*\])$", stage(target), re.MULTILINE)
    assert found, (target, instruction)
    return [str(word) for word in json.loads(found[1])]


def variables(target: str) -> dict[str, str]:
    """Environment variables of an image."""
    lines = re.findall(r"^ENV (.*)$", stage("base") + "\n" + stage(target), re.MULTILINE)
    found = dict(word.split("=", 1) for line in lines for word in shlex.split(line))
    return found | {"HOME": SCRATCH, "TMPDIR": SCRATCH, "OMP_NUM_THREADS": "1"}


class Containers:
    """Runs services of a compose file. A context manager that ends what it started."""

    def __init__(self, root: Path, kind: str, targets: dict[str, str]) -> None:
        """
        Args:
            root: the folder that the compose file's volumes lie in.
            kind: the folder of the compose file in docker/.
            targets: service -> its image's stage in the Dockerfile.
        """
        self.root, self._targets = root, targets
        self._services: dict[str, Any] = yaml.safe_load(
            (DOCKER / kind / "compose.yaml").read_text()
        )["services"]
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        for service in self._services.values():
            for volume in service["volumes"]:
                self._source(volume.split(":")[0]).mkdir(mode=0o700, parents=True, exist_ok=True)
        (root / "mounts").mkdir()

    def __enter__(self) -> Containers:
        return self

    def __exit__(self, *error: object) -> None:
        for process in self._running.values():
            process.kill()
            process.wait()

    def _source(self, volume: str) -> Path:
        return self.root / volume if volume.startswith("./") else self.root / "volumes" / volume

    def _command(self, service: str, words: list[str]) -> list[str]:
        settings, target = self._services[service], self._targets[service]
        work = shlex.quote(str(self.root / "mounts"))
        inside = f"{work}/root"
        lines = [
            "set -euo pipefail",
            f"mount -t tmpfs tmpfs {work}",
            f"mkdir {work}/upper {work}/work {inside}",
            f"mount -t overlay overlay -o lowerdir=/,upperdir={work}/upper,workdir={work}/work "
            f"{inside}",
            f"mkdir -p {inside}/outside {inside}{SCRATCH}",
            *[f"mount --rbind /{name} {inside}/{name}" for name in ("proc", "dev")],
            f"mount -t tmpfs tmpfs {inside}{SCRATCH}",
        ]
        for volume in settings["volumes"]:
            source, place, *mode = volume.split(":")
            at = inside + place
            lines += [
                f"mkdir -p {at}",
                f"mount --bind {shlex.quote(str(self._source(source)))} {at}",
            ]
            lines += [f"mount -o remount,bind,ro {at}"] if mode == ["ro"] else []
        assert settings["read_only"] is True
        lines += [
            f"mount -o remount,bind,ro {inside}",
            f"cd {inside}; pivot_root . outside; cd /; umount -l /outside",
        ]
        assert settings["user"] == f"{USER}:{USER}" and settings["cap_drop"] == ["ALL"]
        network = ["unshare", "--net"] if settings.get("network_mode") == "none" else []
        user = ["unshare", "--user", f"--map-user={USER}", f"--map-group={USER}"]
        told = [f"{name}={value}" for name, value in variables(target).items()]
        entry = shlex.join([*network, *user, "setpriv", "--no-new-privs", "env", *told, *words])
        return [
            "unshare",
            "--mount",
            "--propagation=private",
            "bash",
            "-c",
            "\n".join([*lines, f"exec {entry}"]),
        ]

    def _words(self, service: str, arguments: list[str]) -> list[str]:
        entrypoint = listed(self._targets[service], "ENTRYPOINT")
        assert entrypoint[0] == "lorica"
        return [str(BIN / "lorica"), *entrypoint[1:], *arguments]

    def run(self, service: str, *arguments: str, fails: bool = False) -> str:
        """``docker compose run SERVICE ARGUMENTS``: its output."""
        command = self._command(service, self._words(service, list(arguments)))
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
        assert bool(done.returncode) == fails, done.stdout + done.stderr
        return done.stdout

    def up(self, service: str, *more: str) -> Path:
        """Start a service with its own command; the file that its output goes to. ``more``: options
        after it."""
        words = self._words(service, [*self._services[service]["command"], *more])
        out = self.root / f"{service}.out"
        with out.open("wb") as file:
            self._running[service] = subprocess.Popen(
                self._command(service, words), stdin=subprocess.DEVNULL, stdout=file, stderr=file
            )
        return out

    def healthy(self, service: str, **replaced: str) -> bool:
        """Whether the image's health check says so; ``replaced``: words of it."""
        words = listed(self._targets[service], "HEALTHCHECK")
        words[0] = str(BIN / words[0])
        for old, new in replaced.items():
            words = [word.replace(old.removeprefix("_"), new) for word in words]
        command = self._command(service, words)
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def down(self, service: str) -> int:
        """SIGTERM; the exit status."""
        process = self._running.pop(service)
        process.send_signal(signal.SIGTERM)
        return process.wait(60)


@pytest.fixture
def coordinator(tmp_path: Path) -> Iterator[Containers]:
    with Containers(tmp_path / "c", "coordinator", {"coordinator": "coordinator"}) as found:
        yield found


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Containers]:
    targets = {"trainer": "trainer", "node": "node", "setup": "trainer"}
    with Containers(tmp_path / "s", "site", targets) as found:
        yield found


def test_the_compose_files_services_work_on_a_read_only_root_without_rights(
    coordinator: Containers, site: Containers, tmp_path: Path
) -> None:
    port, home = free_port(), coordinator.root / "coordinator"
    address = f"127.0.0.1:{port}"
    init = ["coordinator", "init", address, "--private-port", str(free_port())]
    coordinator.run("coordinator", *init)
    settings = home / "coordinator.toml"
    settings.write_text(settings.read_text().replace('monitor = "yes"', 'monitor = "no"'))
    said = coordinator.up("coordinator")
    wait_for("the coordinator", lambda: "ready: " in said.read_text(), 120)
    assert coordinator.healthy("coordinator", _8443=str(port))

    token = coordinator.run("coordinator", "coordinator", "invite", "north").strip()
    shutil.copy(records(tmp_path)["north"], site.root / "data" / "records.csv")
    config = ["--config", "/site/site.toml"]
    site.run("setup", "init", "--token", token, "--data", "/data/records.csv", *config)
    own = site.root / "site" / "site.toml"
    text = own.read_text()
    assert 'path = "ledger.sqlite"' in text
    own.write_text(text.replace('path = "ledger.sqlite"', 'path = "/private/ledger.sqlite"'))
    site.run("setup", "ledger", "create", *config)
    site.run("setup", "approve", "--yes", *config)
    shutil.copy(site.root / "site" / "registration.json", home / "north.json")
    coordinator.run("coordinator", "coordinator", "admit", "/coordinator/north.json")

    site.up("trainer")
    wait_for("the trainer", lambda: site.healthy("trainer"), 180, poll=1)
    assert "isolated" in site.run("setup", "status", *config)
    site.up("node")
    wait_for(
        "the node",
        lambda: " yes " in coordinator.run("coordinator", "coordinator", "sites"),
        120,
        poll=1,
    )
    assert site.healthy("node")
    assert site.down("node") == 0 and not site.healthy("node")
    assert site.down("trainer") == 0 and not site.healthy("trainer")
    assert coordinator.down("coordinator") == 0
    assert not Path(SCRATCH).exists()  # nothing of it was on this machine


def test_an_adapter_is_served_from_folders_that_nothing_writes_to(tmp_path: Path) -> None:
    backbone = make_small_backbone(tmp_path / "small")
    token, port = "a-token-of-thirty-two-characters", free_port()
    with Containers(tmp_path / "v", "serve", {"serve": "serve"}) as found:
        shutil.copytree(backbone, found.root / "backbone", dirs_exist_ok=True)
        saved = random_adapter(tmp_path / "adapter", backbone, ["a", "b"])
        shutil.copytree(saved, found.root / "adapter", dirs_exist_ok=True)
        (found.root / "secret" / "token").write_text(token)
        said = found.up("serve", "--backbone", "/backbone", "--port", str(port))
        wait_for("the server", lambda: found.healthy("serve", _8080=str(port)), 180, poll=1)
        assert "Serving /adapter" in said.read_text()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/predict",
            data=json.dumps({"texts": ["my card"]}).encode(),
            headers={"Content-Type": "application/json"},
        )
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=60)
        assert refused.value.code == 401
        request.add_header("Authorization", f"Bearer {token}")
        with urllib.request.urlopen(request, timeout=60) as answer:
            (prediction,) = json.load(answer)["predictions"]
        assert prediction["predicted_label"] in ("a", "b")
        assert found.down("serve") in (0, -signal.SIGTERM, 128 + signal.SIGTERM)
