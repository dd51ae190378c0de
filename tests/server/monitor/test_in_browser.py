"""Every page in a real browser, while a real simulation runs and one of another's sites fails.

``make e2e-web`` runs this file and keeps its screenshots in docs/screens/; without LORICA_SCREENS
they go to the test's own folder. Skips, saying so, where there is no Chromium.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from lorica.server.monitor.access.accounts import Accounts
from lorica.server.store import RunStore
from tests.conftest import SMALL_WORDS, make_small_backbone
from tests.server.monitor.helpers import PASSWORDS, add_run

pytestmark = [pytest.mark.slow("a browser at a live run, minutes"), pytest.mark.web]
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
axe_module = pytest.importorskip("axe_playwright_python.sync_playwright")

CHROMIUM = Path(os.environ.get("LORICA_CHROMIUM", "/usr/bin/chromium"))
FLAGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
FLAGS += "--disable-component-update --disable-sync"
PATIENCE = 240.0  # seconds: the machine may be busy, and a model must be loaded
MANY = 3000  # rounds: more than there is time for before the run is stopped
DESKTOP, PHONE = (1280, 860), (390, 844)
BOTH = ["training.lora=never", "data.text=note", "data.label=department", "simulation.sites=4"]
LIVE = [*BOTH, f"rounds.count={MANY}", "rounds.evaluate_every=10"]
FAILING = [*BOTH, "rounds.count=16", "rounds.evaluate_every=4", "privacy.epsilon=3"]
TOPICS = {
    "cardiology": ["heart", "pulse", "pain"],
    "dermatology": ["skin", "rash", "red"],
    "pulmonology": ["cough", "lungs", "fever"],
}
LORICA = Path(sys.executable).with_name("lorica")


@dataclass
class Scene:
    """What plays: a store, a monitor, and processes that end with the test."""

    root: Path
    store: RunStore
    data: list[str] = field(default_factory=list)
    """Settings that name the backbone and the records."""
    url: str = ""
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, *command: str) -> subprocess.Popen[str]:
        """Start a process whose store is the scene's."""
        process = subprocess.Popen(
            command,
            env={**os.environ, "LORICA_STORE": str(self.root / "runs.sqlite")},
            stdout=(self.root / f"out-{len(self.processes)}").open("w"),
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self.root,
        )
        self.processes.append(process)
        return process

    def said(self) -> str:
        """The end of what all processes wrote, for messages of failed tests."""
        files = sorted(self.root.glob("out-*"))
        return "\n".join(f"{path.name}: {path.read_text()[-1500:]}" for path in files)

    def run(self, name: str) -> str:
        """The id of the run of this name, once it has begun."""
        return wait(lambda: self._run(name), f"the run {name}\n", self.said)

    def _run(self, name: str) -> str:
        found = [run for run in self.store.list_runs().items if run.name == name]
        return found[0].run_id if found and found[0].rounds_done > 0 else ""


def wait(ready: Any, what: str, said: Any = str) -> Any:
    """Wait until ``ready()`` is true, and return what it gives."""
    ends = time.monotonic() + PATIENCE
    while time.monotonic() < ends:
        if found := ready():
            return found
        time.sleep(0.2)
    raise AssertionError(f"{what} did not come within {PATIENCE:g} seconds. {said()}")


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """A monitor with two accounts, and `lorica simulate` under way."""
    if not CHROMIUM.exists():
        pytest.skip(f"there is no Chromium at {CHROMIUM}: apt-get install chromium")
    root = tmp_path_factory.mktemp("scene")
    store = RunStore.open(str(root / "runs.sqlite"))
    accounts = Accounts(store)
    accounts.add("olga", "operator", PASSWORDS["olga"])
    accounts.add("victor", "viewer", PASSWORDS["victor"])
    made = Scene(root, store)
    try:
        made.start(str(LORICA), "monitor", "--port", "0")
        made.data = small_data(root)
        settings = [part for value in [*LIVE, *made.data] for part in ("--set", value)]
        made.start(str(LORICA), "simulate", *settings, "--out", str(root / "live"))
        made.url = wait(lambda: _printed_url(root), "the monitor's address", made.said)
        yield made
    finally:
        for process in made.processes:
            process.terminate()
        for process in made.processes:
            process.wait(timeout=60)
        store.close()


def small_data(root: Path) -> list[str]:
    """A tiny backbone and six hundred notes that it can tell apart; the settings for both."""
    make_small_backbone(root / "backbone")
    dice, lines = random.Random(0), ["note,department"]
    for _ in range(600):
        topic = dice.choice(sorted(TOPICS))
        words = dice.choices(TOPICS[topic], k=3) + dice.choices(SMALL_WORDS, k=3)
        lines.append(f"{' '.join(words)},{topic}")
    (root / "notes.csv").write_text("\n".join(lines) + "\n")
    return [f"backbone.source={root / 'backbone'}", f"data.train={root / 'notes.csv'}"]


def _printed_url(root: Path) -> str:
    found = re.search(r"http://127\.0\.0\.1:\d+", (root / "out-0").read_text())
    return found.group(0) if found else ""


@pytest.fixture(scope="module")
def browser(scene: Scene) -> Iterator[Any]:
    """Chromium, without a window."""
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS.split())
        yield opened
        opened.close()


class Tab:
    """A page of a browser, and everything that its console complained about."""

    def __init__(
        self, browser: Any, scene: Scene, who: str, size: tuple[int, int], scheme: str
    ) -> None:
        width, height = size
        self.context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme=scheme,
            is_mobile=width < 600,
            has_touch=width < 600,
        )
        self.context.set_default_timeout(PATIENCE * 1000)
        self.page, self.url = self.context.new_page(), scene.url
        self.complaints: list[str] = []
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        if who:
            self.go("/login")
            self.page.get_by_label("Account").fill(who)
            self.page.get_by_label("Password").fill(PASSWORDS[who])
            with self.page.expect_navigation(url="**/runs", wait_until="load"):
                self.page.get_by_role("button", name="Sign in").click()

    def _heard(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(f"{message.text} at {message.location}")

    def go(self, path: str) -> Any:
        """Open a page of the monitor."""
        self.page.goto(self.url + path)
        return self.page


@pytest.fixture
def tab(browser: Any, scene: Scene) -> Iterator[Tab]:
    """The operator's desktop; no console may complain."""
    opened = Tab(browser, scene, "olga", DESKTOP, "light")
    yield opened
    opened.context.close()
    assert not opened.complaints


def rounds_shown(page: Any, place: str) -> int:
    """The number of rounds that a place of a page shows."""
    found = re.search(rf"(\d+) of {MANY}", page.locator(place).inner_text())
    return int(found.group(1)) if found else -1


def moves(page: Any, place: str) -> bool:
    """Whether the rounds shown go up on a page that is not loaded again."""
    page.evaluate("window.stays = true")
    before = rounds_shown(page, place)
    wait(lambda: rounds_shown(page, place) > before >= 0, f"a round more in {place}")
    return bool(page.evaluate("window.stays === true"))


def test_the_list_of_runs_moves_without_reload(tab: Tab, scene: Scene) -> None:
    run = scene.run("live")
    assert moves(tab.go("/runs"), f'tr[data-run="{run}"]')


def test_a_run_moves_without_reload_in_figures_curves_and_grid(tab: Tab, scene: Scene) -> None:
    page = tab.go(f"/runs/{scene.run('live')}")
    page.wait_for_selector('[data-chart="score"] canvas')
    page.wait_for_selector("table.grid td.ok")
    chart = page.locator('[data-chart="score"] [data-plot]')
    told, cells = chart.get_attribute("aria-label"), page.locator("table.grid td.cell").count()
    assert moves(page, '[data-live="status"]')
    wait(lambda: chart.get_attribute("aria-label") != told, "a point more in the curve")
    wait(lambda: page.locator("table.grid td.cell").count() > cells, "a column more in the grid")


def test_the_map_of_sites_is_drawn_once_the_class_sums_are_in(tab: Tab, scene: Scene) -> None:
    """Within the page's own policy: with the names of all four sites, and a table of the same."""
    page = tab.go(f"/runs/{scene.run('live')}")
    together = page.locator("#together")
    wait(lambda: together.locator(".map svg circle").count() == 4, "the map", scene.said)
    names = together.locator(".map svg text").all_text_contents()
    assert sorted(names) == [f"site-0{number}" for number in range(4)]
    assert "Most alike are" in together.inner_text()
    box, dot = (together.locator(what).first.bounding_box() for what in (".map svg", "circle"))
    assert box and dot and box["width"] > 300 and box["x"] < dot["x"] < box["x"] + box["width"]
    together.locator("summary").click()
    assert together.locator("tbody tr").count() == 4


def test_curves_and_grid_are_read_by_keys(tab: Tab, scene: Scene) -> None:
    page = tab.go(f"/runs/{scene.run('live')}")
    page.wait_for_selector('[data-chart="score"] canvas')
    page.wait_for_selector("table.grid td.ok")
    page.focus('[data-chart="score"] [data-plot]')
    page.keyboard.press("Home")
    assert page.locator('[data-chart="score"] .readout b').inner_text() == "round 0"
    page.focus("[data-grid]")
    for key in ("ArrowDown", "Home", "ArrowDown"):
        page.keyboard.press(key)
    said = page.locator("[data-grid-said]")
    wait(lambda: "round 1: ok" in said.inner_text(), "the cell's words")
    page.locator('[data-chart="score"] [data-as-table]').click()
    table = page.locator('[data-chart="score"] [data-table]')
    assert "%" in table.inner_text()
    page.goto(page.url)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"


def test_a_viewer_sees_everything_but_the_button(browser: Any, scene: Scene) -> None:
    tab = Tab(browser, scene, "victor", DESKTOP, "light")
    page = tab.go(f"/runs/{scene.run('live')}")
    assert page.get_by_role("button", name="Stop").count() == 0
    assert page.get_by_role("link", name="Audit log").count() == 0
    tab.context.close()
    assert not tab.complaints


def test_stop_stops(tab: Tab, scene: Scene) -> None:
    run = scene.run("live")
    page = tab.go(f"/runs/{run}")
    page.get_by_role("button", name="Stop", exact=True).click()
    page.get_by_role("button", name="Keep it running").click()
    page.get_by_role("button", name="Stop", exact=True).click()
    page.get_by_role("button", name="Stop the run").click()
    page.wait_for_selector(
        '[data-live="status"] .pill.stopping, [data-live="status"] .pill.stopped'
    )
    page.evaluate("window.stays = true")
    page.wait_for_selector('[data-live="status"] .pill.stopped')
    assert page.evaluate("window.stays === true")
    assert page.get_by_role("button", name="Stop", exact=True).count() == 0
    process = scene.processes[1]
    process.wait(timeout=PATIENCE)
    kept = scene.store.run(run)
    assert kept.status == "stopped" and 0 < kept.rounds_done < MANY
    assert kept.stop_requested_by == "olga"
    assert "run stopped" in tab.go("/audit").inner_text("main")


def test_a_failing_site_turns_up_as_an_alert(tab: Tab, scene: Scene) -> None:
    page = tab.go("/alerts")
    page.evaluate("window.stays = true")
    assert page.locator(".alert-list li").count() == 0
    out, script = str(scene.root / "failing"), str(Path(__file__).with_name("failing_site.py"))
    scene.start(sys.executable, script, out, "5", *FAILING, *scene.data)
    scene.run("failing")
    wait(lambda: page.locator(".alert-list li").count(), "the alert", scene.said)
    assert page.evaluate("window.stays === true")
    text = page.locator(".alert-list").inner_text()
    assert "site-03" in text and "LOR-901" in text
    assert "disk" not in text  # what the exception said stays at the site
    badge = page.locator("[data-alert-count]")
    wait(lambda: badge.is_visible() and int(badge.inner_text().split()[0]) > 0, "the badge")
    page = tab.go(f"/runs/{scene.run('failing')}")
    page.wait_for_selector("table.grid td.refused, table.grid td.failed")
    assert "site-03" in page.locator("[data-log]").inner_text()


def test_compare_compares(tab: Tab, scene: Scene) -> None:
    wait(lambda: scene.store.run(scene.run("failing")).status == "finished", "its end", scene.said)
    page = tab.go("/runs")
    for run in (scene.run("live"), scene.run("failing")):
        page.locator(f'input[value="{run}"]').check()
    page.get_by_role("button", name="Compare 2").click()
    page.wait_for_selector('[data-chart="score"] canvas')
    said = page.locator('[data-chart="score"] [data-plot]').get_attribute("aria-label")
    assert "live" in said and "failing" in said
    row = page.locator("tr", has_text="privacy.epsilon")
    titles = row.locator("xpath=ancestor::table").locator("thead th").all_inner_texts()[1:]
    budgets = re.findall(r"\d+", row.inner_text())
    assert dict(zip(map(str.strip, titles), budgets, strict=True)) == {"live": "8", "failing": "3"}
    assert page.locator("tr", has_text="training.lora").count() == 0  # the same in both


def test_files_are_fetched_and_reports_shown(tab: Tab, scene: Scene) -> None:
    page = tab.go(f"/runs/{scene.run('failing')}")
    with page.expect_download() as caught:
        page.locator("#files a", has_text="summary.json").first.click()
    summary = json.loads(Path(caught.value.path()).read_text())
    assert summary["plan_fingerprint"] == scene.store.run(scene.run("failing")).fingerprint
    page.get_by_role("link", name="Report", exact=True).click()
    page.wait_for_load_state()
    assert "ε" in page.inner_text("body")


PLACES = {
    "login": "/login",
    "runs": "/runs",
    "run": "/runs/{live}",
    "run-with-failing-site": "/runs/{failing}",
    "compare": "/compare?run={live}&run={failing}",
    "sites": "/sites?virtual=1",
    "site": "/site?name=site-03&virtual=1",
    "alerts": "/alerts",
    "audit": "/audit",
    "account": "/account",
    "api": "/api/docs",
    "not-found": "/runs/none",
}


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_is_accessible_fits_and_is_kept_as_a_picture(
    browser: Any, scene: Scene, scheme: str, size: tuple[int, int]
) -> None:
    names = {name: scene.run(name) for name in ("live", "failing")}
    tab = Tab(browser, scene, "olga", size, scheme)
    width = "phone" if size == PHONE else "desktop"
    faults = []
    for name, place in PLACES.items():
        if name == "login":
            other = Tab(browser, scene, "", size, scheme)
            page = other.go(place)
        else:
            page = tab.go(place.format(**names))
        page.wait_for_load_state()
        if name.startswith(("run-", "compare")) or name == "run":
            page.wait_for_selector('[data-chart="score"] canvas')
        page.wait_for_timeout(400)
        faults += _faults(page, f"{name} {width} {scheme}")
        if scheme == "light" or name in ("run", "runs"):
            dark = "-dark" if scheme == "dark" else ""
            _keep(page, scene, f"{name}-{width}{dark}")
    tab.context.close()
    assert not faults
    assert [c for c in tab.complaints if "404" not in c] == []  # the page that is not there


def test_empty_rooms_say_what_to_do_next(browser: Any, scene: Scene, tmp_path: Path) -> None:
    empty = Scene(tmp_path, RunStore.open(str(tmp_path / "runs.sqlite")))
    monitor = empty.start(str(LORICA), "monitor", "--port", "0")
    try:
        wait(lambda: "key=" in (tmp_path / "out-0").read_text(), "the link", empty.said)
        link = re.search(r"http\S+key=\S+", (tmp_path / "out-0").read_text())
        assert link is not None
        empty.url = link.group(0).partition("/open")[0]
        tab = Tab(browser, empty, "", DESKTOP, "light")
        page = tab.page
        page.goto(link.group(0))
        assert "lorica demo" in page.inner_text("main")
        _keep(page, scene, "empty-desktop")
        faults = _faults(page, "empty runs")
        page.evaluate("window.stays = true")
        for place in ("/sites", "/alerts", "/compare", "/account"):
            faults += _faults(tab.go(place), f"empty {place}")
        page = tab.go("/runs")
        add_run(empty.store, name="the first")  # comes in by itself
        page.wait_for_selector('tr[data-run="run-1"]')
        assert not faults and not tab.complaints
        tab.context.close()
    finally:
        monitor.terminate()
        monitor.wait(timeout=60)
        empty.store.close()


def _faults(page: Any, where: str) -> list[str]:
    """Serious and critical faults that axe-core finds, and whatever sticks out of the window."""
    found = axe_module.Axe().run(page).response["violations"]
    faults = [
        f"{where}: {fault['id']} at {[node['target'] for node in fault['nodes']][:3]}"
        for fault in found
        if fault["impact"] in ("serious", "critical")
    ]
    wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    if (over := page.evaluate(wide)) > 0:
        faults.append(f"{where}: {over} pixels too wide")
    return faults


def _keep(page: Any, scene: Scene, name: str) -> None:
    """A picture of the page's first screens, small enough for a repository."""
    from io import BytesIO

    from PIL import Image

    folder = Path(os.environ.get("LORICA_SCREENS", scene.root / "screens"))
    folder.mkdir(parents=True, exist_ok=True)
    picture = Image.open(BytesIO(page.screenshot(full_page=True)))
    tall = 1900 if picture.width > 600 else 1700
    picture = picture.crop((0, 0, picture.width, min(picture.height, tall))).convert("RGB")
    small = picture.quantize(128, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    small.save(folder / f"{name}.png", optimize=True)
    assert (folder / f"{name}.png").stat().st_size < 150_000
