"""``lorica site ledger``: show, verify, export, report."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path

import click
import pytest
import typer
from typer.testing import CliRunner

from lorica.client.cli import app
from lorica.client.ledger import Budgets, FileLedger
from lorica.client.ledger.reports.effort import Taken, effort_file, note_taken
from lorica.client.ledger.reports.page import certainty, curve
from lorica.client.ledger.reports.summary import Point
from lorica.client.ledger.reports.terminal import plot
from lorica.client.ledger.verify import inspect
from lorica.common.errors import Code, LoricaError
from tests.client.ledger.helpers import PLAN, charge, open_ledger

HOSTILE = ["=cmd|' /C calc'!A0", "<script>alert(1)</script>", "\x1b[31mred\x07"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Four runs over two months, three with hostile names, a lost charge and a refusal."""
    path, now = tmp_path / "ledger.sqlite", [datetime(2026, 3, 20, tzinfo=UTC)]
    budgets = Budgets(lifetime=6.0, run=3.0, period="month", period_epsilon=2.5)
    ledger = open_ledger(path, data_set="Letters <2019>", budgets=budgets, clock=lambda: now[0])
    for run in ["heart", *HOSTILE]:
        for round in range(1, 4):
            now[0] += timedelta(days=1)
            ledger.charge(charge(round, run=run), charge(round, run=run, kind="evaluate"))
            ledger.store(run, round, "train", b"reply")
            if round < 3:
                ledger.store(run, round, "evaluate", b"reply")
    with pytest.raises(LoricaError):
        ledger.charge(charge(9, run="greedy", sigma=0.5, rate=0.5))
    ledger.close()
    return path


def run(*arguments: object, wide: bool = True) -> str:
    """The command's output; a coded error is raised."""
    environment = {"COLUMNS": "200" if wide else "80", "TERM": "dumb"}
    result = CliRunner().invoke(app, [str(a) for a in ("ledger", *arguments)], env=environment)
    if result.exception is not None:
        raise result.exception
    return result.output


def damage(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TRIGGER entries_are_not_removed")
        connection.execute("DELETE FROM entries WHERE number = 5")


def site_toml(path: Path) -> Path:
    """A site.toml beside a ledger, which it names."""
    config = path.with_name("site.toml")
    config.write_text(
        f'[site]\nname = "north"\n[data]\nsource = "r.csv"\n[ledger]\npath = "{path.name}"\n'
    )
    return config


def commands(group: click.Group, name: str = "") -> Iterator[tuple[str, click.Command]]:
    for key, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{name}{key} ")
        else:
            yield name + key, command


class TestWhichSite:
    def test_every_command_takes_site_toml_by_the_same_options(self):
        seen = dict(commands(typer.main.get_command(app)))
        del seen["backbone"]  # it is about a folder alone
        assert len(seen) > 15
        for name, command in seen.items():
            (option,) = [o for o in command.params if "--config" in o.opts]
            assert set(option.opts) == {"--config", "--site", "-c", "-s"}, name
            assert option.default == Path("site.toml"), name

    @pytest.mark.parametrize("option", ["--config", "--site", "-c", "-s"])
    def test_site_toml_names_the_ledger(self, path, option):
        config = site_toml(path)
        for command in ("show", "verify", "export"):
            assert run(command, option, config) == run(command, "--ledger", path)

    def test_site_toml_of_this_folder_is_taken(self, path, tmp_path, monkeypatch):
        site_toml(path)
        monkeypatch.chdir(path.parent)
        assert "heart" in run("show")
        run("report", "--output", tmp_path / "page.html")
        assert "heart" in (tmp_path / "page.html").read_text()

    def test_without_either_both_are_named(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(LoricaError) as caught:
            run("show")
        assert caught.value.code is Code.SITE_CONFIG
        assert "--ledger" in caught.value.mend and "--config" in caught.value.mend


class TestShow:
    def test_shows_totals_runs_months_and_a_plot(self, path):
        shown = run("show", "--ledger", path)
        for part in ("Letters <2019>", "of 6; ", "heart", "2026-03", "2026-04", "█", "refused"):
            assert part in shown

    def test_names_from_a_coordinator_cannot_steer_the_terminal(self, path):
        shown = run("show", "--ledger", path)
        assert "\x1b" not in shown
        assert "\x07" not in shown

    def test_fits_a_narrow_terminal_without_cutting_figures(self, path):
        shown = run("show", "--ledger", path, wide=False)
        assert re.search(r"heart +2026-03-21 +2026-03-23 +3 +1 +0 +0\.\d{3} +0\.\d{3}", shown)

    def test_what_runs_took_is_shown_where_it_is_known(self, path, tmp_path):
        assert "took" not in run("show", "--ledger", path)
        note_taken(effort_file(path), "heart", Taken(6, 75.0, 90.0, 7200.0))
        note_taken(effort_file(path), "unknown", Taken(6, 75.0, 90.0, 7200.0))
        for wide in (True, False):
            shown = run("show", "--ledger", path, wide=wide)
            assert re.search(r"heart +6 +1:15 min +1:30 min +2 Wh", shown)
            assert "unknown" not in shown and "for this site alone" in shown
        out = tmp_path / "officer.html"
        run("report", "--ledger", path, "--output", out)
        text = _Page(out.read_text()).text
        assert "1:15 min" in text and "2 Wh" in text and "sent to nobody" in text
        note_taken(effort_file(path), HOSTILE[0], Taken(1, 1.0, 1.0, None))
        run("report", "--ledger", path, "--output", out)
        text = _Page(out.read_text()).text
        assert "1:16 min" in text and "not told by this machine" in text

    def test_a_damaged_ledger_is_refused_with_a_sentence(self, path):
        damage(path)
        with pytest.raises(LoricaError) as caught:
            run("show", "--ledger", path)
        assert caught.value.code is Code.LEDGER_DAMAGED

    def test_an_empty_ledger_is_shown_as_such(self, tmp_path):
        open_ledger(tmp_path / "l").close()
        assert "Nothing was ever charged" in run("show", "--ledger", tmp_path / "l")

    def test_a_missing_ledger_is_a_sentence_and_is_not_made(self, tmp_path):
        for command in ("show", "verify", "export"):
            with pytest.raises(LoricaError) as caught:
                run(command, "--ledger", tmp_path / "none")
            assert caught.value.code is Code.LEDGER_MISSING
        assert not (tmp_path / "none").exists()

    def test_infinite_spending_can_be_drawn(self):
        now = datetime(2026, 1, 1, tzinfo=UTC)
        points = [Point(now, "a", 1.0), Point(now + timedelta(days=1), "b", float("inf"))]
        assert "█" in plot(points, float("inf"), 20).plain
        assert plot(points[1:], 8.0, 20).plain
        assert "svg" in curve(points, 8.0)

    def test_looking_changes_no_file(self, path):
        def state() -> dict[str, bytes]:
            files = [file for file in path.parent.iterdir() if not file.name.endswith("-shm")]
            return {f.name: hashlib.sha256(f.read_bytes()).digest() for f in files}

        open_one = FileLedger(
            path,
            data_set="Letters <2019>",
            unit="record",
            delta=1e-5,
            budgets=Budgets(lifetime=6.0, run=3.0, period="month", period_epsilon=2.5),
        )
        before = state()
        for command in ("show", "verify", "export"):
            run(command, "--ledger", path)
        assert state() == before
        open_one.close()


class TestVerify:
    def test_a_sound_ledger_names_its_head(self, path):
        history = inspect(path).history
        shown = run("verify", "--ledger", path)
        assert f"{history.count}:{history.head}" in shown
        assert "composed anew" in shown

    def test_an_earlier_head_is_found_and_a_wrong_one_is_not(self, path):
        history = inspect(path).history
        run("verify", "--ledger", path, "--head", f"3:{history.hashes[2]}", "--no-recompose")
        for wrong in (f"4:{history.hashes[2]}", f"900:{history.head}"):
            with pytest.raises(LoricaError) as caught:
                run("verify", "--ledger", path, "--head", wrong, "--no-recompose")
            assert caught.value.code is Code.LEDGER_DAMAGED

    def test_damage_is_named(self, path):
        damage(path)
        result = CliRunner().invoke(app, ["ledger", "verify", "--ledger", str(path)])
        assert isinstance(result.exception, LoricaError)
        assert "Entry 5 of the ledger is missing" in result.output


class TestExport:
    def test_the_json_export_is_a_chain_that_anybody_can_check(self, path, tmp_path):
        out = tmp_path / "out.json"
        run("export", "--ledger", path, "--output", out)
        content, previous = json.loads(out.read_text()), "0" * 64
        for entry in content["entries"]:
            text = f"{previous}\n{entry['body']}"
            previous = hashlib.sha256(text.encode()).hexdigest()
            assert previous == entry["hash"]
        assert content["head"] == {"number": len(content["entries"]), "hash": previous}

    def test_the_csv_export_has_a_row_per_mechanism_and_no_formulas(self, path):
        rows = list(csv.DictReader(io.StringIO(run("export", "-l", path, "--format", "csv"))))
        assert len(rows) == 24
        assert {row["answered"] for row in rows} == {"yes", "no"}
        assert (rows[0]["sigma"], rows[0]["q"], rows[0]["steps"]) == ("20.0", "0.1", "4")
        assert not any(str(value).startswith("=") for row in rows for value in row.values())


class _Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.text += data


class TestReport:
    def test_the_page_says_what_an_officer_asks(self, path, tmp_path):
        out = tmp_path / "officer.html"
        run("report", "--ledger", path, "--output", out)
        page = _Page(out.read_text())
        history = inspect(path).history
        for part in (
            "Letters <2019>",
            "Verified: yes.",
            f"{history.count}:{history.head}",
            "Unit of privacy: record",
            "1e-05",
            "(RDP)",
            "heart",
            "2026-04",
            "Refused for want of budget: 1",
            "greedy",
            "What this means",
        ):
            assert part in page.text

    def test_the_page_needs_nothing_but_itself_and_runs_nothing(self, path, tmp_path):
        out = tmp_path / "officer.html"
        run("report", "--ledger", path, "--output", out)
        page = _Page(out.read_text())
        assert page.links == []
        assert "script" not in page.tags
        assert "<script>ale" in page.text  # as text, its middle left out
        assert "\x1b" not in page.text

    def test_a_damaged_ledger_gets_a_page_that_says_so_and_a_failing_exit(self, path, tmp_path):
        damage(path)
        out = tmp_path / "officer.html"
        with pytest.raises(LoricaError) as caught:
            run("report", "--ledger", path, "--output", out)
        assert caught.value.code is Code.LEDGER_DAMAGED
        text = _Page(out.read_text()).text
        assert "Verified: NO" in text
        assert "Entry 5 of the ledger is missing" in text
        assert "may be too low" in text

    def test_certainty_is_bayes_rule(self):
        assert certainty(0.0) == 0.5
        assert certainty(1.0) == pytest.approx(0.7310585786)
        assert certainty(float("inf")) == 1.0


@pytest.mark.process
def test_the_ledger_needs_neither_torch_nor_flower() -> None:
    """A site's ledger opens quickly, and its commands start quickly."""
    program = (
        "import sys, lorica.client.ledger, lorica.client.cli;"
        "print(sorted({'torch', 'flwr', 'scipy', 'dp_accounting'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_every_stored_fingerprint_is_the_plan_s(path: Path) -> None:
    assert set(inspect(path).history.fingerprints.values()) == {PLAN}
