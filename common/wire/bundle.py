"""The code that a coordinator ships to sites: a Flower App Bundle of this version of Lorica.

It holds two modules of two lines each, which import what is installed. Its bytes follow from the
installed version alone, so a coordinator and a site with the same version build the same bundle,
and a site can approve it by its SHA-256 before any coordinator sent it.
"""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path

import tomli_w

from lorica.common.errors import Code, LoricaError
from lorica.common.version import __version__

RUN_KEY = "lorica.run"
"""Key of the run config that names the Lorica run; the ServerApp finds the plan by it."""


def build_bundle() -> bytes:
    """The bundle (.fab), the same bytes every time.

    Raises:
        LoricaError: LOR-207 a part of Lorica is not installed.
    """
    from flwr.cli.build import build_fab_from_files

    files: dict[str, bytes | Path] = {"pyproject.toml": tomli_w.dumps(_project()).encode()}
    for side in ("server", "client"):
        files[f"{side}/__init__.py"] = b""
        files[f"{side}/app.py"] = _source(f"lorica.{side}.app")
    return build_fab_from_files(files)[0]


def bundle_sha256(bundle: bytes) -> str:
    """The bundle's SHA-256, 64 hex digits: what sites approve."""
    return hashlib.sha256(bundle).hexdigest()


def _project() -> dict[str, object]:
    release = ".".join(__version__.split("+")[0].split(".")[:3])
    return {
        "project": {
            "name": "lorica",
            "version": release if release.count(".") == 2 else "0.0.0",
            "license": "Apache-2.0",
            "dependencies": [f"lorica=={__version__}"],
        },
        "tool": {
            "flwr": {
                "app": {
                    "publisher": "lorica",
                    "fab-include": [
                        f"{side}/{name}"
                        for side in ("server", "client")
                        for name in ("__init__.py", "app.py")
                    ],
                    "components": {"serverapp": "server.app:app", "clientapp": "client.app:app"},
                    "config": {"lorica": {"run": ""}},
                }
            }
        },
    }


def _source(module: str) -> bytes:
    try:
        spec = find_spec(module)
    except ModuleNotFoundError:
        spec = None
    if spec is None or spec.origin is None:
        raise LoricaError(Code.PACKAGE_MISSING, f"The module {module} is not installed.")
    return Path(spec.origin).read_bytes()
