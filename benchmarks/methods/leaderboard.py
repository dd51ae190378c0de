"""The leaderboard: a page and a picture from the stored results, and what is missing from them."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grid import (
    EPSILONS,
    SEEDS,
    TRIAL_SEED,
    TUNED_AT,
    TUNED_ON,
    Method,
    anchor,
    datasets,
    methods,
    tests_of,
    trials_of,
)

if TYPE_CHECKING:
    from run import Book

SHOWN = sorted(EPSILONS)
KINDS = {"synchronised": "", "local": " (local)", "reference": " (reference)"}

Cells = dict[float, list[dict[str, Any]]]
"""ε -> the runs that were made with the chosen settings."""


def cells_of(book: Book, method: Method) -> Cells:
    """The finished test runs of a method; none at an ε whose trials are not all run."""
    found: Cells = {}
    for epsilon in SHOWN:
        chosen = book.chosen(method, epsilon)
        runs = [] if chosen is None else [book.of(run) for run in tests_of(method, epsilon, chosen)]
        found[epsilon] = [run for run in runs if run is not None]
    return found


def ranked(book: Book) -> list[tuple[Method, Cells]]:
    """Methods with any run that counts; the best at the ε that most methods share first,
    references last."""
    rows = [(method, cells_of(book, method)) for method in methods()]
    rows = [row for row in rows if any(row[1].values())]

    def place(row: tuple[Method, Cells]) -> tuple[bool, float]:
        return row[0].kind == "reference", -_mean(row[1][TUNED_AT])

    return sorted(rows, key=place)


def missing(book: Book) -> list[str]:
    """What the comparison calls for and has not been run: a line per ε for methods without a run,
    and one for seeds."""
    lines, fewest = [], len(SEEDS)
    for epsilon in EPSILONS:
        lacking = []
        for method in methods():
            if method.finite and math.isinf(epsilon):
                continue
            made = len(cells_of(book, method)[epsilon])
            fewest = min(fewest, made or fewest)
            if not made:
                lacking.append(method.title)
        if lacking:
            lines.append(f"ε = {_epsilon(epsilon)}: {', '.join(lacking)}")
    if fewest < len(SEEDS):
        lines.append(f"seeds: {fewest} of {len(SEEDS)}, at least of some")
    return lines


def chosen_of(book: Book) -> dict[str, Any]:
    """Method -> anchor ε -> its trials with their accuracy, and the one that was chosen."""
    found: dict[str, Any] = {}
    for method in methods():
        for epsilon in dict.fromkeys(map(anchor, EPSILONS)) if book.tunes else ():
            chosen = book.chosen(method, epsilon)
            if not method.trials or chosen is None:
                continue
            entries = [book.of(run) for run in trials_of(method, epsilon)]
            found.setdefault(method.name, {})[_plain(epsilon)] = {
                "trials": [
                    {"settings": settings, "value": entry["value"]}
                    for settings, entry in zip(method.trials, entries, strict=True)
                    if entry
                ],
                "chosen": chosen,
            }
    return found


def write(books: Sequence[Book], folder: Path) -> None:
    """Write leaderboard.md and, once there is something to draw, leaderboard.png."""
    drawn = [book for book in books if ranked(book)]
    lines = [
        "# Leaderboard",
        "",
        *(["![accuracy by method and ε](leaderboard.png)", ""] if drawn else []),
        "Made by `python benchmarks/methods/run.py` from `benchmarks/methods/results/`; "
        "`--page` writes it anew, and without it what is missing is run first, from where it "
        "stopped. A method is a file in `benchmarks/methods/configs/`.",
        "",
        "Accuracy on the test part in percent (of entities F1, by whole entities), mean of "
        f"{len(SEEDS)} seeds ± half the distance between the best and the worst, or as many "
        "seeds as are run so far; privacy is record-level DP at every site, δ = 1e-5, over the "
        "whole run. Nothing is trusted, but for sealed sums, which take all sites for honest, "
        "and the one trusted holder. Bytes are what one site sends in the whole run, at ε = 8 "
        "(or the smallest ε there is). Seconds are of one CPU thread for the whole simulated "
        "run, data and backbone warm, on a machine that had other work. The encoder computes in "
        "bfloat16 where the processor has units for it.",
        "",
        "*How settings were chosen.* Synchronised methods have the plan's defaults. Every local "
        "method has three trials (step sizes) on "
        f"{datasets()[TUNED_ON].title.lower()}, with seed {TRIAL_SEED} and scored on a fifth of "
        f"the training data that it did not train on, at ε = {TUNED_AT:g} and at ε = ∞. The best "
        f"at ε = {TUNED_AT:g} is used for every finite ε, on all data sets. Test data choose "
        "nothing. The trials and what they chose are in the results.",
        "",
        "*What is compared.* Synchronised methods send one noised sum a round, and the "
        "coordinator steps. Methods marked local take DP-SGD steps at the sites and average, all "
        "from the same warm start (class sums, 40% of the budget, where the task has them), with "
        "LoRA of rank 8 on the attention's four projections of all layers and the same rounds, "
        "steps and batch. The marked reference holds all records in one place.",
    ]
    for book in books:
        rows = ranked(book)
        if not rows:
            continue
        local = book.dataset.local
        lines += ["", f"## {book.dataset.title}", "", f"{book.dataset.what}.", ""]
        lines += [
            f"Synchronised methods: {book.dataset.settings['rounds.count']} rounds (the plan's "
            "default is 100, which gains most where LoRA is trained). "
            f"Local methods: the warm start and {local['rounds.count'] - 1} rounds of "
            f"{local['training.local_steps']} steps with an expected batch of "
            f"{local['training.expected_batch_size']} records at every site. Compared by "
            f"{book.dataset.metric} on {book.dataset.tests:,} records.",
            "",
        ]
        heads = ["method", *(f"ε = {_epsilon(e)}" for e in SHOWN), "sent by a site", "CPU seconds"]
        lines += [_row(heads), _row(["---"] + ["---:"] * (len(heads) - 1))]
        lines += [_row(_line(method, cells)) for method, cells in rows]
        federated = sum(method.kind != "reference" for method in methods())
        lines += ["", *_first(rows, book.dataset.tests, federated)]
        lines += ["", f"Made at {_commits(rows)}."]
        lacking = missing(book)
        if lacking:
            command = f"python benchmarks/methods/run.py --dataset {book.dataset.name}"
            lines += ["", f"Not run yet (`{command}` goes on):", ""]
            lines += [f"- {line}" for line in lacking]
    folder.mkdir(exist_ok=True)
    (folder / "leaderboard.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if drawn:
        _picture(folder / "leaderboard.png", drawn)


def _line(method: Method, cells: Cells) -> list[str]:
    made = cells[TUNED_AT] or next(runs for runs in cells.values() if runs)
    everything = [run for runs in cells.values() for run in runs]
    seconds = statistics.median(run["cpu_seconds"] for run in everything)
    return [
        f"{method.title}{KINDS[method.kind]}: {method.what}",
        *(_cell(cells[epsilon]) for epsilon in SHOWN),
        _bytes(statistics.fmean(run["bytes_up"] for run in made)),
        f"{seconds:.0f}",
    ]


def _first(rows: list[tuple[Method, Cells]], tests: int, federated: int) -> list[str]:
    """Who leads at each ε of those with most seeds, and how far from it our default is: a line
    each. ``federated``: how many methods there are that are no reference."""
    lines = []
    for epsilon in SHOWN:
        most = max((len(cells[epsilon]) for _, cells in rows), default=0)
        scores = [
            (method, _mean(cells[epsilon]))
            for method, cells in rows
            if method.kind != "reference" and 0 < len(cells[epsilon]) == most
        ]
        if scores:
            so_far = f" (of {len(scores)} methods run so far)" if len(scores) < federated else ""
            lines.append(f"- ε = {_epsilon(epsilon)}{so_far}: {_lead(scores, tests)}")
    return lines


def _lead(scores: list[tuple[Method, float]], tests: int) -> str:
    """Who of the federated methods is first at one ε, all equals, and how far behind it our default
    and the best method with local steps are."""
    top = max(score for _, score in scores)
    leaders = [method for method, score in scores if math.isclose(score, top, abs_tol=1e-9)]
    leaders.sort(key=lambda method: method.name != "default")
    names = " and ".join(method.title for method in leaders)
    parts = [f"{names} {'are' if len(leaders) > 1 else 'is'} first with {100 * top:.1f}%"]
    ours = [entry for entry in scores if entry[0].name == "default" and entry[0] not in leaders]
    if ours:
        parts.append(f"Lorica's default is {_behind(top, ours[0][1], tests)}")
    rivals = [entry for entry in scores if entry[0].kind == "local"]
    if rivals and all(method.kind != "local" for method in leaders):
        rival, score = max(rivals, key=lambda entry: entry[1])
        parts.append(f"{rival.title}, the best with local steps, is {_behind(top, score, tests)}")
    return "; ".join(parts) + "."


def _commits(rows: list[tuple[Method, Cells]]) -> str:
    """The commits that the page's runs were made at, those of most runs first."""
    runs = [run for _, cells in rows for made in cells.values() for run in made]
    count = Counter(run["commit"] for run in {run["key"]: run for run in runs}.values())
    return ", ".join(f"`{commit}` ({number} runs)" for commit, number in count.most_common())


def _behind(first: float, other: float, tests: int) -> str:
    """How far an accuracy is behind the first, and whether so many test records can tell: by two
    standard errors of the difference, as if each had records of its own."""
    error = math.sqrt((first * (1 - first) + other * (1 - other)) / tests)
    text = f"{100 * (first - other):.1f} points behind"
    if first - other > 2 * error:
        return text
    return (
        f"{text}, which {tests:,} test records cannot tell apart (standard error of a difference: "
        f"{100 * error:.1f} points)"
    )


def _picture(path: Path, books: list[Book]) -> None:
    from lorica.common.display.colours import INK
    from lorica.common.display.figures import new_figure
    from lorica.simulations.reports.figures import write_png
    from lorica.simulations.reports.plots import SITE_COLOURS

    tallest = max((len(ranked(book)) for book in books), default=1)
    with new_figure(5.2 * len(books), 1.6 + 0.3 * tallest) as figure:
        for number, book in enumerate(books):
            axes = figure.add_subplot(1, len(books), number + 1)
            rows = ranked(book)[::-1]
            for colour, epsilon in zip(SITE_COLOURS, SHOWN, strict=False):
                at = [i for i, (_, cells) in enumerate(rows) if cells[epsilon]]
                if not at:
                    continue
                scores = [100 * _mean(rows[i][1][epsilon]) for i in at]
                spreads = [100 * _spread(rows[i][1][epsilon]) for i in at]
                axes.errorbar(
                    scores,
                    at,
                    xerr=spreads,
                    fmt="o",
                    markersize=5,
                    color=colour,
                    capsize=2,
                    label=f"ε = {_epsilon(epsilon)}",
                )
            axes.set_yticks(range(len(rows)), [m.title + KINDS[m.kind] for m, _ in rows])
            axes.set_xlabel(f"{book.dataset.metric} of the test part, %")
            axes.set_title(book.dataset.title, color=INK)
            axes.grid(axis="x", alpha=0.3)
        shown = {text: mark for axes in figure.axes for mark, text in _legend(axes)}
        figure.legend(shown.values(), shown, loc="outside lower center", ncols=len(SHOWN))
        write_png(figure, path)


def _legend(axes: Any) -> list[tuple[Any, str]]:
    return list(zip(*axes.get_legend_handles_labels(), strict=True))


def _mean(runs: list[dict[str, Any]]) -> float:
    return statistics.fmean(run["value"] for run in runs) if runs else -1.0


def _spread(runs: list[dict[str, Any]]) -> float:
    found = [run["value"] for run in runs]
    return (max(found) - min(found)) / 2


def _cell(runs: list[dict[str, Any]]) -> str:
    if not runs:
        return "–"
    text = f"{100 * _mean(runs):.1f}"
    if len(runs) < len(SEEDS):
        return f"{text} ({len(runs)} seed{'s' * (len(runs) > 1)})"
    return f"{text} ± {100 * _spread(runs):.1f}"


def _bytes(count: float) -> str:
    return f"{count / 1e6:.2f} MB"


def _epsilon(value: float) -> str:
    return "∞" if math.isinf(value) else f"{value:g}"


def _plain(value: float) -> str:
    return "inf" if math.isinf(value) else f"{value:g}"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
