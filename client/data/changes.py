"""Whether a site's records are those of last time; their fingerprint lies beside the ledger.

A run that began with other records would go on with a model that was fitted to them, and what a
privacy officer was shown would be of other data. The ledger's ε holds for whoever is in any of
the versions; whether the change is meant, only people at the site can say.
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from pathlib import Path

from lorica.common.data.fingerprint import fingerprint
from lorica.common.data.records import Records
from lorica.common.errors import Code, LoricaError
from lorica.common.machine.files import write_atomically

_log = logging.getLogger("lorica.site")


def require_unchanged(records: Records, path: Path, *, accept: bool = False) -> None:
    """Return if the records have the fingerprint in the file, or nobody wrote one yet.

    Args:
        records: as they were read now.
        path: the file, readable by its owner alone; it is written with ``accept``, and when it is
            not there or was damaged.
        accept: take changed records as the site's from now on.

    Raises:
        LoricaError: LOR-333 they are others, LOR-601, LOR-602.
    """
    now = fingerprint(records, ordered=False)
    before = _read(path)
    if before.get("fingerprint") == now:
        return
    if before and not accept:
        raise LoricaError(
            Code.DATA_CHANGED,
            f"The records are not those of {before.get('time', 'last time')}: there were "
            f"{before.get('records', '?')}, and there are {len(records)}"
            f"{' others' if before.get('records') == len(records) else ''}.",
        )
    if before:
        _log.warning("the records have changed; the change is accepted")
    content = {
        "fingerprint": now,
        "records": len(records),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_atomically(path, json.dumps(content) + "\n", mode=0o600)


def _read(path: Path) -> dict[str, object]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
