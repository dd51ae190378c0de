"""What answers take: added up by run, kept by the site alone, and never worth an answer."""

from __future__ import annotations

import json
import stat
import time
from pathlib import Path

import pytest

from lorica.client.answering.protocol import Trainer
from lorica.client.ledger.reports.effort import (
    MOST_RUNS,
    Taken,
    effort_file,
    in_all,
    name_of,
    note_taken,
    taken_by_run,
)
from lorica.client.service.meter import Meter
from lorica.client.service.queue import Spent, TrainerService, _Job
from lorica.common.errors import Code, LoricaError
from lorica.common.machine.effort import Effort
from lorica.common.plan import RunPlan
from lorica.common.wire.messages import Reply, Request, pack_request, record_to_bytes
from tests.common.machine.test_effort import counter

PLAN = RunPlan()


class Site:
    """A trainer that works for a while, which takes 2 J, and refuses one run."""

    site = "north"

    def __init__(self, energy: Path | None) -> None:
        self._energy = energy

    def _answer(self, request: Request) -> Reply:
        if request.run == "strange":
            raise LoricaError(Code.COORDINATOR_UNKNOWN, "No.")
        until = time.process_time() + 0.05
        while time.process_time() < until:
            pass
        use(self._energy, 2_000_000)
        return Reply(request.plan.fingerprint, request.round, site=self.site)

    capabilities = train = evaluate = _answer


def use(energy: Path | None, microjoules: int) -> None:
    if energy is not None:
        energy.write_text(str(int(energy.read_text()) + microjoules))


def answered(file: Path, *asked: tuple[str, str], energy: Path | None = None) -> None:
    """Have these (method, run) answered, as the trainer's thread does it."""
    trainer: Trainer = Site(energy)
    root = energy.parents[1] if energy else file.parent / "no-counters"
    with Effort(root) as effort:
        service = TrainerService(
            trainer,
            spent=lambda: Spent(0.0, 8.0, 1e-5),
            loads=lambda: 0,
            meter=Meter(file, effort),
        )
        for method, run in asked:
            packed = record_to_bytes(pack_request(Request(PLAN, run, 1)))
            service._work(_Job(method, packed))
            use(energy, 1_000_000)


def test_answers_add_up_by_run_and_refusals_are_nobodys(tmp_path: Path) -> None:
    file = effort_file(tmp_path / "ledger.sqlite")
    asked = [("capabilities", "a"), ("train", "a"), ("train", "b"), ("evaluate", "a")]
    answered(file, *asked, ("train", "strange"), ("train", "strange"))
    found = taken_by_run(file)
    assert list(found) == ["b", "a"], "the one that was answered last at the end"
    assert (found["a"].answers, found["b"].answers) == (2, 1)
    assert found["a"].cpu_seconds >= 0.1 > found["b"].cpu_seconds >= 0.05
    assert found["a"].seconds >= 0.1 and found["a"].joules is None
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    answered(file, ("train", "a"))
    assert taken_by_run(file)["a"].answers == 3


def test_energy_is_counted_where_the_machine_tells_it_of_all_answers(tmp_path: Path) -> None:
    energy = counter(tmp_path / "powercap", "intel-rapl:0", "package-0", 5_000_000, 10**12)
    file, taken = tmp_path / "l.effort.json", Taken(1, 2.0, 1.0, 3.5)
    answered(file, ("train", "a"), ("train", "a"), energy=energy)
    assert taken_by_run(file)["a"].joules == 4.0, "what is used between answers is not theirs"
    note_taken(file, "a", taken)
    note_taken(file, "b", taken)
    found = taken_by_run(file)
    assert found["a"].joules == 7.5 and found["b"] == taken
    assert in_all(found, ["a", "b", "never"]) == found["a"] + found["b"]
    note_taken(file, "b", Taken(1, 1.0, 1.0, None))
    whole = in_all(taken_by_run(file), ["a", "b"])
    assert whole is not None and whole.joules is None and whole.seconds > 4
    assert in_all(found, ["never"]) is None


def test_what_is_damaged_or_cannot_be_written_costs_no_answer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "l.effort.json"
    for content in ("{", "[1]", '{"a": {"answers": 1, "what": 2}}', '{"a": 3}'):
        file.write_text(content)
        assert taken_by_run(file) == {} and "cannot be read" in caplog.text
        caplog.clear()
        note_taken(file, "a", Taken(1, 1.0, 1.0, None))
        assert taken_by_run(file)["a"].answers == 1
    nowhere = tmp_path / "absent" / "l.effort.json"
    note_taken(nowhere, "a", Taken(1, 1.0, 1.0, None))
    assert not nowhere.exists() and "was not written" in caplog.text


def test_names_are_plain_and_runs_do_not_fill_the_disk(tmp_path: Path) -> None:
    file = tmp_path / "l.effort.json"
    file.write_text(json.dumps({str(n): vars(Taken(1, 1.0, 1.0, 1.0)) for n in range(MOST_RUNS)}))
    note_taken(file, "\x1b[2J" + "x" * 500, Taken(1, 1.0, 1.0, None))
    found = taken_by_run(file)
    assert len(found) == MOST_RUNS and "0" not in found
    assert len(list(found)[-1]) == 100 and "\x1b" not in file.read_text()
    assert name_of("\x1b[2J" + "x" * 500) in found
