"""Who may reach the trainer's socket, and what holds the process off the network."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lorica.client.service.isolation import isolate, reachable_interfaces
from lorica.client.service.peers import Door
from lorica.client.service.socket_file import SocketFile
from lorica.common.errors import Code, LoricaError

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become other users")
LISTED, STRANGER = 65534, 65533
CONNECT = """
import os, socket, sys
os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[2]))
peer = socket.socket(socket.AF_UNIX); peer.settimeout(30)
try:
    peer.connect(sys.argv[1]); peer.sendall(b"hello"); print(peer.recv(100).decode())
except PermissionError:
    print("denied")
except ConnectionError:
    print("")
"""


@contextmanager
def door(folder: Path, *users: int) -> Iterator[Path]:
    """A door before a server that sends back what it hears."""
    file = SocketFile(folder / "trainer.sock", others=bool(users))
    inner, ready, ended = file.inner_folder / "s", threading.Event(), threading.Event()

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def serve() -> None:
        server = await asyncio.start_unix_server(echo, inner)
        opened = Door(file.listening, inner, users)
        await opened.open()
        ready.set()
        await asyncio.to_thread(ended.wait)
        await opened.close()
        server.close()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert ready.wait(30)
    try:
        yield file.path
    finally:
        ended.set()
        thread.join(30)
        file.close()


def heard_by(user: int, path: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", CONNECT, str(path), str(user)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout.strip()


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users can search."""
    folder = Path(tempfile.mkdtemp(prefix="lorica-", dir="/tmp"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.process
@as_root
def test_other_users_are_denied_by_the_sockets_mode(open_folder: Path) -> None:
    with door(open_folder) as path:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert heard_by(0, path) == "hello"
        assert heard_by(LISTED, path) == "denied"


@pytest.mark.process
@as_root
def test_a_listed_user_is_let_in_and_a_stranger_is_hung_up_on(open_folder: Path) -> None:
    with door(open_folder, LISTED) as path:
        assert heard_by(LISTED, path) == "hello"
        assert heard_by(STRANGER, path) == ""
        inner = path.with_name(f".{path.name}.d") / "s"
        assert heard_by(LISTED, inner) == "denied"


def test_bytes_pass_the_door_unchanged_in_both_directions(tmp_path: Path) -> None:
    sent = os.urandom(5_000_000)
    with door(tmp_path) as path, socket.socket(socket.AF_UNIX) as peer:
        peer.connect(str(path))
        writing = threading.Thread(target=lambda: peer.sendall(sent))
        writing.start()
        received = b""
        while len(received) < len(sent):
            received += peer.recv(1 << 20)
        writing.join()
    assert received == sent


def code_of(path: Path) -> Code:
    with pytest.raises(LoricaError) as caught:
        SocketFile(path)
    return caught.value.code


def test_a_folder_that_others_can_write_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    assert code_of(tmp_path / "trainer.sock") is Code.TRAINER_SOCKET


def test_a_file_that_is_no_socket_is_kept(tmp_path: Path) -> None:
    (tmp_path / "trainer.sock").write_text("precious")
    assert code_of(tmp_path / "trainer.sock") is Code.TRAINER_SOCKET
    assert (tmp_path / "trainer.sock").read_text() == "precious"


def test_a_path_that_is_too_long_is_refused_with_a_sentence(tmp_path: Path) -> None:
    assert code_of(tmp_path / ("x" * 120) / "trainer.sock") is Code.TRAINER_SOCKET


def test_one_process_owns_a_socket_and_hands_it_on_when_it_ends(tmp_path: Path) -> None:
    first = SocketFile(tmp_path / "trainer.sock")
    assert code_of(tmp_path / "trainer.sock") is Code.TRAINER_RUNNING
    first.close()
    SocketFile(tmp_path / "trainer.sock").close()


def test_isolation_switched_off_is_said(tmp_path: Path) -> None:
    assert isolate("off") == "not isolated: switched off"


@pytest.mark.skipif(sys.platform != "linux", reason="network namespaces are Linux's")
def test_a_process_that_has_threads_is_not_taken_for_isolated() -> None:
    """A namespace belongs to a thread: those that run already would keep the network."""
    if not reachable_interfaces():
        pytest.skip("this machine has no network to leave")
    hold = threading.Event()
    thread = threading.Thread(target=hold.wait)
    thread.start()
    try:
        assert isolate("auto").startswith("not isolated")
        with pytest.raises(LoricaError) as caught:
            isolate("require")
        assert caught.value.code is Code.TRAINER_NOT_ISOLATED
    finally:
        hold.set()
        thread.join()
