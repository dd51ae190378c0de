"""The generated code of trainer.proto is what its source gives."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lorica.client.answering import trainer_pb2

ANSWERING = Path(__file__).resolve().parents[3] / "client/answering"


@pytest.mark.process
def test_regenerating_gives_the_committed_code(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools")
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    subprocess.run(
        [
            sys.executable,
            *("-m", "grpc_tools.protoc", f"-Ilorica/client/answering={ANSWERING}"),
            *outputs,
            "lorica/client/answering/trainer.proto",
        ],
        check=True,
        timeout=120,
    )
    made = {
        path.name: path.read_text() for path in (tmp_path / "lorica/client/answering").iterdir()
    }
    assert sorted(made) == ["trainer_pb2.py", "trainer_pb2.pyi", "trainer_pb2_grpc.py"]
    for name, text in made.items():
        assert (ANSWERING / name).read_text() == text, f"{name} is stale: see trainer.proto"


def test_contents_are_bytes_that_nobody_on_the_way_opens() -> None:
    kinds = {field.name: field.type for field in trainer_pb2.Content.DESCRIPTOR.fields}
    assert kinds == {"record": trainer_pb2.Content.DESCRIPTOR.fields[0].TYPE_BYTES}
