"""Records that come over a network, read before the trainer leaves the network.

A process of its own reads the source and writes the rows to a nameless file that only this
process and the trainer hold; then it ends, and the trainer gives up the network before it looks
at a single row. So no process holds private records and a network at the same time but the one
that fetches them, which speaks to nothing else.

Nothing here may start a thread or import what does: the network can only be left before.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from lorica.client.config.data import SiteData
from lorica.common.data.batches import Batch
from lorica.common.data.kinds import kind_of
from lorica.common.errors import Code, LoricaError
from lorica.common.machine.files import storage_errors

if TYPE_CHECKING:
    from lorica.client.config.site import SiteConfig


@dataclass
class Fetched:
    """Rows of a source, in a file without a name."""

    file: IO[bytes]

    def batches(self) -> Iterator[Batch]:
        """The rows, a batch at a time; the file is gone afterwards."""
        import pyarrow as pa

        with self.file as file, pa.ipc.open_stream(file) as stream:
            for batch in stream:
                yield dict(zip(batch.schema.names, batch.columns, strict=True))


def over_network(data: SiteData, root: Path) -> bool:
    """Whether the source is a server or the hub."""
    kind = data.kind or kind_of(data.source, root)
    return kind == "hub" or (kind == "sql" and not data.source.lower().startswith("sqlite"))


def fetch(path: Path, config: SiteConfig) -> Fetched | None:
    """What a source on a network holds; None for one that is on this machine.

    Args:
        path: site.toml.
        config: its content.

    Raises:
        LoricaError: as of :func:`lorica.client.data.reading.read_records`.
    """
    root = path.absolute().parent
    if not over_network(config.data, root):
        return None
    with storage_errors(root):
        file = tempfile.TemporaryFile(dir=root)  # noqa: SIM115 - lives as long as the rows
    number = file.fileno()
    command = [sys.executable, "-m", "lorica.client.data.fetch_main", str(path), str(number)]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, pass_fds=[number], text=True, env=_environment()
    )
    if done.returncode:
        file.close()
        raise _told(done.stdout)
    file.seek(0)
    return Fetched(file)


def _environment() -> dict[str, str]:
    """This process's environment variables, but the hub may be asked: HF_HUB_OFFLINE, by which the
    trainer asks for no model, does not hold for the source that site.toml names."""
    return {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}


def _told(said: str) -> LoricaError:
    try:
        content = json.loads(said)
        return LoricaError(Code(content["code"]), content["detail"], mend=content["mend"])
    except (ValueError, KeyError, TypeError):
        return LoricaError(
            Code.DATA_LOST, "The process that fetches the records ended before it had them all."
        )
