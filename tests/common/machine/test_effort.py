"""What work costs: processor seconds of the system's own count, energy of made-up counters."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from lorica.common.machine.effort import Effort


def counter(root: Path, name: str, kind: str, value: int, limit: int = 1_000_000) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{kind}\n")
    (folder / "energy_uj").write_text(f"{value}\n")
    (folder / "max_energy_range_uj").write_text(f"{limit}\n")
    return folder / "energy_uj"


def test_energy_is_of_packages_alone_and_goes_on_where_counters_begin_anew(tmp_path: Path) -> None:
    first = counter(tmp_path, "intel-rapl:0", "package-0", 900_000)
    second = counter(tmp_path, "intel-rapl:1", "package-1", 100)
    counter(tmp_path, "intel-rapl:0:0", "core", 0)
    counter(tmp_path, "intel-rapl:2", "psys", 0)
    with Effort(tmp_path) as effort:
        assert effort.joules == 0
        first.write_text("300000")  # beyond its range
        second.write_text("500100")
        assert effort.joules == pytest.approx(0.4 + 0.5)
        (tmp_path / "intel-rapl:0:0" / "energy_uj").write_text("999999")
        assert effort.joules == pytest.approx(0.9)


def test_counters_are_read_meanwhile(tmp_path: Path) -> None:
    """Twice around between two questions: 0.6 + 0.6 + 0.6 J of a counter of 1 J."""
    file = counter(tmp_path, "intel-rapl:0", "package-0", 0)
    with Effort(tmp_path, seconds=0.02) as effort:
        for value in (600_000, 200_000, 800_000):
            (tmp_path / "next").write_text(str(value))
            (tmp_path / "next").replace(file)  # never half written, as the system's are not
            time.sleep(0.3)
        assert effort.joules == pytest.approx(1.8)


def test_no_figure_where_there_is_none_to_be_had(tmp_path: Path) -> None:
    with Effort(tmp_path / "absent") as effort:
        assert effort.joules is None
    file = counter(tmp_path, "intel-rapl:0", "package-0", 5)
    with Effort(tmp_path) as effort:
        file.unlink()
        assert effort.joules is None
    counter(tmp_path, "intel-rapl:1", "package-1", 5).write_text("no number")
    with Effort(tmp_path) as effort:
        assert effort.joules is None


def test_processor_seconds_are_those_of_the_clock_of_the_process() -> None:
    with Effort() as effort:
        before = time.process_time()
        while time.process_time() - before < 0.2:
            pass
        assert effort.cpu_seconds == pytest.approx(time.process_time() - before, abs=0.15)
