"""A malicious coordinator against a real trainer process: refused, bounded, uncharged, silent.

Every attack is sent through the socket as its bytes would arrive. After each one: the reply is a
refusal with a code of the catalogue, the ledger has no new entry that counts, the process's
memory has grown by no more than a bound, and nothing of a record is in the reply.
"""

from __future__ import annotations

import json
import os
import pickle
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from lorica.client.config.site import load_site
from lorica.client.node.forwarder import SocketForwarder
from lorica.client.training.opening import open_ledger
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.wire.messages import CAPABILITIES, TRAIN, Request, pack_request
from lorica.common.wire.signing import CoordinatorKey
from tests.client.service.helpers import (
    KEY,
    NAME,
    ask,
    from_bytes,
    make_site,
    request_for,
    small_plan,
    to_bytes,
    trainer_process,
)
from tests.conftest import make_small_backbone

pytestmark = pytest.mark.process

MOST_GROWTH = 400 << 20
MOST_SECONDS = 60.0
"""Far above what any attack takes here (under one second each), for a machine that is busy."""
TRAP = Path("/tmp/lorica-pickle-was-read")


class Target:
    """A site's trainer as its coordinator reaches it."""

    def __init__(self, site: Path, pid: int, plan: RunPlan, key: CoordinatorKey) -> None:
        self.site, self.pid, self.plan, self.key = site, pid, plan, key
        self.socket = site.parent / "trainer.sock"

    def send(self, method: str, content: bytes) -> bytes:
        return SocketForwarder(self.socket, wait=5.0).forward(method, content)

    def memory(self) -> int:
        """Peak resident memory of the trainer so far, bytes."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) << 10

    def charged(self) -> int:
        ledger = open_ledger(load_site(self.site), self.site.parent)
        try:
            return len(ledger.history().charges)
        finally:
            ledger.close()

    def signed(self, plan: RunPlan, **changes: Any) -> Request:
        """A good first round, but for some fields, signed by the site's own coordinator."""
        good = request_for(self.plan, TRAIN, 1, key=None)
        return self.key.sign(replace(good, **({"plan": plan} | changes)), TRAIN)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    folder = tmp_path_factory.mktemp("h")
    backbone = make_small_backbone(folder / "backbone")
    key = CoordinatorKey.create(folder / "key.pem")
    site = make_site(folder / "site", backbone, coordinators=[key.public])
    with trainer_process(site) as process:
        yield Target(site, process.pid, small_plan(backbone), key)


def expect_refused(target: Target, method: str, content: bytes, *codes: Code) -> None:
    charged, memory, begun = target.charged(), target.memory(), time.monotonic()
    reply = target.send(method, content)
    assert time.monotonic() - begun < MOST_SECONDS
    assert target.memory() - memory < MOST_GROWTH
    fields = from_bytes(reply)["lorica"]
    assert fields["status"] == "refused"
    assert fields["code"] in {code.value for code in codes}
    assert target.charged() == charged
    for part in NAME.split():
        assert part.lower().encode() not in reply.lower()


def changed(plan: RunPlan, **sections: dict[str, Any]) -> tuple[str, str]:
    """Canonical text and fingerprint of a plan with values that need not be valid."""
    content = json.loads(plan.canonical())
    for name, values in sections.items():
        content[name] |= values
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return text, sha256(text.encode()).hexdigest()


ANY_PLAN_CODE = (Code.PLAN_BAD_VALUE, Code.PLAN_UNREADABLE, Code.PLAN_MISMATCH, Code.POLICY_REFUSED)
DELIMITERS = "\u202e\u0000\u2028<script>'; DROP TABLE entries; --"

PLANS: dict[str, dict[str, dict[str, Any]]] = {
    "no privacy": {"privacy": {"epsilon": "inf"}},
    "nearly no privacy": {"privacy": {"epsilon": 1e308}},
    "an epsilon that is no number": {"privacy": {"epsilon": "nan"}},
    "a negative epsilon": {"privacy": {"epsilon": -1.0}},
    "a delta of nearly one": {"privacy": {"delta": 0.999}},
    "a clip norm that swallows the noise": {"privacy": {"clip_norm": 1e-300}},
    "a clip norm beyond float32": {"privacy": {"clip_norm": 1e300}},
    "a thousand million steps": {
        "training": {"mode": "local", "local_steps": 100_000},
        "rounds": {"count": 10_000, "warm_start": 0.0},
    },
    "more steps than can be": {"training": {"local_steps": 10**9}},
    "a million rounds": {"rounds": {"count": 10**6}},
    "a million rounds with evaluation": {"rounds": {"count": 10**6, "evaluate_every": 1}},
    "a round count beyond 64 bits": {"rounds": {"count": 10**40}},
    "a hundred thousand labels": {"task": {"labels": [f"l{i}" for i in range(100_000)]}},
    "a million labels": {"task": {"labels": [f"l{i}" for i in range(1_000_000)]}},
    "a label of a megabyte": {"task": {"labels": ["money", "h" * 2_000_000]}},
    "labels that steer terminals": {"task": {"labels": ["money", DELIMITERS]}},
    "a rank beyond the policy": {"adapter": {"rank": 512}},
    "a rank beyond memory": {"adapter": {"rank": 10**9}},
    "texts beyond memory": {"training": {"max_length": 10**9}},
    "a unit that is not the site's": {"privacy": {"unit": "passport_number"}},
    "a unit with control characters": {"privacy": {"unit": DELIMITERS}},
    "metrics that the site does not give": {"privacy": {"evaluation_metrics": ["per_label"]}},
    "an unknown key": {"privacy": {"noise": "off"}},
    "a model by a path": {"backbone": {"source": "/etc/passwd"}},
    "a model by a path that climbs": {"backbone": {"source": "../../../../../../etc"}},
    "a model of another user": {"backbone": {"source": "~root/.ssh"}},
    "a model from the hub": {"backbone": {"source": "evil/model", "revision": "main"}},
    "a model by an address": {"backbone": {"source": "https://evil.example/model"}},
    "a model by a long path": {"backbone": {"source": "a/" * 200_000}},
    "a model by a null byte": {"backbone": {"source": "embedded\u0000"}},
    "a model by another hash": {"backbone": {"sha256": "0" * 64}},
    "the packaged model, which this site does not list": {"backbone": {"source": "embedded"}},
    "modules that are not there": {"adapter": {"target_modules": ["__class__", "../x"]}},
    "a million modules": {"adapter": {"target_modules": ["query"] * 300_000}},
    "layers that are not there": {"adapter": {"layers": [10**9]}},
    "a task that is code": {"task": {"kind": "os.system"}},
}


@pytest.mark.parametrize("name", sorted(PLANS))
@pytest.mark.parametrize("method", ["capabilities", "train"])
def test_a_hostile_plan_is_refused(target: Target, name: str, method: str) -> None:
    """Signed by the site's own coordinator wherever the plan can be read at all."""
    text, fingerprint = changed(target.plan, **PLANS[name])
    kind = "train" if method == "train" else "query.capabilities"
    try:
        from lorica.common.plan.io import from_canonical

        plan = from_canonical(text)
    except LoricaError:
        record = pack_request(target.signed(target.plan))
        fields = dict(record["lorica"]) | {"plan": text, "fingerprint": fingerprint}
        record["lorica"] = ConfigRecord(fields)  # type: ignore[arg-type]
    else:
        round = 1 if method == "train" else 0
        request = replace(request_for(target.plan, TRAIN, 1, key=None), plan=plan, round=round)
        record = pack_request(target.key.sign(request, kind))  # type: ignore[arg-type]
    if name in ("modules that are not there", "layers that are not there") and method != "train":
        pytest.skip("a site learns of it when it opens the model, for a round")
    expect_refused(
        target,
        method,
        to_bytes(record),
        *ANY_PLAN_CODE,
        Code.PLAN_UNKNOWN_KEY,
        Code.MESSAGE_MALFORMED,
        Code.BACKBONE_UNSUPPORTED,
        Code.BACKBONE_HASH,
        Code.DATA_UNFIT,
        Code.ADAPTER_MISMATCH,
    )


class Trap:
    """Touches a file when it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (TRAP,)


def header(content: dict[str, Any], data: bytes = b"") -> bytes:
    text = json.dumps(content).encode()
    return struct.pack("<Q", len(text)) + text + data


F32 = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
BLOBS: dict[str, Callable[[], bytes]] = {
    "a pickle": lambda: pickle.dumps(Trap()),
    "nothing": lambda: b"",
    "a header longer than memory": lambda: struct.pack("<Q", 2**63 - 1) + b"{}",
    "a header longer than the blob": lambda: struct.pack("<Q", 10**8) + b"{}",
    "a header that nests": lambda: struct.pack("<Q", 2_000_000) + b"[" * 2_000_000,
    "a header of a million tensors": lambda: header(
        {f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(200_000)}
    ),
    "shapes beyond 64 bits": lambda: header({"head.weight": F32 | {"shape": [2**62, 2**62]}}),
    "negative offsets": lambda: header({"head.weight": F32 | {"data_offsets": [-16, 0]}}),
    "offsets beyond the blob": lambda: header({"head.weight": F32 | {"data_offsets": [0, 10**12]}}),
    "tensors of another plan": lambda: header({"head.weight": F32}, bytes(16)),
    "a type that is none": lambda: header({"head.weight": F32 | {"dtype": "EVIL"}}, bytes(16)),
    "bytes": lambda: bytes(range(256)) * 1000,
}


@pytest.mark.parametrize("name", sorted(BLOBS))
def test_a_hostile_adapter_is_refused(target: Target, name: str) -> None:
    TRAP.unlink(missing_ok=True)
    request = target.signed(target.plan, blob=BLOBS[name]())
    codes = (Code.MESSAGE_MALFORMED, Code.ADAPTER_MISMATCH)
    expect_refused(target, "train", to_bytes(pack_request(request)), *codes)
    assert not TRAP.exists()


def raw(**fields: Any) -> bytes:
    """A good signed request with fields of the wire changed."""
    key = fields.pop("key")
    record = pack_request(key)
    record["lorica"] = ConfigRecord(dict(record["lorica"]) | fields)  # type: ignore[arg-type]
    return to_bytes(record)


def with_array(request: Request, array: Array) -> bytes:
    record = pack_request(request)
    record["adapter"] = ArrayRecord({"adapter": array})
    return to_bytes(record)


WIRE: dict[str, Callable[[Target, Request], bytes]] = {
    "garbage": lambda t, r: b"\xff" * 1_000_000,
    "nothing": lambda t, r: b"",
    "a record of a hundred thousand records": lambda t, r: to_bytes(
        RecordDict({f"r{i}": MetricRecord({"a": i}) for i in range(100_000)})
    ),
    "a pickled array": lambda t, r: with_array(
        r, Array(dtype="uint8", shape=(1,), stype="pickle", data=pickle.dumps(Trap()))
    ),
    "a numpy array that is a pickle": lambda t, r: with_array(
        r, Array(dtype="object", shape=(1,), stype="numpy.ndarray", data=pickle.dumps(Trap()))
    ),
    "a round below zero": lambda t, r: raw(key=r, round=-1),
    "a round beyond the plan": lambda t, r: raw(key=r, round=2**62),
    "a run id of a megabyte": lambda t, r: raw(key=r, run="r" * 1_000_000),
    "another run under the signature": lambda t, r: raw(key=r, run="another"),
    "a protocol of text": lambda t, r: raw(key=r, protocol="1; rm -rf /"),
    "a time of text": lambda t, r: raw(key=r, time="now"),
    "a time that was not signed": lambda t, r: raw(key=r, time=r.time + 1),
    "no signature": lambda t, r: raw(key=r, signature="", coordinator=""),
    "a signature of zeros": lambda t, r: raw(key=r, signature="0" * 128),
    "a signature that is no hex": lambda t, r: raw(key=r, signature="zz" * 64),
    "a key that is no key": lambda t, r: raw(key=r, coordinator="f" * 64),
}


@pytest.mark.parametrize("name", sorted(WIRE))
def test_a_hostile_message_is_refused(target: Target, name: str) -> None:
    TRAP.unlink(missing_ok=True)
    content = WIRE[name](target, target.signed(target.plan))
    expect_refused(
        target,
        "train",
        content,
        Code.MESSAGE_MALFORMED,
        Code.REQUEST_UNSIGNED,
        Code.SIGNATURE_INVALID,
        Code.COORDINATOR_UNKNOWN,
    )
    assert not TRAP.exists()


def test_an_unknown_coordinator_is_refused(target: Target, tmp_path: Path) -> None:
    stranger = CoordinatorKey.create(tmp_path / "stranger.pem")
    request = request_for(target.plan, TRAIN, 1, key=stranger)
    expect_refused(target, "train", to_bytes(pack_request(request)), Code.COORDINATOR_UNKNOWN)


def test_a_recorded_request_of_a_run_that_ended_is_refused_when_it_is_old(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Signed two days ago, never delivered, kept by somebody on the way."""
    now = time.time()
    monkeypatch.setattr("lorica.common.wire.signing.time.time", lambda: now - 48 * 3600)
    old = target.signed(target.plan, run="ended")
    monkeypatch.setattr("lorica.common.wire.signing.time.time", lambda: now + 48 * 3600)
    early = target.signed(target.plan, run="ended")
    monkeypatch.undo()
    for request in (old, early):
        expect_refused(target, "train", to_bytes(pack_request(request)), Code.REQUEST_STALE)


def test_a_message_larger_than_the_site_takes_is_refused_before_it_is_read(
    tmp_path: Path, small_backbone: Path
) -> None:
    site = make_site(tmp_path / "site", small_backbone)
    text = site.read_text().replace("[trainer]\n", "[trainer]\nmessage_bytes = 100000\n")
    site.write_text(text)
    with trainer_process(site) as process:
        target = Target(site, process.pid, small_plan(small_backbone), None)  # type: ignore[arg-type]
        memory = target.memory()
        with pytest.raises(LoricaError) as caught:
            target.send("train", bytes(50_000_000))
        assert caught.value.code is Code.MESSAGE_MALFORMED
        assert target.memory() - memory < 20 << 20


def test_after_all_attacks_an_honest_round_is_answered_and_charged_once(target: Target) -> None:
    before = target.charged()
    reply = ask(target.socket, TRAIN, target.signed(target.plan))
    assert reply.status == "ok", reply.reason
    again = ask(target.socket, TRAIN, target.signed(target.plan))  # signed anew, as by a resume
    assert again == reply
    assert target.charged() == before + 1


OPENED = """
import json, sys
from pathlib import Path
seen = []
def watch(event, arguments):
    if event in ("open", "os.listdir", "os.scandir", "glob.glob", "socket.connect", "import"):
        seen.append(f"{event} {arguments[0] if event != 'socket.connect' else arguments[1]}")
from tests.client.service.helpers import from_bytes
from lorica.client.config.site import load_site
from lorica.client.service.queue import answer_bytes
from lorica.client.training.opening import open_trainer
site, folder = Path(sys.argv[1]), Path(sys.argv[2])
trainer, _ = open_trainer(load_site(site), site.parent)
sys.addaudithook(watch)
said = {}
for file in sorted(folder.iterdir()):
    content = file.read_bytes()
    packed, _ = answer_bytes("capabilities", content, trainer)
    said[file.name] = str(from_bytes(packed)["lorica"].get("code", "ok"))
print(json.dumps({"said": said, "seen": seen}))
"""


def test_paths_and_addresses_in_a_plan_are_neither_opened_nor_connected_to(
    tmp_path: Path, small_backbone: Path
) -> None:
    """Of files that exist: whether they do must not even show in the answer."""
    site = make_site(tmp_path / "site", small_backbone)
    bait = tmp_path / "bait"
    bait.mkdir()
    (bait / "config.json").write_text("{}")
    (bait / "model.safetensors").write_text("")
    (bait / "data.csv").write_text("text,label\n")
    absent = tmp_path / "absent"
    requests = tmp_path / "requests"
    requests.mkdir()
    plan = small_plan(small_backbone)
    for name, hostile in {
        "model": plan.replace(backbone={"source": str(bait)}),
        "no model": plan.replace(backbone={"source": str(absent)}),
        "hub": plan.replace(backbone={"source": "evil/model"}),
        "data": plan.replace(data={"train": str(bait / "data.csv"), "test": str(bait)}),
        "no data": plan.replace(data={"train": str(absent / "data.csv"), "test": str(absent)}),
    }.items():
        (requests / name).write_bytes(
            to_bytes(pack_request(KEY.sign(Request(hostile, "r", site="north"), CAPABILITIES)))
        )
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", OPENED, str(site), str(requests)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(here.parents[2])},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    refused = Code.POLICY_REFUSED.value
    assert found["said"]["model"] == found["said"]["no model"] == found["said"]["hub"] == refused
    assert found["said"]["data"] == found["said"]["no data"] == "ok"
    assert not [what for what in found["seen"] if str(bait) in what or str(absent) in what]
    assert not [what for what in found["seen"] if what.startswith("socket.connect")]
