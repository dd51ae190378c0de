"""A result given away: what goes, what stays, and a hub that takes it."""

from __future__ import annotations

import base64
import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lorica.common.backbone.loading import backbone_of
from lorica.common.cli.command import app
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.saved.card import CardResults
from lorica.common.saved.exported.merged import export_merged
from lorica.common.saved.folder import load_adapter, save_adapter
from lorica.common.saved.predict import Predictor
from lorica.common.saved.push import push_to_folder, push_to_hub
from lorica.common.tasks import task_of
from tests.saved_adapters import random_adapter

CONTENT = ["README.md", "adapter_config.json", "adapter_model.safetensors", "head.safetensors"]
CONTENT += ["lorica.json"]
SECRETS = (
    "benefit.json",
    "ledger.sqlite",
    "token",
    "checkpoint.safetensors",
    ".env",
    "rounds.jsonl",
)


@pytest.fixture
def adapter(tmp_path: Path, small_backbone: Path) -> Path:
    folder = random_adapter(tmp_path / "adapter", small_backbone, ["a", "b"])
    for name in SECRETS:
        (folder / name).write_text("of the site alone")
    (folder / "notes").mkdir()
    (folder / "notes" / "config.json").write_text("of the site alone")
    (folder / "tokenizer.json").symlink_to(folder / "benefit.json")
    return folder


def test_files_of_a_list_go_and_nothing_else(
    adapter: Path, tmp_path: Path, small_backbone: Path
) -> None:
    done = push_to_folder(adapter, tmp_path / "hub" / "given")
    given = tmp_path / "hub" / "given"
    assert sorted(done.files) == sorted(CONTENT)
    found = [path for path in given.rglob("*") if path.is_file()]
    assert sorted(str(path.relative_to(given)) for path in found) == sorted(CONTENT)
    assert set(done.left) == {*SECRETS, "notes/config.json", "tokenizer.json"}
    for path in found:
        assert str(tmp_path).encode() not in path.read_bytes(), path
    texts = ["my card is lost", "fever"]
    assert Predictor(given, str(small_backbone))(texts) == Predictor(adapter)(texts)
    with pytest.raises(LoricaError) as caught:
        push_to_folder(adapter, given)
    assert caught.value.code is Code.RUN_FOLDER_EXISTS


def test_a_model_without_privacy_goes_only_where_that_is_meant(
    adapter: Path, tmp_path: Path
) -> None:
    about = json.loads((adapter / "lorica.json").read_text())
    about["plan"]["privacy"]["epsilon"] = "inf"
    (adapter / "lorica.json").write_text(json.dumps(about))
    with pytest.raises(LoricaError) as caught:
        push_to_folder(adapter, tmp_path / "given")
    assert caught.value.code is Code.PUSH_REFUSED and not (tmp_path / "given").exists()
    arguments = ["push", str(adapter), str(tmp_path / "given")]
    assert isinstance(CliRunner().invoke(app, arguments).exception, LoricaError)
    done = CliRunner().invoke(app, [*arguments, "--without-privacy"], terminal_width=300)
    assert done.exit_code == 0 and "Not pushed: .env, benefit.json" in done.output


def test_what_a_simulation_added_seeded_noise_to_has_no_privacy(
    adapter: Path, tmp_path: Path, small_backbone: Path
) -> None:
    saved = load_adapter(adapter)
    for seeded in (True, False):
        folder = tmp_path / f"seeded {seeded}"
        save_adapter(folder, saved.state, saved.plan, saved.backbone(), CardResults(seeded=seeded))
        assert load_adapter(folder).seeded == seeded
        assert ("differential-privacy" in (folder / "README.md").read_text()) != seeded
        export_merged(folder, tmp_path / f"merged {seeded}")
        for given in (folder, tmp_path / f"merged {seeded}"):
            if not seeded:
                push_to_folder(given, tmp_path / "given" / given.name)
                continue
            with pytest.raises(LoricaError) as caught:
                push_to_folder(given, tmp_path / "given" / given.name)
            assert caught.value.code is Code.PUSH_REFUSED


def test_no_path_of_this_machine_goes_however_a_file_writes_it(
    tmp_path: Path, small_backbone: Path
) -> None:
    home = tmp_path / "größe 'ß'"
    shutil.copytree(small_backbone, home / "model")
    plan = RunPlan().replace(
        backbone={"source": str(home / "model")},
        data={"train": "gone/of-müller/notes.csv", "test": str(home / "test.csv")},
        task={"labels": ["a", "b"]},
    )
    state = task_of(plan).start(backbone_of(plan))
    save_adapter(tmp_path / "adapter", state, plan, backbone_of(plan))
    (tmp_path / "adapter" / "1_Pooling").mkdir()
    (tmp_path / "adapter" / "1_Pooling" / "config.json").symlink_to(home / "model" / "config.json")
    done = push_to_folder(tmp_path / "adapter", tmp_path / "given")
    assert done.left == ["1_Pooling/config.json"]
    export_merged(tmp_path / "adapter", tmp_path / "merged")
    push_to_folder(tmp_path / "merged", tmp_path / "other")
    for path in [*(tmp_path / "given").iterdir(), *(tmp_path / "other").iterdir()]:
        if path.suffix in (".md", ".json"):
            text = path.read_text(encoding="utf-8")
            assert tmp_path.name not in text and "of-m" not in text, path


def test_an_export_goes_with_the_settings_that_it_needs(
    adapter: Path, tmp_path: Path, small_backbone: Path
) -> None:
    export_merged(adapter, tmp_path / "merged")
    done = push_to_folder(tmp_path / "merged", tmp_path / "given")
    assert {"model.safetensors", "config.json", "tokenizer.json", "task.json"} <= set(done.files)
    assert not done.left
    with pytest.raises(LoricaError) as caught:
        push_to_folder(small_backbone, tmp_path / "other")
    assert caught.value.code is Code.ADAPTER_UNREADABLE


class Hub(BaseHTTPRequestHandler):
    """What of the Hugging Face hub's API an upload of small files asks for."""

    commits: dict[str, bytes]
    made: list[dict[str, Any]]
    tokens: list[str | None]
    about: dict[str, Any]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        kind = type(self)
        kind.tokens.append(self.headers.get("Authorization"))
        if self.headers.get("Authorization") != "Bearer hf_right":
            self._answer({"error": "Invalid token"}, 401)
        elif self.path == "/api/repos/create":
            kind.made.append(json.loads(body))
            self._answer({"url": f"http://{self.headers['Host']}/north/notes"})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            modes = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in files
            ]
            self._answer({"files": modes})
        elif "/commit/" in self.path:
            for line in body.splitlines():
                item = json.loads(line)
                if item["key"] == "file":
                    value = item["value"]
                    kind.commits[value["path"]] = base64.b64decode(value["content"])
            url = f"http://{self.headers['Host']}/north/notes/commit/{'0' * 40}"
            self._answer({"success": True, "commitUrl": url, "commitOid": "0" * 40})
        else:
            self._answer({"errors": [], "warnings": []})

    def do_GET(self) -> None:
        self._answer({"sha": "0" * 40, "id": "north/notes", "siblings": []} | type(self).about)

    def log_message(self, *_: Any) -> None:
        """Not to standard error."""

    def _answer(self, content: Any, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    """A hub on this machine, which huggingface_hub is told of."""
    from huggingface_hub import constants

    kind = type(
        "OwnHub", (Hub,), {"commits": {}, "made": [], "tokens": [], "about": {"private": True}}
    )
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    yield kind
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_hub_gets_the_same_files_in_a_private_repository(adapter: Path, hub: type[Hub]) -> None:
    done = push_to_hub(adapter, "north/notes")
    assert hub.made[0]["visibility"] == "private" and hub.made[0]["name"] == "notes"
    assert sorted(hub.commits) == sorted(CONTENT)
    weights = (adapter / "adapter_model.safetensors").read_bytes()
    assert hub.commits["adapter_model.safetensors"] == weights
    assert done.target.endswith("/north/notes")
    assert b"of the site alone" not in b"".join(hub.commits.values())


def test_a_repository_that_all_may_read_gets_nothing_unless_that_is_said(
    adapter: Path, hub: type[Hub]
) -> None:
    hub.about = {"private": False}
    with pytest.raises(LoricaError) as caught:
        push_to_hub(adapter, "north/notes")
    assert caught.value.code is Code.PUSH_REFUSED and not hub.commits
    push_to_hub(adapter, "north/notes", public=True)
    assert sorted(hub.commits) == sorted(CONTENT)


def test_a_hub_that_refuses_is_told_of_and_no_token_is_shown(
    adapter: Path, hub: type[Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(LoricaError) as caught:
        push_to_hub(adapter, "north/notes")
    assert caught.value.code is Code.PUSH_REFUSED and "hf_wrong" not in str(caught.value)
    with pytest.raises(LoricaError) as named:
        push_to_hub(adapter, "no name at all/../x")
    assert named.value.code is Code.PUSH_REFUSED
    assert not hub.commits
