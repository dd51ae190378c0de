"""A real PostgreSQL for tests: Debian's package, on a Unix socket in a temporary folder."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import pytest

_USER = "lorica"
WITH_PASSWORD = "reader"
"""A user that is let in by its password alone; whoever needs it makes it in its database."""

_numbers = itertools.count(1)


class PostgresqlServer:
    """A running server; every :meth:`new_database` is empty and apart from the others."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs, self.folder = programs, folder

    def new_database(self) -> str:
        """The URL of a fresh database."""
        name = f"test_{next(_numbers)}"
        arguments = ["-h", str(self.folder), "-U", _USER, name]
        subprocess.run(
            [self._programs / "createdb", *arguments], check=True, capture_output=True, timeout=60
        )
        return f"postgresql+psycopg://{_USER}@/{name}?host={quote(str(self.folder))}"


@contextmanager
def running_server() -> Iterator[PostgresqlServer]:
    """Start a server and stop it; skips the test where PostgreSQL is not installed.

    PostgreSQL refuses to run as root: then it runs as the user that Debian's package makes, else
    as nobody.
    """
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        pytest.skip("PostgreSQL's server is not installed (Debian: apt-get install postgresql)")
    programs = found[-1].parent
    folder = Path(tempfile.mkdtemp(prefix="lorica-pg-", dir="/tmp"))  # short: socket paths are
    as_user = _other_user(folder) if os.geteuid() == 0 else []
    log, data = folder / "log", folder / "data"

    def run(*command: str | Path) -> None:
        done = subprocess.run(
            [*as_user, *map(str, command)], capture_output=True, text=True, cwd=folder, timeout=120
        )
        if done.returncode:
            said = log.read_text() if log.exists() else ""
            raise RuntimeError(f"{command[0]}: {done.stderr}{said}")

    try:
        run(
            *(programs / "initdb", "-D", data, "-U", _USER, "-A", "trust", "-E", "UTF8"),
            *("--locale=C.UTF-8", "--no-sync"),
        )
        rules = data / "pg_hba.conf"  # this user alone needs a password
        rules.write_text(f"local all {WITH_PASSWORD} scram-sha-256\n{rules.read_text()}")
        settings = f"-k {folder} -c listen_addresses='' -c fsync=off -c max_connections=100"
        run(programs / "pg_ctl", "-D", data, "-l", log, "-w", "-o", settings, "start")
        try:
            yield PostgresqlServer(programs, folder)
        finally:
            run(programs / "pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _other_user(folder: Path) -> list[str]:
    import pwd

    runuser = shutil.which("runuser")
    if runuser is None:
        pytest.skip("PostgreSQL does not run as root, and there is no runuser")
    names = {entry.pw_name for entry in pwd.getpwall()}
    name = next((name for name in ("postgres", "nobody") if name in names), None)
    if name is None:
        pytest.skip("PostgreSQL does not run as root, and there is no user postgres or nobody")
    shutil.chown(folder, name)
    folder.chmod(0o755)
    return [runuser, "-u", name, "--"]
