"""The process that fetches: reads a site's source and writes its rows to a descriptor.

``python -m lorica.client.data.fetch_main SITE.TOML DESCRIPTOR``; on a coded error, exit status 1
and the error as JSON on standard output, to the process that started this one.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from lorica.client.config.site import load_site
from lorica.client.data.reading import roles_of, site_batches
from lorica.common.data.batches import as_arrow
from lorica.common.data.columnar import need_pyarrow
from lorica.common.data.records import require_roles
from lorica.common.errors import Code, LoricaError
from lorica.common.machine.files import storage_errors


def main(path: Path, descriptor: int) -> int:
    """Fetch; returns the exit status."""
    try:
        need_pyarrow()
        _write(path, descriptor)
    except LoricaError as error:
        content = {"code": error.code.value, "detail": error.detail, "mend": error.mend}
        sys.stdout.write(json.dumps(content))
        return 1
    return 0


def _write(path: Path, descriptor: int) -> None:
    import pyarrow as pa

    data, root = load_site(path).data, path.absolute().parent
    roles = roles_of(data, root)
    names = roles.wanted
    schema = pa.schema([(name, pa.string()) for name in names])
    if roles.image:
        raise LoricaError(
            Code.DATA_KIND,
            "Images are not fetched over a network by the trainer.",
            mend="Save the data set to disk first (`save_to_disk`) and name its folder.",
        )
    with (
        storage_errors(root),
        os.fdopen(descriptor, "wb") as file,
        pa.ipc.new_stream(file, schema) as writer,
    ):
        for batch in site_batches(data, root, names):
            require_roles(batch, roles, data.source.rpartition("@")[2])
            columns = [as_arrow(batch[name]) for name in names]
            writer.write_batch(pa.record_batch(columns, schema))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
