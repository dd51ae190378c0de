"""Start Flower's ClientApp program in the process that stands by, or anew if none does.

The node starts a ``flwr-clientapp`` for each message. Python and Flower take more than a second to
be imported, so :mod:`lorica.client.node.standby` holds a process that has imported them and splits
off a fresh one for each message. This program hands over its arguments, environment, folder and
standard streams, waits, and ends as that one ended. It imports the standard library alone, and is
started without site-packages.
"""

import array
import json
import os
import socket
import sys
from contextlib import closing

SOCKET = "clientapp.sock"
"""Name of the standby's socket in Flower's home."""
_STREAMS = (0, 1, 2)
_PATIENCE = 10.0  # seconds until a standby that does not begin is taken for stopped


def _connected(folder: str) -> socket.socket | None:
    """A connection to the standby, by a path that is never too long for a socket's address."""
    try:
        held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return None
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(_PATIENCE)
    try:
        connection.connect(f"/proc/self/fd/{held}/{SOCKET}")
    except OSError:
        connection.close()
        return None
    finally:
        os.close(held)
    return connection


def main() -> None:
    """Program: Flower's home, the site's folder, then the arguments of ``flwr-clientapp``."""
    folder, root, *arguments = sys.argv[1:]
    connection = _connected(folder)
    if connection is not None:
        with closing(connection):
            here = os.getcwd()  # noqa: PTH109 - pathlib would take as long as all the rest
            wanted = {"arguments": arguments, "environment": dict(os.environ), "cwd": here}
            content = json.dumps(wanted).encode()
            try:
                streams = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", _STREAMS))]
                connection.sendmsg([len(content).to_bytes(4, "big")], streams)
                connection.sendall(content)
                begun = connection.recv(1)
            except OSError:
                begun = b""
            if begun == b"+":  # else nothing was started: as if nobody stood by
                connection.settimeout(None)
                status = connection.recv(1)
                sys.exit(status[0] if status else 1)
    guarded = ("-P", "-m", "lorica.client.node.guarded_clientapp", root)
    os.execv(sys.executable, [sys.executable, *guarded, *arguments])


if __name__ == "__main__":
    main()
