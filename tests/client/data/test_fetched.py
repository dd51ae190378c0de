"""What the process that fetches may reach: the hub, whatever holds for the trainer."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from lorica.client.config.site import load_site
from lorica.client.data.fetched import fetch
from lorica.client.site.services import _trainer
from lorica.common.errors import LoricaError


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Paths that a hub of this machine was asked for; it has nothing."""
    paths: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET  # noqa: N815 - the library's name

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield paths
    server.shutdown()
    server.server_close()


def site(folder: Path) -> Path:
    path = folder / "site.toml"
    path.write_text('[site]\nname = "north"\n[data]\nsource = "hub:org/notes"\n')
    return path


@pytest.mark.parametrize("stays", [False, True])
def test_the_hub_is_asked_under_a_trainer_that_asks_it_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[str], stays: bool
) -> None:
    """In the environment that `lorica site start` gives the trainer; HF_DATASETS_OFFLINE holds."""
    path = site(tmp_path)
    for name, value in _trainer(path).environment.items():
        monkeypatch.setenv(name, value)
    if stays:
        monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    with pytest.raises(LoricaError):  # it has no such data set
        fetch(path, load_site(path))
    assert bool(asked) != stays
    assert os.environ["HF_HUB_OFFLINE"] == "1"
