"""docker/ and the systemd units: checked without an engine, as far as that goes."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field
from typer.testing import CliRunner

from lorica.common.cli.command import app
from lorica.common.plan.io import load_plan
from lorica.server.coordinator.home import CoordinatorConfig

DOCKER = Path(__file__).resolve().parents[2] / "docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text()
COMPOSE = sorted(DOCKER.glob("*/compose.yaml"))
UNITS = sorted((DOCKER / "systemd").glob("*.service"))


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Build(_Strict):
    context: str
    dockerfile: str
    target: Literal["coordinator", "trainer", "node", "serve"]


class Condition(_Strict):
    condition: Literal["service_started", "service_healthy", "service_completed_successfully"]


class Logging(_Strict):
    """Logs of a container are bounded: they must not fill a disk."""

    driver: Literal["local"]
    options: dict[Literal["max-size", "max-file"], str]


Mount = Annotated[str, Field(pattern=r"^(\./[a-z]+|[a-z]+):/[a-z/]+(:ro)?$")]


class Service(_Strict):
    """What the compose specification allows, of what is used here, and what is a must here."""

    image: str
    build: Build | None = None
    entrypoint: list[str] | None = None
    command: list[str]
    network_mode: Literal["none"] | None = None
    user: Literal["10001:10001"]
    read_only: Literal[True]
    cap_drop: tuple[Literal["ALL"]]
    security_opt: tuple[Literal["no-new-privileges:true"]]
    pids_limit: int
    init: bool = False
    restart: Literal["unless-stopped"] | None = None
    stop_grace_period: Annotated[str, Field(pattern=r"^\d+s$")] | None = None
    logging: Logging | None = None
    ports: list[Annotated[str, Field(pattern=r"^(127\.0\.0\.1:)?\d+:\d+$")]] = []
    volumes: list[Mount]
    tmpfs: list[Annotated[str, Field(pattern=r"^/tmp:size=\d+[mg],mode=1777$")]]
    depends_on: dict[str, Condition] = {}
    profiles: list[str] = []


class Compose(_Strict):
    name: str
    services: dict[str, Service]
    volumes: dict[str, dict[str, Any]] = {}


def composed(kind: str) -> Compose:
    return Compose.model_validate(yaml.safe_load((DOCKER / kind / "compose.yaml").read_text()))


@pytest.mark.parametrize("path", COMPOSE, ids=lambda path: path.parent.name)
def test_every_service_is_locked_down_and_what_it_names_exists(path: Path) -> None:
    found = composed(path.parent.name)
    for service in found.services.values():
        if service.build is not None:
            context = (path.parent / service.build.context).resolve()
            assert (context / service.build.dockerfile).is_file()
            assert f" AS {service.build.target}\n" in DOCKERFILE
        named = {mount.split(":")[0] for mount in service.volumes if not mount.startswith("./")}
        assert named <= found.volumes.keys()
        assert set(service.depends_on) <= found.services.keys()
        assert service.logging is not None or service.restart is None  # what stays up logs on


def test_the_trainer_has_no_network_and_the_node_no_records() -> None:
    services = composed("site").services
    assert services["trainer"].network_mode == "none" and not services["trainer"].ports
    assert services["node"].network_mode is None and not services["node"].ports
    seen = [mount.split(":")[1] for mount in services["node"].volumes]
    assert not [path for path in seen if path.startswith(("/data", "/private"))]
    assert "./site:/site:ro" in services["node"].volumes
    assert "./data:/data:ro" in services["trainer"].volumes
    for service in services.values():  # whoever sees records has no network
        seen = {mount.split(":")[1] for mount in service.volumes}
        assert service.network_mode == "none" or not seen & {"/data", "/private"}


def test_the_engine_is_sent_what_the_image_copies_and_nothing_else() -> None:
    lines = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    taken = {rule[1:] for rule in rules if rule.startswith("!")}
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE)
    assert taken == {name for line in copied for name in line.split()}


def test_the_container_publishes_the_proxy_to_all_and_the_monitor_to_its_host_alone() -> None:
    """The SuperLink's port stays within."""
    config = CoordinatorConfig()
    (service,) = composed("coordinator").services.values()
    monitor = f"{config.monitor_port}:{config.monitor_port}"
    assert service.ports == [f"{config.port}:{config.port}", f"127.0.0.1:{monitor}"]


def test_what_is_served_is_read_alone_and_asks_for_a_token() -> None:
    (service,) = composed("serve").services.values()
    assert "--token-file" in service.command
    assert all(mount.endswith(":ro") for mount in service.volumes)
    assert service.ports == ["127.0.0.1:8080:8080"]


def test_images_are_pinned_not_root_and_checked_for_health() -> None:
    assert re.search(r"^ARG BASE=python:\d+\.\d+\.\d+-slim-[a-z]+$", DOCKERFILE, re.MULTILINE)
    assert set(re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)) <= {
        "${BASE}",
        "base",
        "training",
    }
    for target in ("node", "trainer", "coordinator", "serve"):
        stage = re.split(r"^FROM ", DOCKERFILE.partition(f" AS {target}\n")[2], flags=re.M)[0]
        assert "USER 10001:10001" in stage and "HEALTHCHECK" in stage


@pytest.mark.process
def test_the_nodes_image_needs_no_torch() -> None:
    source = (
        "import sys, lorica.client.site.services, lorica.client.app, lorica.client.node.forwarder\n"
        "assert not {'torch', 'transformers', 'opacus'} & set(sys.modules), 'heavy'"
    )
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        *[
            [*shlex.split(prefix), *service.command]
            for kind, prefix in (("coordinator", ""), ("site", "site"), ("serve", ""))
            for service in composed(kind).services.values()
        ],
        *[
            shlex.split(started)
            for unit in UNITS
            for started in re.findall(r"^ExecStart=\S+ (.*)$", unit.read_text(), re.MULTILINE)
        ],
    ],
    ids=" ".join,
)
def test_what_is_started_is_a_command_with_these_options(arguments: list[str]) -> None:
    done = CliRunner().invoke(app, [*arguments, "--help"])
    assert done.exit_code == 0 and "Usage" in done.output


@pytest.mark.process
def test_the_tryouts_plan_is_a_plan_and_its_script_parses() -> None:
    assert len(load_plan(DOCKER / "tryout" / "plan.toml").task.labels) == 8
    script = DOCKER / "tryout" / "tryout.sh"
    checked = subprocess.run(["bash", "-n", str(script)], capture_output=True, check=False)
    assert checked.returncode == 0, checked.stderr


@pytest.mark.process
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_takes_the_units(unit: Path, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    text = unit.read_text().replace("/opt/lorica/bin/lorica", "/bin/true")
    text = text.replace("User=lorica", "User=root").replace("Group=lorica", "Group=root")
    (tmp_path / unit.name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / unit.name)],
        capture_output=True,
        text=True,
        check=False,
    )
    problems = [line for line in done.stderr.splitlines() if unit.name in line]
    assert not problems, done.stderr


def test_the_trainers_unit_has_no_network() -> None:
    text = (DOCKER / "systemd" / "lorica-trainer.service").read_text()
    assert "\nPrivateNetwork=yes\n" in text and "network-online" not in text
