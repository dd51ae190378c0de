"""A process that has imported what a ClientApp needs, and splits off a fresh one a message.

What runs for a message is what :mod:`lorica.client.node.guarded_clientapp` runs: the same guard, in
a process that answers this message and ends. It begins from a process that has answered none, so
nothing passes from one message to the next but code that was imported, and no bundle's code is.
It gets arguments, environment, folder and streams of the ``flwr-clientapp`` that was started for
the message (:mod:`lorica.client.node.launch`), and dies with it. Code that was approved runs
as this user, and could put something else in the socket's place: approving is trusting it so far.

Who may ask: this user alone, for the socket lies in a folder that nobody else may search. The
process ends when its standard input closes, that is, when the node does.
"""

from __future__ import annotations

import array
import contextlib
import gc
import json
import os
import select
import signal
import socket
import sys
import threading
from pathlib import Path

from lorica.client.node.guarded_clientapp import PROGRAM, Guard, put_in_place
from lorica.client.node.launch import SOCKET
from lorica.common.wire.pulling import pull_promptly

_STREAMS = 3
_LARGEST = 2**24  # bytes of arguments and environment
_FAILED = 1


def import_all() -> None:
    """Everything that answering a message imports, but nothing of a bundle."""
    import flwr.clientapp
    import flwr.supernode.cli.flwr_clientapp  # noqa: F401
    import httpx  # noqa: F401

    import lorica.client.answering.endpoint
    import lorica.client.node.forwarder  # noqa: F401


def serve(root: Path, home: Path, lifeline: int) -> None:
    """Split off a process for every connection until ``lifeline`` closes.

    Args:
        root: the folder that site.toml is in.
        home: Flower's, where the socket is made.
        lifeline: a file descriptor that ends when the node does; one of the three streams.
    """
    import_all()
    pull_promptly()
    gc.collect()
    gc.freeze()  # pages stay shared
    listening = _listen(home)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # whoever ends is forgotten
    asked = listening.fileno()
    while True:
        ready, _, _ = select.select([asked, lifeline], [], [])
        if lifeline in ready and not os.read(lifeline, 1):
            return
        if asked in ready:
            connection, _ = listening.accept()
            if os.fork() == 0:
                listening.close()
                _answer(root, connection)  # whose streams take the lifeline's place
            connection.close()


def _listen(home: Path) -> socket.socket:
    """The socket in Flower's home; of a node that was killed nothing but its name is left."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    here = os.open(home, os.O_RDONLY | os.O_DIRECTORY)
    try:
        (home / SOCKET).unlink(missing_ok=True)
        before = os.umask(0o177)
        try:
            listening.bind(f"/proc/self/fd/{here}/{SOCKET}")  # no path is too long for this
        finally:
            os.umask(before)
    finally:
        os.close(here)
    listening.listen(16)
    return listening


def _answer(root: Path, connection: socket.socket) -> None:
    """In the process split off: run the guarded program; never returns."""
    status = _FAILED
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _take_over(connection)
        connection.send(b"+")
        threading.Thread(target=_end_with, args=(connection,), daemon=True).start()
        from flwr.supernode.cli.flwr_clientapp import flwr_clientapp

        put_in_place(Guard(root))  # here alone: put in place twice, one would stand before another
        flwr_clientapp()
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:  # noqa: BLE001 - the process ends here, whatever it was
        sys.excepthook(*sys.exc_info())
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        try:
            connection.send(bytes([status & 0xFF]))
        finally:
            os._exit(status & 0xFF)


def _take_over(connection: socket.socket) -> None:
    """Become what asked: its arguments, environment, folder and streams.

    Raises:
        OSError: it went away, or sent something else.
    """
    fds = array.array("i")
    size, given, _, _ = connection.recvmsg(4, socket.CMSG_SPACE(_STREAMS * fds.itemsize))
    for level, kind, data in given:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    length = int.from_bytes(size, "big")
    if len(size) != 4 or len(fds) != _STREAMS or length > _LARGEST:
        raise OSError("this is not Lorica's launcher")
    content = b""
    while len(content) < length:
        part = connection.recv(length - len(content))
        if not part:
            raise OSError("the launcher went away")
        content += part
    wanted = json.loads(content)
    for number, fd in enumerate(fds):
        os.dup2(fd, number)
    for fd in fds:
        if fd >= _STREAMS:
            os.close(fd)
    os.chdir(wanted["cwd"])
    os.environ.clear()
    os.environ.update(wanted["environment"])
    sys.argv = [PROGRAM, *wanted["arguments"]]


def _end_with(connection: socket.socket) -> None:
    """End this process as a terminal would, once its launcher is gone."""
    with contextlib.suppress(OSError):
        connection.recv(1)
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    """Program: the site's folder and Flower's home."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the node hears it, too, and closes the lifeline
    serve(Path(sys.argv[1]), Path(sys.argv[2]), 0)


if __name__ == "__main__":
    main()
