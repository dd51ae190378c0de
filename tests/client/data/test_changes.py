"""A site's records that have changed since last time: refused, accepted once, or always."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lorica.client.cli.main import app
from lorica.client.config.site import load_site
from lorica.client.training.opening import data_file, open_ledger, open_trainer
from lorica.common.data.fingerprint import fingerprint
from lorica.common.data.records import Records
from lorica.common.errors import Code, LoricaError

ROWS = [f"note {row},{'ab'[row % 2]},p{row // 2}" for row in range(40)]


@pytest.fixture
def site(tmp_path: Path) -> Path:
    path = tmp_path / "site.toml"
    path.write_text(
        '[site]\nname = "n"\n[data]\nsource = "d.csv"\nunit = "patient"\n'
        f'[policy]\nsampling_units = 30\nminimum_units = 10\ncoordinators = ["{"0" * 64}"]\n'
    )
    write(tmp_path, ROWS)
    open_ledger(load_site(path), tmp_path, create=True).close()
    return path


def write(folder: Path, rows: list[str]) -> None:
    (folder / "d.csv").write_text("\n".join(["text,label,patient", *rows]) + "\n")


def start(site: Path) -> None:
    trainer, ledger = open_trainer(load_site(site), site.parent)
    trainer.close()
    ledger.close()


def refused(site: Path) -> str:
    with pytest.raises(LoricaError) as caught:
        start(site)
    assert caught.value.code is Code.DATA_CHANGED
    assert "lorica site data accept" in caught.value.mend
    return caught.value.detail


CHANGES = {
    "a record more": [*ROWS, "one more,a,p0"],
    "a record less": ROWS[1:],
    "another text": ["other,a,p0", *ROWS[1:]],
    "another label": ["note 0,b,p0", *ROWS[1:]],
    "another unit": ["note 0,a,p1", *ROWS[1:]],
    "a record twice": [*ROWS, ROWS[0]],
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_refused_and_can_be_taken_back(change: str, site: Path) -> None:
    start(site)
    write(site.parent, CHANGES[change])
    assert "40" in refused(site)
    write(site.parent, ROWS)
    start(site)


def test_a_change_is_accepted_by_a_command(site: Path) -> None:
    start(site)
    write(site.parent, ROWS[:-2])
    refused(site)
    done = CliRunner().invoke(app, ["data", "accept", "--config", str(site)])
    assert done.exit_code == 0, done.output
    assert "38 records" in done.output
    start(site)


def test_records_that_always_change_are_accepted_by_site_toml(site: Path) -> None:
    start(site)
    site.write_text(site.read_text().replace("[data]\n", '[data]\nchanged = "accept"\n'))
    write(site.parent, ROWS[3:])
    start(site)


def test_another_order_is_no_change_and_the_file_is_private(site: Path) -> None:
    start(site)
    write(site.parent, ROWS[::-1])
    start(site)
    path = data_file(load_site(site), site.parent)
    assert path.stat().st_mode & 0o077 == 0
    assert json.loads(path.read_text())["records"] == 40
    assert "note" not in path.read_text()


def test_the_order_counts_where_sites_are_made_of_it() -> None:
    one = Records(["a", "b"], ["x", "y"], ["0", "1"], ["", ""])
    other = one.take([1, 0])
    assert fingerprint(one) != fingerprint(other)
    assert fingerprint(one, ordered=False) == fingerprint(other, ordered=False)
    assert fingerprint(one, other) != fingerprint(other, one)


def test_cells_do_not_run_into_each_other() -> None:
    first = Records(["ab"], ["c"], ["0"], [""])
    second = Records(["a"], ["bc"], ["0"], [""])
    assert fingerprint(first, ordered=False) != fingerprint(second, ordered=False)
