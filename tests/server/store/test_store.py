"""The run store, on SQLite and on PostgreSQL: what is written is read, whatever comes between."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import threading
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, select, text

from lorica.common.errors import Code, LoricaError
from lorica.server.reports.report import label_changes, quality_rows
from lorica.server.results.kept_own import kept_own
from lorica.server.results.round import RoundRecord, SiteRound
from lorica.server.store import RunStore
from lorica.server.store.database import HEAD, VERSION_TABLE
from lorica.server.store.migrations import configured
from lorica.server.store.tables import Base, Site
from tests.server.store.helpers import PLAN, filled, record


def code_of(call: object, *arguments: object, **named: object) -> Code:
    with pytest.raises(LoricaError) as caught:
        call(*arguments, **named)  # type: ignore[operator]
    return caught.value.code


def test_the_migrations_make_the_tables_that_the_models_describe(store: RunStore) -> None:
    """Alembic compares the database with the models; HEAD is the newest migration."""
    with store.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
        assert compare_metadata(context, Base.metadata) == []
        assert ScriptDirectory.from_config(configured(connection)).get_heads() == [HEAD]


@pytest.mark.process
def test_two_processes_open_an_empty_store_at_once(store_url: str) -> None:
    code = "import sys; from lorica.server.store import RunStore; RunStore.open(sys.argv[1])"
    both = [
        subprocess.Popen([sys.executable, "-c", code, store_url], stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in both:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
    assert RunStore.open(store_url).list_runs().items == []


def test_a_store_of_a_newer_version_is_refused_and_left_alone(store: RunStore) -> None:
    with store.writing() as session:
        session.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))
    url = store.engine.url.render_as_string(hide_password=False)
    assert code_of(RunStore.open, url) is Code.STORE_SCHEMA
    with store.reading() as session:
        assert session.scalar(text(f"SELECT version_num FROM {VERSION_TABLE}")) == "9999"


@pytest.mark.parametrize(
    "url",
    ["mysql://a/b", "nonsense://", "sqlite://", "postgresql+psycopg://u:secret@127.0.0.1:1/x"],
)
def test_a_url_that_cannot_be_used_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(LoricaError) as caught:
        RunStore.open(url)
    assert caught.value.code is Code.STORE_UNREACHABLE
    assert "secret" not in str(caught.value)


def test_a_switched_off_store_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORICA_STORE", "none")
    assert RunStore.open_unless_off() is None
    assert code_of(RunStore.open) is Code.STORE_UNREACHABLE


def test_a_file_that_is_no_database_is_refused_with_a_code(tmp_path: Path) -> None:
    path = tmp_path / "runs.sqlite"
    path.write_text("not a database at all, whatever its name says" * 50)
    assert code_of(RunStore.open, str(path)) is Code.STORE_UNREACHABLE


def test_the_sqlite_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    RunStore.open(str(tmp_path / "runs.sqlite")).close()
    assert (tmp_path / "runs.sqlite").stat().st_mode & 0o777 == 0o600


def test_a_run_is_read_as_it_was_written(store: RunStore) -> None:
    filled(store, name="trial", submitted_by="ada")
    run = store.run("run-1")
    assert (run.status, run.kind, run.name, run.submitted_by) == (
        "finished",
        "federation",
        "trial",
        "ada",
    )
    assert (run.rounds, run.rounds_done, run.sites, run.problems) == (8, 3, 2, 0)
    assert run.accuracy == pytest.approx(0.65)
    assert (run.bytes_up, run.bytes_down, run.seconds) == (6000, 3000, 4.0)
    assert run.fingerprint == PLAN.fingerprint
    assert store.differences(["run-1", "run-1"]) == []
    rounds = store.rounds("run-1")
    assert [row.round for row in rounds] == [0, 1, 2, 3]
    assert rounds[2].phases == {"sites": 0.75, "aggregate": 0.25}
    assert (rounds[2].asked, rounds[2].ok) == (2, 2)


def test_an_id_is_taken_once_and_unknown_ones_are_said(store: RunStore) -> None:
    filled(store)
    assert code_of(store.create_run, "run-1", PLAN) is Code.RUN_EXISTS
    assert code_of(store.run, "run-2") is Code.RUN_UNKNOWN
    assert code_of(store.add_rounds, "run-2", [record(1)]) is Code.RUN_UNKNOWN
    for bad in ("", "a/b", "a\nb", "x" * 101):
        assert code_of(store.create_run, bad, PLAN) is Code.RUN_EXISTS


def test_sums_of_sites_are_those_of_their_rounds(store: RunStore) -> None:
    store.create_run("run-1", PLAN)
    store.begin("run-1", PLAN, record(1).sites, 1)
    store.add_rounds("run-1", [record(1), record(2, late="south"), record(3, late="south")])
    sites = {site.name: sums for site, sums in store.run_sites("run-1")}
    north, south = sites["north"], sites["south"]
    assert (north.ok, north.late, north.bytes_up, north.unanswered) == (3, 0, 3000, 0)
    assert (south.ok, south.late, south.bytes_up, south.unanswered) == (1, 2, 1000, 2)
    assert south.agreement == pytest.approx(0.5)
    assert store.run("run-1").problems == 2
    assert store.grid("run-1").cells == ["ooo", "oll"]


def test_a_round_written_twice_counts_once(store: RunStore) -> None:
    filled(store)
    before = store.run("run-1")
    store.add_rounds("run-1", [record(2)])
    after = store.run("run-1")
    for name in ("bytes_up", "bytes_down", "seconds", "rounds_done", "accuracy", "problems"):
        assert getattr(after, name) == getattr(before, name)
    assert [(s.name, sums.ok) for s, sums in store.run_sites("run-1")] == [
        ("north", 3),
        ("south", 3),
    ]


def test_a_resumed_run_drops_the_rounds_that_it_does_again(store: RunStore) -> None:
    filled(store)
    store.begin("run-1", PLAN, record(1).sites, 2)
    assert [row.round for row in store.rounds("run-1")] == [0, 1]
    run = store.run("run-1")
    assert (run.status, run.rounds_done, run.bytes_up) == ("running", 1, 2000)


def test_a_runs_figures_at_sites_are_of_the_adapter_that_was_kept(store: RunStore) -> None:
    """Whatever the sites measured of LoRA that was given up, and when it is written again."""
    store.create_run("run-1", PLAN)
    last = replace(measured(4, "LoRA", 0.4), lora_dropped=True)
    store.add_rounds("run-1", [measured(2, "head", 0.7), measured(3, "LoRA", 0.9), last])
    for _ in range(2):
        run = store.run("run-1")
        assert (run.site_score, run.site_accuracy) == (0.7, 0.7)
        assert run.accuracy == last.accuracy  # the coordinator's, of what was kept
        store.add_rounds("run-1", [last])
    figures = quality_rows(run, store.rounds("run-1"))
    assert [row[1] for row in figures if "sites" in row[2]] == ["70.0%"]
    assert label_changes(store.rounds("run-1")) == []  # one measured round is left
    store.begin("run-1", PLAN, record(1).sites, 4)
    assert store.run("run-1").site_score == 0.9
    store.add_rounds("run-1", [replace(last, lora_dropped=False)])
    assert store.run("run-1").site_score == 0.4


def measured(round: int, stage: str, accuracy: float) -> RoundRecord:
    """A round after which sites measured this accuracy, of label "a" too."""
    values = {"accuracy": accuracy}
    made = replace(record(round), stage=stage, site_metrics=values, site_accuracy=accuracy)
    return replace(made, site_accuracy_by_label={"a": accuracy})


def test_figures_that_are_not_finite_do_not_break_the_store(store: RunStore) -> None:
    store.create_run("run-1", PLAN)
    spoilt = replace(record(1), loss=math.nan, accuracy=math.inf, mean_norm=-math.inf)
    store.add_rounds("run-1", [spoilt])
    row = store.rounds("run-1")[0]
    assert (row.loss, row.accuracy, row.mean_norm) == (None, None, None)


@pytest.mark.parametrize(
    "name",
    ["'; DROP TABLE runs; --", "<script>alert(1)</script>", "\x1b[2J\x00north", "ü" * 500, "%_\\"],
)
def test_a_hostile_site_name_is_only_a_name(store: RunStore, name: str) -> None:
    store.create_run("run-1", PLAN)
    store.begin("run-1", PLAN, [SiteRound(name, "ok")], 1)
    store.add_rounds("run-1", [record(1, sites=(name,), late=name), record(2, sites=(name,))])
    ((site, sums),) = store.run_sites("run-1")
    assert (sums.ok, sums.late) == (1, 1)
    assert site.name.isprintable() and len(site.name) <= 200
    assert store.site(site.name) is not None
    assert [event.site for event in store.events("run-1")] == [site.name]
    assert store.grid("run-1").cells == ["lo"]


def test_sites_of_simulations_are_apart_from_institutions(store: RunStore) -> None:
    filled(store, "real")
    filled(store, "simulated", kind="simulation")
    assert [site.name for site in store.sites().items] == ["south", "north"]
    assert len(store.sites(virtual=True).items) == 2
    with store.reading() as session:
        assert len(session.scalars(select(Site.id)).all()) == 4


def test_a_stop_reaches_the_run_once_and_says_who(store: RunStore) -> None:
    store.create_run("waiting", PLAN)
    assert store.request_stop("waiting", by="ada") == "stopped"
    assert code_of(store.request_stop, "waiting", by="ada") is Code.RUN_STATE
    store.create_run("going", PLAN, status="running")
    assert not store.stop_requested("going")
    assert store.request_stop("going", by="ada") == "stopping"
    assert store.request_stop("going", by="bob") == "stopping"
    assert store.run("going").stop_requested_by == "ada"
    assert store.stop_requested("going") and store.beat("going")
    store.set_status("going", "queued")
    assert not store.stop_requested("going")


@pytest.mark.process
def test_a_run_whose_process_is_gone_is_interrupted(store: RunStore) -> None:
    store.create_run("run-1", PLAN)
    store.begin("run-1", PLAN, [], 1)
    assert store.mark_interrupted() == []
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    store.change_run("run-1", process=ended.pid)
    assert store.mark_interrupted() == ["run-1"]
    assert store.run("run-1").status == "interrupted"
    assert [event.level for event in store.events("run-1")] == ["error"]


def test_a_run_on_another_host_is_interrupted_when_silent_and_back_when_heard(
    store: RunStore,
) -> None:
    store.create_run("run-1", PLAN)
    store.begin("run-1", PLAN, [], 1)
    store.change_run("run-1", host="elsewhere", process=os.getpid())
    assert store.mark_interrupted(time.time() + 60) == []
    assert store.mark_interrupted(time.time() + 100) == ["run-1"]
    store.beat("run-1")
    assert store.run("run-1").status == "running"


def test_pages_hold_every_run_once_whatever_comes_between(store: RunStore) -> None:
    for number in range(7):
        filled(store, f"run-{number}", rounds=0, created=1000.0 + number // 2)
    seen, cursor = [], None
    while True:
        page = store.list_runs(limit=3, after=cursor)
        seen += [run.run_id for run in page.items]
        if len(seen) == 3:
            filled(store, "newcomer", rounds=0, created=2000.0)
        cursor = page.next
        if cursor is None:
            break
    assert seen == [f"run-{number}" for number in (6, 5, 4, 3, 2, 1, 0)]


def test_lists_filter_and_search(store: RunStore) -> None:
    filled(store, "alpha", rounds=0, name="100%_done")
    filled(store, "beta", rounds=0, kind="sweep-run", parent="alpha")
    store.create_run("gamma", PLAN)

    def ids(**wanted: object) -> list[str]:
        return [run.run_id for run in store.list_runs(**wanted).items]  # type: ignore[arg-type]

    assert ids() == ["gamma", "alpha"]
    assert ids(status="queued") == ["gamma"]
    assert ids(kind="sweep-run") == ids(parent="alpha") == ["beta"]
    assert ids(search="0%_D") == ["alpha"]
    assert ids(search="%") == ["alpha"]
    assert ids(search="' OR 1=1 --") == []
    assert store.count_runs() == {"finished": 1, "queued": 1}
    assert store.find("al").run_id == "alpha"
    assert code_of(store.find, "") is Code.RUN_UNKNOWN


def test_runs_differ_in_the_keys_that_differ(store: RunStore) -> None:
    store.create_run("a", PLAN)
    store.create_run("b", PLAN.replace(privacy={"epsilon": 3.0}))
    (difference,) = store.differences(["a", "b"])
    assert (difference.key, difference.values) == ("privacy.epsilon", [8.0, 3.0])


def test_pages_read_whole_rounds_while_a_run_writes(store: RunStore) -> None:
    """A reader never sees a round whose sites are missing."""
    store.create_run("run-1", PLAN)
    store.begin("run-1", PLAN, record(1).sites, 1)
    torn: list[tuple[int, int]] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            with store.reading() as session:
                first = session.scalar(text("SELECT count(*) FROM rounds")) or 0
                cells = session.scalar(text("SELECT count(*) FROM site_rounds")) or 0
            if store.engine.dialect.name == "sqlite" and cells != 2 * first:
                torn.append((first, cells))

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(1, 40):
        store.add_rounds("run-1", [record(number)])
    done.set()
    reader.join()
    assert torn == []
    assert len(store.rounds("run-1")) == 39


def test_a_flower_run_leads_to_its_run(store: RunStore) -> None:
    filled(store)
    store.add_flower_run("run-1", 2**64 - 1)
    store.add_flower_run("run-1", 7)
    assert store.flower_runs("run-1") == [str(2**64 - 1), "7"]
    found = store.run_of_flower(7)
    assert found is not None and found.run_id == "run-1"


def test_what_a_site_says_of_itself_is_kept(store: RunStore) -> None:
    store.note_site("north", version="0.2", weight=120, budget_epsilon=10.0, budget_left=4.0)
    store.note_site("north", budget_left=3.5)
    site = store.site("north")
    assert site is not None
    assert (site.version, site.weight, site.budget_epsilon, site.budget_left) == (
        "0.2",
        120,
        10.0,
        3.5,
    )


def test_a_store_of_the_first_schema_is_taken_over_with_its_rounds(store_url: str) -> None:
    first = RunStore.open(store_url)
    run_id = filled(first)
    with first.engine.connect() as connection, connection.begin():
        command.downgrade(configured(connection), "0001")
        names = {column["name"] for column in inspect(connection).get_columns("rounds")}
        assert not names & {"kept_own", "alike"}
    first.close()
    with closing(RunStore.open(store_url)) as again:
        rounds = again.rounds(run_id)
        assert [row.round for row in rounds] == [0, 1, 2, 3]
        assert all((row.kept_own, row.alike) == ({}, {}) for row in rounds)


def test_bits_and_likeness_are_kept_with_their_round(store: RunStore) -> None:
    sites = ("north", "gone", "south")
    told = kept_own([True, False], 3, 2.0).as_json()
    map_of = replace(
        record(1, sites=sites, late="gone"),
        alike=[[1.0, 0.123456], [0.123456, 1.0]],
        alike_error=0.05,
        kept_own=told,
    )
    store.create_run("run-1", PLAN)
    store.begin("run-1", PLAN, record(1, sites=sites).sites, 1)
    store.add_rounds("run-1", [map_of, record(2)])
    first, second = store.rounds("run-1")
    assert first.kept_own == told and (second.kept_own, second.alike) == ({}, {})
    assert first.alike == {
        "sites": ["north", "south"],
        "cosines": [[1.0, 0.1235], [0.1235, 1.0]],
        "error": 0.05,
        "sealed": 0,
    }
