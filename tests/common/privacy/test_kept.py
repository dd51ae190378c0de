"""Calibrations kept on the disk: the same figures, and whoever changes a file lowers no noise."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lorica.client.ledger import Charge, MemoryLedger
from lorica.common.plan import RunPlan
from lorica.common.privacy import accountant, calibration, kept, of_plan
from lorica.common.privacy.accountant import calibrate_noise, epsilon
from lorica.common.privacy.calibration import Part, noise_beside, share_budget
from lorica.common.privacy.event import PrivacyEvent
from lorica.common.privacy.kept import keep_calibrations
from lorica.common.privacy.of_plan import run_privacy

DELTA = 1e-5
FIXED = (PrivacyEvent(9.0, 1.0, 2),)
PARTS = (Part(1.0, 1, 0.4), Part(0.2, 10, 0.6))


def ask() -> list[float]:
    """One of each kind."""
    return [
        calibrate_noise(3.0, DELTA, 0.05, 50),
        noise_beside(4.0, DELTA, FIXED, 0.1, 20),
        *share_budget(8.0, DELTA, PARTS),
    ]


def forget() -> None:
    """What this process remembers, as if it began anew."""
    calibrate_noise.cache_clear()
    calibration._beside.cache_clear()
    calibration._factor.cache_clear()
    of_plan._KNOWN.clear()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "calibrations"
    forget()
    keep_calibrations(folder)
    yield folder
    keep_calibrations(None)
    forget()


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with every search for a figure of sampled steps."""
    found: list[int] = []
    refined = accountant.refined

    def counted(*arguments: Any) -> float:
        found.append(1)
        return refined(*arguments)

    monkeypatch.setattr(accountant, "refined", counted)
    monkeypatch.setattr(calibration, "refined", counted)
    return found


def test_a_new_process_finds_the_same_figures_to_the_bit_without_a_search(
    folder: Path, searches: list[int]
) -> None:
    keep_calibrations(None)
    reference = ask()
    keep_calibrations(folder)
    forget()
    assert ask() == reference
    assert len(list(folder.iterdir())) == 3
    searches.clear()
    forget()
    assert ask() == reference
    assert not searches


def _halved(content: dict[str, Any]) -> str:
    return json.dumps(content | {"value": (float.fromhex(content["value"]) / 2).hex()})


CHANGES: dict[str, Any] = {
    "less noise": _halved,
    "a little less": lambda c: json.dumps(
        c | {"value": (float.fromhex(c["value"]) * (1 - 1e-3)).hex()}
    ),
    "far more": lambda c: json.dumps(c | {"value": (1e6).hex()}),
    "no number": lambda c: json.dumps(c | {"value": "nan"}),
    "text": lambda c: json.dumps(c | {"value": "much"}),
    "of something else": lambda c: json.dumps(c | {"key": "another"}),
    "a list": lambda c: "[]",
    "nested too deep": lambda c: "[" * 60_000,
    "cut off": lambda c: json.dumps(c)[:40],
    "empty": lambda c: "",
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_was_changed_is_passed_over_and_written_anew(
    change: str, folder: Path, searches: list[int]
) -> None:
    figure = calibrate_noise(3.0, DELTA, 0.05, 50)
    (path,) = folder.iterdir()
    whole = path.read_text()
    path.write_text(CHANGES[change](json.loads(whole)))
    searches.clear()
    forget()
    assert calibrate_noise(3.0, DELTA, 0.05, 50) == figure
    assert searches
    assert path.read_text() == whole


@pytest.mark.parametrize("value", [5e-324, 1e-160, 1.7e308])
def test_a_figure_of_no_mechanism_is_passed_over(folder: Path, value: float) -> None:
    """Times the parts' relative noises, it may be beyond float64."""
    figures = share_budget(8.0, DELTA, PARTS)
    (path,) = folder.iterdir()
    path.write_text(json.dumps(json.loads(path.read_text()) | {"value": value.hex()}))
    forget()
    assert share_budget(8.0, DELTA, PARTS) == figures


def test_a_link_to_a_file_elsewhere_is_not_followed(folder: Path, tmp_path: Path) -> None:
    figure = calibrate_noise(3.0, DELTA, 0.05, 50)
    (path,) = folder.iterdir()
    moved = tmp_path / "elsewhere.json"
    moved.write_text(CHANGES["less noise"](json.loads(path.read_text())))
    path.unlink()
    path.symlink_to(moved)
    forget()
    assert calibrate_noise(3.0, DELTA, 0.05, 50) == figure
    assert not path.is_symlink()


def test_other_code_or_parameters_have_files_of_their_own(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibrate_noise(3.0, DELTA, 0.05, 50)
    calibrate_noise(3.0, DELTA, 0.05, 51)
    assert len(list(folder.iterdir())) == 2
    monkeypatch.setattr(kept, "_code", lambda: "another accountant")
    forget()
    calibrate_noise(3.0, DELTA, 0.05, 50)
    assert len(list(folder.iterdir())) == 3


def test_a_changed_file_makes_no_site_charge_less_than_it_spends(folder: Path) -> None:
    """Even where files are read, which at a site they are not."""
    plan = RunPlan().replace(
        privacy={"epsilon": 3.0, "delta": DELTA},
        training={"mode": "local", "expected_batch_size": 10, "local_steps": 5},
        rounds={"count": 4, "warm_start": 0},
    )
    honest = run_privacy(plan, 200)
    for path in folder.iterdir():
        path.write_text(_halved(json.loads(path.read_text())))
    forget()
    found = run_privacy(plan, 200)
    event = found.of_round(1)
    assert event == honest.of_round(1)
    ledger = MemoryLedger(DELTA)
    for round in range(1, 5):
        charge = Charge("run", round, "train", (event,), "record", "f" * 64, 3.0, DELTA)
        spent = ledger.charge(charge).run
        ledger.store("run", round, "train", b"reply")
    released = epsilon([PrivacyEvent(event.noise_multiplier, event.sample_rate, 20)], DELTA)
    assert released <= spent <= 3.0 * (1 + 1e-9)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_stops_nothing(folder: Path) -> None:
    folder.mkdir(mode=0o500)
    assert calibrate_noise(3.0, DELTA, 0.05, 50) > 0


def test_a_disk_that_is_full_stops_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kept, "write_atomically", full)
    assert calibrate_noise(3.0, DELTA, 0.05, 50) > 0
    assert not list(folder.iterdir())
