"""What an operator is told, and what Prometheus reads, with its own promtool as the judge."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from lorica.server.recording.observer import StoreObserver
from lorica.server.reports.alerts import alerts
from lorica.server.reports.metrics import prometheus_text
from lorica.server.results.round import RoundRecord, SiteRound
from lorica.server.store import RunStore
from tests.server.store.helpers import PLAN, filled, record

MONITORING = Path(__file__).resolve().parents[3] / "docker" / "monitoring"


def kinds(store: RunStore, now: float | None = None) -> list[tuple[str, str, str]]:
    return [(alert.kind, alert.severity, alert.site) for alert in alerts(store, now)]


def running(store: RunStore, *records: RoundRecord, run_id: str = "run-1") -> None:
    store.create_run(run_id, PLAN, status="running")
    store.begin(run_id, PLAN, record(1).sites, 1)
    store.add_rounds(run_id, records)


def refused(round: int, reason: str, status: str = "refused") -> RoundRecord:
    entries = [*record(round).sites[:1], SiteRound("south", status, reason)]  # type: ignore[arg-type]
    return replace(record(round), sites=entries)


def test_a_healthy_run_alerts_nobody(store: RunStore) -> None:
    running(store, *map(record, range(8)))
    assert kinds(store) == []


def test_a_site_is_silent_from_its_second_round_on(store: RunStore) -> None:
    running(store, record(1), record(2, late="south"))
    assert kinds(store) == []
    store.add_rounds("run-1", [record(3, late="south")])
    assert kinds(store) == [("site-silent", "warning", "south")]
    store.add_rounds("run-1", [record(number, late="south") for number in (4, 5, 6)])
    assert kinds(store) == [("site-silent", "critical", "south")]
    store.add_rounds("run-1", [record(7)])
    assert kinds(store) == []


def test_a_site_that_was_not_waited_for_is_not_silent(store: RunStore) -> None:
    cut = [refused(n, "cut: enough other sites had answered", "late") for n in range(1, 6)]
    running(store, *cut)
    assert kinds(store) == []
    assert store.run("run-1").problems == 0


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        ("refused", "LOR-408: The site's policy does not allow the plan."),
        ("failed", "[LOR-502] NaN"),
    ],
)
def test_a_refused_update_alerts_until_the_next_good_one(
    store: RunStore, status: str, reason: str
) -> None:
    running(store, record(1), refused(2, reason, status))
    assert kinds(store) == [("update-refused", "warning", "south")]
    store.add_rounds("run-1", [record(3)])
    assert kinds(store) == []


def test_a_falling_score_alerts_and_noise_does_not(store: RunStore) -> None:
    def scored(*values: float) -> list[RoundRecord]:
        return [
            replace(record(number), accuracy=value, metrics={"accuracy": value})
            for number, value in enumerate(values)
        ]

    running(store, *scored(0.5, 0.7, 0.8, 0.79, 0.77, 0.8), run_id="steady")
    assert kinds(store) == []
    running(store, *scored(0.5, 0.7, 0.8, 0.7, 0.7, 0.7), run_id="falling")
    assert [alert.run_id for alert in alerts(store)] == ["falling"]
    assert kinds(store) == [("score-falling", "warning", "")]


def test_a_budget_that_a_site_declares_when_it_is_asked_is_watched(store: RunStore) -> None:
    store.create_run("run-1", PLAN, kind="federation")
    declared = SiteRound("north", "ok", weight=10, version="0.2", budget=(10.0, 0.5))
    with StoreObserver(store, "run-1") as observer:
        observer.started(PLAN, [declared], 1)
        observer.round_ended(record(1))
    assert ("budget-low", "warning", "north") in kinds(store)


def test_budgets_alert_when_nearly_spent_and_when_exceeded(store: RunStore) -> None:
    running(store, record(1))
    store.note_site("north", budget_epsilon=10.0, budget_left=1.5)
    assert kinds(store) == []
    store.note_site("north", budget_left=0.9)
    assert kinds(store) == [("budget-low", "warning", "north")]
    store.note_site("north", budget_left=0.0)
    assert kinds(store) == [("budget-low", "critical", "north")]
    store.add_rounds("run-1", [record(2)], spent={2: {"north": 7.9, "south": 8.5}})
    assert ("budget-exceeded", "critical", "south") in kinds(store)


def test_bad_ends_alert_for_a_day(store: RunStore) -> None:
    running(store, record(1))
    store.set_status("run-1", "failed", code="LOR-503", error="Too few sites.")
    (alert,) = alerts(store)
    assert (alert.kind, alert.severity) == ("run-failed", "critical")
    assert "LOR-503" in alert.text
    assert kinds(store, time.time() + 90_000) == []


def test_metrics_are_those_of_the_store(store: RunStore) -> None:
    filled(store, "done", rounds=4)
    running(store, record(0), record(1), record(2, late="south"))
    store.note_site("north", budget_epsilon=10.0, budget_left=4.0)
    families = {
        family.name: {
            tuple(sorted(sample.labels.items())): sample.value
            for sample in family.samples
            if not sample.name.endswith("_created")
        }
        for family in text_string_to_metric_families(prometheus_text(store).decode())
    }
    assert families["lorica_runs"][(("status", "running"),)] == 1
    assert families["lorica_rounds"][()] == 6
    assert families["lorica_site_rounds"][(("status", "late"),)] == 1
    assert families["lorica_transferred_bytes"][(("direction", "up"),)] == 8000 + 3000
    assert families["lorica_run_site_unanswered_rounds"] == {
        (("run", "run-1"), ("site", "south")): 1
    }
    assert families["lorica_site_epsilon_left"][(("site", "north"),)] == 4.0
    phases = families["lorica_round_phase_seconds"]
    assert phases[(("le", "1"), ("phase", "sites"))] == 5 + 3
    assert phases[(("le", "0.3"), ("phase", "sites"))] == 0
    assert phases[(("phase", "sites"),)] in (8, 6.0)  # count and sum share their labels


HOSTILE = 'nor"th\\ {x="1"} 5\nlorica_runs 9'


@pytest.fixture
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not installed (Debian: apt-get install prometheus)")
    return found


@pytest.mark.process
def test_promtool_accepts_the_metrics(store: RunStore, promtool: str) -> None:
    """With a site's name that tries to be a sample of its own."""
    running(store, record(1, sites=("north", HOSTILE), late=HOSTILE))
    text = prometheus_text(store)
    done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True)
    assert done.returncode == 0, done.stderr.decode() + text.decode()
    samples = [line for line in text.decode().splitlines() if line.startswith("lorica_runs ")]
    assert samples == []


@pytest.mark.process
def test_promtool_accepts_the_rules_and_their_own_tests(promtool: str) -> None:
    for command in (["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"]):
        done = subprocess.run([promtool, *command], cwd=MONITORING, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_rules_and_dashboard_ask_for_metrics_that_there_are(store: RunStore) -> None:
    """A name that is misspelt would silently never alert."""
    running(store, record(1), record(2, late="south"))
    store.note_site("north", budget_epsilon=10.0, budget_left=4.0)
    served = set(re.findall(r"^# TYPE (\w+)", prometheus_text(store).decode(), re.MULTILINE))
    dashboard = json.loads((MONITORING / "grafana-lorica.json").read_text())
    asked = " ".join(target["expr"] for panel in dashboard["panels"] for target in panel["targets"])
    asked += " " + " ".join(
        re.findall(r"expr: .*|^ {10}.*$", (MONITORING / "alerts.yml").read_text(), re.M)
    )
    names = {re.sub(r"_(bucket|sum|count)$", "", name) for name in re.findall(r"lorica_\w+", asked)}
    assert len(names) > 12
    assert names <= served | {name.removesuffix("_total") for name in served}
