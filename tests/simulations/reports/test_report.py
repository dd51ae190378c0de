"""The report, the plots and the closing tables."""

from __future__ import annotations

import dataclasses
import io
import math
import re
import time
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.console import Console
from rich.table import Table

from lorica.common.display.wording import duration, human_bytes
from lorica.common.plan import RunPlan
from lorica.server.results.round import RoundRecord, SiteRound
from lorica.simulations.reports import plots
from lorica.simulations.reports.picture import picture
from lorica.simulations.reports.report import problems, span, write_report
from lorica.simulations.reports.tables import (
    closing_table,
    comparison_rows,
    comparison_table,
    cut_text,
)

HOSTILE = "<script>alert('x')</script>"
REASON = "LOR-504: no answer within 60 seconds"
VOID = {"meta", "link", "br", "img", "hr", "input"}

Case = tuple[RunPlan, list[RoundRecord], dict[str, Any]]


def case(
    *, sites: int = 4, labels: int = 8, rounds: int = 3, epsilon: float = 8.0, bare: bool = False
) -> Case:
    """A made-up run; ``bare`` leaves out the optional baselines. One site's and one label's name
    are hostile, and the last site is late in every round but the first."""
    names = [HOSTILE, *(f"site-{index:02}" for index in range(1, sites))]
    label_names = [f"{HOSTILE} $\\frac{{", *(f"label {index}" for index in range(1, labels))]
    plan = RunPlan().replace(
        task={"labels": label_names},
        privacy={"epsilon": epsilon},
        training={"lora_rounds": 1},
        rounds={"count": rounds},
        simulation={"sites": sites},
    )
    records = [RoundRecord(0, accuracy=0.1, macro_f1=0.1, loss=2.0)]
    for number in range(1, rounds + 1):
        answers = [SiteRound(name, "ok", "", 100, 1.0, 500, 0.1) for name in names]
        if number > 1:
            answers[-1] = SiteRound(names[-1], "late", REASON)
        accuracy = 0.1 + 0.7 * number / rounds
        records.append(
            RoundRecord(
                number,
                answers,
                accuracy=accuracy,
                macro_f1=accuracy,
                loss=1.0,
                bytes_up=500 * sites,
                bytes_down=600 * sites,
                seconds=0.5,
            )
        )
    spent = [epsilon if math.isinf(epsilon) else epsilon * (i + 1) / rounds for i in range(rounds)]
    shown = [str(value) if math.isinf(value) else value for value in spent]
    alone = {name: 0.4 + 0.01 * index for index, name in enumerate(names)}
    baselines: dict[str, Any] = {"zero_shot": 0.3}
    if not bare:
        mean = sum(alone.values()) / sites
        baselines |= {"alone": alone, "alone_mean": mean, "pooled_without_privacy": 0.93}
    privacy = {
        "noise_multiplier": 0.8,
        "sample_rate": 0.1,
        "steps": 4 * rounds,
        "delta": 1e-5,
        "records": 1000,
        "epsilon_by_round": shown,
    }
    counts = {label: index for index, label in enumerate(label_names)}
    summary = {
        "accuracy": 0.8,
        "macro_f1": 0.79,
        "loss": 0.7,
        "baselines": baselines,
        "epsilon": dict.fromkeys(names, shown[-1]),
        "privacy": dict.fromkeys(names, privacy),
        "bytes_up_per_round": 500 * sites,
        "bytes_down_per_round": 600 * sites,
        "seconds": 12.3,
        "peak_rss_bytes": 900_000_000,
        "seed": 0,
        "noise": "seeded",
        "method": "fedsvd",
        "run": f"run {HOSTILE}",
        "versions": {"lorica": "0.1.0", "torch": "2.9"},
        "plan_fingerprint": plan.fingerprint,
        "label_counts": dict.fromkeys(names, counts),
    }
    return plan, records, summary


def page(tmp_path: Path, made: Case) -> str:
    """The report of a case."""
    plan, records, summary = made
    write_report(tmp_path / "report.html", plan, records, summary)
    return (tmp_path / "report.html").read_text(encoding="utf-8")


class Parsed(HTMLParser):
    """A page's tags, ids, text, and table rows by the table's class; checks the nesting."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.rows: dict[str, int] = {}
        self._open: list[str] = []
        self._table = ""
        self._in_body = False
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self._table = dict(attrs).get("class") or ""
            self.rows[self._table] = 0
        self._in_body = tag == "tbody" or (self._in_body and tag != "table")
        if tag == "tr" and self._in_body:
            self.rows[self._table] += 1
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_names_are_shown_and_never_become_markup(tmp_path: Path) -> None:
    html = page(tmp_path, case())
    parsed = Parsed(html)
    assert "script" not in {tag for tag, _ in parsed.tags}
    assert not any(name.startswith("on") for _, attributes in parsed.tags for name in attributes)
    assert parsed.text.count(HOSTILE) >= 4  # comparison, sites, plan, plots
    svg = html[html.index('id="labels-figure_1"') : html.index('<h2 id="problems"')]
    assert "&lt;script&gt;" in svg and "$\\f" in svg


def test_page_needs_nothing_but_itself(tmp_path: Path) -> None:
    html = page(tmp_path, case())
    for _, attributes in Parsed(html).tags:
        for name in ("src", "href", "xlink:href", "action", "data", "srcset", "poster"):
            assert (attributes.get(name) or "#").startswith("#")
    assert "@import" not in html and not re.search(r"url\((?!#)", html)
    assert "default-src 'none'" in html


def test_ids_are_unique_and_references_meet_them(tmp_path: Path) -> None:
    html = page(tmp_path, case())
    ids = [attributes["id"] for _, attributes in Parsed(html).tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = re.findall(r'(?:href="#|url\(#|labelledby=")([^")]+)', html)
    assert used and set(used) <= set(ids)


def test_all_sections_are_present(tmp_path: Path) -> None:
    plan, records, summary = case()
    parsed = Parsed(page(tmp_path, (plan, records, summary)))
    headings = {attributes.get("id") for tag, attributes in parsed.tags if tag == "h2"}
    assert headings == {"comparison", "plots", "sites", "problems", "reproduce"}
    assert sum(tag == "svg" for tag, _ in parsed.tags) == 3
    for part in ("80.0%", "NOT private", plan.fingerprint, "torch 2.9", "[aggregation]", REASON):
        assert part in parsed.text


def test_tables_have_a_row_for_each_thing(tmp_path: Path) -> None:
    parsed = Parsed(page(tmp_path, case(rounds=5)))
    assert parsed.rows == {"comparison": 8, "rounds": 6, "sites": 4, "problems": 1}
    assert parsed.text.count("2–5") == 1
    headers = [attributes for tag, attributes in parsed.tags if tag == "th"]
    assert headers and all(attributes.get("scope") in ("col", "row") for attributes in headers)
    assert sum(tag == "caption" for tag, _ in parsed.tags) == 4


def test_absent_baselines_are_left_out(tmp_path: Path) -> None:
    made = case(bare=True)
    assert Parsed(page(tmp_path, made)).rows["comparison"] == 2
    made[2]["baselines"] = {"alone_mean": 0.4}
    assert Parsed(page(tmp_path, made)).rows["comparison"] == 2
    del made[2]["baselines"]
    assert Parsed(page(tmp_path, made)).rows["comparison"] == 1


def test_infinite_epsilon_is_loud(tmp_path: Path) -> None:
    parsed = Parsed(page(tmp_path, case(epsilon=math.inf)))
    assert "NO PRIVACY (ε = ∞)" in parsed.text
    assert sum(tag == "svg" for tag, _ in parsed.tags) == 2


@pytest.mark.parametrize(("sites", "labels", "rounds"), [(1, 2, 1), (10, 77, 2), (60, 3, 2)])
def test_report_and_picture_work_at_any_size(
    tmp_path: Path, sites: int, labels: int, rounds: int
) -> None:
    plan, records, summary = case(sites=sites, labels=labels, rounds=rounds)
    assert Parsed(page(tmp_path, (plan, records, summary))).rows["sites"] == sites
    picture(summary, records, tmp_path / "picture.png", budget=plan.privacy.epsilon)
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_run_without_evaluation_has_a_report(tmp_path: Path) -> None:
    plan, records, summary = case(bare=True)
    records = [RoundRecord(record.round, record.sites) for record in records]
    parsed = Parsed(page(tmp_path, (plan, records, summary | {"accuracy": None})))
    assert "held no test data" in parsed.text


def test_sites_that_never_took_part_are_named(tmp_path: Path) -> None:
    made = case()
    made[2]["label_counts"]["site-99"] = {"label 1": 3}
    assert "took part in no round: site-99." in Parsed(page(tmp_path, made)).text


def test_svgs_are_the_same_bytes_twice_and_are_xml() -> None:
    plan, records, summary = case()
    made = [
        (
            plots.score_svg(summary, records),
            plots.epsilon_svg(summary, plan.privacy.epsilon),
            plots.labels_svg(summary),
        )
        for _ in range(2)
    ]
    assert made[0] == made[1]
    for svg in made[0]:
        assert svg is not None and ElementTree.fromstring(svg).get("role") == "img"


def test_plots_without_figures_are_none() -> None:
    assert plots.score_svg({}, []) is None
    assert plots.epsilon_svg({}, 8.0) is None
    assert plots.labels_svg({}) is None


def test_problems_gather_the_rounds_of_a_reason() -> None:
    _, records, _ = case(rounds=4)
    (problem,) = problems(records)
    assert (problem.site, problem.status, problem.rounds) == ("site-03", "late", [2, 3, 4])
    assert span([1, 2, 3, 5, 7, 8]) == "1–3, 5, 7–8"


def other_task(made: Case, headline: str, metrics: dict[str, float]) -> Case:
    """The case as a run of a task whose headline is another metric; no accuracy anywhere."""
    plan, records, summary = made
    records = [
        dataclasses.replace(
            record,
            metrics=metrics | {headline: metrics[headline] - 0.1 * (len(records) - number)},
            headline=headline,
            accuracy=None,
            macro_f1=None,
            loss=metrics["loss"],
        )
        for number, record in enumerate(records, 1)
    ]
    score = {"headline": headline, "score": metrics[headline], "metrics": metrics}
    return plan, records, summary | score | {"accuracy": None, "macro_f1": None}


def words_of(html: str) -> str:
    """What a page says before the plan, with a space between cells."""
    body = html[html.index("<body>") : html.index("<summary>The plan, whole")]
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", body)))


REGRESSION = {"r2": 0.4321, "mse": 12.0, "mae": 2.5, "loss": 0.25}
LANGUAGE = {"accuracy": 0.61, "exact_match": 0.25, "perplexity": 7.5, "loss": 2.0}


def test_a_regressions_report_shows_its_own_metric_and_no_accuracy(tmp_path: Path) -> None:
    """R² is no share: figures, changes and axes are not in percent, and it may lie below 0."""
    made = other_task(case(), "r2", REGRESSION)
    made[2]["baselines"] |= {"zero_shot": -0.25}
    made[2]["baselines"]["alone"] = dict.fromkeys(made[2]["baselines"]["alone"], -0.125)
    made[2]["baselines"] |= {"alone_mean": -0.125}
    html = page(tmp_path, made)
    parsed = Parsed(html)
    words = words_of(html)
    assert "ccuracy" not in words and "43.2%" not in words
    for part in ("R² 0.432", "squared error 12.000", "absolute error", "R² by round", "R² alone"):
        assert part in words, part
    assert "0.682 better than zero-shot" in words  # 0.4321 + 0.25
    assert "R² on the test data" in words  # the plot's axis
    assert "width: -" not in html
    assert parsed.rows["rounds"] == len(made[1])
    plan, records, summary = made
    picture(summary, records, tmp_path / "picture.png", budget=plan.privacy.epsilon)
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    text = text_of(comparison_table(summary))
    assert "R²" in text and "0.432" in text and "-0.250" in text and "accuracy" not in text


def test_a_language_models_report_shows_perplexity_beside_its_accuracy(tmp_path: Path) -> None:
    made = other_task(case(bare=True), "accuracy", LANGUAGE)
    words = words_of(page(tmp_path, made))
    assert "61.0%" in words and "exact match 25.0%" in words
    assert "perplexity" in words and "7.500" in words and "macro" not in words


def test_entities_are_compared_by_their_f1(tmp_path: Path) -> None:
    found = {"entity_f1": 0.5, "precision": 0.6, "recall": 0.43, "accuracy": 0.99, "loss": 0.3}
    made = other_task(case(), "entity_f1", found)
    words = words_of(page(tmp_path, made))
    assert "entity F1 50.0%" in words and "Entity F1 by round" in words
    assert "entity F1 alone" in words


def text_of(table: Table) -> str:
    """A rich table as text."""
    console = Console(file=io.StringIO(), width=120)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_comparison_table_goes_from_no_data_to_all_data() -> None:
    _, _, summary = case()
    kinds = [row.kind for row in comparison_rows(summary)]
    assert kinds == ["zero-shot", "alone", *["site"] * 4, "federation", "pooled"]
    text = text_of(comparison_table(summary))
    assert HOSTILE in text and "40.0% – 43.0%" in text and "▶ the federation" in text
    many = case(sites=9)[2]
    assert "site" not in {row.kind for row in comparison_rows(many)}


def test_closing_table_says_what_the_noise_is_worth() -> None:
    _, _, summary = case()
    text = text_of(closing_table(summary, Path("runs/demo")))
    for part in ("NOT private", "2.0 kB", "12.3 s", "900 MB", "runs/demo"):
        assert part in text
    assert "NOT private" not in text_of(closing_table(summary | {"noise": "secure"}, Path("x")))
    loud = case(epsilon=math.inf)[2]
    assert "NO PRIVACY (ε = ∞)" in text_of(closing_table(loud, Path("x")))


def test_units_are_human() -> None:
    assert [human_bytes(n) for n in (0, 999, 1234, 99_960, 2_500_000)] == [
        "0 B", "999 B", "1.2 kB", "100 kB", "2.5 MB",
    ]  # fmt: skip
    assert [duration(s) for s in (0.04, 59.97, 75, 7385)] == [
        "0.0 s", "1:00 min", "1:15 min", "2:03:05 h",
    ]  # fmt: skip


def test_a_simulations_tables_say_it() -> None:
    assert cut_text({}) == "" == cut_text({"cut_texts": {"share": 0.0}})
    said = cut_text({"cut_texts": {"share": 0.311, "max_length": 128, "kept": "beginning"}})
    assert "32 %" in said and "128 tokens" in said and "beginning" in said
    made_for = {"share": 0.1, "max_length": 128, "promised": 256, "kept": "end"}
    assert "made for up to 256 tokens" in cut_text({"cut_texts": made_for})
    beyond = cut_text({"cut_texts": {"max_length": 128, "promised": 64, "beyond": 0.005}})
    assert "1 %" in beyond and "64 tokens" in beyond and "training.max_length=64" in beyond


def test_the_time_a_report_takes_grows_with_the_sites_and_no_faster(tmp_path: Path) -> None:
    """Four times the sites take at most eight times as long; sites against sites took sixteen."""

    def seconds(sites: int) -> float:
        made = case(sites=sites, bare=True, rounds=1)
        begun = time.process_time()
        page(tmp_path, made)
        return time.process_time() - begun

    seconds(10)
    assert seconds(4000) < 8 * seconds(1000)
