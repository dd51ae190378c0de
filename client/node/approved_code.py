"""Code that a coordinator ships runs at a site only when a person of the site approved it.

An approval is the bundle itself (a Flower App Bundle, a zip), kept in ``approved/`` beside
site.toml under the name of its full SHA-256: what was approved can be looked into for ever, and a
file whose content is not its name is no approval. From the approved bundles, and from nothing
else, a folder is filled that Flower takes for its home: ``apps/`` has every bundle installed by
Flower's own installer and is read-only, so that Flower can install no other.

Flower finds an installed bundle by eight digits of its hash and by a name and version that the
coordinator tells, which is too little against a coordinator that means harm; so
:mod:`lorica.client.node.guarded_clientapp`, which :func:`node_environment` puts on the node's PATH,
checks the full hash before anything of a bundle is opened.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import shlex
import shutil
import stat
import sys
from pathlib import Path

from lorica.client.config.site import SiteConfig
from lorica.client.node import launch
from lorica.client.node.fab import Bundle, read_bundle
from lorica.common.errors import Code, LoricaError
from lorica.common.machine.files import create_atomically, storage_errors, write_atomically

FOLDER, HOME, APPS = "approved", "flower", "apps"
_PROGRAMS = "bin"


def approve(fab: bytes, root: Path) -> Bundle:
    """Record a bundle as approved; nothing of it runs.

    Args:
        fab: the bundle.
        root: the folder that site.toml is in.

    Raises:
        LoricaError: LOR-716 it is no bundle that could be approved, LOR-60x.
    """
    bundle = read_bundle(fab)
    folder = root / FOLDER
    with storage_errors(folder):
        folder.mkdir(mode=0o700, exist_ok=True)
    create_atomically(folder / f"{bundle.sha256}.fab", fab, mode=0o400)
    return bundle


def withdraw(sha256: str, root: Path) -> bool:
    """Approve a bundle no longer, from the next start on; whether it was approved."""
    path = root / FOLDER / f"{sha256}.fab"
    with storage_errors(path):
        if not path.exists():
            return False
        path.unlink()
    return True


def approved(root: Path) -> list[Bundle]:
    """The approved bundles, read anew and checked against their names.

    Raises:
        LoricaError: LOR-716 a file is not what its name says, LOR-602.
    """
    found = []
    folder = root / FOLDER
    with storage_errors(folder):
        paths = sorted(folder.glob("*.fab")) if folder.is_dir() else []
        contents = [(path, path.read_bytes()) for path in paths]
    for path, content in contents:
        if hashlib.sha256(content).hexdigest() != path.stem:
            raise LoricaError(
                Code.CODE_NOT_APPROVED,
                f"{path} is not the bundle that was approved: its SHA-256 is not its name.",
                mend="Find out who changed it; remove it, and approve the right bundle again.",
            )
        found.append(read_bundle(content))
    return found


def prepare(config: SiteConfig, root: Path) -> Path:
    """A Flower home (for ``$FLWR_HOME``) in which the approved bundles are installed.

    Made at the first call; at each later one every file in it is compared with the bundles, by
    content, so it is to be called before every start.

    Args:
        config: site.toml.
        root: the folder that site.toml is in.

    Returns:
        The folder; :func:`node_environment` says how a node uses it.

    Raises:
        LoricaError: LOR-716 nothing is approved, or something was changed; LOR-60x.
    """
    bundles = approved(root)
    if not bundles:
        raise LoricaError(
            Code.CODE_NOT_APPROVED, f"Nothing is approved: {root / FOLDER} holds no bundle."
        )
    home = root / HOME
    apps = home / APPS
    with storage_errors(home):
        home.mkdir(mode=0o700, exist_ok=True)
        present = {path.name for path in apps.iterdir()} if apps.is_dir() else set()
        for bundle in bundles:
            if bundle.folder in present:
                check_installed(apps / bundle.folder, bundle)
        _write_program(home, root)
        if present != {bundle.folder for bundle in bundles}:  # approved or withdrawn since
            _install(bundles, home)
    return home


def node_environment(home: Path) -> dict[str, str]:
    """Environment variables for a node that runs approved code only.

    Args:
        home: what :func:`prepare` returned.
    """
    own = (home / _PROGRAMS, Path(sys.executable).parent)
    return {
        "FLWR_HOME": str(home),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PATH": os.pathsep.join([*map(str, own), os.environ.get("PATH", os.defpath)]),
    }


def check_installed(folder: Path, bundle: Bundle) -> None:
    """Return if a folder holds exactly a bundle's files, by content; raise LOR-716 otherwise."""
    if not _holds_exactly(folder, bundle.files):
        raise LoricaError(
            Code.CODE_NOT_APPROVED,
            f"What is installed in {folder} is not what was approved as {bundle.sha256[:12]}.",
            mend=f"Find out who changed it; then remove {folder.parent}, which is made anew from "
            "the approved bundles.",
        )


def _holds_exactly(folder: Path, files: dict[str, bytes]) -> bool:
    """Whether the folder has these files, with these contents, and nothing else."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    found = {}
    for path in folder.rglob("*"):
        if path.is_dir() and not path.is_symlink():
            continue
        if not stat.S_ISREG(path.lstat().st_mode):
            return False
        found[path.relative_to(folder).as_posix()] = path.read_bytes()
    return found == files


def _install(bundles: list[Bundle], home: Path) -> None:
    """Fill ``apps`` by Flower's own installer, whole or not at all."""
    from flwr.cli.install import install_from_fab

    fresh = home / f".new.{os.getpid()}"
    _remove(fresh)
    for bundle in bundles:
        with contextlib.redirect_stdout(io.StringIO()):
            folder = install_from_fab(bundle.content, install_dir=fresh, skip_prompt=True)
        if folder != fresh / APPS / bundle.folder:
            raise LoricaError(
                Code.CODE_NOT_APPROVED,
                f"Flower installs the bundle {bundle.sha256[:12]} in {folder.name}, expected "
                f"{bundle.folder}.",
            )
        check_installed(folder, bundle)
    for path in sorted((fresh / APPS).rglob("*"), reverse=True):
        path.chmod(0o555 if path.is_dir() else 0o444)
    old = home / f".old.{os.getpid()}"
    if (home / APPS).exists():
        (home / APPS).chmod(0o700)
        (home / APPS).rename(old)
    (fresh / APPS).rename(home / APPS)
    (home / APPS).chmod(0o555)
    _remove(old)
    _remove(fresh)


def _write_program(home: Path, root: Path) -> None:
    """The guarded flwr-clientapp, which the node starts by name."""
    programs = home / _PROGRAMS
    programs.mkdir(mode=0o700, exist_ok=True)
    words = [
        *(sys.executable, "-I", "-S", launch.__file__),  # the standard library is all it needs
        *(str(home.absolute()), str(root.absolute())),
    ]
    script = f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n'
    program = programs / "flwr-clientapp"
    if not program.exists() or program.read_text() != script:
        write_atomically(program, script)
    program.chmod(0o500)


def _remove(folder: Path) -> None:
    """Remove a folder of read-only folders."""
    if not folder.exists():
        return
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o700)
    shutil.rmtree(folder)
