"""What pages and the API show."""

from __future__ import annotations

import re
import shutil
from html import unescape
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from lorica.common.display.wording import epsilon_text
from lorica.server.monitor.shown import formats
from lorica.server.reports.alerts import alerts
from lorica.server.results.kept_own import kept_own
from lorica.server.results.round import RoundRecord, SiteRound
from lorica.server.store import RunStore
from tests.server.monitor.helpers import add_run, client_of, shared_of


def runs_on(text: str) -> list[str]:
    """Ids of the runs that a page lists, in order."""
    return re.findall(r'<tr data-run="([^"]+)"', text)


def test_the_list_pages_through_all_runs_newest_first(
    operator: TestClient, store: RunStore
) -> None:
    for number in range(2, 113):
        add_run(store, f"run-{number}", rounds=0, sites=())
    found, place = [], "/runs"
    while place:
        text = operator.get(place).text
        found += runs_on(text)
        older = re.search(r'href="([^"]+)" rel="next"', text)
        place = unescape(older.group(1)) if older else ""
    assert found == [f"run-{number}" for number in range(112, 0, -1)]
    api, after = [], ""
    while after is not None:
        answer = operator.get("/api/v1/runs", params={"after": after, "limit": 50}).json()
        api += [run["run_id"] for run in answer["runs"]]
        after = answer["next"]
    assert api == found


@pytest.mark.parametrize("after", ["x", "1", "1_x", "'; --"])
def test_a_place_that_no_list_gave_is_refused(operator: TestClient, after: str) -> None:
    assert operator.get("/runs", params={"after": after}).status_code == 422
    assert operator.get("/api/v1/runs", params={"after": after}).status_code == 422


def test_runs_are_filtered_by_status_kind_and_words(operator: TestClient, store: RunStore) -> None:
    add_run(store, "done", status="finished", name="triage notes")
    add_run(store, "sim", kind="simulation", status="failed")
    assert runs_on(operator.get("/runs?status=active").text) == ["run-1"]
    assert runs_on(operator.get("/runs?status=finished").text) == ["done"]
    assert runs_on(operator.get("/runs?status=failed").text) == ["sim"]
    assert runs_on(operator.get("/runs?kind=simulation").text) == ["sim"]
    assert runs_on(operator.get("/runs?q=TRIAGE").text) == ["done"]
    assert runs_on(operator.get("/runs?status=nonsense").text) == ["sim", "done", "run-1"]


def test_compare_shows_the_keys_that_differ_and_no_other(
    operator: TestClient, store: RunStore
) -> None:
    add_run(store, "other", settings=("privacy.epsilon=2",))
    text = operator.get("/compare?run=run-1&run=other").text
    assert "privacy.epsilon" in text and "privacy.delta" not in text
    found = operator.get("/api/v1/compare?run=run-1&run=other").json()
    assert found["differences"] == [{"key": "privacy.epsilon", "values": [8.0, 2.0]}]
    assert operator.get("/api/v1/compare?run=run-1").status_code == 422
    assert operator.get("/compare?run=run-1&run=none").status_code == 404


def test_a_runs_page_and_the_api_agree(operator: TestClient) -> None:
    text = operator.get("/runs/run-1").text
    run = operator.get("/api/v1/runs/run-1").json()
    assert run["rounds_done"] == 3 and run["score"] == pytest.approx(0.53)
    assert formats.percent(run["score"]) in text and epsilon_text(run["epsilon_spent"]) in text
    assert [row["round"] for row in operator.get("/api/v1/runs/run-1/rounds").json()] == [
        0,
        1,
        2,
        3,
    ]
    grid = operator.get("/api/v1/runs/run-1/grid").json()
    assert grid == {"sites": ["north", "south"], "rounds": [1, 2, 3], "cells": ["ooo", "ooo"]}
    shares = [site["contribution"] for site in operator.get("/api/v1/runs/run-1/sites").json()]
    assert shares == [0.5, 0.5]


def test_of_sealed_sums_pages_say_why_no_site_has_a_norm_or_an_agreement(
    store: RunStore, operator: TestClient
) -> None:
    hidden = ("privacy.trust=sum", "privacy.honest_sites=2")
    add_run(store, "hidden", sites=("east",), settings=hidden)
    page, other = operator.get("/runs/hidden").text, operator.get("/runs/run-1").text
    for text, sealed in ((page, True), (other, False)):
        assert ('data-sealed="Sealed: the coordinator sees sums' in text) is sealed
        assert ("updates are not screened" in text) is sealed
        assert ('<td data-label="Agreement" class="n">sealed</td>' in text) is sealed
    assert '<td data-label="Agreement" class="n">sealed</td>' in operator.get("/sites").text
    assert ">sealed</td>" in operator.get("/site?name=east").text
    assert operator.get("/api/v1/runs/hidden").json()["sealed"] is True


def test_alerts_are_counted_on_every_page_and_listed_on_theirs(
    operator: TestClient, store: RunStore
) -> None:
    add_run(store, "troubled", reason="LOR-403: The data's privacy budget does not allow the run.")
    shared_of(operator).watch._until = 0.0
    assert len(alerts(store)) == 1
    assert "<span data-number>1</span>" in operator.get("/sites").text
    page = unescape(operator.get("/alerts").text)
    assert "LOR-403" in page and 'href="/site?name=north"' in page
    assert [alert["site"] for alert in operator.get("/api/v1/alerts").json()] == ["north"]


def test_the_api_describes_itself_and_its_page_needs_no_script(operator: TestClient) -> None:
    found = operator.get("/api/v1/openapi.json").json()
    text = operator.get("/api/docs").text
    assert len(found["paths"]) >= 12
    for path, operations in found["paths"].items():
        assert path.startswith("/api/v1/") and set(operations) == {"get"}  # it only reads
        assert path in text


@pytest.mark.parametrize(
    ("page", "next_step"),
    [
        ("/runs", "lorica demo"),
        ("/sites", "lorica coordinator invite NAME"),
        ("/sites", "lorica site init --token INVITATION --data records.csv"),
        ("/alerts", "/metrics"),
        ("/compare", "Choose two or more runs"),
        ("/account", "lorica monitor user add"),
    ],
)
def test_empty_pages_say_what_to_do_next(
    empty_store: Path, tmp_path: Path, page: str, next_step: str
) -> None:
    store = RunStore.open(str(shutil.copy(empty_store, tmp_path / "empty.sqlite")))
    client = client_of(store)
    client.get(f"/open?key={shared_of(client).link_key}")
    assert next_step in client.get(page).text
    store.close()


def test_an_account_is_told_what_its_role_may_do(operator: TestClient) -> None:
    """No page and no form does anything about an alert, so none says so."""
    assert "reads everything and the audit log, and stops runs" in operator.get("/account").text
    assert "post" not in operator.get("/alerts").text.partition("<main")[2]


def test_health_says_whether_the_store_answers(stranger: TestClient) -> None:
    assert stranger.get("/health").json()["status"] == "ok"


def test_a_declared_size_is_shown_as_a_class_and_an_epsilon_never_less_than_spent() -> None:
    assert [formats.size_class(n) for n in (0, 1, 99, 100, 5_000_000)] == [
        "not declared",
        "under 100",
        "under 100",
        "under 1,000",
        "1,000,000 or more",
    ]
    assert formats.FILTERS["epsilon"](2.9901) == "3"
    assert formats.budget(None) == "no privacy"


def test_a_runs_page_and_report_show_how_alike_sites_are_and_how_many_keep_their_own(
    operator: TestClient, store: RunStore
) -> None:
    """The map within the page's policy of content: no style and no script of its own."""
    text = operator.get("/runs/run-1").text
    assert re.search(r'<section id="together"[^>]* hidden>', text) and "#together" not in text
    sites = ("north", "<script>alert(1)</script>", "west")
    entries = [SiteRound(site, "ok", weight=100) for site in sites]
    cosines: list[list[float | None]] = [[1.0, 0.9, 0.1], [0.9, 1.0, 0.2], [0.1, 0.2, 1.0]]
    sums = RoundRecord(1, entries, stage="class sums", alike=cosines, alike_error=0.01)
    told = kept_own([True, False, False], 3, 2.0)
    add_run(store, "mapped", sites=sites, rounds=0)
    store.add_rounds("mapped", [sums, RoundRecord(2, entries, kept_own=told.as_json())])
    page = operator.get("/runs/mapped").text
    section = page[page.index('<section id="together"') : page.index('<section id="grid"')]
    assert "hidden" not in section[:60] and section.count("<circle") == 3
    assert "<script" not in section and "style=" not in section
    assert told.sentence in unescape(section) and "least like the others is west" in section
    assert section.count("<tr>") == 4 and "0.90" in section
    report = operator.get("/runs/mapped/report").text
    assert report.count("<circle") >= 3 and told.sentence in unescape(report)
    rounds = operator.get("/api/v1/runs/mapped/rounds").json()
    assert rounds[-1]["kept_own"]["said"] == 1 and rounds[-2]["alike"]["cosines"] == cosines
    assert rounds[-1]["alike"] == {} == rounds[-2]["kept_own"]
