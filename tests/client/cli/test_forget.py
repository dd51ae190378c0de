"""``lorica site forget``: records that are left out from then on, and what is said to stay."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from typer.testing import CliRunner, Result

from lorica.client.config.site import load_site
from lorica.client.data.forgotten import NAME, forgotten
from lorica.client.data.reading import read_records
from lorica.client.service.socket_file import SocketFile
from lorica.client.training.opening import open_ledger, open_trainer
from lorica.common.backbone.files import backbone_sha256
from lorica.common.cli.command import app
from lorica.common.errors import Code, LoricaError
from tests.client.service.helpers import KEY

PATIENTS = 60


def make(folder: Path, backbone: Path, **data: Any) -> Path:
    """A site whose patients have two notes each; returns its site.toml."""
    folder.mkdir(mode=0o700)
    rows = []
    for row in range(2 * PATIENTS):
        word, label = ("card", "money") if row % 4 < 2 else ("fever", "health")
        rows.append(f"{word} note {row},{label},P-{row // 2:03d}\n")
    (folder / "records.csv").write_text("text,label,patient\n" + "".join(rows))
    content = {
        "site": {"name": "north"},
        "data": {"source": "records.csv", "unit": "patient", "cache": "states"} | data,
        "trainer": {"isolation": "auto"},
        "policy": {
            "unit": "patient" if data.get("unit", "patient") else "record",
            "backbones": [backbone_sha256(backbone)],
            "backbone_folders": [str(backbone)],
            "minimum_units": 10,
            "sampling_units": 50,
            "noise": "seeded",
            "coordinators": [KEY.public],
        },
    }
    config = folder / "site.toml"
    config.write_text(tomli_w.dumps(content))
    open_ledger(load_site(config), folder, create=True).close()
    return config


@pytest.fixture
def site(tmp_path: Path, small_backbone: Path) -> Path:
    return make(tmp_path / "site", small_backbone)


def forget(site: Path, *units: str, sure: bool = True) -> Result:
    arguments = ["site", "forget", *units, "--config", str(site), *(["--yes"] if sure else [])]
    return CliRunner().invoke(app, arguments, input="n\n", terminal_width=200)


def units_of(site: Path) -> set[str]:
    return set(read_records(load_site(site), site.parent).units)


def test_a_forgotten_units_records_are_read_no_more_and_its_name_is_nowhere(site: Path) -> None:
    before = units_of(site)
    states = site.parent / "states"
    states.mkdir(mode=0o700)
    for name in ("a.states", ".b.states.1.tmp"):
        (states / name).write_bytes(b"states of all records")
    done = forget(site, " P-007", "P-011")
    assert done.exit_code == 0, done.exception
    assert units_of(site) == before - {"P-007", "P-011"}
    assert "4 records of 2 units" in done.output and "116 records remain" in done.output
    assert not list(states.iterdir()) and "2 files of cached states" in done.output
    listed = forgotten(load_site(site), site.parent)
    assert len(listed) == 2 and listed.has("P-011") and not listed.has("P-012")
    text = listed.path.read_text()
    assert "P-0" not in text and stat.S_IMODE(listed.path.stat().st_mode) == 0o600


def test_what_cannot_be_undone_is_said(site: Path) -> None:
    said = " ".join(forget(site, "P-001").output.split())
    for part in ("Updates that left in runs (none so far)", "none is given back", "backups"):
        assert part in said


def test_too_few_that_would_be_left_is_found_before_anything_is_written(site: Path) -> None:
    """The site would not start any more, and its silence would tell the true count."""
    before = units_of(site)
    refused = forget(site, *(f"P-{unit:03d}" for unit in range(PATIENTS - 49))).exception
    assert isinstance(refused, LoricaError) and refused.code is Code.SITE_CONFIG
    assert "policy.sampling_units is 50" in refused.detail
    assert units_of(site) == before and not (site.parent / NAME).exists()


def test_the_trainer_opens_with_the_records_that_are_left(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without `lorica site data accept`: the change was meant."""
    monkeypatch.setenv("LORICA_SEEDED_NOISE", "protects nothing")
    trainer, ledger = open_trainer(load_site(site), site.parent)
    assert len(trainer.labels) == 2 * PATIENTS
    ledger.close()
    assert forget(site, "P-007").exit_code == 0
    trainer, ledger = open_trainer(load_site(site), site.parent)
    assert len(trainer.labels) == 2 * PATIENTS - 2
    ledger.close()


def test_nothing_changes_without_a_yes_or_while_a_trainer_runs(site: Path) -> None:
    before = units_of(site)
    assert forget(site, "P-001", sure=False).exit_code == 1
    running = SocketFile(site.parent / "trainer.sock")
    try:
        refused = forget(site, "P-001").exception
    finally:
        running.close()
    assert isinstance(refused, LoricaError) and refused.code is Code.TRAINER_RUNNING
    assert units_of(site) == before and not (site.parent / NAME).exists()


def test_another_change_of_the_source_is_not_taken_in_passing(site: Path) -> None:
    assert forget(site, "P-001").exit_code == 0
    with (site.parent / "records.csv").open("a") as file:
        file.write("card note new,money,P-999\n")
    refused = forget(site, "P-002").exception
    assert isinstance(refused, LoricaError) and refused.code is Code.DATA_CHANGED


def test_who_is_not_there_is_named_and_kept_out_when_he_comes(site: Path) -> None:
    done = forget(site, "P-777")
    assert "P-777 is of no record here" in done.output and "0 records of 0 units" in done.output
    with (site.parent / "records.csv").open("a") as file:
        file.write("card note late,money,P-777\n")
    assert "P-777" not in units_of(site)
    assert "left out already" in forget(site, "P-777").output


def test_a_damaged_list_keeps_all_records_from_being_used(site: Path) -> None:
    assert forget(site, "P-001").exit_code == 0
    for text in ("", "{}", '{"salt": "00", "units": []}', '{"salt": 1, "units": 2}'):
        forgotten_path = next(site.parent.rglob(NAME))
        forgotten_path.write_text(text)
        with pytest.raises(LoricaError) as refused:
            units_of(site)
        assert refused.value.code is Code.FORGOTTEN_DAMAGED


def test_a_site_without_units_and_the_last_unit_are_refused(
    site: Path, tmp_path: Path, small_backbone: Path
) -> None:
    plain = make(tmp_path / "plain", small_backbone, unit="")
    refused = forget(plain, "P-001").exception
    assert isinstance(refused, LoricaError) and refused.code is Code.DATA_UNIT
    everybody = forget(site, *(f"P-{number:03d}" for number in range(PATIENTS))).exception
    assert isinstance(everybody, LoricaError) and everybody.code is Code.DATA_TOO_FEW_RECORDS
