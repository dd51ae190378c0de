"""Supervision: restarted when they end, stopped with all they started, one at a time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lorica.common.errors import Code, LoricaError
from lorica.common.machine.lock import holder, only_one
from lorica.common.machine.supervisor import Service, Supervisor

pytestmark = pytest.mark.process

FOREVER = ["sh", "-c", "echo up; exec sleep 1000"]


def wait_for(look: Callable[[], object], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def run() -> Iterator[Callable[[Supervisor], threading.Thread]]:
    """Runs supervisors in threads and ends them with the test."""
    started: list[tuple[Supervisor, threading.Thread]] = []

    def begin(supervisor: Supervisor) -> threading.Thread:
        thread = threading.Thread(target=supervisor.run)
        thread.start()
        started.append((supervisor, thread))
        return thread

    yield begin
    for supervisor, thread in started:
        supervisor.stop()
        thread.join(20)
        assert not thread.is_alive()


def test_a_killed_program_is_started_again(
    tmp_path: Path, run: Callable[[Supervisor], threading.Thread]
) -> None:
    before: list[int] = []
    service = Service("a", FOREVER, before_restart=lambda: before.append(1))
    supervisor = Supervisor([service], tmp_path)
    run(supervisor)
    wait_for(lambda: supervisor.process_id("a"))
    first = supervisor.process_id("a")
    assert first is not None
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: supervisor.process_id("a") not in (None, first))
    assert before == [1] and supervisor.restarts("a") == 1


def test_what_outlives_a_killed_program_is_killed_before_it_starts_again(
    tmp_path: Path, run: Callable[[Supervisor], threading.Thread]
) -> None:
    heard: list[str] = []
    program = ["sh", "-c", "sleep 1000 & echo $!; wait"]
    supervisor = Supervisor([Service("a", program, on_line=heard.append)], tmp_path)
    run(supervisor)
    wait_for(lambda: heard)
    master, worker = supervisor.process_id("a"), int(heard[0])
    assert master is not None
    os.kill(master, signal.SIGKILL)
    wait_for(lambda: len(heard) == 2)
    assert not _alive(worker)


def test_every_line_is_logged_and_heard(
    tmp_path: Path, run: Callable[[Supervisor], threading.Thread]
) -> None:
    heard: list[str] = []
    program = ["sh", "-c", "echo one; echo two >&2; exec sleep 1000"]
    run(Supervisor([Service("a", program, on_line=heard.append)], tmp_path / "logs"))
    wait_for(lambda: len(heard) == 2)
    assert sorted(heard) == ["one", "two"]
    wait_for(lambda: (tmp_path / "logs" / "a.log").read_text().count("\n") == 2)


def test_stopping_ends_what_a_program_started_in_reverse_order(
    tmp_path: Path, run: Callable[[Supervisor], threading.Thread]
) -> None:
    ended = tmp_path / "ended"
    program = "trap 'echo {0} >> {1}; exit 0' TERM; echo up; while true; do sleep 0.05; done"
    heard: list[str] = []
    services = [
        Service(name, ["sh", "-c", program.format(name, ended)], on_line=heard.append)
        for name in ("first", "second")
    ]
    supervisor = Supervisor(services, tmp_path)
    thread = run(supervisor)
    wait_for(lambda: len(heard) == 2)
    supervisor.stop()
    thread.join(10)
    assert ended.read_text().split() == ["second", "first"]


def test_a_program_that_does_not_end_is_killed_after_its_grace(
    tmp_path: Path, run: Callable[[Supervisor], threading.Thread]
) -> None:
    heard: list[str] = []
    stubborn = ["sh", "-c", "trap '' TERM; echo up; while true; do sleep 0.05; done"]
    supervisor = Supervisor([Service("a", stubborn, grace=0.2, on_line=heard.append)], tmp_path)
    thread = run(supervisor)
    wait_for(lambda: heard)
    supervisor.stop()
    thread.join(10)
    assert not thread.is_alive() and supervisor.process_id("a") is None


def test_a_program_that_is_not_there_is_a_coded_error(tmp_path: Path) -> None:
    with pytest.raises(LoricaError) as caught:
        Supervisor([Service("a", ["/nowhere/program"])], tmp_path).run()
    assert caught.value.code is Code.PROGRAM_MISSING


def test_programs_end_when_their_supervisor_is_killed(tmp_path: Path) -> None:
    source = (
        "from pathlib import Path\n"
        "from lorica.common.machine.supervisor import Service, Supervisor\n"
        f"log = Path({str(tmp_path)!r})\n"
        "program = ['sh', '-c', 'echo $$; exec sleep 1000']\n"
        "Supervisor([Service('a', program, on_line=lambda l: print(l, flush=True))], log).run()\n"
    )
    supervisor = subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, text=True)
    assert supervisor.stdout is not None
    child = int(supervisor.stdout.readline())
    supervisor.kill()
    supervisor.wait()
    supervisor.stdout.close()
    wait_for(lambda: not _alive(child))


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_sigterm_stops_everything_and_ends_well(tmp_path: Path) -> None:
    source = (
        "from pathlib import Path\n"
        "from lorica.common.machine.supervisor import Service, Supervisor\n"
        f"log = Path({str(tmp_path)!r})\n"
        "program = ['sh', '-c', 'echo $$; exec sleep 1000']\n"
        "Supervisor([Service('a', program, on_line=lambda l: print(l, flush=True))], log).run()\n"
    )
    supervisor = subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, text=True)
    assert supervisor.stdout is not None
    child = int(supervisor.stdout.readline())
    supervisor.send_signal(signal.SIGTERM)
    assert supervisor.wait(10) == 0
    supervisor.stdout.close()
    assert not _alive(child)


def test_a_lock_is_held_by_one_and_names_its_holder(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert holder(path) is None
    with only_one(path, "The service"):
        assert holder(path) == os.getpid()
        with (
            pytest.raises(LoricaError, match=str(os.getpid())) as caught,
            only_one(path, "The service", wait=0),
        ):
            pass
        assert caught.value.code is Code.ALREADY_RUNNING
    assert holder(path) is None
    with only_one(path, "The service"):
        pass
