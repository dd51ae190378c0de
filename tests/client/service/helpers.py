"""A site in a folder, its trainer as a real process, and requests to it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import tomli_w
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from grpc_health.v1 import health_pb2, health_pb2_grpc

from lorica.client.answering.trainer_pb2 import StatusReply, StatusRequest
from lorica.client.answering.trainer_pb2_grpc import TrainerStub
from lorica.client.config.site import load_site
from lorica.client.node.forwarder import OPTIONS, SocketForwarder
from lorica.client.training.opening import open_ledger
from lorica.common.adapter.state import pack_state
from lorica.common.backbone.files import backbone_sha256
from lorica.common.backbone.loading import load_backbone
from lorica.common.plan import RunPlan
from lorica.common.plan.stages import sent
from lorica.common.tasks.text_classification import TextClassifier, starting_state
from lorica.common.wire.messages import Kind, Reply, Request, pack_request, unpack_reply
from lorica.common.wire.signing import CoordinatorKey

NAME = "Wilhelmina Featherstonehaugh"
"""In a record's text; must never leave."""
READY_SECONDS = 120.0
KEY = CoordinatorKey(Ed25519PrivateKey.from_private_bytes(b"\x07" * 32))
"""Of the coordinator that sites answer unless something else is said."""


def small_plan(backbone: Path, **sections: dict[str, Any]) -> RunPlan:
    """A few rounds on the small backbone."""
    plan = RunPlan().replace(
        backbone={"source": str(backbone)},
        task={"labels": ["money", "health"]},
        adapter={"rank": 2},
        privacy={"epsilon": 4.0},
        rounds={"count": 3, "evaluate_every": 3},
        training={"lora": "never"},
    )
    return plan.replace(**sections)


def make_site(folder: Path, backbone: Path, **policy: Any) -> Path:
    """A site's folder with records, ledger and site.toml; returns the latter's path."""
    folder.mkdir(mode=0o700)
    rows = [f"card money lost,money\n{NAME.lower()} has fever,health\n"] * 60
    (folder / "records.csv").write_text("text,label\n" + "".join(rows))
    content = {
        "site": {"name": "north"},
        "data": {"source": "records.csv"},
        "trainer": {"isolation": "auto"},
        "policy": {
            "backbones": [backbone_sha256(backbone)],
            "backbone_folders": [str(backbone)],
            "minimum_units": 10,
            "sampling_units": 100,
            "noise": "seeded",
            "coordinators": [KEY.public],
        }
        | policy,
    }
    path = folder / "site.toml"
    path.write_text(tomli_w.dumps(content))
    open_ledger(load_site(path), folder, create=True).close()
    return path


@contextlib.contextmanager
def trainer_process(
    config: Path, *options: str, ready: bool = True, **environment: str
) -> Iterator[subprocess.Popen[str]]:
    """`lorica site trainer` as a process of its own, ended with the block."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "lorica.client.service.main", "--config", config, *options],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )
    try:
        if ready:
            wait_ready(config.parent / "trainer.sock", process)
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait()
        if process.stderr:
            process.stderr.close()


def wait_ready(socket: Path, process: subprocess.Popen[str] | None = None) -> None:
    """Return when the trainer says that it serves."""
    with grpc.insecure_channel(f"unix:{socket}", options=OPTIONS) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        request = health_pb2.HealthCheckRequest(service="lorica.trainer.v1.Trainer")
        try:
            answer = check(request, timeout=READY_SECONDS, wait_for_ready=True)
        except grpc.RpcError:
            if process is not None and process.poll() is not None and process.stderr:
                raise AssertionError(process.stderr.read()) from None
            raise
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


def status(socket: Path) -> StatusReply:
    """The trainer's status."""
    with grpc.insecure_channel(f"unix:{socket}", options=OPTIONS) as channel:
        return TrainerStub(channel).Status(StatusRequest(), timeout=60)


def to_bytes(record: RecordDict) -> bytes:
    return bytes(recorddict_to_proto(record).SerializeToString())


def from_bytes(content: bytes) -> RecordDict:
    return recorddict_from_proto(ProtoRecordDict.FromString(content))


def request_for(
    plan: RunPlan, kind: Kind, round: int, *, run: str = "r", key: CoordinatorKey | None = KEY
) -> Request:
    """A signed request of a run that has just begun: every round gets the starting state."""
    blob = b""
    if kind != "query.capabilities":
        backbone = load_backbone(plan.backbone)
        state = starting_state(TextClassifier(backbone, plan), backbone, plan)
        blob = pack_state({name: state[name] for name in sent(plan, round, state)})
    request = Request(plan, run, round, blob, site="north")
    return key.sign(request, kind) if key else request


def ask(socket: Path, kind: Kind, request: Request, *, wait: float = 30.0) -> Reply:
    """The trainer's reply, by the thin ClientApp's own way."""
    method = kind.removeprefix("query.")
    packed = SocketForwarder(socket, wait=wait).forward(method, to_bytes(pack_request(request)))
    return unpack_reply(
        from_bytes(packed), fingerprint=request.plan.fingerprint, round=request.round
    )
