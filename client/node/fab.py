"""Looks into a Flower App Bundle without running, importing or extracting anything of it."""

from __future__ import annotations

import hashlib
import io
import re
import stat
import tomllib
import zipfile
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from lorica.common.errors import Code, LoricaError

_MOST_BYTES = 10 << 20  # Flower's limit of a bundle; here of its content, too
_MOST_FILES = 1000
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]{0,99}")
_MANIFEST = ".info/CONTENT"


@dataclass(frozen=True)
class Bundle:
    """What is in a bundle."""

    content: bytes = field(repr=False)
    sha256: str
    """Of the whole file, 64 hex digits."""
    publisher: str
    name: str
    version: str
    serverapp: str
    """Flower's reference of the coordinator's app, module:attribute."""
    clientapp: str
    """The same of the app that runs at sites."""
    files: dict[str, bytes] = field(repr=False)
    """Path -> content of everything that is installed."""

    @property
    def folder(self) -> str:
        """Name of the folder that Flower installs it in."""
        return f"{self.publisher}.{self.name}.{self.version}.{self.sha256[:8]}"


def read_bundle(content: bytes) -> Bundle:
    """Look into a bundle.

    Refused is whatever an honest bundle never has: paths that lead out of it, links, two files of
    one name, names and versions that could be paths, more than 10 MiB unpacked, a manifest that
    does not fit.

    Raises:
        LoricaError: LOR-716 with what is wrong.
    """
    if len(content) > _MOST_BYTES:
        raise _bad(f"it has {len(content):,} bytes, and {_MOST_BYTES:,} are allowed")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            files = _files(archive)
        config = tomllib.loads(files["pyproject.toml"].decode())
        _check_manifest(files)
        return _bundle(content, config, files)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
        raise _bad(f"it cannot be read: {error}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise _bad(f"it lacks {error}") from error


def _files(archive: zipfile.ZipFile) -> dict[str, bytes]:
    entries = archive.infolist()
    if len(entries) > _MOST_FILES:
        raise _bad(f"it has {len(entries)} files, and {_MOST_FILES} are allowed")
    if sum(entry.file_size for entry in entries) > _MOST_BYTES:
        raise _bad(f"unpacked it has more than {_MOST_BYTES:,} bytes")
    files: dict[str, bytes] = {}
    for entry in entries:
        _check_path(entry)
        if entry.is_dir():
            continue
        if entry.filename in files:
            raise _bad(f"it has two files {entry.filename!r}")
        with archive.open(entry) as file:
            files[entry.filename] = file.read(_MOST_BYTES + 1)  # sizes in a header may be lies
        if sum(map(len, files.values())) > _MOST_BYTES:
            raise _bad(f"unpacked it has more than {_MOST_BYTES:,} bytes")
    return files


def _check_path(entry: zipfile.ZipInfo) -> None:
    name, kind = entry.filename, stat.S_IFMT(entry.external_attr >> 16)
    path = PurePosixPath(name)
    if (
        path.is_absolute()
        or ".." in path.parts
        or "\\" in name
        or not name.isprintable()
        or (path.as_posix() != name.rstrip("/"))
    ):
        raise _bad(f"it has a file whose path is not plain: {name!r}")
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise _bad(f"{name!r} is neither a file nor a folder")


def _check_manifest(files: dict[str, bytes]) -> None:
    """The manifest must list every file, with its hash; it is not installed itself."""
    listed = {}
    for line in files.pop(_MANIFEST).decode().strip().split("\n"):
        path, digest, _ = line.rsplit(",", 2)
        listed[path] = digest
    if listed != {path: hashlib.sha256(data).hexdigest() for path, data in files.items()}:
        raise _bad("its manifest does not fit its files")


def _bundle(content: bytes, config: dict[str, Any], files: dict[str, bytes]) -> Bundle:
    app = config["tool"]["flwr"]["app"]
    bundle = Bundle(
        content,
        hashlib.sha256(content).hexdigest(),
        app["publisher"],
        config["project"]["name"],
        config["project"]["version"],
        app["components"]["serverapp"],
        app["components"]["clientapp"],
        files,
    )
    for value, form in (
        (bundle.publisher, _NAME),
        (bundle.name, _NAME),
        (bundle.version, _VERSION),
    ):
        if not isinstance(value, str) or not form.fullmatch(value):
            raise _bad(f"publisher, name or version could be a path: {value!r}")
    return bundle


def _bad(what: str) -> LoricaError:
    return LoricaError(Code.CODE_NOT_APPROVED, f"The bundle cannot be approved: {what}.")
