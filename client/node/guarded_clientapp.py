"""Flower's ``flwr-clientapp``, but for approved bundles alone, by their full SHA-256.

By itself Flower takes the folder of an installed bundle for the bundle: a folder whose name holds
publisher, name, version and eight digits of the hash, all of which the coordinator tells. A
version such as ``1.0.0.0123abcd/../../../../tmp/x`` leads out of the read-only folder to a place
that can be written, and 32 bits of a hash can be matched by trying; and root writes where it
likes. So this program, which stands before Flower's on the node's PATH under the same name, puts
two functions of its own in their place: nothing of a bundle is unpacked unless the site approved
exactly these bytes, and what is loaded is what was installed from the approved copy, compared by
content at that moment.

Formal guarantee:
    Python code of a bundle runs at the site only if the SHA-256 of the whole bundle, computed
    here from the bytes that came, names a file in ``approved/`` with the same bytes. If Flower
    lacks one of the functions (another version), nothing runs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lorica.client.node.approved_code import APPS, FOLDER, HOME, check_installed
from lorica.client.node.fab import Bundle, read_bundle
from lorica.common.errors import Code, LoricaError

PROGRAM = "flwr-clientapp"


class Guard:
    """Installs and loads approved bundles in place of Flower's own functions."""

    def __init__(self, root: Path) -> None:
        """``root``: the folder that site.toml is in."""
        self._root = root
        self._bundle: Bundle | None = None

    def install(self, fab_file: bytes, *_: Any, **__: Any) -> Path:
        """Flower's ``install_from_fab``: the folder of an approved bundle; never writes.

        Raises:
            LoricaError: LOR-716; its text is the public reason, as Flower sends it on.
        """
        try:
            bundle = read_bundle(fab_file)
            if (self._root / FOLDER / f"{bundle.sha256}.fab").read_bytes() != fab_file:
                raise LoricaError(Code.CODE_NOT_APPROVED, "Another file has its name.")
            folder = self._root / HOME / APPS / bundle.folder
            check_installed(folder, bundle)
        except (LoricaError, OSError) as error:
            print(f"{PROGRAM}: refused a bundle: {error}", file=sys.stderr)  # noqa: T201
            raise _refusal() from None
        self._bundle = bundle
        return folder

    def loader(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Flower's ``get_load_client_app_fn``, for the folder of the installed bundle alone."""

        def load_fn(*_: Any, **__: Any) -> Any:
            if self._bundle is None:
                raise _refusal()
            folder = self._root / HOME / APPS / self._bundle.folder
            return original(default_app_ref="", app_path=str(folder), multi_app=True)

        return load_fn


def put_in_place(guard: Guard) -> None:
    """Make Flower install and load by the guard.

    Raises:
        LoricaError: LOR-716 Flower is of a version that the guard does not know.
    """
    from flwr.supernode.runtime import run_clientapp

    for name in ("install_from_fab", "get_load_client_app_fn"):
        if not callable(getattr(run_clientapp, name, None)):
            raise LoricaError(
                Code.CODE_NOT_APPROVED, f"Flower has no {name}: this version cannot be guarded."
            )
    sys.dont_write_bytecode = True  # root could write beside what is compared by content
    run_clientapp.install_from_fab = guard.install
    run_clientapp.get_load_client_app_fn = guard.loader(run_clientapp.get_load_client_app_fn)


def main() -> None:
    """Program: the root folder, then the arguments of ``flwr-clientapp``."""
    root, sys.argv = Path(sys.argv[1]), [PROGRAM, *sys.argv[2:]]
    from flwr.supernode.cli.flwr_clientapp import flwr_clientapp

    put_in_place(Guard(root))
    flwr_clientapp()


def _refusal() -> LoricaError:
    return LoricaError(Code.CODE_NOT_APPROVED, Code.CODE_NOT_APPROVED.entry.title)


if __name__ == "__main__":
    main()
