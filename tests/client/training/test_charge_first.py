"""Nothing that a plan decides reads a record before it is charged, or tells whose record it was."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from lorica.client.answering.endpoint import answer
from lorica.client.ledger import MemoryLedger
from lorica.client.mechanism import exactness
from lorica.client.mechanism.evaluation import set_aside
from lorica.client.mechanism.noise import SeededNoise
from lorica.client.training.session import Session
from lorica.client.training.trainer import LocalTrainer
from lorica.common.adapter.state import pack_state
from lorica.common.backbone.loading import load_backbone
from lorica.common.cache import batching
from lorica.common.data.records import Records
from lorica.common.errors import Code, LoricaError
from lorica.common.machine.secret import derived
from lorica.common.plan import RunPlan
from lorica.common.plan.stages import sent
from lorica.common.tasks import task_of
from lorica.common.tasks.text_classification import TextClassification
from lorica.common.wire.messages import Reply, Request, pack_request, unpack_reply
from tests.language_models import TARGETS, make_language_model

ODD = "[SEP] [CLS]"
"""A text in which nothing can be hidden: masked-lm raised LOR-305 for it where it was to train."""
COUNT = 40


def records_with(odd: Sequence[str] = ()) -> Records:
    texts = [f"the {colour} sky" for colour in ["blue", "green", "white", "black"] * (COUNT // 4)]
    texts += list(odd)
    units = [f"patient {i}" for i in range(len(texts))]
    return Records(texts, ["a", "b"] * (COUNT // 2) + ["a"] * len(odd), units, [""] * len(texts))


def site(records: Records, secret: bytes | None = None) -> tuple[LocalTrainer, MemoryLedger]:
    ledger = MemoryLedger(1e-3)
    made = LocalTrainer(
        "north",
        records,
        noise=lambda stream, round: SeededNoise(stream, round),
        ledger=ledger,
        aside=secret,
    )
    return made, ledger


def asked(trainer: LocalTrainer, plan: RunPlan, run: str = "r") -> Reply:
    """What the coordinator is told in the first round."""
    state = task_of(plan).start(load_backbone(plan.backbone))
    blob = pack_state({name: state[name] for name in sent(plan, 1, state)})
    packed = answer("train", pack_request(Request(plan, run, 1, blob)), lambda: trainer)
    return unpack_reply(packed, fingerprint=plan.fingerprint, round=1)


@pytest.fixture
def masked(tmp_path: Path) -> RunPlan:
    """A plan over texts, half of which are set aside."""
    return RunPlan().replace(
        backbone={"source": str(make_language_model(tmp_path / "bert", "bert"))},
        task={"kind": "masked-lm"},
        adapter={"rank": 2, "layers": [-1], "target_modules": TARGETS["bert"]},
        data={"validation": 0.5},
        privacy={"epsilon": 4.0, "delta": 1e-3, "evaluation_metrics": ["loss"]},
        training={"mode": "local", "local_steps": 1, "expected_batch_size": 4, "max_length": 16},
        rounds={"count": 1, "evaluate_every": 1, "warm_start": 0.0},
    )


def test_no_seed_of_a_plan_tells_whether_somebodys_record_is_there(masked: RunPlan) -> None:
    """The attack that reduced 4,992 names to one: a record that ended the work only if it was to be
    trained on, and a seed of the plan's that decided so by its name. Here with that very record,
    and with the same site without it."""
    told = {}
    for which, odd in (("there", [ODD]), ("not there", [])):
        trainer, ledger = site(records_with(odd), b"s" * 32)
        plans = [masked.replace(simulation={"seed": s}, rounds={"seed": s}) for s in range(3)]
        told[which] = [asked(trainer, p, f"r{s}").code for s, p in enumerate(plans)]
        assert len(ledger.history().charges) == len(plans)
    assert told["there"] == told["not there"] == [""] * 3


def test_what_is_set_aside_follows_from_the_sites_secret_and_from_nothing_of_the_plans(
    masked: RunPlan,
) -> None:
    records = records_with()
    before = set_aside(records, masked, b"a")
    for changed in (
        masked.replace(simulation={"seed": 7}),
        masked.replace(rounds={"seed": 7, "evaluate_every": 1}),
        masked.replace(training={"max_length": 9}, privacy={"epsilon": 1.0}),
    ):
        assert np.array_equal(set_aside(records, changed, b"a"), before)
    assert not np.array_equal(set_aside(records, masked, b"b"), before)
    assert 0.2 < before.mean() < 0.8
    more = set_aside(records, masked.replace(data={"validation": 0.7}), b"a")
    assert (more | ~before).all(), "a larger share keeps what was set aside"


def test_a_record_that_the_work_fails_on_costs_as_much_as_any_and_is_refused_as_any(
    small_backbone: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its refusal was free and had a code of its own; it could be asked for again and again."""
    plan = RunPlan().replace(
        backbone={"source": str(small_backbone)},
        task={"labels": ["a", "b"]},
        adapter={"rank": 2},
        privacy={"epsilon": 4.0, "delta": 1e-3},
    )
    encode = TextClassification.encode

    def failing(self: TextClassification, backbone: object, records: Records) -> object:
        if ODD in records.texts:
            raise LoricaError(Code.DATA_EMPTY_TEXT, "Record 41 of Wilhelmina F. is odd.")
        return encode(self, backbone, records)  # type: ignore[arg-type]

    monkeypatch.setattr(TextClassification, "encode", failing)
    trainer, ledger = site(records_with([ODD]))
    replies = [asked(trainer, plan) for _ in range(3)]
    assert replies == [replies[0]] * 3
    assert replies[0].code == Code.DATA_UNFIT.value
    assert len(ledger.history().charges) == 1 and set(ledger.history().done) == {("r", 1, "train")}
    assert "Wilhelmina" in caplog.text
    others, _ = site(records_with())
    assert asked(others, plan).status == "ok"


def test_records_are_read_after_the_charge_and_what_is_sent_is_checked_before(
    small_backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = RunPlan().replace(
        backbone={"source": str(small_backbone)},
        task={"labels": ["a", "b"]},
        adapter={"rank": 2},
        privacy={"epsilon": 4.0, "delta": 1e-3},
    )
    trainer, ledger = site(records_with())
    read, charges = Session.read, []

    def reading(self: Session) -> None:
        charges.append(len(ledger.history().charges))
        read(self)

    monkeypatch.setattr(Session, "read", reading)
    bad = Request(plan, "bad", 1, pack_state({}))
    refused = unpack_reply(
        answer("train", pack_request(bad), lambda: trainer), fingerprint=plan.fingerprint, round=1
    )
    assert refused.code == Code.MESSAGE_MALFORMED.value or refused.code == "LOR-205"
    assert charges == [] and not ledger.history().charges
    assert asked(trainer, plan).status == "ok"
    assert charges == [1]


def test_a_machine_that_does_not_compute_exactly_is_found_before_anything_is_charged(
    small_backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = RunPlan().replace(
        backbone={"source": str(small_backbone)},
        task={"labels": ["a", "b"]},
        privacy={"epsilon": 4.0, "delta": 1e-3},
    )
    trainer, ledger = site(records_with())
    monkeypatch.setattr(exactness, "_exact", set())
    monkeypatch.setattr(exactness, "_first_difference", lambda *given, **more: "a batch of 8 rows")
    monkeypatch.setattr(batching._Machine, "least", batching.least_rows())
    refused = asked(trainer, plan)
    assert (refused.status, refused.code) == ("refused", Code.PRIVACY_INEXACT.value)
    assert not ledger.history().charges


def test_what_is_derived_for_one_purpose_or_subject_is_nothing_for_another() -> None:
    found = {
        derived(b"s", purpose, *what)
        for purpose in ("a", "ab")
        for what in ((), ("b",), ("b", ""), ("", "b"), ("b", "c"), ("bc",))
    }
    assert len(found) == 12 and all(len(bytes_) == 32 for bytes_ in found)
    assert derived(b"s", "a", "b") != derived(b"t", "a", "b")
