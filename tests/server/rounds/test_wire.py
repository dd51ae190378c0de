"""Rounded updates through the real sites, endpoint and round loop."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from flwr.app import Context, Message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage

from lorica.client.answering.endpoint import make_client_app
from lorica.common.adapter.state import State, pack_state, unpack_state
from lorica.common.backbone.loading import load_backbone
from lorica.common.data.records import Records
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.plan.methods import METHODS
from lorica.common.tasks.text_classification import TextClassifier, starting_state
from lorica.common.wire.messages import (
    Request,
    pack_reply,
    pack_request,
    unpack_reply,
    unpack_request,
)
from lorica.common.wire.rounding import DTYPES, SCALE, Format, decode, encode
from lorica.server.results.folder import RunFolder
from lorica.server.results.observers import Silent
from lorica.server.results.round import RoundRecord, SiteRound
from lorica.server.rounds.loop import RoundLoop
from lorica.server.rounds.screening import honest_norm
from lorica.simulations.run.grid import InProcessGrid
from lorica.simulations.run.sites import make_trainers
from tests.conftest import SMALL_WORDS

SITES, ROUNDS = 3, 3
Spoil = Callable[[State], State]


def plan_of(backbone: Path, format: str, mode: str = "gradient", method: str = "fedsvd") -> RunPlan:
    return RunPlan().replace(
        backbone={"source": str(backbone)},
        task={"labels": ["a", "b"]},
        adapter={"rank": 2},
        privacy={"epsilon": 6.0, "delta": 1e-3},
        training={
            "mode": mode,
            "lora": "always",
            "lora_rounds": 1,
            "expected_batch_size": 6,
            "local_steps": 1,
        },
        aggregation={"method": method},
        rounds={"count": ROUNDS, "minimum_sites": 2},
        simulation={"sites": SITES},
        wire={"update": format},
    )


def records() -> Records:
    generator = random.Random(2)
    texts = [" ".join(generator.choices(SMALL_WORDS, k=5)) for _ in range(90)]
    labels = ["ab"["e" in text[:4]] for text in texts]
    return Records(texts, labels, [str(i) for i in range(90)], [""] * 90)


class Wire(InProcessGrid):
    """Real sites; every message goes through bytes; one site's updates can be spoilt."""

    def __init__(self, plan: RunPlan, spoil: Spoil | None = None) -> None:
        trainers = list(make_trainers(records(), plan).values())

        def trainer_of(context: Context) -> object:
            return trainers[int(context.node_config["partition-id"])]

        super().__init__(make_client_app(trainer_of), SITES)  # type: ignore[arg-type]
        self._spoil = spoil
        self.updates: list[State] = []
        self.blobs: list[bytes] = []

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        for message in super().pull_messages(message_ids):
            raw = message_to_proto(message).SerializeToString()
            message = message_from_proto(ProtoMessage.FromString(raw))
            if message.metadata.message_type == "train":
                self._see(message)
            yield message

    def _see(self, message: Message) -> None:
        fields = message.content["lorica"]
        reply = unpack_reply(
            message.content, fingerprint=str(fields["fingerprint"]), round=int(fields["round"])
        )
        held = unpack_state(reply.blob)
        self.updates.append(held)
        self.blobs.append(reply.blob)
        if self._spoil and message.metadata.src_node_id == 1:
            spoilt = replace(reply, blob=pack_state(self._spoil(held)))
            message.content["adapter"] = pack_reply(spoilt)["adapter"]


class Remembering(Silent):
    """Keeps the records; stops the run after a round when told to."""

    def __init__(self, stop_after: int = -1) -> None:
        self.records: list[RoundRecord] = []
        self._stop = stop_after

    def round_ended(self, record: RoundRecord) -> None:
        self.records.append(record)
        if record.round == self._stop:
            raise KeyboardInterrupt

    def sites(self) -> list[SiteRound]:
        return [site for record in self.records for site in record.sites]


def run(
    plan: RunPlan, path: Path, spoil: Spoil | None = None, stop_after: int = -1
) -> tuple[State, Wire, Remembering]:
    folder, grid, seen = RunFolder(path), Wire(plan, spoil), Remembering(stop_after)
    if not (path / "plan.toml").exists():
        folder.create(plan)
    backbone = load_backbone(plan.backbone)
    loop = RoundLoop(
        grid,
        plan,
        folder,
        run="r",
        start=lambda: starting_state(TextClassifier(backbone, plan), backbone, plan),
        evaluate=None,
        observer=seen,
    )
    return loop.run(), grid, seen


@pytest.mark.parametrize("mode", ["gradient", "local"])
@pytest.mark.parametrize("format", DTYPES)
def test_a_run_in_every_format(
    format: Format, mode: str, small_backbone: Path, tmp_path: Path
) -> None:
    plan = plan_of(small_backbone, format, mode)
    state, grid, seen = run(plan, tmp_path / "run")
    assert all(site.status == "ok" for site in seen.sites())
    assert len(grid.updates) == SITES * ROUNDS
    scaled = format in ("float16", "int8")
    for update in grid.updates:
        named = [name for name in update if not name.endswith(SCALE)]
        assert {update[name].dtype for name in named} == {DTYPES[format]}
        assert len(update) == len(named) * (2 if scaled else 1)
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    assert all(tensor.isfinite().all() for tensor in state.values())
    sent = sum(map(len, grid.blobs))
    assert sum(record.bytes_up for record in seen.records) == sent


def test_float32_sends_the_bytes_that_it_sent_before_there_was_a_choice(
    small_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(small_backbone, "float32")
    first, grid, _ = run(plan, tmp_path / "a")
    monkeypatch.setattr("lorica.client.training.trainer.encode", lambda update, *_: update)
    monkeypatch.setattr("lorica.server.rounds.expected.decode", lambda held, *_: held)
    second, before, _ = run(plan, tmp_path / "b")
    assert grid.blobs == before.blobs
    assert pack_state(first) == pack_state(second)


@pytest.mark.parametrize("format", ["bfloat16", "float16", "int8"])
def test_the_noise_is_that_of_float32_and_the_sum_errs_as_expected(
    format: Format, small_backbone: Path, tmp_path: Path
) -> None:
    """Round 1 is a sum of sites' releases: their rounding errors are independent."""
    full = run(plan_of(small_backbone, "float32"), tmp_path / "a")[1].updates[:SITES]
    sent = run(plan_of(small_backbone, format), tmp_path / "b")[1].updates[:SITES]
    shapes = {name: tensor.shape for name, tensor in full[0].items()}
    read = [decode(update, format, shapes) for update in sent]
    for name in shapes:
        total = torch.stack([update[name] for update in full]).double().sum(0)
        found = torch.stack([update[name] for update in read]).double().sum(0)
        worst = max(float(update[name].abs().max()) for update in full)
        step = worst * {"bfloat16": 2.0**-7, "float16": 2.0**-10, "int8": 1 / 126}[format]
        # a coin of width w has at most variance w²/4
        bound = step / 2 * math.sqrt(SITES)
        error = (found - total).square().mean().sqrt()
        assert 0 < float(error) <= bound


@pytest.mark.parametrize("mode", ["gradient", "local"])
def test_an_interrupted_run_ends_in_the_same_bytes(
    mode: str, small_backbone: Path, tmp_path: Path
) -> None:
    plan = plan_of(small_backbone, "int8", mode)
    whole = run(plan, tmp_path / "whole")[0]
    with pytest.raises(KeyboardInterrupt):
        run(plan, tmp_path / "broken", stop_after=1)
    resumed, _, seen = run(plan, tmp_path / "broken")
    assert [record.round for record in seen.records] == [2, 3]
    assert pack_state(resumed) == pack_state(whole)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_takes_int8(method: str, small_backbone: Path, tmp_path: Path) -> None:
    _, _, seen = run(plan_of(small_backbone, "int8", "local", method), tmp_path / "run")
    assert all(site.status == "ok" for site in seen.sites())


def changed(**tensors: torch.Tensor | None) -> Spoil:
    def spoil(held: State) -> State:
        new = held | {NAMES[key]: tensor for key, tensor in tensors.items()}  # type: ignore[dict-item]
        return {name: tensor for name, tensor in new.items() if tensor is not None}

    return spoil


NAMES = {
    "weight": "head.weight",
    "scale": "head.weight" + SCALE,
    "other": "other",
    "other_scale": "other" + SCALE,
    "twice": "head.weight" + SCALE + SCALE,
}

HOSTILE: dict[str, Spoil] = {
    "NaN": changed(scale=torch.tensor([math.nan])),
    "infinite": changed(scale=torch.tensor([math.inf])),
    "negative": changed(scale=torch.tensor([-1.0])),
    "zero": changed(scale=torch.tensor([0.0])),
    "huge": changed(scale=torch.tensor([3e38])),
    "two scales": changed(scale=torch.tensor([1.0, 1.0])),
    "float64 scale": changed(scale=torch.tensor([1.0], dtype=torch.float64)),
    "no scale": changed(scale=None),
    "scale alone": changed(weight=None),
    "float32 values": changed(weight=torch.zeros(2, 32)),
    "wrong shape": changed(weight=torch.zeros(32, 2, dtype=torch.int8)),
    "another tensor": changed(other=torch.zeros(2, dtype=torch.int8)),
    "another scale": changed(other_scale=torch.tensor([1.0])),
    "scale of a scale": changed(twice=torch.tensor([1.0])),
}


@pytest.mark.parametrize("how", HOSTILE)
def test_a_hostile_blob_is_refused_and_costs_the_others_nothing(
    how: str, small_backbone: Path, tmp_path: Path
) -> None:
    plan = plan_of(small_backbone, "int8").replace(
        rounds={"count": 1}, training={"lora": "never"}, adapter={"kind": "head"}
    )
    state, _, seen = run(plan, tmp_path / "run", HOSTILE[how])
    bad, *good = seen.records[-1].sites
    assert bad.status == "failed" and "LOR-502" in bad.reason
    assert bad.bytes_up > 0
    assert [site.status for site in good] == ["ok", "ok"]
    assert all(tensor.isfinite().all() for tensor in state.values())


def test_float16_infinities_are_refused(small_backbone: Path, tmp_path: Path) -> None:
    plan = plan_of(small_backbone, "float16").replace(
        rounds={"count": 1}, training={"lora": "never"}, adapter={"kind": "head"}
    )
    spoil = changed(weight=torch.full((2, 32), math.inf, dtype=torch.float16))
    bad = run(plan, tmp_path / "run", spoil)[2].records[-1].sites[0]
    assert bad.status == "failed" and "NaN or infinite" in bad.reason


@pytest.mark.parametrize("format", ["bfloat16", "float16", "int8"])
def test_rounding_alone_makes_no_honest_update_too_long(
    format: Format, small_backbone: Path
) -> None:
    """All values as far as Adam can take them, rounded two hundred times."""
    plan = plan_of(small_backbone, format, "local", "ffa").replace(rounds={"warm_start": 0.0})
    generator = torch.Generator().manual_seed(0)
    begun = {"head.weight": torch.randn(2, 32, generator=generator), "head.bias": torch.zeros(2)}
    far = 3.17 * plan.training.head_learning_rate * 0.99999
    update = {name: torch.full_like(tensor, far) for name, tensor in begun.items()}
    update["head.weight"][0, :5] -= 1e-3
    limit = honest_norm(plan, begun, 1)
    assert limit is not None
    shapes = {name: tensor.shape for name, tensor in begun.items()}
    for number in range(200):
        back = decode(encode(update, format, number), format, shapes)
        squares = sum(float(tensor.double().square().sum()) for tensor in back.values())
        assert math.sqrt(squares) <= limit


@pytest.mark.parametrize("wrong", ["int4", "fp16", "", "zstd"])
def test_an_unknown_format_is_no_plan(wrong: str) -> None:
    with pytest.raises(ValueError, match="update"):
        RunPlan().replace(wire={"update": wrong})


@pytest.mark.parametrize("format", DTYPES)
def test_a_peer_from_before_there_was_a_choice_is_refused_by_its_plan(format: Format) -> None:
    """Its plan has no section "wire", so it has another fingerprint, whatever the format."""
    plan = RunPlan().replace(wire={"update": format})
    content = json.loads(plan.canonical())
    del content["wire"]
    old = json.dumps(content, sort_keys=True, separators=(",", ":"))
    record = pack_request(Request(plan, "r"))
    record["lorica"]["plan"] = old
    record["lorica"]["fingerprint"] = hashlib.sha256(old.encode()).hexdigest()
    with pytest.raises(LoricaError) as caught:
        unpack_request(record)
    assert caught.value.code is Code.PLAN_MISMATCH
