"""``lorica runs`` as people and programs call it; what it deletes, writes and refuses."""

from __future__ import annotations

import csv
import json
import re
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from lorica.common.errors import Code, LoricaError
from lorica.server.reports.charts import line_chart
from lorica.server.reports.cli import app
from lorica.server.reports.report import report_html
from lorica.server.results.round import SiteRound
from lorica.server.store import RunStore
from lorica.server.store.curves import thinned
from lorica.server.store.prune import plan_pruning, prune
from tests.server.store.helpers import PLAN, filled, record

HOSTILE = "<script>alert(1)</script>"
DAY = 86_400.0


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunStore:
    """The store that the commands open by default."""
    monkeypatch.setenv("LORICA_STORE", str(tmp_path / "runs.sqlite"))
    return RunStore.open()


def lorica_runs(*arguments: str, answer: str = "") -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, list(arguments), input=answer)


def said(*arguments: str, answer: str = "") -> str:
    result = lorica_runs(*arguments, answer=answer)
    assert result.exit_code == 0, result.output
    return result.output


def folder_of(tmp_path: Path, name: str) -> Path:
    """A results folder with artefacts and a stranger's file."""
    folder = tmp_path / name
    (folder / "adapter").mkdir(parents=True)
    for file in ("plan.toml", "rounds.jsonl", "adapter/head.safetensors", "notes.txt"):
        (folder / file).write_text("content")
    return folder


def test_an_empty_store_says_what_to_do_next(kept: RunStore) -> None:
    assert "lorica simulate" in said("list")
    assert json.loads(said("list", "--json")) == []


def test_list_and_show_tell_of_runs(kept: RunStore, tmp_path: Path) -> None:
    filled(kept, "alpha", name="trial")
    kept.add_artefacts("alpha", folder_of(tmp_path, "out"))
    kept.create_run("beta", PLAN)
    listed = said("list")
    assert re.search(r"alpha\s+finished.*trial.*8\s+3/8\s+2\s+65.0%", listed)
    assert listed.index("beta") < listed.index("alpha")
    assert "alpha" not in said("list", "--status", "queued")
    shown = said("show", "al")
    for text in ("finished", "north", "south", "head.safetensors", "3 of 8"):
        assert text in shown
    content = json.loads(said("show", "alpha", "--json"))
    assert [row["round"] for row in content["rounds"]] == [0, 1, 2, 3]
    assert content["plan"]["privacy.epsilon"] == 8.0
    assert len(content["site_rounds"]) == 6


def test_what_is_asked_wrongly_is_said_in_a_sentence(kept: RunStore) -> None:
    result = lorica_runs("show", "nothing")
    assert isinstance(result.exception, LoricaError)
    assert result.exception.code is Code.RUN_UNKNOWN
    for wrong in (["list", "--status", "lost"], ["compare", "one"], ["prune"]):
        result = lorica_runs(*wrong)
        assert result.exit_code == 2 and "Error" in result.output


def test_compare_shows_results_and_differing_keys(kept: RunStore) -> None:
    filled(kept, "alpha")
    kept.create_run("beta", PLAN.replace(aggregation={"method": "ffa"}))
    text = said("compare", "alpha", "beta")
    assert re.search(r"aggregation\.method\s+fedsvd\s+ffa", text)
    content = json.loads(said("compare", "alpha", "beta", "--json"))
    assert content["differences"] == {"aggregation.method": ["fedsvd", "ffa"]}


def test_exports_hold_everything_and_no_formula(kept: RunStore, tmp_path: Path) -> None:
    kept.create_run("alpha", PLAN)
    formula = "=HYPERLINK(1)"
    kept.add_rounds("alpha", [record(n, sites=("north", formula)) for n in (1, 2)])
    said("export", "alpha", "-o", str(tmp_path / "a.json"))
    assert json.loads((tmp_path / "a.json").read_text())["site_rounds"][0]["site"] == formula
    said("export", "alpha", "-o", str(tmp_path / "a.csv"))
    rows = list(csv.DictReader((tmp_path / "a.csv").open()))
    assert [row["loss"] for row in rows] == ["0.5", str(1 / 3)]
    assert rows[0]["phases.sites"] == "0.75"
    said("export", "alpha", "--sites", "-o", str(tmp_path / "s.csv"))
    sites = [row["site"] for row in csv.DictReader((tmp_path / "s.csv").open())]
    assert sites == ["'" + formula, "north"] * 2
    result = lorica_runs("export", "alpha", "-o", str(tmp_path / "a.xlsx"))
    assert isinstance(result.exception, LoricaError)
    assert not (tmp_path / "a.xlsx").exists()


def test_pruning_says_first_and_deletes_what_it_said(store: RunStore, tmp_path: Path) -> None:
    """On both databases; files stay, children go along, what runs stays."""
    now = time.time()
    filled(store, "old", created=now - 40 * DAY, folder=folder_of(tmp_path, "old"))
    store.add_artefacts("old")
    filled(store, "child", kind="baseline", parent="old", created=now)
    filled(store, "young", created=now - DAY)
    store.create_run("going", PLAN, status="running", created=now - 50 * DAY)
    planned = plan_pruning(store, older_than_days=30)
    assert {run.run_id for run in planned.runs} == {"old", "child"}
    assert (planned.rounds, planned.site_rounds, planned.files) == (8, 12, 3)
    assert prune(store, planned) == 0
    left = {run.run_id for run in store.list_runs(kind=["federation", "baseline"]).items}
    assert left == {"young", "going"}
    assert (tmp_path / "old" / "plan.toml").exists()
    assert plan_pruning(store, older_than_days=30).runs == []
    assert [run.run_id for run in plan_pruning(store, keep=0).runs] == ["young"]
    assert plan_pruning(store, keep=1).runs == []


def test_prune_deletes_entered_files_only_when_told(kept: RunStore, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "old")
    outside = tmp_path / "outside.txt"
    outside.write_text("not yours")
    (folder / "summary.json").symlink_to(outside)
    filled(kept, "old", created=1000.0, folder=folder)
    kept.add_artefacts("old")
    assert "To be deleted" in said("prune", "--older-than", "1", "--dry-run", "--files")
    assert kept.find("old").run_id == "old"
    assert lorica_runs("prune", "--older-than", "1", "--files", answer="n\n").exit_code == 1
    assert kept.find("old").run_id == "old"
    assert "3 files" in said("prune", "--older-than", "1", "--files", "--yes")
    assert sorted(path.name for path in folder.iterdir()) == ["notes.txt", "summary.json"]
    assert outside.read_text() == "not yours"


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "adapter/../../secret", "notes.txt", ""]
)
def test_an_artefact_is_never_a_path_out_of_the_folder(
    kept: RunStore, tmp_path: Path, name: str
) -> None:
    (tmp_path / "secret").write_text("x")
    filled(kept, "alpha", folder=folder_of(tmp_path, "out"))
    kept.add_artefacts("alpha")
    with pytest.raises(LoricaError) as caught:
        kept.artefact_path("alpha", name)
    assert caught.value.code is Code.ARTEFACT_UNKNOWN
    with kept.writing() as session:  # even if one were entered
        from lorica.server.store.tables import Artefact, Run

        key = session.query(Run.id).filter_by(run_id="alpha").scalar()
        if name and name != "notes.txt":
            session.add(Artefact(run_id=key, name=name))
    with pytest.raises(LoricaError):
        kept.artefact_path("alpha", name)


def test_a_report_stands_alone_and_escapes_what_others_say(kept: RunStore, tmp_path: Path) -> None:
    kept.create_run("alpha", PLAN, name=HOSTILE)
    sites = ("north", HOSTILE)
    kept.begin("alpha", PLAN, [SiteRound(name, "ok") for name in sites], 1)
    kept.add_rounds(
        "alpha",
        [record(n, sites=sites, late=HOSTILE) for n in range(4)],
        spent={n: {"north": float(n)} for n in range(1, 4)},
    )
    summary = {
        "score": 0.8,
        "baselines": {"alone": {"north": 0.9, HOSTILE: 0.5}, "zero_shot": 0.4},
        "versions": {"lorica": "1"},
    }
    kept.change_run("alpha", summary=summary, versions=summary["versions"])
    kept.set_status("alpha", "finished")
    said("report", "alpha", "-o", str(tmp_path / "a.html"))
    page = (tmp_path / "a.html").read_text()
    assert "<script" not in page and "&lt;script&gt;" in page
    assert "src=" not in page and "href=" not in page and "://" not in page
    assert "default-src 'none'" in page
    assert "ε" in page and "codecarbon is not installed" in page
    assert re.search(r'class="worse"><th scope="row">north', page)
    assert page.count("<svg") == 2
    assert "factor of 2,981" in page  # e^8


def test_a_report_of_a_run_without_rounds_or_privacy_says_so(kept: RunStore) -> None:
    kept.create_run("alpha", PLAN.replace(privacy={"epsilon": float("inf")}))
    page = report_html(kept, kept.run("alpha"))
    assert "NO PRIVACY" in page and "Nobody measured it" in page and "queued" in page


def test_of_sealed_sums_it_is_said_why_no_site_has_an_agreement(kept: RunStore) -> None:
    sealed = PLAN.replace(privacy={"trust": "sum", "honest_sites": 2})
    for run, plan in (("hidden", sealed), ("open", PLAN)):
        kept.create_run(run, plan)
        kept.begin(run, plan, [SiteRound("north", "ok", weight=100)], 1)
        page = report_html(kept, kept.run(run))
        shown = said("show", run)
        assert ("Agreement is sealed" in page) is (plan is sealed)
        assert ('<td class="n">sealed</td>' in page) is (plan is sealed)
        assert ("sums over sites alone" in shown) is (plan is sealed)
        assert kept.run(run).sealed is (plan is sealed)


def test_a_report_of_a_simulation_with_seeded_noise_says_that_it_is_not_private(
    kept: RunStore,
) -> None:
    for kind, warned in (("simulation", True), ("federation", False)):
        kept.create_run(kind, PLAN, kind=kind)  # type: ignore[arg-type]
        assert ("results are NOT private" in report_html(kept, kept.run(kind))) is warned


def test_thinning_keeps_ends_and_peaks() -> None:
    points = [(x, 0.0) for x in range(1000)]
    points[500] = (500, 9.0)
    points[777] = (777, -9.0)
    kept_points = thinned(points, 50)
    assert len(kept_points) == 50
    assert kept_points[0] == (0, 0.0) and kept_points[-1] == (999, 0.0)
    assert (500, 9.0) in kept_points and (777, -9.0) in kept_points
    assert thinned(points[:50], 50) == points[:50]


@pytest.mark.parametrize(
    "values", [[0.5, 0.5, 0.5], [1e-9, 2e-9], [1e12, -1e12], [0.0, 0.0], [float("nan"), 1.0, 2.0]]
)
def test_charts_draw_whatever_comes(values: list[float]) -> None:
    chart = line_chart({HOSTILE: list(enumerate(values))}, "a title")
    assert chart is not None
    assert "<script" not in chart and "nan" not in chart
