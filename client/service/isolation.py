"""Takes the network away from the process that holds the records.

A fresh network namespace has no interface that is up, so nothing in it can reach any other
machine or listen to one; Unix sockets in the file system work across namespaces. Ordinary users
may make one inside a user namespace of their own, where the kernel allows that; systemd
(``PrivateNetwork=yes``) and containers (``network_mode: none``) do the same from outside.

What it holds off: code in the trainer that would send records over a network, by intent or by
accident (telemetry, downloads), and a person on the network who would reach the trainer. What it
does not: a process that is root outside a user namespace can enter the old namespace again, and
whoever may open the trainer's socket can still speak to it (:mod:`lorica.client.service.peers`).

Only what every Python has is imported here: it must run before any other thread exists, as a
namespace belongs to the thread that made it and to those that it starts.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import sys
from pathlib import Path
from typing import Literal

from lorica.common.errors import Code, LoricaError

Isolation = Literal["auto", "require", "off"]

_NEW_USER, _NEW_NETWORK = 0x10000000, 0x40000000
_GET_FLAGS, _UP, _LOOPBACK = 0x8913, 0x1, 0x8  # linux/sockios.h, linux/if.h


def isolate(wanted: Isolation, *, other_users: bool = False) -> str:
    """Leave the network, as far as ``wanted`` asks for it; must be called before threads start.

    Args:
        wanted: "auto" leaves it where the system allows it, "require" fails where it does not,
            "off" does nothing.
        other_users: whether the process must tell other users of this machine apart: a user
            namespace of one's own hides who they are.

    Returns:
        A sentence that says what holds now.

    Raises:
        LoricaError: LOR-715 it is required and not possible.
    """
    if wanted == "off":
        return "not isolated: switched off"
    if sys.platform != "linux":
        return _unless_required(wanted, "only Linux has network namespaces")
    if not reachable_interfaces():
        return "isolated: no network interface was up at the start"
    if len(os.listdir("/proc/self/task")) != 1:  # noqa: PTH208
        return _unless_required(wanted, "other threads were running already")
    problem = _leave(other_users)
    if problem:
        return _unless_required(wanted, problem)
    left = reachable_interfaces()
    if left:
        raise LoricaError(
            Code.TRAINER_NOT_ISOLATED,
            f"Interfaces are up in a namespace that was just made: {', '.join(left)}.",
        )
    return "isolated: in a network namespace of its own, with no interface up"


def reachable_interfaces() -> list[str]:
    """Names of the network interfaces that are up and lead elsewhere than to this process's own
    namespace; Linux alone."""
    import fcntl

    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe, _GET_FLAGS, struct.pack("16sh14x", name.encode(), 0))
            except OSError:  # it went away meanwhile
                continue
            (flags,) = struct.unpack_from("H", answer, 16)
            if flags & _UP and not flags & _LOOPBACK:
                found.append(name)
    return found


def _leave(other_users: bool) -> str:
    """Make the namespace; says why not, or nothing when done."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_NEW_NETWORK) == 0:
        return ""
    if ctypes.get_errno() != errno.EPERM:
        return os.strerror(ctypes.get_errno())
    if other_users:
        return "trainer.users lists other users, whom a user namespace would hide"
    user, group = os.geteuid(), os.getegid()
    if libc.unshare(_NEW_USER | _NEW_NETWORK) != 0:
        return f"the system allows no user namespace: {os.strerror(ctypes.get_errno())}"
    own = Path("/proc/self")
    (own / "setgroups").write_text("deny")
    (own / "uid_map").write_text(f"{user} {user} 1")
    (own / "gid_map").write_text(f"{group} {group} 1")
    return ""


def _unless_required(wanted: Isolation, why: str) -> str:
    if wanted == "require":
        raise LoricaError(
            Code.TRAINER_NOT_ISOLATED, f"The trainer could not leave the network: {why}."
        )
    return f"not isolated: {why}"
