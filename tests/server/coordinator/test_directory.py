"""No site speaks as another: names and keys come from the register, whatever a reply says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import ConfigRecord, Context, RecordDict

from lorica.client.admission.figures import SiteFigures
from lorica.client.admission.gate import Admission
from lorica.client.answering.endpoint import make_client_app
from lorica.client.mechanism.noise import SeededNoise
from lorica.client.training.trainer import LocalTrainer
from lorica.common.backbone.loading import load_backbone
from lorica.common.data.records import Records
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.tasks import task_of
from lorica.common.wire.messages import CAPABILITIES, TRAIN, Kind, Reply, Request, pack_reply
from lorica.common.wire.sealing import sign_reply, verify_reply
from lorica.common.wire.signing import CoordinatorKey
from lorica.server.coordinator.directory import RegisterDirectory
from lorica.server.coordinator.register import Register
from lorica.server.results.folder import RunFolder
from lorica.server.results.observers import Silent
from lorica.server.results.round import RoundRecord
from lorica.server.rounds.loop import RoundLoop
from tests.server.coordinator.registered import RegisteredGrid, admitted

NAMES = ["north", "south"]


class Keys:
    """A register in which two sites were invited and admitted, and their keys."""

    def __init__(self, folder: Path) -> None:
        self.register = Register(folder / "sites.json")
        self.own = {name: ec.generate_private_key(ec.SECP384R1()) for name in NAMES}
        self.public = {name: admitted(self.register, name, self.own[name]) for name in NAMES}


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path)


@pytest.fixture
def plan(small_backbone: Path) -> RunPlan:
    return RunPlan().replace(
        backbone={"source": str(small_backbone)},
        task={"labels": ["money", "health"]},
        adapter={"rank": 2, "kind": "head"},
        privacy={"epsilon": 4.0, "delta": 1e-3},
        rounds={"count": 2, "warm_start": 0.0, "reconnect_seconds": 0.0, "timeout_seconds": 60.0},
    )


def trainer(
    name: str, key: ec.EllipticCurvePrivateKey | None, *, declared: int = 40
) -> LocalTrainer:
    texts = ["card money lost", "fever heart pain"] * 20
    return LocalTrainer(
        name,
        Records(texts, ["money", "health"] * 20, [str(i) for i in range(40)], [""] * 40),
        noise=lambda stream, round: SeededNoise(stream, round),
        admission=Admission(figures=SiteFigures(units=declared)),
        key=key,
    )


Change = Callable[[str, RecordDict], RecordDict]


def run(
    folder: Path,
    plan: RunPlan,
    keys: Keys,
    trainers: list[LocalTrainer],
    change: Change | None = None,
) -> list[RoundRecord]:
    """The real loop over a real register; ``change``: what south's network process does to
    replies."""

    def trainer_of(context: Context) -> LocalTrainer:
        return trainers[int(context.node_config["partition-id"])]

    app = make_client_app(trainer_of)

    def changing(message: object, context: Context) -> object:
        reply = app(message, context)  # type: ignore[arg-type]
        if change is not None and context.node_config["partition-id"] == 1:
            reply.content = change(message.metadata.message_type, reply.content)  # type: ignore[attr-defined]
        return reply

    grid = RegisteredGrid(changing, [keys.public[name] for name in NAMES])  # type: ignore[arg-type]
    home = RunFolder(folder / "run")
    home.create(plan)
    backbone = load_backbone(plan.backbone)
    RoundLoop(
        grid,
        plan,
        home,
        run="r",
        start=lambda: task_of(plan).start(backbone),
        evaluate=None,
        observer=Silent(),
        key=CoordinatorKey.create(folder / "key.pem"),
        directory=RegisterDirectory(grid, keys.register),
    ).run()
    return home.rounds()


def last(records: list[RoundRecord]) -> dict[str, tuple[str, str]]:
    return {site.site: (site.status, site.reason) for site in records[-1].sites}


def test_registered_sites_that_sign_take_part_under_their_registered_names(
    tmp_path: Path, plan: RunPlan, keys: Keys
) -> None:
    records = run(tmp_path, plan, keys, [trainer(name, keys.own[name]) for name in NAMES])
    assert last(records) == {"north": ("ok", ""), "south": ("ok", "")}


def test_a_site_that_speaks_as_another_is_refused_and_the_other_is_not(
    tmp_path: Path, plan: RunPlan, keys: Keys
) -> None:
    """Names were taken from replies: whoever came first was believed, and the other left out."""
    trainers = [trainer("south", keys.own["north"]), trainer("south", keys.own["south"])]
    records = run(tmp_path, plan, keys, trainers)
    assert last(records) == {"south": ("ok", "")}


def unsigned(kind: str, record: RecordDict) -> RecordDict:
    return changed(record, signature=None)


def changed(record: RecordDict, **fields: object) -> RecordDict:
    content = {**record["lorica"], **fields}
    kept = {key: value for key, value in content.items() if value is not None}
    others = {key: value for key, value in record.items() if key != "lorica"}
    return RecordDict({"lorica": ConfigRecord(kept), **others})  # type: ignore[arg-type]


class Repeating:
    """Gives the reply to the first round for the second, too."""

    def __init__(self) -> None:
        self.kept: RecordDict | None = None

    def __call__(self, kind: str, record: RecordDict) -> RecordDict:
        if kind != "train":
            return record
        if self.kept is None:
            self.kept = record
        return changed(self.kept, round=record["lorica"]["round"])


WRONG: dict[str, Callable[[], Change]] = {
    "unsigned": lambda: unsigned,
    "with another weight": lambda: lambda kind, record: changed(record, weight=10**9),
    "with another name": lambda: lambda kind, record: changed(record, site="north"),
    "with a signature that is none": lambda: lambda k, record: changed(record, signature="00" * 96),
    "with a signature of words": lambda: lambda k, record: changed(record, signature="\u202e"),
}


@pytest.mark.parametrize("what", sorted(WRONG))
def test_a_reply_that_is_not_the_registered_sites_own_is_left_out(
    tmp_path: Path, plan: RunPlan, keys: Keys, what: str
) -> None:
    trainers = [trainer(name, keys.own[name]) for name in NAMES]
    records = run(tmp_path, plan, keys, trainers, WRONG[what]())
    assert last(records) == {"north": ("ok", "")}


def test_a_reply_of_an_earlier_round_is_no_reply_to_this_one(
    tmp_path: Path, plan: RunPlan, keys: Keys
) -> None:
    trainers = [trainer(name, keys.own[name]) for name in NAMES]
    records = run(tmp_path, plan, keys, trainers, Repeating())
    assert [site.status for site in records[1].sites] == ["ok", "ok"]
    status, reason = last(records)["south"]
    assert status == "failed" and Code.REPLY_FORGED.value in reason


def test_a_revoked_site_is_asked_nothing(tmp_path: Path, plan: RunPlan, keys: Keys) -> None:
    asked = trainer("south", keys.own["south"])
    keys.register.revoke("south")
    records = run(tmp_path, plan, keys, [trainer("north", keys.own["north"]), asked])
    assert last(records) == {"north": ("ok", "")}
    assert asked._session is None


def test_a_site_that_declares_more_units_than_there_can_be_takes_no_part(
    tmp_path: Path, plan: RunPlan, keys: Keys
) -> None:
    """10^15 were believed, and the other's update weighed nothing."""
    huge = trainer("south", keys.own["south"], declared=10**15)
    plan = plan.replace(privacy={"epsilon": float("inf")})
    records = run(tmp_path, plan, keys, [trainer("north", keys.own["north"]), huge])
    assert last(records) == {"north": ("ok", "")}


REPLY = Reply("f" * 64, 3, site="north", weight=7, blob=b"update", counts=(1.5, -2.0))
REQUEST = Request(RunPlan(), "run-1", 3, b"adapter", site="north", nonce="a" * 32)


def test_a_signed_reply_is_known_and_every_change_of_reply_or_request_is_seen() -> None:
    key, other = (ec.generate_private_key(ec.SECP384R1()) for _ in range(2))
    public = registered(key)
    signed = sign_reply(REPLY, REQUEST, TRAIN, key)
    verify_reply(pack_reply(signed), [replace(REQUEST, nonce="c" * 32), REQUEST], TRAIN, public)
    replies = [
        replace(signed, **change)
        for change in (
            {"weight": 8}, {"site": "south"}, {"blob": b"updatf"}, {"counts": (1.5, -2.5)},
            {"round": 4}, {"fingerprint": "0" * 64}, {"status": "refused", "code": "LOR-901"},
            {"version": "9"}, {"budget": (2.0, 1.0)}, {"counts": ()}, {"blob": b""},
            {"signature": ""}, {"signature": signed.signature[:-2]},
        )
    ]  # fmt: skip
    requests = [
        replace(REQUEST, **change)
        for change in ({"run": "run-2"}, {"round": 4}, {"site": "south"}, {"nonce": "b" * 32})
    ]
    tried: list[tuple[Reply, Request, Kind, str]] = [(r, REQUEST, TRAIN, public) for r in replies]
    tried += [(signed, request, TRAIN, public) for request in requests]
    tried += [(signed, REQUEST, CAPABILITIES, public), (signed, REQUEST, TRAIN, registered(other))]
    for reply, request, kind, holder in tried:
        with pytest.raises(LoricaError) as caught:
            verify_reply(pack_reply(reply), [request], kind, holder)
        assert caught.value.code is Code.REPLY_FORGED


def registered(key: ec.EllipticCurvePrivateKey) -> str:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
