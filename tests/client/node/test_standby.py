"""ClientApps split off from a process that stands by: the same program, in a process of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from lorica.client.config.site import SiteConfig, SiteData, SiteIdentity
from lorica.client.node.approved_code import approve, node_environment, prepare
from lorica.client.node.launch import SOCKET
from lorica.client.node.prompt_supernode import stand_by
from lorica.common.wire.bundle import build_bundle

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(sys.platform != "linux", reason="paths under /proc are Linux's"),
]

WAIT = 60.0


@dataclass
class Node:
    """A site's Flower home and the process that stands by there."""

    environment: dict[str, str]
    socket: Path
    standby: subprocess.Popen[bytes]

    def start(self, *arguments: str, **named: str) -> subprocess.Popen[str]:
        """Flower's ClientApp program, by its name as Flower starts it."""
        return subprocess.Popen(
            ["flwr-clientapp", *arguments],
            env=self.environment | named,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def children(self) -> list[int]:
        """Processes that were split off and live."""
        pid = self.standby.pid
        return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def wait_children(self, count: int) -> list[int]:
        deadline = time.monotonic() + WAIT
        while len(self.children()) != count:
            assert time.monotonic() < deadline, f"{self.children()}, expected {count}"
            time.sleep(0.02)
        return self.children()


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """In a folder whose name is longer than a socket's address may be."""
    root = tmp_path_factory.mktemp("a" * 120)
    approve(build_bundle(), root)
    config = SiteConfig(site=SiteIdentity(name="north"), data=SiteData(source="unused.csv"))
    home = prepare(config, root)
    standby = stand_by(home)
    deadline = time.monotonic() + WAIT
    while not (home / SOCKET).exists():
        assert standby.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    try:
        yield Node(dict(os.environ) | node_environment(home), home / SOCKET, standby)
    finally:
        assert standby.stdin is not None
        standby.stdin.close()
        assert standby.wait(WAIT) == 0


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a runtime that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_it_prints_where_it_was_started_and_ends_as_flowers_program_does(node: Node) -> None:
    helped = node.start("--help")
    assert "--runtime-api-address" in helped.communicate(timeout=WAIT)[0]
    assert helped.returncode == 0
    wrong = node.start("--no-such-option")
    assert "flwr-clientapp: error" in wrong.communicate(timeout=WAIT)[1]
    assert wrong.returncode == 2


def test_it_has_the_environment_it_was_started_with(node: Node) -> None:
    wide, narrow = (
        node.start("--help", COLUMNS=columns).communicate(timeout=WAIT)[0]  # argparse asks for it
        for columns in ("200", "50")
    )
    assert len(narrow.splitlines()) > len(wide.splitlines())


def test_its_streams_are_those_it_was_started_with_and_nothing_else_is_open(
    node: Node, silent: str
) -> None:
    def links(pid: int) -> list[Path]:
        return [Path(f"/proc/{pid}/fd/{number}").readlink() for number in range(3)]

    def held(pid: int) -> list[Path]:
        found = []
        for path in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # it was closed since the folder was read
                found.append(path.readlink())
        return found

    words = ("--runtime-api-address", silent, "--insecure", "--token", "one")
    started = subprocess.Popen(
        ["flwr-clientapp", *words],
        env=node.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        (pid,) = node.wait_children(1)
        lifeline = Path(f"/proc/{node.standby.pid}/fd/0").readlink()
        deadline = time.monotonic() + WAIT
        while links(pid) != links(started.pid):
            assert time.monotonic() < deadline, (links(pid), links(started.pid))
            time.sleep(0.02)
        assert lifeline not in held(pid)
    finally:
        started.kill()
        started.communicate()


def test_each_message_has_a_process_of_its_own_that_dies_with_it(node: Node, silent: str) -> None:
    words = ("--runtime-api-address", silent, "--insecure", "--token")
    one, two = (node.start(*words, name) for name in ("one", "two"))
    try:
        for pid in node.wait_children(2):
            assert Path(f"/proc/{pid}/cwd").readlink() == Path.cwd()
        assert one.poll() is None and two.poll() is None
        one.send_signal(signal.SIGKILL)  # as a node that is killed does
        node.wait_children(1)
        assert two.poll() is None
        os.kill(node.children()[0], signal.SIGKILL)
        assert two.wait(WAIT) == 1
    finally:
        for process in (one, two):
            process.kill()
            process.communicate()


def test_what_is_no_launcher_starts_nothing_and_leaves_the_others_be(node: Node) -> None:
    home = os.open(node.socket.parent, os.O_RDONLY)
    for content in (b"", b"x", (2**30).to_bytes(4, "big"), b"\0\0\0\2{}"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stranger:
            stranger.connect(f"/proc/self/fd/{home}/{SOCKET}")
            stranger.sendall(content)
            stranger.shutdown(socket.SHUT_WR)
            assert stranger.recv(1) != b"+"
    os.close(home)
    node.wait_children(0)
    assert node.start("--help").wait(WAIT) == 0


@pytest.mark.slow("waits until the standby is given up")
def test_beside_one_that_is_stopped_it_starts_anew(node: Node) -> None:
    node.standby.send_signal(signal.SIGSTOP)
    try:
        started = node.start("--help")
        assert started.wait(WAIT) == 0
    finally:
        node.standby.send_signal(signal.SIGCONT)
    # Its streams lie in the standby's socket until that goes on.
    assert "--runtime-api-address" in started.communicate(timeout=WAIT)[0]
    node.wait_children(0)  # what it was asked meanwhile has no launcher any more, and ends
    assert node.start("--help").wait(WAIT) == 0


def test_nobody_else_may_connect(node: Node) -> None:
    assert node.socket.stat().st_mode & 0o777 == 0o600
    assert node.socket.parent.stat().st_mode & 0o077 == 0


def test_without_one_that_stands_by_it_starts_anew(node: Node, tmp_path: Path) -> None:
    approve(build_bundle(), tmp_path)
    config = SiteConfig(site=SiteIdentity(name="north"), data=SiteData(source="unused.csv"))
    environment = dict(os.environ) | node_environment(prepare(config, tmp_path))
    alone = Node(environment, tmp_path, node.standby).start("--help")
    assert "--runtime-api-address" in alone.communicate(timeout=WAIT)[0]
