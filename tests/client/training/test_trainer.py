"""LocalTrainer: what an update holds, what it costs, and what a site refuses."""

from __future__ import annotations

import math
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from lorica.client.admission.figures import SiteFigures
from lorica.client.admission.gate import Admission
from lorica.client.config.site import Policy, SiteConfig, SiteData, SiteIdentity
from lorica.client.ledger import MemoryLedger
from lorica.client.mechanism.noise import NoiseSource, SeededNoise
from lorica.client.training.trainer import LocalTrainer
from lorica.common.adapter.state import State, pack_state, unpack_state
from lorica.common.backbone.loading import load_backbone
from lorica.common.data.records import Records
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.plan.methods import METHODS, is_returned, step_turns
from lorica.common.plan.stages import total_steps, trained
from lorica.common.plan.tensors import Part, part_of
from lorica.common.privacy.accountant import epsilon
from lorica.common.privacy.event import PrivacyEvent
from lorica.common.tasks.text_classification import TextClassifier, starting_state
from lorica.common.version import __version__
from lorica.common.wire.messages import Reply, Request, pack_reply
from tests.conftest import make_small_backbone

RECORDS, BATCH, ROUNDS, STEPS = 40, 8, 3, 2
WORDS = ["card", "cash", "fever", "pain", "heart", "skin", "cough", "lost", "new", "money", "my"]
NAMES = sorted(METHODS)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small backbone of tests/conftest.py, made once for this module."""
    return make_small_backbone(tmp_path_factory.mktemp("trainer") / "backbone")


@pytest.fixture
def plan(tiny: Path) -> RunPlan:
    return RunPlan().replace(
        backbone={"source": str(tiny)},
        task={"labels": ["money", "health"]},
        adapter={"rank": 2},
        privacy={"epsilon": 4.0, "delta": 1e-3},
        training={"mode": "local", "expected_batch_size": BATCH, "local_steps": STEPS},
        rounds={"count": ROUNDS, "warm_start": 0},
    )


def some_records(count: int = RECORDS) -> Records:
    generator = random.Random(5)
    texts = [" ".join(generator.choices(WORDS, k=3 + i % 7)) for i in range(count)]
    labels = ["money" if "a" in text else "health" for text in texts]
    return Records(texts, labels, [str(i) for i in range(count)], [""] * count)


class Recording:
    """Seeded noise that remembers what was drawn from it: what really happened in a round."""

    kind = "seeded"

    def __init__(self, source: NoiseSource, log: Log) -> None:
        self._source, self._log = source, log

    def poisson_mask(self, count: int, rate: float) -> torch.Tensor:
        self._log.rates.append(rate)
        return self._source.poisson_mask(count, rate)

    def add_noise(self, total: torch.Tensor, std: float) -> torch.Tensor:
        self._log.deviations.append(std)
        return self._source.add_noise(total, std)

    def gaussian(self, shape: torch.Size, std: float) -> torch.Tensor:
        return self._source.gaussian(shape, std)


class Log:
    """Everything that a site's noise sources were asked for."""

    def __init__(self) -> None:
        self.rounds: list[tuple[str, int]] = []
        self.rates: list[float] = []
        self.deviations: list[float] = []


def make_site(
    records: Records | None = None, *, site: str = "a", seed: int = 0, declared: int | None = None
) -> tuple[LocalTrainer, Log]:
    log = Log()

    def noise(run: str, round: int) -> NoiseSource:
        log.rounds.append((run, round))
        return Recording(SeededNoise(seed, run, site, round), log)

    held = some_records() if records is None else records
    admission = Admission(figures=SiteFigures(units=declared))
    return LocalTrainer(site, held, noise=noise, admission=admission), log


def start(plan: RunPlan) -> State:
    backbone = load_backbone(plan.backbone)
    return starting_state(TextClassifier(backbone, plan), backbone, plan)


def request(
    plan: RunPlan, round: int = 1, *, run: str = "r", state: State | None = None
) -> Request:
    return Request(plan, run, round, pack_state(start(plan) if state is None else state))


def refusal(trainer: LocalTrainer, what: Request) -> LoricaError:
    with pytest.raises(LoricaError) as caught:
        trainer.train(what)
    return caught.value


@pytest.mark.parametrize(
    ("method", "kind"),
    [(m, kind) for m in NAMES for kind in ("lora", "head") if (m, kind) != ("fedsa", "head")],
)
def test_an_update_holds_exactly_the_trained_tensors(plan: RunPlan, method: str, kind: str) -> None:
    plan = plan.replace(aggregation={"method": method}, adapter={"kind": kind})
    state = start(plan)
    reply = make_site()[0].train(request(plan))
    update = unpack_state(reply.blob)
    assert {n: t.shape for n, t in update.items()} == {
        name: tensor.shape for name, tensor in state.items() if is_returned(method, name, 1)
    }
    for name, tensor in update.items():
        assert tensor.dtype == torch.float32
        assert tensor.isfinite().all()
        assert tensor.any(), f"{name} did not move"


def test_an_update_is_the_difference_to_the_global_adapter(plan: RunPlan) -> None:
    """Adding 8 to every bias changes no probability, so no gradient, and so no update."""
    state = start(plan)
    raised = {**state, "head.bias": state["head.bias"] + 8.0}
    expected = unpack_state(make_site()[0].train(request(plan, state=state)).blob)
    found = unpack_state(make_site()[0].train(request(plan, state=raised)).blob)
    for name, tensor in expected.items():
        assert torch.allclose(found[name], tensor, rtol=0, atol=1e-3 * float(tensor.abs().max()))


@pytest.mark.parametrize("method", ["ffa", "fedsvd"])
def test_a_is_never_touched_where_the_method_freezes_it(plan: RunPlan, method: str) -> None:
    plan = plan.replace(aggregation={"method": method})
    trainer, _ = make_site()
    state = start(plan)
    trainer.train(request(plan, state=state))
    assert trainer._session is not None
    held = trainer._session._classifier.adapter_state()
    factors = [name for name in state if part_of(name) is Part.A]
    assert factors
    assert all(torch.equal(held[name], state[name]) for name in factors)


def test_a_reply_carries_only_public_fields(plan: RunPlan) -> None:
    """Against a neighbour with one record less and the same declared number."""
    records = some_records()
    replies = [
        make_site(records, declared=50)[0].train(request(plan)),
        make_site(records.take(range(RECORDS - 1)), declared=50)[0].train(request(plan)),
    ]
    assert replace(replies[0], blob=b"") == replace(replies[1], blob=b"")
    assert replies[0].weight == 50
    assert replies[0].site == "a"
    fields = pack_reply(replies[0])["lorica"]
    assert set(fields) == {"protocol", "status", "fingerprint", "round", "site", "weight"}
    header = safetensors.deserialize(replies[0].blob)
    assert len(header) == len(unpack_state(replies[0].blob))
    assert b"__metadata__" not in replies[0].blob


def test_noise_and_sample_rate_follow_the_declared_number_alone(plan: RunPlan) -> None:
    logs = []
    for count in (RECORDS, RECORDS - 11):
        trainer, log = make_site(some_records(count), declared=50)
        trainer.train(request(plan))
        logs.append(log)
    assert logs[0].rates == logs[1].rates == [BATCH / 50] * STEPS
    assert set(logs[0].deviations) == set(logs[1].deviations)


def test_capabilities_spend_nothing_and_tell_only_public_figures(plan: RunPlan) -> None:
    trainer, log = make_site(declared=50)
    reply = trainer.capabilities(Request(plan, "r"))
    assert reply == Reply(plan.fingerprint, 0, "ok", "", "a", 50, b"", version=__version__)
    assert log.rounds == []


def test_equal_seeds_give_equal_updates_and_nothing_else_does(plan: RunPlan) -> None:
    def update(round: int = 1, run: str = "r", **site: object) -> bytes:
        return make_site(**site)[0].train(request(plan, round, run=run)).blob  # type: ignore[arg-type]

    first = update()
    assert update() == first
    others = [update(round=2), update(run="s"), update(site="b"), update(seed=1)]
    assert len({first, *others}) == 5


@pytest.mark.parametrize("format", ["float32", "int8"])
@pytest.mark.parametrize("round", [1, 3])
def test_a_repeated_request_gets_the_stored_reply_and_draws_nothing(
    plan: RunPlan, round: int, format: str
) -> None:
    plan = plan.replace(wire={"update": format})
    trainer, log = make_site()
    reply = trainer.train(request(plan, round))
    drawn = (len(log.rounds), len(log.rates), len(log.deviations))
    again = trainer.train(request(plan, round))
    other = {name: tensor + 1 for name, tensor in start(plan).items()}
    probing = trainer.train(request(plan, round, state=other))
    assert again == reply
    assert probing == reply, "another global adapter would be a second, unpaid question"
    assert (len(log.rounds), len(log.rates), len(log.deviations)) == drawn


def test_an_older_answered_round_is_not_trained_again(plan: RunPlan) -> None:
    """Either the stored reply or a refusal, never a second update."""
    trainer, log = make_site()
    first = trainer.train(request(plan, 1))
    trainer.train(request(plan, 2))
    drawn = len(log.rates)
    try:
        assert trainer.train(request(plan, 1)) == first
    except LoricaError as error:
        assert error.code is Code.PRIVACY_BUDGET
    assert len(log.rates) == drawn


def test_an_answered_round_under_another_plan_is_refused(plan: RunPlan) -> None:
    trainer, log = make_site()
    trainer.train(request(plan, 1))
    drawn = len(log.rates)
    other = plan.replace(training={"learning_rate": 0.5})
    assert refusal(trainer, request(other, 1)).code in (Code.PLAN_MISMATCH, Code.PRIVACY_BUDGET)
    assert len(log.rates) == drawn


@pytest.mark.parametrize("round", [0, -1, ROUNDS + 1, 10**9])
def test_a_round_outside_the_plan_is_refused(plan: RunPlan, round: int) -> None:
    trainer, log = make_site()
    assert refusal(trainer, request(plan, round)).code is Code.PRIVACY_BUDGET
    assert log.rounds == []


@pytest.mark.parametrize("method", NAMES)
def test_a_whole_run_costs_what_the_plan_allows_and_little_less(plan: RunPlan, method: str) -> None:
    """What the noise source was really asked for, composed by the accountant of record."""
    plan = plan.replace(aggregation={"method": method})
    trainer, log = make_site()
    for round in range(1, ROUNDS + 1):
        trainer.train(request(plan, round))
    assert len(log.rates) == total_steps(plan)
    deviation = {value / plan.privacy.clip_norm for value in log.deviations}
    noised = sum(
        len(turns[step % len(turns)])
        for round in range(1, ROUNDS + 1)
        for turns in [step_turns(method, trained(plan, round, start(plan)))]
        for step in range(STEPS)
    )
    assert len(log.deviations) == noised, "every sum is noised in every step"
    assert len(deviation) == 1
    sigma = deviation.pop()
    events = [PrivacyEvent(sigma, rate, 1) for rate in log.rates]
    spent = epsilon(events, plan.privacy.delta)
    assert 0.98 * plan.privacy.epsilon <= spent <= plan.privacy.epsilon


def test_without_privacy_no_noise_is_added(plan: RunPlan) -> None:
    plan = plan.replace(privacy={"epsilon": math.inf})
    trainer, log = make_site()
    trainer.train(request(plan))
    assert set(log.deviations) == {0.0}


@pytest.mark.parametrize("round", [1, 2])
def test_another_plan_gets_caches_of_its_own(plan: RunPlan, round: int) -> None:
    """Against a trainer that never served the first plan."""
    other = plan.replace(training={"max_length": 4}, adapter={"layers": [0, 1], "rank": 3})
    trainer, _ = make_site()
    trainer.train(request(plan, round))
    warm = trainer.train(request(other, round, run="other"))
    assert warm == make_site()[0].train(request(other, round, run="other"))
    back = trainer.train(request(plan, round, run="back"))
    assert back == make_site()[0].train(request(plan, round, run="back"))


def test_a_round_does_not_depend_on_those_before(plan: RunPlan) -> None:
    """Against a fresh process: a site restarted between rounds answers the same."""
    trainer, _ = make_site()
    trainer.train(request(plan, 1))
    warm = trainer.train(request(plan, 2))
    trainer.close()
    assert warm == make_site()[0].train(request(plan, 2))
    assert trainer.train(request(plan, 3)) == make_site()[0].train(request(plan, 3))


def test_the_memory_for_caches_changes_no_more_than_rounding(plan: RunPlan) -> None:
    """Without a cache every step runs all layers; against cached token states."""
    plan = plan.replace(privacy={"epsilon": math.inf})

    def noise(run: str, round: int) -> NoiseSource:
        return SeededNoise(run, round)

    cached = LocalTrainer("a", some_records(), noise=noise).train(request(plan)).blob
    whole = LocalTrainer("a", some_records(), noise=noise, cache_bytes=0).train(request(plan)).blob
    reference = unpack_state(cached)
    for name, tensor in unpack_state(whole).items():
        assert (tensor - reference[name]).abs().max() < 1e-3 * reference[name].abs().max(), name


def without(state: State, name: str) -> State:
    return {other: tensor for other, tensor in state.items() if other != name}


def spoilt(state: State, value: float) -> State:
    """The state with one value of its head's weight replaced."""
    head = state["head.weight"].clone()
    head[0, 0] = value
    return {**state, "head.weight": head}


def larger(state: State) -> State:
    """The state with an A of one more rank."""
    name = next(name for name in state if part_of(name) is Part.A)
    return {**state, name: torch.zeros(3, state[name].shape[1])}


BAD_STATES: dict[str, tuple[Callable[[State], State], set[Code]]] = {
    "another shape": (larger, {Code.ADAPTER_MISMATCH}),
    "a tensor too few": (lambda s: without(s, "head.bias"), {Code.ADAPTER_MISMATCH}),
    "a tensor too many": (lambda s: {**s, "x": torch.zeros(1)}, {Code.ADAPTER_MISMATCH}),
    "no tensors": (lambda s: {}, {Code.ADAPTER_MISMATCH, Code.MESSAGE_MALFORMED}),
    "NaN": (lambda s: spoilt(s, math.nan), {Code.ADAPTER_MISMATCH, Code.MESSAGE_MALFORMED}),
    "infinite": (lambda s: spoilt(s, math.inf), {Code.ADAPTER_MISMATCH, Code.MESSAGE_MALFORMED}),
}


@pytest.mark.parametrize("bad", sorted(BAD_STATES))
def test_an_adapter_that_does_not_fit_is_refused_before_anything_is_spent(
    plan: RunPlan, bad: str
) -> None:
    spoil, codes = BAD_STATES[bad]
    trainer, log = make_site()
    error = refusal(trainer, request(plan, state=spoil(start(plan))))
    assert error.code in codes
    assert log.rounds == []
    assert trainer.train(request(plan)) == make_site()[0].train(request(plan))


HUGE_SHAPE = b'{"head.bias":{"dtype":"F32","shape":[0,9223372036854775808],"data_offsets":[0,0]}}'
BAD_BLOBS = {
    "nothing": b"",
    "garbage": b"garbage",
    "a header beyond the end": b"\xff" * 100,
    "an empty header": b"\x08" + b"\0" * 7 + b"{}      ",
    "a shape beyond numbers": b"\x58" + b"\0" * 7 + HUGE_SHAPE.ljust(0x58),
}


@pytest.mark.parametrize("blob", BAD_BLOBS.values(), ids=BAD_BLOBS)
def test_a_blob_that_is_no_adapter_is_refused(plan: RunPlan, blob: bytes) -> None:
    trainer, log = make_site()
    error = refusal(trainer, Request(plan, "r", 1, blob))
    assert error.code in (Code.MESSAGE_MALFORMED, Code.ADAPTER_MISMATCH)
    assert log.rounds == []


def test_an_adapter_of_huge_values_gives_a_refusal_or_noise(plan: RunPlan) -> None:
    """The forward pass overflows; whatever leaves must be finite."""
    state = {name: torch.full_like(tensor, 1e38) for name, tensor in start(plan).items()}
    reply = make_site()[0].train(request(plan, state=state))
    if reply.status == "refused":
        assert not reply.blob
        assert not reply.reason.startswith(Code.UNEXPECTED.value)
    else:
        assert all(tensor.isfinite().all() for tensor in unpack_state(reply.blob).values())


BAD_PLANS = {
    "LOR-335": {"task": {"labels": ["money", "illness"]}},
    "LOR-307": {"task": {"labels": []}},
    "LOR-308": {"training": {"expected_batch_size": RECORDS + 1}},
    "LOR-402": {"privacy": {"delta": 1 / RECORDS}},
    "LOR-204": {"adapter": {"layers": [7]}},
}


@pytest.mark.parametrize("code", sorted(BAD_PLANS))
def test_a_plan_that_the_site_cannot_keep_is_refused(plan: RunPlan, code: str) -> None:
    state = start(plan)
    bad = plan.replace(**BAD_PLANS[code])
    trainer, log = make_site()
    assert refusal(trainer, request(bad, state=state)).code is Code(code)
    assert log.rounds == []
    if code != "LOR-204":  # known only when the model is built
        with pytest.raises(LoricaError) as caught:
            trainer.capabilities(Request(bad, "r"))
        assert caught.value.code is Code(code)


def test_the_bounds_of_the_refusals_are_sharp(plan: RunPlan) -> None:
    everything = plan.replace(
        training={"expected_batch_size": RECORDS}, privacy={"delta": 0.99 / RECORDS}
    )
    trainer, log = make_site()
    assert trainer.capabilities(Request(everything, "r")).status == "ok"
    assert trainer.train(request(everything)).status == "ok"
    assert log.rates == [1.0] * STEPS


class Broken(SeededNoise):
    """A source that fails in the middle of a round."""

    def add_noise(self, total: torch.Tensor, std: float) -> torch.Tensor:
        raise OSError("no randomness")


class Interrupted(SeededNoise):
    """A source during which the operator presses Ctrl-C."""

    def add_noise(self, total: torch.Tensor, std: float) -> torch.Tensor:
        raise KeyboardInterrupt


def failing_at_first(broken: type[SeededNoise]) -> tuple[LocalTrainer, MemoryLedger, Counter[int]]:
    """A site whose first attempt at every round fails."""
    calls: Counter[int] = Counter()

    def noise(run: str, round: int) -> NoiseSource:
        calls[round] += 1
        return (broken if calls[round] == 1 else SeededNoise)(0, run, "a", round)

    ledger = MemoryLedger(1e-3)
    return LocalTrainer("a", some_records(), noise=noise, ledger=ledger), ledger, calls


def test_a_round_that_failed_half_way_is_closed_by_its_refusal(
    plan: RunPlan, caplog: pytest.LogCaptureFixture
) -> None:
    """Asked again it is neither tried nor charged again; the details stay in the site's log."""
    trainer, ledger, calls = failing_at_first(Broken)
    asked = request(plan, 1)
    reply = trainer.train(asked)
    assert (reply.status, reply.blob) == ("refused", b"")
    assert reply.reason == Code.DATA_UNFIT.public_reason
    assert (reply.fingerprint, reply.round, reply.site) == (plan.fingerprint, 1, "a")
    assert "no randomness" in caplog.text
    assert [trainer.train(asked) for _ in range(5)] == [reply] * 5
    history = ledger.history()
    assert (calls[1], len(history.charges), sum(history.retries.values())) == (1, 1, 0)
    assert set(history.done) == {("r", 1, "train")}


def test_rounds_after_one_that_failed_are_as_if_it_had_not(plan: RunPlan) -> None:
    trainer, _, _ = failing_at_first(Broken)
    assert trainer.train(request(plan, 1)).status == "refused"
    trainer._noise = lambda run, round: SeededNoise(0, run, "a", round)
    assert trainer.train(request(plan, 2)) == make_site()[0].train(request(plan, 2))


def test_an_evaluation_that_failed_is_closed_apart_from_its_rounds_training(plan: RunPlan) -> None:
    plan = plan.replace(rounds={"evaluate_every": 1})

    trainer, ledger, _ = failing_at_first(Broken)
    refused = trainer.evaluate(request(plan, 1))
    assert refused.status == "refused"
    assert trainer.evaluate(request(plan, 1)) == refused
    assert trainer.train(request(plan, 1)).status == "ok"
    assert len(ledger.history().charges) == 2


def test_a_coded_failure_looks_like_any_other(
    plan: RunPlan, caplog: pytest.LogCaptureFixture
) -> None:
    """Its code might depend on a record; the site's own log has it."""

    class Coded(SeededNoise):
        def add_noise(self, total: torch.Tensor, std: float) -> torch.Tensor:
            raise LoricaError(Code.STORAGE_FULL, "the swap is full", mend="buy more")

    reply = failing_at_first(Coded)[0].train(request(plan, 1))
    assert reply == replace(failing_at_first(Broken)[0].train(request(plan, 1)))
    assert reply.code == Code.DATA_UNFIT.value
    assert "the swap is full" in caplog.text


def test_an_interrupted_round_is_not_answered_and_is_tried_again(plan: RunPlan) -> None:
    """Ctrl-C and exits of the process are nothing that the records did."""
    trainer, ledger, _ = failing_at_first(Interrupted)
    with pytest.raises(KeyboardInterrupt):
        trainer.train(request(plan, 1))
    assert not ledger.history().done
    assert trainer.train(request(plan, 1)) == make_site()[0].train(request(plan, 1))
    history = ledger.history()
    assert (len(history.charges), sum(history.retries.values())) == (1, 1)


def test_a_trainer_with_another_ledgers_unit_is_not_made() -> None:
    config = SiteConfig(
        site=SiteIdentity(name="a"),
        data=SiteData(source="x.csv"),
        policy=Policy(sampling_units=RECORDS),
    )
    ledger = MemoryLedger(1e-5, unit="patient")
    with pytest.raises(LoricaError) as caught:
        LocalTrainer(
            "a",
            some_records(),
            noise=lambda run, round: SeededNoise(run, round),
            admission=Admission(config),
            ledger=ledger,
        )
    assert caught.value.code is Code.LEDGER_MISMATCH


@pytest.mark.process
def test_what_only_lora_steps_need_is_not_imported_before_them() -> None:
    """Opacus takes more than a second, and rounds on the head do without it."""
    script = "import sys, lorica.client.training.trainer; print(*sys.modules, sep='\\n')"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120
    )
    loaded = done.stdout.split()
    assert "lorica.client.training.session" in loaded
    assert "opacus" not in loaded
