"""The process that has the network: what it loads, what it maps, how much memory it takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lorica.client.node.approved_code import approve, prepare
from lorica.common.errors import Code
from lorica.common.wire.bundle import build_bundle
from lorica.common.wire.messages import TRAIN, pack_request
from tests.client.service.helpers import (
    make_site,
    request_for,
    small_plan,
    status,
    to_bytes,
    trainer_process,
)

pytestmark = pytest.mark.process

PEAK_MIB = 150

CLIENTAPP = """
import json, sys
from pathlib import Path
from lorica.client.node.guarded_clientapp import Guard, put_in_place
root, socket, content, wait = sys.argv[1:]
put_in_place(Guard(Path(root)))
from flwr.supernode.runtime import run_clientapp as flower
from flwr.app import Context, Message, RecordDict
from flwr.common.serde import message_from_proto, message_to_proto, recorddict_from_proto
from flwr.proto.recorddict_pb2 import RecordDict as Proto
from flwr.supercore.task_identity import TaskIdentity
TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
bundle = next((Path(root) / "approved").glob("*.fab"))
flower.install_from_fab(bundle.read_bytes(), skip_prompt=True)
load = flower.get_load_client_app_fn(default_app_ref="", app_path=None, multi_app=True)
clientapp = load("lorica/lorica", "0.1.0", bundle.stem)
record = recorddict_from_proto(Proto.FromString(Path(content).read_bytes()))
message = Message(record, 5, "train")
config = {"trainer-socket": socket, "trainer-wait": float(wait)}
reply = clientapp(message, Context(1, 5, config, RecordDict(), {}))
sent = message_to_proto(reply).SerializeToString()
status = Path("/proc/self/status").read_text()
print(json.dumps({
    "modules": sorted(sys.modules),
    "maps": Path("/proc/self/maps").read_text(),
    "files": [str(p.readlink()) for p in Path("/proc/self/fd").iterdir() if p.is_symlink()
              and p.exists()],
    "peak": int(status.partition("VmHWM:")[2].split()[0]) / 1024,
    "status": str(reply.content["lorica"]["status"]),
    "reason": str(reply.content["lorica"].get("code", "")),
    "sent": len(sent),
    "leaks": b"featherstonehaugh" in sent.lower(),
}))
"""


def clientapp(site: Path, content: bytes, *, wait: float = 60.0) -> dict[str, object]:
    """A message through Flower's loading of the bundle in a fresh process; what it saw."""
    file = site.parent / "message"
    file.write_bytes(content)
    socket = str(site.parent / "trainer.sock")
    done = subprocess.run(
        [sys.executable, "-P", "-c", CLIENTAPP, str(site.parent), socket, str(file), str(wait)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_clientapp_forwards_without_torch_without_data_and_in_little_memory(
    tmp_path: Path, small_backbone: Path
) -> None:
    site = make_site(tmp_path / "site", small_backbone)
    approve(build_bundle(), site.parent)
    from lorica.client.config.site import load_site

    prepare(load_site(site), site.parent)
    content = to_bytes(pack_request(request_for(small_plan(small_backbone), TRAIN, 1)))
    with trainer_process(site):
        seen = clientapp(site, content)
        anew = request_for(small_plan(small_backbone), TRAIN, 1)  # signed anew, as always
        again = clientapp(site, to_bytes(pack_request(anew)))
        assert dict(status(site.parent / "trainer.sock").answered) == {"train": 2}
    assert (seen["status"], seen["leaks"]) == ("ok", False), seen["reason"]
    assert again["sent"] == seen["sent"]
    modules = set(seen["modules"])  # type: ignore[call-overload]
    heavy = {"torch", "transformers", "peft", "opacus", "pandas", "scipy", "safetensors"}
    assert not heavy & modules
    ours = {name for name in modules if name.startswith("lorica.")}
    assert "lorica.client.node.forwarder" in ours
    forbidden = ("lorica.server", "lorica.simulations", "lorica.common.data.records")
    assert not [name for name in ours if name.startswith(forbidden)]
    assert not [
        name
        for name in ours
        if name in ("lorica.client.training.trainer", "lorica.client.training.session")
    ]
    assert "records.csv" not in str(seen["maps"])
    assert not [name for name in seen["files"] if "records.csv" in name or "ledger" in name]  # type: ignore[attr-defined]
    print(f"peak memory of the ClientApp: {seen['peak']:.0f} MiB")
    assert float(seen["peak"]) <= PEAK_MIB  # type: ignore[arg-type]


def test_without_a_trainer_the_coordinator_gets_a_public_reason(
    tmp_path: Path, small_backbone: Path
) -> None:
    site = make_site(tmp_path / "site", small_backbone)
    approve(build_bundle(), site.parent)
    from lorica.client.config.site import load_site

    prepare(load_site(site), site.parent)
    content = to_bytes(pack_request(request_for(small_plan(small_backbone), TRAIN, 1)))
    seen = clientapp(site, content, wait=0.5)
    assert seen["status"] == "refused"
    assert seen["reason"] == Code.TRAINER_DOWN.value
