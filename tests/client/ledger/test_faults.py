"""Killed processes, two processes, full disks, locked and corrupted files: never an undercount."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import select
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lorica.client.ledger import Budgets, FileLedger, MemoryLedger
from lorica.client.ledger import book as ledger_book
from lorica.client.ledger.anchor import anchor_path
from lorica.client.ledger.verify import inspect
from lorica.common.errors import Code, LoricaError
from lorica.common.privacy.accountant import epsilon
from lorica.common.privacy.event import PrivacyEvent
from tests.client.ledger.helpers import PLAN, answer, charge, fork, kill, open_ledger, wait

LIFETIME = Budgets(lifetime=1000.0, run=1000.0, period="month", period_epsilon=1000.0)

Released = dict[int, str]


def rounds(path: Path, out: int) -> None:
    """A site: repeats its newest answer, then trains round after round until it is killed."""
    ledger = open_ledger(path, create=False, budgets=LIFETIME)
    done = len(ledger.history().done)
    for round in range(max(1, done), 10**6):
        reply = ledger.stored("run", round, fingerprint=PLAN)
        if reply is None:
            ledger.charge(charge(round))
            noised = os.urandom(24)  # the private step
            reply = ledger.store("run", round, "train", noised)
        os.write(out, f"{round} {reply.hex()}\n".encode())


def release(pipe: int, released: Released) -> None:
    """Note what left a killed site; every repetition must be the same bytes."""
    with os.fdopen(pipe) as file:
        for line in file.read().splitlines():
            round, reply = line.split()
            assert released.setdefault(int(round), reply) == reply


def check(path: Path, released: Released) -> None:
    """The chain verifies, and every reply that left was charged and is marked."""
    found = inspect(path)
    assert found.problems == []
    paid = {charged.charge.round for charged in found.history.charges}
    assert released.keys() <= paid
    assert released.keys() <= {round for _, round, _ in found.history.done}
    assert len(found.history.charges) >= len(released)


def time_to_first_answer(path: Path, released: Released) -> float:
    """Seconds from starting a site to its first answer; the site is killed after it."""
    reader, writer = os.pipe()
    begun = time.monotonic()
    child = fork(lambda: rounds(path, writer))
    os.close(writer)
    assert select.select([reader], [], [], 60)[0], "the site never answered"
    taken = time.monotonic() - begun
    kill(child)
    release(reader, released)
    return taken


class TestKills:
    @pytest.mark.parametrize(
        "kills", [25, pytest.param(200, marks=pytest.mark.slow("200 processes, one after another"))]
    )
    def test_kills_at_random_points_never_undercount(self, tmp_path: Path, kills: int) -> None:
        """Kills of charge, train, mark; training goes on after each."""
        path, draw, released = tmp_path / "ledger.sqlite", random.Random(0), Released()
        open_ledger(path, budgets=LIFETIME).close()
        MemoryLedger(1e-5).charge(charge(1))  # imports the accountant once, not in every child
        window = 2 * time_to_first_answer(path, released)  # of this machine, as busy as it is
        progress = [len(released)]
        for _ in range(kills):
            reader, writer = os.pipe()
            child = fork(lambda out=writer: rounds(path, out))
            os.close(writer)
            time.sleep(draw.uniform(0.0, window))
            assert kill(child) == -signal.SIGKILL
            release(reader, released)
            check(path, released)
            progress.append(len(released))
        assert progress[-1] > progress[kills // 2] > 0  # training goes on
        ledger = open_ledger(path, create=False, budgets=LIFETIME)
        steps = sum(event.steps for event in ledger.history().events())
        at_least = epsilon([PrivacyEvent(20.0, 0.1, 4 * len(released))], 1e-5)
        assert steps >= 4 * len(released)
        assert ledger.spending("run").lifetime >= at_least
        assert answer(ledger, max(released) + 2)

    @pytest.mark.parametrize("step", ["charge", "store"])
    def test_a_kill_between_commit_and_anchor_is_recovered(self, tmp_path, monkeypatch, step):
        path = tmp_path / "ledger.sqlite"
        ledger = open_ledger(path)
        if step == "store":
            ledger.charge(charge(1))
        ledger.close()
        before = inspect(path).history

        def work() -> None:
            ledger = open_ledger(path)
            monkeypatch.setattr(
                ledger_book, "write_anchor", lambda *_: os.kill(os.getpid(), signal.SIGKILL)
            )
            if step == "charge":
                ledger.charge(charge(1))
            else:
                ledger.store("run", 1, "train", b"reply")

        assert wait(fork(work)) == -signal.SIGKILL
        assert inspect(path).problems == []
        ledger = open_ledger(path)
        assert ledger.history().count == before.count + 1
        if step == "charge":
            ledger.charge(charge(1))
            assert len(ledger.history().charges) == 1  # paid for once
            ledger.store("run", 1, "train", b"reply")
        assert ledger.stored("run", 1, fingerprint=PLAN) == b"reply"

    def test_a_kill_at_creation_leaves_a_ledger_that_can_be_opened(self, tmp_path, monkeypatch):
        path = tmp_path / "ledger.sqlite"

        def work() -> None:
            monkeypatch.setattr(
                ledger_book, "write_anchor", lambda *_: os.kill(os.getpid(), signal.SIGKILL)
            )
            open_ledger(path)

        assert wait(fork(work)) == -signal.SIGKILL
        assert answer(open_ledger(path), 1)
        assert inspect(path).sound

    def test_half_written_anchors_of_killed_processes_are_swept_away(self, tmp_path):
        path = tmp_path / "ledger.sqlite"
        open_ledger(path).close()
        left = path.with_name(f".{anchor_path(path).name}.12345.tmp")
        left.write_bytes(b"{")
        open_ledger(path).close()
        assert not left.exists()

    def test_an_exception_within_a_transaction_leaves_nothing(self, tmp_path, monkeypatch):
        path = tmp_path / "ledger.sqlite"
        ledger = open_ledger(path)

        def interrupted(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(ledger._book.store, "keep_reply", interrupted)
            ledger.charge(charge(1))
            with pytest.raises(KeyboardInterrupt):
                ledger.store("run", 1, "train", b"reply")
        assert ledger.stored("run", 1, fingerprint=PLAN) is None
        assert ledger.store("run", 1, "train", b"reply") == b"reply"
        assert inspect(path).sound


class TestTwoProcesses:
    def test_two_processes_never_pass_a_budget_together(self, tmp_path):
        budget = 1.0001 * epsilon([PrivacyEvent(20.0, 0.1, 80)], 1e-5)
        budgets = Budgets(lifetime=budget, run=1000.0)
        path = tmp_path / "ledger.sqlite"

        def work(path: Path, *runs: str) -> int:
            ledger, charged = open_ledger(path, budgets=budgets), 0
            with contextlib.suppress(LoricaError):
                for round in range(2, 1000):
                    for run in runs:
                        ledger.charge(charge(round, run=run))
                        charged += 1
                        ledger.store(run, round, "train", b"reply")
            return charged

        # From its second run on a ledger counts by the filter, which needs a little more than one
        # run's own figure: both runs are begun, so that it does not matter who comes first.
        for start in (path, tmp_path / "alone.sqlite"):
            with contextlib.closing(open_ledger(start, budgets=budgets)) as ledger:
                for run in ("one", "other"):
                    ledger.charge(charge(1, run=run))
        allowed = work(tmp_path / "alone.sqlite", "one", "other")
        assert allowed > 10

        children = [fork(lambda name=name: work(path, name)) for name in ("one", "other")]
        charged = [wait(child) for child in children]
        history = inspect(path, recompose=True)
        assert history.problems == []
        assert sum(charged) == len(history.history.charges) - 2 == allowed
        assert history.epsilon <= budget

    def test_two_processes_with_one_request_release_one_reply(self, tmp_path):
        path, attempts = tmp_path / "ledger.sqlite", 12
        open_ledger(path).close()
        reader, writer = os.pipe()

        def work() -> None:
            ledger = open_ledger(path)
            for round in range(1, attempts):
                try:
                    reply = ledger.stored("run", round, fingerprint=PLAN)
                    if reply is None:
                        ledger.charge(charge(round))
                        reply = ledger.store("run", round, "train", os.urandom(24))
                except LoricaError as error:  # the other one is ahead
                    assert error.code is Code.PRIVACY_BUDGET
                else:
                    os.write(writer, f"{round} {reply.hex()}\n".encode())

        children = [fork(work), fork(work)]
        os.close(writer)
        assert [wait(child) for child in children] == [0, 0]
        released = Released()
        release(reader, released)
        assert len(released) == attempts - 1
        check(path, released)

    def test_a_locked_ledger_is_a_sentence_and_charges_nothing(self, tmp_path):
        path = tmp_path / "ledger.sqlite"
        ledger = open_ledger(path, timeout=0.1)
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(LoricaError) as caught:
            ledger.charge(charge(1))
        assert caught.value.code is Code.LEDGER_LOCKED
        assert "locked by another process" in caught.value.detail
        other.execute("ROLLBACK")
        assert ledger.history().charges == []
        assert answer(ledger, 1)

    def test_reading_does_not_wait_for_a_writer(self, tmp_path):
        path = tmp_path / "ledger.sqlite"
        ledger = open_ledger(path)
        reply = answer(ledger, 1)
        spent = ledger.spending("run")
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        assert ledger.spending("run") == spent
        assert inspect(path).sound
        other.execute("ROLLBACK")
        assert ledger.stored("run", 1, fingerprint=PLAN) == reply


def fill(path: Path) -> tuple[Code | None, int]:
    """Charge and store large replies until something fails; the failure and replies stored."""
    stored = 0
    try:
        ledger = open_ledger(path, create=False)
        for round in range(1, 200):
            answer_ = ledger.stored("run", round, fingerprint=PLAN)
            if answer_ is None:
                ledger.charge(charge(round))
                ledger.store("run", round, "train", os.urandom(20_000))
            stored = round
    except LoricaError as error:
        return error.code, stored
    return None, stored


@pytest.mark.process
class TestFullDisk:
    @pytest.mark.parametrize("allowance", [30_000, 50_001, 70_000, 130_000])
    def test_a_file_size_limit_is_a_sentence_and_nothing_is_half_written(self, tmp_path, allowance):
        path, reader_writer = tmp_path / "ledger.sqlite", os.pipe()
        open_ledger(path).close()

        def work() -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (allowance, allowance))
            code, stored = fill(path)
            os.write(reader_writer[1], f"{code.value if code else ''} {stored}".encode())

        assert wait(fork(work)) == 0
        code, stored = os.read(reader_writer[0], 100).decode().split(" ")
        assert code in (Code.STORAGE_FULL.value, Code.STORAGE_DENIED.value)
        found = inspect(path)
        assert found.problems == []
        assert len(found.history.charges) >= int(stored)
        assert answer(open_ledger(path), 500)

    @pytest.fixture
    def small_disk(self, tmp_path: Path) -> Iterator[Path]:
        """A file system of 400 kB; skips where mounting is not allowed."""
        folder = tmp_path / "disk"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)]
        try:
            mounted = subprocess.run(command, capture_output=True).returncode == 0
        except OSError:
            mounted = False
        if not mounted:
            pytest.skip("mounting a small file system needs rights that these tests lack")
        try:
            yield folder
        finally:
            subprocess.run(["umount", "--lazy", str(folder)], check=False)

    def test_a_full_disk_is_a_sentence_and_nothing_is_half_written(self, small_disk):
        path = small_disk / "ledger.sqlite"
        open_ledger(path).close()
        ballast = small_disk / "ballast"
        ballast.write_bytes(bytes(200_000))
        code, stored = fill(path)
        assert code is Code.STORAGE_FULL
        found = inspect(path)
        assert found.problems == []
        assert len(found.history.charges) >= stored
        ballast.unlink()
        assert answer(open_ledger(path), 500)

    def test_a_refusal_stands_even_when_it_cannot_be_written_down(self, tmp_path, monkeypatch):
        ledger = open_ledger(tmp_path / "l", budgets=Budgets(lifetime=1e-9, run=1e-9))

        def full(*_: object) -> None:
            raise LoricaError(Code.STORAGE_FULL, "The disk is full.")

        monkeypatch.setattr(ledger._book.store, "append", full)
        with pytest.raises(LoricaError) as caught:
            ledger.charge(charge(1))
        assert caught.value.code is Code.PRIVACY_BUDGET

    def test_a_charge_that_could_not_be_anchored_stops_the_step_and_stays(
        self, tmp_path, monkeypatch
    ):
        ledger = open_ledger(tmp_path / "l")

        def full(*_: object) -> None:
            raise LoricaError(Code.STORAGE_FULL, "The disk is full.")

        with monkeypatch.context() as patch:
            patch.setattr(ledger_book, "write_anchor", full)
            with pytest.raises(LoricaError) as caught:
                ledger.charge(charge(1))
        assert caught.value.code is Code.STORAGE_FULL
        assert len(ledger.history().charges) == 1


def copied(path: Path, folder: Path) -> Path:
    """The ledger's files, copied to a folder of their own."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for file in path.parent.glob(f"{path.name}*"):
        if file.is_file() and not file.name.endswith("-shm"):
            shutil.copy(file, folder)
    return folder / path.name


class TestCorruption:
    @pytest.fixture
    def ledger(self, tmp_path: Path) -> Iterator[FileLedger]:
        """A ledger in use: some of it in the file, the newest of it in the log."""
        path = tmp_path / "ledger.sqlite"
        first = open_ledger(path)
        for round in range(1, 13):
            answer(first, round)
        first.close()
        ledger = open_ledger(path)
        for round in range(13, 16):
            answer(ledger, round)
        yield ledger
        ledger.close()

    @pytest.mark.parametrize("suffix", ["", "-wal", ".anchor"])
    def test_random_damage_is_a_sentence_or_harmless(self, ledger, tmp_path, suffix):
        source, spent = ledger._book.store.path, ledger.spending("run").lifetime
        draw, outcomes = random.Random(suffix), []
        for _ in range(40):
            path = copied(source, tmp_path / "copy")
            victim = path.with_name(path.name + suffix)
            data = bytearray(victim.read_bytes())
            for _ in range(draw.choice([1, 4, 64])):
                data[draw.randrange(len(data))] = draw.randrange(256)
            victim.write_bytes(data)
            sound = inspect(path).sound
            try:
                damaged = open_ledger(path, create=False)
                assert damaged.spending("run").lifetime == spent
                damaged.close()
                outcomes.append("harmless")
            except LoricaError as error:
                assert error.code in (
                    Code.LEDGER_DAMAGED,
                    Code.LEDGER_ROLLED_BACK,
                    Code.LEDGER_MISSING,
                )
                assert not sound
                outcomes.append("sentence")
        assert "sentence" in outcomes

    @pytest.mark.parametrize("suffix", ["", "-wal", ".anchor"])
    def test_a_cut_file_is_a_sentence_or_harmless(self, ledger, tmp_path, suffix):
        source, spent = ledger._book.store.path, ledger.spending("run").lifetime
        draw = random.Random(suffix)
        for _ in range(15):
            path = copied(source, tmp_path / "copy")
            victim = path.with_name(path.name + suffix)
            os.truncate(victim, draw.randrange(victim.stat().st_size))
            try:
                assert open_ledger(path, create=False).spending("run").lifetime == spent
            except LoricaError as error:
                assert error.code in (Code.LEDGER_DAMAGED, Code.LEDGER_ROLLED_BACK)

    def test_a_lost_log_is_found(self, ledger, tmp_path):
        path = copied(ledger._book.store.path, tmp_path / "copy")
        path.with_name(path.name + "-wal").unlink()
        with pytest.raises(LoricaError) as caught:
            open_ledger(path, create=False)
        assert caught.value.code is Code.LEDGER_ROLLED_BACK
