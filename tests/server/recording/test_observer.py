"""A run that is kept while it runs: never held up, never ended by its store."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

import pytest

from lorica.common.errors import Code, LoricaError
from lorica.common.privacy.accountant import epsilon
from lorica.common.privacy.of_plan import public_privacy
from lorica.server.recording.observer import StoreObserver
from lorica.server.store import RunStore
from tests.server.store.helpers import PLAN, record


@pytest.fixture(autouse=True)
def brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Poll and retry many times a second."""
    monkeypatch.setattr("lorica.server.recording.observer._POLL_SECONDS", 0.01)
    monkeypatch.setattr("lorica.server.recording.observer._RETRY_SECONDS", 0.02)


def wait_for(condition: object, seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < until, "it did not come about"
        time.sleep(0.01)


def test_rounds_are_in_the_store_while_the_run_goes_on(store: RunStore) -> None:
    store.create_run("run-1", PLAN)
    with StoreObserver(store, "run-1") as observer:
        observer.started(PLAN, record(1).sites, 1)
        for number in range(4):
            observer.round_ended(record(number))
        assert observer.flush(60)
        run = store.run("run-1")
        assert (run.status, run.rounds_done) == ("running", 3)
        assert run.epsilon_spent is not None and 0 < run.epsilon_spent < 8.0
    run = store.run("run-1")
    assert run.status == "finished" and run.ended is not None


def test_answers_show_before_the_round_is_over(store: RunStore) -> None:
    store.create_run("run-1", PLAN)
    with StoreObserver(store, "run-1") as observer:
        observer.started(PLAN, record(1).sites, 1)
        observer.site_answered(1, record(1).sites[0])
        wait_for(lambda: store.run("run-1").answered == 1)
        observer.round_ended(record(1))
        assert observer.flush(60)
        assert store.run("run-1").answered == 0


def test_a_request_to_stop_is_heard(store: RunStore) -> None:
    store.create_run("run-1", PLAN, status="running")
    with pytest.raises(LoricaError), StoreObserver(store, "run-1") as observer:
        assert not observer.stop_requested()
        store.request_stop("run-1", by="ada")
        wait_for(observer.stop_requested)
        raise LoricaError(Code.RUN_STOPPED, "An operator stopped the run.")
    run = store.run("run-1")
    assert (run.status, run.error_code) == ("stopped", "LOR-743")


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (LoricaError(Code.TOO_FEW_SITES, "Too few."), "failed", "LOR-503"),
        (KeyboardInterrupt(), "interrupted", ""),
        (ValueError("boom"), "failed", "LOR-901"),
    ],
)
def test_how_a_run_ended_is_its_status(
    store: RunStore, error: BaseException, status: str, code: str
) -> None:
    store.create_run("run-1", PLAN)
    with pytest.raises(type(error)), StoreObserver(store, "run-1"):
        raise error
    run = store.run("run-1")
    assert (run.status, run.error_code) == (status, code)


def broken(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Every transaction that writes fails, as on a full disk, until the event is set."""
    import contextlib
    from collections.abc import Iterator

    mended, writing = threading.Event(), store.writing

    @contextlib.contextmanager
    def fails() -> Iterator[object]:
        if not mended.is_set():
            raise LoricaError(Code.STORE_UNREACHABLE, "The run store cannot be used: disk full.")
        with writing() as session:
            yield session

    monkeypatch.setattr(store, "writing", fails)
    return mended


def test_a_store_that_fails_catches_up_when_it_is_back(
    store: RunStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store.create_run("run-1", PLAN)
    mended = broken(store, monkeypatch)
    with (
        caplog.at_level(logging.WARNING, "lorica.store"),
        StoreObserver(store, "run-1") as observer,
    ):
        observer.started(PLAN, record(1).sites, 1)
        for number in range(3):
            observer.round_ended(record(number))
        assert not observer.flush()
        assert store.rounds("run-1") == []
        mended.set()
        observer.round_ended(record(3))
        wait_for(lambda: len(store.rounds("run-1")) == 4)
    assert [line.getMessage()[:9] for line in caplog.records].count("[LOR-804]") == 1
    assert store.run("run-1").status == "finished"


def test_a_store_that_stays_away_does_not_end_the_run(
    store: RunStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store.create_run("run-1", PLAN)
    broken(store, monkeypatch)
    done = []
    with (
        caplog.at_level(logging.WARNING, "lorica.store"),
        StoreObserver(store, "run-1") as observer,
    ):
        observer.started(PLAN, record(1).sites, 1)
        for number in range(5):
            observer.round_ended(record(number))
            done.append(number)
    assert done == [0, 1, 2, 3, 4]
    assert "LOR-804" in caplog.text and "lorica runs import" in caplog.text


def test_a_slow_store_does_not_hold_up_a_round(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop's call returns while the store is still in its transaction."""
    store.create_run("run-1", PLAN)
    entered, go_on, add = threading.Event(), threading.Event(), store.add_rounds

    def slow(*arguments: object, **named: object) -> None:
        entered.set()
        assert go_on.wait(30)
        add(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(store, "add_rounds", slow)
    with StoreObserver(store, "run-1") as observer:
        observer.started(PLAN, record(1).sites, 1)
        observer.round_ended(record(1))
        assert entered.wait(30)
        observer.round_ended(record(2))  # returns though the first is not written
        go_on.set()
        assert observer.flush(60)
    assert len(store.rounds("run-1")) == 2


def test_log_lines_become_events_that_cannot_break_a_line(store: RunStore) -> None:
    store.create_run("run-1", PLAN)
    log = logging.getLogger("lorica.coordinator")
    with StoreObserver(store, "run-1") as observer:
        log.warning("no evaluation from %s: %s", "north\n\x1b[2J", "LOR-504")
        assert observer.flush(60)
    log.warning("after the run")
    (event,) = [event for event in store.events("run-1") if event.level == "warning"]
    assert event.text == "no evaluation from north \ufffd[2J: LOR-504"


def test_epsilon_of_a_resumed_run_counts_the_rounds_before(store: RunStore, tmp_path: Path) -> None:
    store.create_run("run-1", PLAN, folder=tmp_path)
    with StoreObserver(store, "run-1") as observer:
        observer.started(PLAN, record(1).sites, 1)
        for number in range(5):
            observer.round_ended(record(number))
    whole = store.curves("run-1", ["epsilon"])
    store.set_status("run-1", "running")
    with StoreObserver(store, "run-1") as observer:
        observer.started(PLAN, record(1).sites, 3)
        for number in (3, 4):
            observer.round_ended(record(number))
    assert store.curves("run-1", ["epsilon"]) == whole


def test_evaluations_count_at_sites_that_their_rounds_did_not_ask(store: RunStore) -> None:
    """Also before they are asked for the first time, and right after the run is resumed. The plan
    evaluates after round 2 and, to judge LoRA rounds, after each that follows."""
    plan = PLAN.replace(rounds={"evaluate_every": 2}, training={"lora_rounds": 5})
    cost = public_privacy(plan)

    def spent(asked: list[int], evaluations: int) -> float:
        return pytest.approx(epsilon(cost.events(asked, evaluations), plan.privacy.delta))

    def told() -> dict[str, float | None]:
        return {site.name: sums.epsilon for site, sums in store.run_sites("run-1")}

    store.create_run("run-1", plan)
    with StoreObserver(store, "run-1") as observer:
        observer.started(plan, record(1).sites, 1)
        for number in (1, 2, 3, 4, 5):
            observer.round_ended(record(number, sites=("north",)))
    assert told() == {"north": spent([1, 2, 3, 4, 5], 4), "south": spent([], 4)}
    store.set_status("run-1", "running")
    with StoreObserver(store, "run-1") as observer:
        observer.started(plan, record(1).sites, 5)
        observer.round_ended(record(5, sites=("north",)))
        assert observer.flush(60)
        assert told() == {"north": spent([1, 2, 3, 4, 5], 4), "south": spent([], 4)}
        observer.round_ended(record(6, sites=("south",)))
    assert told() == {"north": spent([1, 2, 3, 4, 5], 5), "south": spent([6], 5)}


def test_epsilon_never_falls_when_a_round_asks_a_share_of_the_sites(store: RunStore) -> None:
    """South is asked once, after north was asked three times: the largest stays north's."""
    store.create_run("run-1", PLAN)
    asked = {1: ("north",), 2: ("north",), 3: ("north",), 4: ("south",)}
    with StoreObserver(store, "run-1") as observer:
        observer.started(PLAN, record(1).sites, 1)
        for number, sites in asked.items():
            observer.round_ended(record(number, sites=sites))
    north = store.curves("run-1", ["epsilon"])["epsilon"]
    assert store.run("run-1").epsilon_spent == max(value for _, value in north) > 0
    assert [value for _, value in north] == sorted(value for _, value in north)
    by_site = store.site_curves("run-1", "epsilon")
    assert by_site["south"][-1][1] < by_site["north"][-1][1] == store.run("run-1").epsilon_spent
