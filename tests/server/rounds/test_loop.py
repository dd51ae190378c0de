"""The round loop: what one bad site can do to the others (nothing), and what is kept."""

from __future__ import annotations

import json
import math
import struct
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict

from lorica.client.answering.endpoint import answer
from lorica.common.adapter.state import State, pack_state, unpack_state
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.plan.methods import is_trained
from lorica.common.tasks.base import Metrics
from lorica.common.tasks.classes import LOSS_BOUND
from lorica.common.wire.messages import Reply, Request, pack_reply, refusal, unpack_request
from lorica.server.results.folder import RunFolder
from lorica.server.results.kept_own import KeptOwn, kept_own
from lorica.server.results.round import RoundRecord, SiteRound
from lorica.server.rounds.loop import Evaluator, RoundLoop
from lorica.simulations.run.grid import InProcessGrid

LAYER = "base_model.model.encoder.layer.1.attention.self.query"
A, B = f"{LAYER}.lora_A.weight", f"{LAYER}.lora_B.weight"
ROUNDS = 3

PLAN = RunPlan().replace(
    backbone={"source": "unused"},
    task={"labels": ["money", "health"]},
    adapter={"rank": 2},
    aggregation={"method": "ffa"},
    training={"mode": "local"},
    rounds={"count": ROUNDS, "minimum_sites": 2, "timeout_seconds": 0.4, "warm_start": 0},
)


def start() -> State:
    generator = torch.Generator().manual_seed(0)
    shapes = {A: (2, 8), B: (6, 2), "head.weight": (2, 8), "head.bias": (2,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def update(key: int, round: int) -> State:
    """A plausible update of site ``key``; another one in every round."""
    generator = torch.Generator().manual_seed(1000 * key + round)
    return {
        name: 0.01 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in start().items()
        if is_trained("ffa", name)
    }


class Honest:
    """A site whose updates are known beforehand."""

    def __init__(self, key: int, weight: int = 100) -> None:
        self.key, self.site, self.weight = key, f"site-{key}", weight
        self.asked = 0
        self.received: dict[int, State] = {}

    def capabilities(self, request: Request) -> Reply:
        self.asked += 1
        return Reply(request.plan.fingerprint, 0, site=self.site, weight=self.weight)

    def train(self, request: Request) -> Reply:
        self.received[request.round] = unpack_state(request.blob)
        blob = pack_state(update(self.key, request.round))
        return Reply(
            request.plan.fingerprint, request.round, site=self.site, weight=self.weight, blob=blob
        )

    def handle(self, kind: str, content: RecordDict) -> RecordDict:
        """The answer to a message, as the site's own ClientApp gives it."""
        return answer(kind.removeprefix("query."), content, lambda: self)


class Faulty(Honest):
    """A site that spoils its answers to ``train``, in one round or in all."""

    def __init__(self, spoil: Callable[[Reply], Reply | RecordDict], round: int = 0) -> None:
        super().__init__(9)
        self._spoil, self._round = spoil, round

    def handle(self, kind: str, content: RecordDict) -> RecordDict:
        if kind != "train":
            return super().handle(kind, content)
        reply = self.train(unpack_request(content))
        if self._round in (0, reply.round):
            spoilt = self._spoil(reply)
            return spoilt if isinstance(spoilt, RecordDict) else pack_reply(spoilt)
        return pack_reply(reply)


class Silent(Honest):
    """A site that says it is ready and then never answers."""


class SiteGrid(InProcessGrid):
    """Sites in this process, on Flower's messages; ``online`` of them can be seen."""

    def __init__(self, *sites: Honest) -> None:
        self.sites, self.online = sites, len(sites)

        def app(message: Message, context: Context) -> Message:
            site = sites[int(context.node_config["partition-id"])]
            return Message(
                site.handle(message.metadata.message_type, message.content), reply_to=message
            )

        super().__init__(app, len(sites))  # type: ignore[arg-type]

    def get_node_ids(self) -> Iterable[int]:
        return list(super().get_node_ids())[: self.online]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return super().pull_messages([i for i in message_ids if not self._silent(i)])

    def _silent(self, identity: str) -> bool:
        message = self._waiting.get(identity)
        if message is None or message.metadata.message_type != "train":
            return False
        return isinstance(self.sites[message.metadata.dst_node_id - 1], Silent)


class Witness:
    """An observer that remembers, and looks into the folder at the end of every round."""

    def __init__(self, folder: RunFolder, plan: RunPlan = PLAN) -> None:
        self._folder, self._plan = folder, plan
        self.sites: list[SiteRound] = []
        self.first_round = -1
        self.answers: list[tuple[int, SiteRound]] = []
        self.records: list[RoundRecord] = []
        self.checkpoints: list[State] = []

    def started(self, plan: RunPlan, sites: list[SiteRound], first_round: int) -> None:
        self.sites, self.first_round = sites, first_round

    def site_answered(self, round: int, site: SiteRound) -> None:
        self.answers.append((round, site))

    def round_ended(self, record: RoundRecord) -> None:
        checkpoint = self._folder.checkpoint(self._plan)
        assert checkpoint is not None
        assert checkpoint.round == record.round
        assert self._folder.rounds()[-1] == record
        self.records.append(record)
        self.checkpoints.append(checkpoint.state)


def make_loop(
    folder: RunFolder,
    *sites: Honest,
    plan: RunPlan = PLAN,
    evaluate: Evaluator | None = None,
    grid: SiteGrid | None = None,
) -> tuple[RoundLoop, Witness]:
    if not (folder.path / "plan.toml").exists():
        folder.create(plan)
    witness = Witness(folder, plan)
    loop = RoundLoop(
        grid or SiteGrid(*sites),
        plan,
        folder,
        run="r",
        start=start,
        evaluate=evaluate,
        observer=witness,
    )
    return loop, witness


def run(path: Path, *sites: Honest, plan: RunPlan = PLAN) -> tuple[State, Witness]:
    loop, witness = make_loop(RunFolder(path), *sites, plan=plan)
    return loop.run(), witness


def assert_equal(state: State, expected: State) -> None:
    assert state.keys() == expected.keys()
    for name in state:
        assert torch.equal(state[name], expected[name]), name


# Ways of one site to go wrong, each as (how, status, what the reason must say).


def blob(**changes: torch.Tensor | None) -> Callable[[Reply], Reply]:
    """An answer whose update has some tensors changed, added or (None) left out."""

    def spoil(reply: Reply) -> Reply:
        held = unpack_state(reply.blob) | {NAMES.get(k, k): v for k, v in changes.items()}
        return replace(reply, blob=pack_state({k: v for k, v in held.items() if v is not None}))

    return spoil


NAMES = {"a": A, "b": B, "bias": "head.bias"}


def scaled(factor: float) -> Callable[[Reply], Reply]:
    return lambda reply: replace(
        reply, blob=pack_state({n: t * factor for n, t in unpack_state(reply.blob).items()})
    )


def fields(**changes: object) -> Callable[[Reply], RecordDict]:
    """An answer with some fields of its record changed or (None) left out."""

    def spoil(reply: Reply) -> RecordDict:
        record = pack_reply(reply)
        held = dict(record["lorica"]) | changes
        record["lorica"] = ConfigRecord({k: v for k, v in held.items() if v is not None})
        return record

    return spoil


def arrays(*names: str, stype: str = "safetensors") -> Callable[[Reply], RecordDict]:
    def spoil(reply: Reply) -> RecordDict:
        record = pack_reply(reply)
        array = Array(dtype="uint8", shape=(3,), stype=stype, data=b"abc")
        record["adapter"] = ArrayRecord(dict.fromkeys(names, array))
        return record

    return spoil


def raw(header: dict[str, object]) -> Callable[[Reply], Reply]:
    """An answer with a safetensors blob of this header and no data."""
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return lambda reply: replace(reply, blob=struct.pack("<Q", len(text)) + text)


def shaped(*shape: int) -> dict[str, object]:
    return {"head.bias": {"dtype": "F32", "shape": list(shape), "data_offsets": [0, 0]}}


def crash(reply: Reply) -> Reply:
    raise RuntimeError("the site's process failed")


def refuse(reply: Reply) -> Reply:
    return refusal(
        LoricaError(Code.PRIVACY_BUDGET, "private detail"),
        fingerprint=reply.fingerprint,
        round=reply.round,
    )


FAULTS: dict[str, tuple[Callable[[Reply], Reply | RecordDict], str, str]] = {
    "refuses": (refuse, "refused", "LOR-403"),
    "refuses without saying which round": (
        lambda reply: Reply("", 0, "refused", "LOR-901"), "refused", "LOR-901",
    ),
    "crashes": (crash, "failed", "Flower's error"),
    "sends nothing": (lambda reply: RecordDict(), "failed", "LOR-501"),
    "sends no update": (lambda reply: replace(reply, blob=b""), "failed", "LOR-501"),
    "sends garbage": (lambda reply: replace(reply, blob=b"garbage"), "failed", "LOR-501"),
    "sends no tensors": (raw({}), "failed", "LOR-50"),
    "sends a shape beyond memory": (raw(shaped(2**62, 4)), "failed", "LOR-501"),
    "sends a shape beyond numbers": (raw(shaped(0, 2**63)), "failed", "LOR-501"),
    "sends two arrays": (arrays("adapter", "more"), "failed", "LOR-501"),
    "sends another array": (arrays("more"), "failed", "LOR-501"),
    "sends a pickle": (arrays("adapter", stype="pickle"), "failed", "LOR-501"),
    "speaks another protocol": (fields(protocol=99), "failed", "LOR-501"),
    "has no status": (fields(status=None), "failed", "LOR-501"),
    "has an unknown status": (fields(status="maybe"), "failed", "LOR-501"),
    "has a weight of text": (fields(weight="100"), "failed", "LOR-501"),
    "has a negative weight": (fields(weight=-1), "failed", "LOR-501"),
    "answers another round": (lambda reply: replace(reply, round=7), "failed", "LOR-501"),
    "answers another plan": (lambda r: replace(r, fingerprint="0" * 64), "failed", "LOR-104"),
    "changes its weight": (lambda reply: replace(reply, weight=10**9), "failed", "LOR-502"),
    "changes its name": (lambda reply: replace(reply, site="site-1"), "failed", "LOR-502"),
    "sends NaN": (blob(bias=torch.tensor([0.0, math.nan])), "failed", "LOR-502"),
    "sends infinity": (blob(bias=torch.tensor([math.inf, 0.0])), "failed", "LOR-502"),
    "sends a huge update": (scaled(1e6), "failed", "LOR-502"),
    "sends values that overflow": (scaled(1e38), "failed", "LOR-502"),
    "sends too few tensors": (blob(bias=None), "failed", "LOR-502"),
    "sends too many tensors": (blob(extra=torch.zeros(2)), "failed", "LOR-502"),
    "sends a frozen tensor": (blob(a=torch.zeros(2, 8)), "failed", "LOR-502"),
    "sends another shape": (blob(b=torch.zeros(3, 2)), "failed", "LOR-502"),
    "sends an empty tensor": (blob(b=torch.zeros(0, 2)), "failed", "LOR-502"),
    **{
        f"sends {dtype}": (blob(b=torch.zeros(6, 2).to(dtype)), "failed", "LOR-502")
        for dtype in (
            torch.float64, torch.int64, torch.uint8, torch.bool, torch.complex64,
            torch.float8_e4m3fn,
        )
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def honest_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[State, Witness]:
    """Sites 1 and 2 alone."""
    return run(tmp_path_factory.mktemp("honest") / "run", Honest(1), Honest(2, 300))


@pytest.mark.parametrize("position", [0, 2], ids=["first", "last"])
@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_a_bad_answer_leaves_the_aggregate_as_the_others_make_it(
    tmp_path: Path, honest_run: tuple[State, Witness], fault: str, position: int
) -> None:
    """Against a run of the honest sites alone, to the bit."""
    spoil, status, reason = FAULTS[fault]
    sites: list[Honest] = [Honest(1), Honest(2, 300)]
    sites.insert(position, Faulty(spoil))
    state, witness = run(tmp_path / "run", *sites)
    assert_equal(state, honest_run[0])
    for record in witness.records[1:]:
        found = {site.site: site for site in record.sites}
        assert {name: site.status for name, site in found.items()} == {
            "site-1": "ok", "site-2": "ok", "site-9": status,
        }  # fmt: skip
        assert reason in found["site-9"].reason
        assert "private detail" not in found["site-9"].reason
        assert "process failed" not in found["site-9"].reason


def test_a_site_that_goes_wrong_once_takes_part_again(tmp_path: Path) -> None:
    faulty = Faulty(crash, round=2)
    _, witness = run(tmp_path / "run", Honest(1), Honest(2), faulty)
    statuses = [record.sites[-1].status for record in witness.records[1:]]
    assert statuses == ["ok", "failed", "ok"]
    assert sorted(faulty.received) == [1, 2, 3]


def test_a_silent_site_is_late_and_the_others_go_on(
    tmp_path: Path, honest_run: tuple[State, Witness]
) -> None:
    begun = time.monotonic()
    state, witness = run(tmp_path / "run", Honest(1), Silent(7), Honest(2, 300))
    timeout = PLAN.rounds.timeout_seconds
    assert ROUNDS * timeout <= time.monotonic() - begun < ROUNDS * (timeout + 2)
    assert_equal(state, honest_run[0])
    for record in witness.records[1:]:
        assert [site.status for site in record.sites] == ["ok", "ok", "late"]
        assert record.sites[2].reason.startswith("LOR-504")


def test_all_faults_together_change_nothing(
    tmp_path: Path, honest_run: tuple[State, Witness]
) -> None:
    faults = ["refuses", "crashes", "sends garbage", "sends NaN", "sends a huge update"]
    sites: list[Honest] = []
    for key, fault in enumerate(faults, 20):
        sites.append(Faulty(FAULTS[fault][0]))
        sites[-1].site = f"site-{key}"
    silent = Silent(30)
    state, _ = run(tmp_path / "run", *sites[:3], Honest(1), silent, Honest(2, 300), *sites[3:])
    assert_equal(state, honest_run[0])


def test_the_aggregate_is_the_mean_weighted_by_declared_records(
    honest_run: tuple[State, Witness],
) -> None:
    """Against the weighted mean in float64, over all rounds."""
    expected = {name: tensor.double() for name, tensor in start().items()}
    for round in range(1, ROUNDS + 1):
        for key, share in ((1, 0.25), (2, 0.75)):
            for name, tensor in update(key, round).items():
                expected[name] += share * tensor.double()
    for name, tensor in honest_run[0].items():
        assert torch.allclose(tensor.double(), expected[name], rtol=1e-6, atol=1e-7), name


def test_all_sites_weigh_the_same_when_one_declares_no_number(tmp_path: Path) -> None:
    """Against the plain mean in float64."""
    state, _ = run(tmp_path / "run", Honest(1, 0), Honest(2, 10**6))
    expected = {name: tensor.double() for name, tensor in start().items()}
    for round in range(1, ROUNDS + 1):
        for key in (1, 2):
            for name, tensor in update(key, round).items():
                expected[name] += 0.5 * tensor.double()
    for name, tensor in state.items():
        assert torch.allclose(tensor.double(), expected[name], rtol=1e-6, atol=1e-7), name


def test_every_site_gets_the_state_of_the_round_before(tmp_path: Path) -> None:
    site = Honest(1)
    _, witness = run(tmp_path / "run", site, Honest(2))
    assert sorted(site.received) == [1, 2, 3]
    for round, received in site.received.items():
        assert_equal(received, witness.checkpoints[round - 1])
    assert_equal(witness.checkpoints[0], start())


def test_a_checkpoint_is_whole_when_its_round_is_reported(
    honest_run: tuple[State, Witness],
) -> None:
    """The witness has compared folder and record at the end of every round."""
    state, witness = honest_run
    assert [record.round for record in witness.records] == [0, 1, 2, 3]
    assert_equal(witness.checkpoints[-1], state)


def test_a_record_holds_bytes_norms_and_weights(honest_run: tuple[State, Witness]) -> None:
    """Against the blobs themselves, and norms in float64."""
    record, answers = honest_run[1].records[1], honest_run[1].answers
    first, second = record.sites
    held = update(1, 1)
    assert first.bytes_up == len(pack_state(held))
    assert record.bytes_up == first.bytes_up + second.bytes_up
    assert record.bytes_down == 2 * len(pack_state(start()))
    squares = sum(float(tensor.double().square().sum()) for tensor in held.values())
    assert first.update_norm == pytest.approx(math.sqrt(squares), rel=1e-9)
    assert (first.weight, second.weight) == (100, 300)
    assert [(round, site.site) for round, site in answers[:2]] == [(1, "site-1"), (1, "site-2")]
    assert record.seconds >= record.seconds_by_phase["sites"] > 0


def test_states_are_evaluated_once_a_round_and_recorded(tmp_path: Path) -> None:
    seen: list[State] = []

    def evaluate(state: State) -> Metrics:
        seen.append(state)
        return Metrics({"accuracy": len(seen) / 10, "macro_f1": 0.5, "loss": 1.5})

    loop, witness = make_loop(RunFolder(tmp_path / "run"), Honest(1), Honest(2), evaluate=evaluate)
    assert_equal(loop.run(), seen[-1])
    assert [record.accuracy for record in witness.records] == [0.1, 0.2, 0.3, 0.4]
    assert {(record.macro_f1, record.loss) for record in witness.records} == {(0.5, 1.5)}


def test_too_few_updates_end_the_run_and_keep_its_rounds(
    tmp_path: Path, honest_run: tuple[State, Witness]
) -> None:
    """Resumed with the site mended, it ends as a run that was never broken."""
    broken = [Honest(1), Faulty(crash, round=3)]
    broken[1].key, broken[1].site, broken[1].weight = 2, "site-2", 300
    folder = RunFolder(tmp_path / "run")
    loop, witness = make_loop(folder, *broken)
    with pytest.raises(LoricaError) as caught:
        loop.run()
    assert caught.value.code is Code.TOO_FEW_SITES
    assert "site-2" in caught.value.detail
    assert "Round 3" in caught.value.detail
    assert [record.round for record in folder.rounds()] == [0, 1, 2]
    checkpoint = folder.checkpoint(PLAN)
    assert checkpoint is not None
    assert checkpoint.round == 2
    assert_equal(checkpoint.state, honest_run[1].checkpoints[2])

    again, witness = make_loop(folder, Honest(1), Honest(2, 300))
    assert_equal(again.run(), honest_run[0])
    assert witness.first_round == 3
    assert [record.round for record in folder.rounds()] == [0, 1, 2, 3]


def test_too_few_sites_at_the_start_train_nobody(tmp_path: Path) -> None:
    unable, able = Unable(3), Honest(1)
    loop, _ = make_loop(RunFolder(tmp_path / "run"), able, unable)
    with pytest.raises(LoricaError) as caught:
        loop.run()
    assert caught.value.code is Code.TOO_FEW_SITES
    assert "LOR-308" in caught.value.detail
    assert able.received == {}


class Unable(Honest):
    """A site that cannot take part."""

    def capabilities(self, request: Request) -> Reply:
        super().capabilities(request)
        raise LoricaError(Code.DATA_TOO_FEW_RECORDS, "only 3 records")


class Anonymous(Honest):
    def capabilities(self, request: Request) -> Reply:
        return replace(super().capabilities(request), site="")


class Dead(Honest):
    def handle(self, kind: str, content: RecordDict) -> RecordDict:
        raise RuntimeError("dead")


@pytest.mark.parametrize(
    ("kind", "status"),
    [(Unable, "refused"), (Anonymous, "failed"), (Dead, "failed")],
)
def test_a_site_that_is_not_ready_is_left_out(
    tmp_path: Path, honest_run: tuple[State, Witness], kind: type[Honest], status: str
) -> None:
    site = kind(3)
    state, witness = run(tmp_path / "run", site, Honest(1), Honest(2, 300))
    assert_equal(state, honest_run[0])
    assert site.received == {}
    assert sorted(entry.status for entry in witness.sites) == sorted(["ok", "ok", status])
    assert all(entry.reason for entry in witness.sites if entry.status == status)


class Sleepy(Honest):
    """A site whose first answers to the question whether it takes part are errors."""

    def __init__(self, key: int, errors: int) -> None:
        super().__init__(key)
        self._errors = errors
        self.queries = 0

    def handle(self, kind: str, content: RecordDict) -> RecordDict:
        if kind == "query.capabilities":
            self.queries += 1
            if self.queries <= self._errors:
                raise RuntimeError("not yet")
        return super().handle(kind, content)


@pytest.mark.parametrize(
    ("errors", "queries", "trained"), [(0, 1, [1, 2, 3]), (1, 2, [2, 3]), (2, 3, [3]), (9, 3, [])]
)
def test_a_node_that_failed_is_asked_again_a_few_times(
    tmp_path: Path, errors: int, queries: int, trained: list[int]
) -> None:
    sleepy = Sleepy(3, errors)
    plan = PLAN.replace(rounds={"count": 3})
    _, witness = run(tmp_path / "run", Honest(1), Honest(2), sleepy, plan=plan)
    assert sorted(sleepy.received) == trained
    assert sleepy.queries == queries
    assert [len(r.sites) for r in witness.records[1:]] == [2 + (r in trained) for r in (1, 2, 3)]


def test_a_node_that_refused_is_not_asked_again(tmp_path: Path) -> None:
    unable = Unable(3)
    run(tmp_path / "run", Honest(1), Honest(2), unable)
    assert unable.asked == 1


def test_nothing_that_a_site_sends_steers_the_operators_terminal(tmp_path: Path) -> None:
    """Names, reasons, and names of tensors that an error would quote."""
    escape = "\x1b]0;owned\x07\x1b[2J\u202e"

    class Escaping(Unable):
        def handle(self, kind: str, content: RecordDict) -> RecordDict:
            fingerprint = unpack_request(content).plan.fingerprint
            reply = Reply(fingerprint, 0, "refused", "LOR-901", escape)
            return pack_reply(reply)

    strange = Faulty(lambda reply: replace(reply, blob=pack_state({escape: torch.ones(2)})))
    folder = RunFolder(tmp_path / "run")
    loop, witness = make_loop(folder, Honest(1), Honest(2), strange, Escaping(4))
    loop.run()
    shown = [text for site in witness.sites for text in (site.site, site.reason)]
    shown += [site.reason for record in witness.records for site in record.sites]
    assert any("owned" in text for text in shown)
    assert all(text.isprintable() for text in shown)


def test_a_second_site_of_the_same_name_is_left_out(
    tmp_path: Path, honest_run: tuple[State, Witness]
) -> None:
    double = Honest(5, 10**6)
    double.site = "site-1"
    state, witness = run(tmp_path / "run", Honest(1), double, Honest(2, 300))
    assert_equal(state, honest_run[0])
    assert double.received == {}
    assert [site.status for site in witness.sites].count("failed") == 1


def test_a_site_that_comes_online_later_is_asked_and_joins(tmp_path: Path) -> None:
    late = Honest(3)
    grid = SiteGrid(Honest(1), Honest(2), late)
    grid.online = 2
    folder = RunFolder(tmp_path / "run")
    loop, witness = make_loop(folder, grid=grid)
    ended = witness.round_ended

    def round_ended(record: RoundRecord) -> None:
        ended(record)
        grid.online = 3 if record.round >= 1 else 2

    witness.round_ended = round_ended  # type: ignore[method-assign]
    loop.run()
    assert sorted(late.received) == [2, 3]
    assert late.asked == 1
    assert [len(record.sites) for record in witness.records] == [0, 2, 3, 3]


def test_a_finished_run_resumed_trains_nobody(
    tmp_path: Path, honest_run: tuple[State, Witness]
) -> None:
    folder = RunFolder(tmp_path / "run")
    make_loop(folder, Honest(1), Honest(2, 300))[0].run()
    sites = [Honest(1), Honest(2, 300)]
    loop, witness = make_loop(folder, *sites)
    assert_equal(loop.run(), honest_run[0])
    assert [site.received for site in sites] == [{}, {}]
    assert witness.records == []


def test_the_run_id_survives_a_resume(tmp_path: Path) -> None:
    """A site's ledger knows the run by it; another id would be a budget of its own."""
    folder = RunFolder(tmp_path / "run")
    make_loop(folder, Honest(1), Honest(2))[0].run()
    longer = RunFolder(tmp_path / "run")
    ids: list[str] = []

    class Listening(Honest):
        def capabilities(self, request: Request) -> Reply:
            ids.append(request.run)
            return super().capabilities(request)

    loop = RoundLoop(
        SiteGrid(Listening(1), Listening(2)),
        PLAN,
        longer,
        run="another id",
        start=start,
        evaluate=None,
        observer=Witness(longer),
    )
    loop.run()
    assert ids == ["r", "r"]


# Evaluation at the sites.

EVALUATING = PLAN.replace(rounds={"evaluate_every": 2})
UNITS = 50_000.0  # so many that the noise on their number is nothing


class Counting(Honest):
    """A site that answers evaluations with 80 % correct and a loss of 2 nats."""

    def __init__(self, key: int) -> None:
        super().__init__(key, weight=round(UNITS))

    def evaluate(self, request: Request) -> Reply:
        counts = (UNITS, 0.8 * UNITS, 2.0 / LOSS_BOUND * UNITS)
        reply = self.train(request)
        return replace(reply, blob=b"", counts=counts)


def counted(*counts: float) -> Callable[[Reply], Reply | RecordDict]:
    return lambda reply: replace(reply, counts=counts)


MISCOUNTS: dict[str, Callable[[Reply], Reply | RecordDict]] = {
    "refuses": refuse,
    "crashes": crash,
    "sends none": counted(),
    "sends too few": counted(1e5, 1.0),
    "sends too many": counted(*[1e5] * 4),
    "sends NaN": counted(math.nan, 1.0, 1.0),
    "sends infinity": counted(1e5, math.inf, 1.0),
    "counts units that nobody has": counted(1e11, 1e11, 0.0),
    "sends an update": lambda reply: replace(reply, counts=(), blob=pack_state(start())),
    "sends numbers of text": lambda reply: RecordDict(
        {**pack_reply(replace(reply, counts=())), "counts": ConfigRecord({"counts": "many"})}
    ),
    "answers another round": lambda reply: replace(reply, round=reply.round + 1),
}


class Miscounting(Counting):
    """A site that spoils its answers to ``evaluate``."""

    def __init__(self, key: int, spoil: Callable[[Reply], Reply | RecordDict]) -> None:
        super().__init__(key)
        self._spoil = spoil

    def handle(self, kind: str, content: RecordDict) -> RecordDict:
        if kind != "evaluate":
            return super().handle(kind, content)
        spoilt = self._spoil(self.evaluate(unpack_request(content)))
        return spoilt if isinstance(spoilt, RecordDict) else pack_reply(spoilt)


def test_sites_evaluate_after_the_rounds_that_the_plan_says(tmp_path: Path) -> None:
    """After every second round and the last; against the counts themselves."""
    _, witness = run(tmp_path / "run", Counting(1), Counting(2), plan=EVALUATING)
    assert [record.site_accuracy for record in witness.records] == [None, None, 0.8, 0.8]
    assert witness.records[2].site_loss == pytest.approx(2.0)
    band = witness.records[2].site_accuracy_band
    assert band is not None
    assert 0 < band < 0.01


@pytest.mark.parametrize("fault", sorted(MISCOUNTS))
def test_a_bad_evaluation_leaves_metrics_and_aggregate_as_the_others_make_them(
    tmp_path: Path, fault: str
) -> None:
    """Against a run of the same sites in which that one has no evaluation to give."""
    silent = Honest(9, weight=round(UNITS))  # has no method ``evaluate`` and so refuses
    expected, alone = run(tmp_path / "a", Counting(1), Counting(2), silent, plan=EVALUATING)
    bad = Miscounting(9, MISCOUNTS[fault])
    state, witness = run(tmp_path / "b", Counting(1), Counting(2), bad, plan=EVALUATING)
    assert_equal(state, expected)
    for record, other in zip(witness.records, alone.records, strict=True):
        assert record.site_accuracy == other.site_accuracy
        assert record.site_loss == other.site_loss
        assert [site.status for site in record.sites] == [site.status for site in other.sites]


ON_TRIAL = PLAN.replace(
    task={"kind": "multi-label-classification"},
    training={"mode": "gradient", "lora_rounds": 1},
    privacy={"evaluation_metrics": ["accuracy", "loss", "f1"]},
    rounds={"count": 3, "evaluate_every": 3},
)  # two rounds of the head, one of LoRA


class Changing(Honest):
    """A site whose micro F1 falls or rises in the last round, and whose accuracy does not."""

    def __init__(self, key: int, f1: dict[int, float]) -> None:
        super().__init__(key, weight=round(UNITS))
        self._f1 = f1

    def train(self, request: Request) -> Reply:
        sent = unpack_state(request.blob)
        own = {name: x for name, x in update(self.key, request.round).items() if name in sent}
        return replace(super().train(request), blob=pack_state(own))

    def evaluate(self, request: Request) -> Reply:
        f1, reply = self._f1[request.round], super().train(request)
        counts = (UNITS, 0.93 * UNITS, UNITS, f1 * UNITS, *[(1 - f1) * UNITS] * 2)
        return replace(reply, blob=b"", counts=counts)


@pytest.mark.parametrize("tested", [False, True], ids=["no test data", "test data"])
@pytest.mark.parametrize(("before", "after", "lost"), [(0.7, 0.4, True), (0.3, 0.9, False)])
def test_lora_is_tried_by_the_tasks_headline_metric(
    tmp_path: Path, tested: bool, before: float, after: float, lost: bool
) -> None:
    """Before and after, with or without data of the coordinator's."""
    found = Metrics({"micro_f1": 0.5, "accuracy": 0.5, "loss": 1.0}, "micro_f1")
    loop, witness = make_loop(
        RunFolder(tmp_path / "run"),
        *(Changing(key, {2: before, 3: after}) for key in (1, 2)),
        plan=ON_TRIAL,
        evaluate=(lambda state: found) if tested else None,
    )
    loop.run()
    scores = [record.site_score for record in witness.records[2:]]
    assert scores == [pytest.approx(before), pytest.approx(after)]
    assert [record.headline for record in witness.records] == ["micro_f1"] * 4
    assert witness.records[-1].lora_dropped is lost


def test_absurd_counts_leave_the_record_readable(tmp_path: Path) -> None:
    """Finite, but their sum is not; rounds.jsonl must stay JSON."""
    absurd = [Miscounting(key, counted(1.7e308, 1.7e308, 1.7e308)) for key in (8, 9)]
    run(tmp_path / "run", Counting(1), Counting(2), *absurd, plan=EVALUATING)
    for line in (tmp_path / "run" / "rounds.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_rounds_say_how_sites_agree_and_whether_the_rule_is_exact(
    honest_run: tuple[State, Witness],
) -> None:
    first = honest_run[1].records[1]
    assert first.stage == "local steps" and first.mean_norm and first.exact is not None
    assert all(-1 <= (site.agreement or 0) <= 1 and site.agreement for site in first.sites)


class Telling(Honest):
    """A site that answers the question about its guard as it is told to."""

    def __init__(self, key: int, *counts: float) -> None:
        super().__init__(key)
        self._counts = counts
        self.judged: list[tuple[int, State]] = []

    def evaluate(self, request: Request) -> Reply:
        self.judged.append((request.round, unpack_state(request.blob)))
        if not self._counts:
            raise LoricaError(Code.PRIVACY_BUDGET, "There is nothing left.")
        fingerprint, round = request.plan.fingerprint, request.round
        return Reply(fingerprint, round, site=self.site, weight=100, counts=self._counts)


def test_sites_are_asked_for_a_bit_about_the_state_that_the_run_ends_with(tmp_path: Path) -> None:
    """Once, after the last round; what is no bit is left out, and so is who does not answer."""
    plan = PLAN.replace(privacy={"benefit_epsilon": 2.0})
    bits = [(1.0,), (0.0,), (0.0,), (0.5,), (1.0, 0.0), (2.0,), (), (1e9,)]
    sites = [Telling(key, *told) for key, told in enumerate(bits)]
    state, witness = run(tmp_path / "run", *sites, plan=plan)
    for site in sites:
        ((round, judged),) = site.judged
        assert round == ROUNDS + 1
        assert_equal(judged, state)
    assert all(not record.kept_own for record in witness.records[:-1])
    found = KeptOwn.from_json(witness.records[-1].kept_own)
    assert found == kept_own([True, False, False], len(bits), 2.0)
    assert witness.records[-1].seconds_by_phase["benefit"] > 0
    sent = len(pack_state(state)) * len(bits)
    assert witness.records[-1].bytes_down >= witness.records[-2].bytes_down + sent
    assert RunFolder(tmp_path / "run").rounds()[-1] == witness.records[-1]


def test_nobody_is_asked_where_the_plan_does_not_say_so(tmp_path: Path) -> None:
    sites = [Telling(key, 1.0) for key in (1, 2)]
    _, witness = run(tmp_path / "run", *sites)
    assert not any(site.judged for site in sites)
    assert not any(record.kept_own for record in witness.records)
    silent = [Telling(key) for key in (1, 2)]
    _, told = run(tmp_path / "told", *silent, plan=PLAN.replace(privacy={"benefit_epsilon": 1.0}))
    assert all(site.judged for site in silent) and not told.records[-1].kept_own
