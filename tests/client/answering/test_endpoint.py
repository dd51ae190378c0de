"""What goes back to the coordinator: packed replies and public reasons, nothing of the data."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.serde import message_to_proto
from flwr.supercore.task_identity import TaskIdentity

from lorica.client.answering.endpoint import answer, installed_trainer, make_client_app
from lorica.client.app import app as installed_app
from lorica.client.ledger import Ledger, MemoryLedger
from lorica.client.mechanism.noise import SeededNoise
from lorica.client.training.trainer import LocalTrainer
from lorica.common.adapter.state import pack_state
from lorica.common.backbone.loading import load_backbone
from lorica.common.data.records import Records
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.plan.stages import sent
from lorica.common.tasks.text_classification import TextClassifier, starting_state
from lorica.common.wire.fields import PROTOCOL
from lorica.common.wire.messages import Reply, Request, pack_request, unpack_reply

NAMES = ("Wilhelmina", "Featherstonehaugh")
CANARY = f"patient {NAMES[0]} {NAMES[1]} has a rash"

PLAN = RunPlan().replace(
    backbone={"source": "no-such-folder/"}, task={"labels": ["money", "health"]}
)


KINDS = ["train", "query.capabilities", "evaluate"]
"""Flower's types of the messages that a site answers."""


class Site:
    """A trainer that answers as told, or fails."""

    site = "north"

    def __init__(self, act: Callable[[Request], Reply]) -> None:
        self._act = act

    def capabilities(self, request: Request) -> Reply:
        return self._act(request)

    def train(self, request: Request) -> Reply:
        return self._act(request)

    def evaluate(self, request: Request) -> Reply:
        return self._act(request)


def failing(error: BaseException) -> Site:
    def fail(request: Request) -> Reply:
        raise error

    return Site(fail)


def context(**node_config: int) -> Context:
    return Context(1, 5, dict(node_config), RecordDict(), {})


def message(content: RecordDict, kind: str = "train") -> Message:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    return Message(content, 5, kind)


def on_the_wire(reply: Message) -> bytes:
    return message_to_proto(reply).SerializeToString()


def packed(round: int = 3, blob: bytes = b"adapter") -> RecordDict:
    return pack_request(Request(PLAN, "r", round, blob))


def read(content: RecordDict, round: int = 3) -> Reply:
    return unpack_reply(content, fingerprint=PLAN.fingerprint, round=round)


ERRORS = {
    "an exception": ValueError(f"cannot tokenise {CANARY!r}"),
    "an exception of bytes": OSError(5, CANARY, CANARY),
    "an exception with a cause": KeyError(CANARY),
    "a coded error": LoricaError(Code.DATA_EMPTY_TEXT, CANARY, mend=CANARY),
    "memory": MemoryError(CANARY),
    "recursion": RecursionError(CANARY),
    "a Unicode error": UnicodeDecodeError("utf-8", CANARY.encode(), 0, 4, CANARY),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", ["trainer", "provider"])
@pytest.mark.parametrize("name", sorted(ERRORS))
def test_no_text_of_an_exception_reaches_the_coordinator(name: str, where: str, kind: str) -> None:
    """A record's text in the error; searched for in the bytes that would be sent."""
    error = ERRORS[name]

    def trainer_of(_: Context) -> Site:
        if where == "provider":
            raise error
        return failing(error)

    reply = make_client_app(trainer_of)(message(packed(), kind), context())
    sent = on_the_wire(reply)
    assert not reply.has_error()
    assert not any(part.encode() in sent for part in (*NAMES, "Traceback"))
    expected = error.code if isinstance(error, LoricaError) else Code.UNEXPECTED
    answered = read(reply.content)
    assert answered.status == "refused"
    assert answered.reason == f"{expected.value}: {expected.entry.title}"
    assert (answered.fingerprint, answered.round) == (PLAN.fingerprint, 3)
    assert answered.blob == b""


def test_no_record_reaches_the_coordinator_from_a_real_trainer() -> None:
    """A label that the plan lacks is named in the site's own error only."""
    records = Records(["a rash"] * 300, [CANARY] * 300, [str(i) for i in range(300)], [""] * 300)
    trainer = LocalTrainer("a", records, noise=lambda run, round: SeededNoise(run, round))
    with pytest.raises(LoricaError, match="Wilhelmina"):
        trainer.capabilities(Request(PLAN, "r"))
    app = make_client_app(lambda _: trainer)
    reply = app(message(packed(round=0, blob=b""), "query.capabilities"), context())
    assert b"Wilhelmina" not in on_the_wire(reply)
    assert read(reply.content, 0).reason.startswith("LOR-335")


def test_the_details_go_to_the_sites_own_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="lorica.site"):
        answer("train", packed(), lambda: failing(ValueError("here and nowhere else")))
    assert "here and nowhere else" in caplog.text
    assert "Traceback" in caplog.text


def test_a_trainers_reply_goes_back_as_it_is() -> None:
    given = Reply(PLAN.fingerprint, 3, "ok", "", "north", 400, bytes(range(256)))
    asked: list[Request] = []

    def act(request: Request) -> Reply:
        asked.append(request)
        return given

    app = make_client_app(lambda _: Site(act))
    reply = app(message(packed(), "train"), context())
    assert read(reply.content) == given
    assert asked == [Request(PLAN, "r", 3, b"adapter")]
    assert reply.metadata.dst_node_id == 1


@pytest.mark.parametrize("kind", KINDS)
def test_the_message_type_chooses_the_method(kind: str) -> None:
    class Naming(Site):
        def capabilities(self, request: Request) -> Reply:
            return Reply(PLAN.fingerprint, 3, site="query.capabilities", weight=1)

        def train(self, request: Request) -> Reply:
            return Reply(PLAN.fingerprint, 3, site="train", weight=1)

        def evaluate(self, request: Request) -> Reply:
            return Reply(PLAN.fingerprint, 3, site="evaluate", weight=1)

    app = make_client_app(lambda _: Naming(lambda request: Reply("")))
    assert read(app(message(packed(), kind), context()).content).site == kind


def with_fields(**changes: object) -> RecordDict:
    """A good request with some fields changed; None removes one."""
    record = packed()
    fields = dict(record["lorica"]) | changes
    record["lorica"] = ConfigRecord({k: v for k, v in fields.items() if v is not None})
    return record


def with_arrays(**arrays: Array) -> RecordDict:
    record = packed()
    record["adapter"] = ArrayRecord(arrays)
    return record


BLOB = Array(dtype="uint8", shape=(3,), stype="safetensors", data=b"abc")
OTHER = PLAN.replace(rounds={"count": 99})

MALFORMED: dict[str, tuple[RecordDict, str]] = {
    "nothing": (RecordDict(), "LOR-501"),
    "another record": (RecordDict({"lorica": MetricRecord({"a": 1})}), "LOR-501"),
    "no protocol": (with_fields(protocol=None), "LOR-501"),
    "another protocol": (with_fields(protocol=PROTOCOL + 1), "LOR-501"),
    "no plan": (with_fields(plan=None), "LOR-501"),
    "a plan of bytes": (with_fields(plan=b"{}"), "LOR-501"),
    "a plan that is no JSON": (with_fields(plan="{"), "LOR-101"),
    "a plan that nests": (with_fields(plan="[" * 100_000), "LOR-101"),
    "a plan that is a list": (with_fields(plan="[]"), "LOR-101"),
    "a plan with unknown keys": (with_fields(plan='{"rounds":{"number":3}}'), "LOR-102"),
    "a plan with bad values": (with_fields(plan='{"rounds":{"count":-3}}'), "LOR-103"),
    "a plan that is too long": (with_fields(plan=" " * 5_000_000), "LOR-501"),
    "another fingerprint": (with_fields(fingerprint=OTHER.fingerprint), "LOR-104"),
    "another plan": (with_fields(plan=OTHER.canonical()), "LOR-104"),
    "no fingerprint": (with_fields(fingerprint=None), "LOR-501"),
    "no run": (with_fields(run=None), "LOR-501"),
    "a negative round": (with_fields(round=-1), "LOR-501"),
    "a round of text": (with_fields(round="1"), "LOR-501"),
    "a fractional round": (with_fields(round=1.5), "LOR-501"),
    "two arrays": (with_arrays(adapter=BLOB, more=BLOB), "LOR-501"),
    "an array of another name": (with_arrays(more=BLOB), "LOR-501"),
    "a pickle": (
        with_arrays(adapter=Array(dtype="uint8", shape=(3,), stype="pickle", data=b"abc")),
        "LOR-501",
    ),
}


@pytest.mark.parametrize("name", sorted(MALFORMED))
def test_a_malformed_request_is_refused_and_reaches_no_trainer(name: str) -> None:
    content, code = MALFORMED[name]
    unasked = failing(AssertionError("the trainer was asked"))
    refused = read(answer("train", content, lambda: unasked))
    assert refused.status == "refused"
    assert refused.reason == f"{code}: {Code(code).entry.title}"


@pytest.mark.parametrize("nonsense", [None, "update", {"status": "ok"}], ids=repr)
def test_a_trainer_that_returns_nonsense_makes_a_refusal(nonsense: object) -> None:
    """As a trainer behind a socket might, whose version is another."""
    refused = read(answer("train", packed(), lambda: Site(lambda request: nonsense)))  # type: ignore[arg-type,return-value]
    assert refused.status == "refused"
    assert refused.reason.startswith("LOR-")


def test_a_node_without_a_provider_answers_that_it_has_no_trainer() -> None:
    with pytest.raises(LoricaError) as caught:
        installed_trainer(context())
    assert caught.value.code is Code.NO_TRAINER
    reply = installed_app(message(packed()), context(unheard_of=1))
    assert read(reply.content).reason.startswith(Code.NO_TRAINER.value)


def test_a_simulated_node_finds_its_provider() -> None:
    """The entry point whose name is in the node's config; here the simulation's."""
    trainer = installed_trainer(context(**{"partition-id": 0, "num-partitions": 2}))
    assert type(trainer).__module__ == "lorica.simulations.cluster.flower_node"


@pytest.mark.process
@pytest.mark.parametrize("module", ["lorica.client.app", "lorica.client.answering.endpoint"])
def test_the_thin_client_app_imports_no_torch_and_nothing_of_the_other_sides(module: str) -> None:
    script = f"import sys, {module}; print(*sys.modules, sep='\\n')"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120
    )
    loaded = done.stdout.split()
    assert module in loaded
    assert "pydantic" in loaded, "the plan is checked here"
    heavy = {"torch", "transformers", "peft", "opacus", "safetensors.torch", "pandas"}
    assert not heavy & set(loaded)
    for side in ("lorica.simulations", "lorica.server", "lorica.client.training.trainer"):
        assert not [name for name in loaded if name.startswith(side) and name != side + "s"]


class BrokenNoise(SeededNoise):
    """A source that fails after the charge, naming a record."""

    def poisson_mask(self, count: int, rate: float) -> torch.Tensor:
        raise ValueError(CANARY)


def charged_site(ledger: Ledger, plan: RunPlan) -> tuple[ClientApp, RecordDict]:
    """A node whose private steps fail, and a request to train there."""
    backbone = load_backbone(plan.backbone)
    state = starting_state(TextClassifier(backbone, plan), backbone, plan)
    records = Records(
        ["a rash", "my card"] * 60,
        ["health", "money"] * 60,
        [str(i) for i in range(120)],
        [""] * 120,
    )
    trainer = LocalTrainer(
        "north", records, noise=lambda run, round: BrokenNoise(run, round), ledger=ledger
    )
    blob = pack_state({name: state[name] for name in sent(plan, 1, state)})
    content = pack_request(Request(plan, "r", 1, blob))
    return make_client_app(lambda _: trainer), content


@pytest.fixture(params=["gradient", "local"])
def trainable(request: pytest.FixtureRequest, small_backbone: Path) -> RunPlan:
    """A plan whose first round is the warm start, or local steps."""
    warm = {"gradient": 0.4, "local": 0.0}[request.param]
    return PLAN.replace(
        backbone={"source": str(small_backbone)},
        training={"mode": request.param, "local_steps": 1},
        rounds={"warm_start": warm},
        adapter={"rank": 2},
    )


def test_a_step_that_fails_after_its_charge_is_refused_once_and_for_all(
    trainable: RunPlan,
) -> None:
    ledger = MemoryLedger(1e-5)
    app, content = charged_site(ledger, trainable)
    replies = [app(message(content), context()) for _ in range(4)]
    read_back = [
        unpack_reply(reply.content, fingerprint=trainable.fingerprint, round=1) for reply in replies
    ]
    assert read_back[0].code == Code.DATA_UNFIT.value
    assert read_back == [read_back[0]] * 4
    assert not any(name.encode() in on_the_wire(reply) for reply in replies for name in NAMES)
    history = ledger.history()
    assert (len(history.charges), sum(history.retries.values())) == (1, 0)


def test_a_refusal_that_cannot_be_stored_says_only_that_the_disk_is_full(
    trainable: RunPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What went wrong in the step does not leave unless it was stored; the charge stays."""
    ledger = MemoryLedger(1e-5)
    app, content = charged_site(ledger, trainable)

    def full(*_: object) -> bytes:
        raise LoricaError(Code.STORAGE_FULL, CANARY)

    with monkeypatch.context() as patch:
        patch.setattr(ledger._book.store, "keep_reply", full)
        for attempts in range(3):
            reply = app(message(content), context()).content
            refused = unpack_reply(reply, fingerprint=trainable.fingerprint, round=1)
            assert refused.reason == f"LOR-601: {Code.STORAGE_FULL.entry.title}"
            history = ledger.history()
            assert not history.done
            assert (len(history.charges), sum(history.retries.values())) == (1, attempts)
    reply = app(message(content), context()).content
    closed = unpack_reply(reply, fingerprint=trainable.fingerprint, round=1)
    assert closed.code == Code.DATA_UNFIT.value
    assert set(ledger.history().done) == {("r", 1, "train")}
