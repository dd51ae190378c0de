"""``lorica evaluate``: how good an adapter is on records whose answers are known."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from lorica.common.cli.options import AdapterArgument, BackboneOption
from lorica.common.display.console import Console
from lorica.common.errors import Code, LoricaError

if TYPE_CHECKING:
    from lorica.common.saved.given import Given


def evaluate(
    adapter: AdapterArgument,
    file: Annotated[
        Path,
        typer.Option(
            "--file", "-f", help="Records with their right answers: whatever training takes."
        ),
    ],
    text: Annotated[str, typer.Option(help="Column of the text; the plan's if empty.")] = "",
    label: Annotated[
        str | None, typer.Option(help="Column of the right answers; the plan's if left out.")
    ] = None,
    by: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help="Figures for each value of a column; repeatable."),
    ] = None,
    unit: Annotated[
        str,
        typer.Option(
            help="Column that says which records belong together (a patient's notes): they are "
            "drawn together, or intervals would be too narrow."
        ),
    ] = "",
    recall: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LABEL=SHARE",
            help="The threshold that finds this share of a label; repeatable.",
        ),
    ] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LABEL=SHARE",
            help="The threshold from which this share of a label's answers is right; repeatable.",
        ),
    ] = None,
    draws: Annotated[int, typer.Option(min=0, help="Bootstrap draws for the intervals.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the draws and the temperature's split.")] = 0,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for evaluation.html and .json.")
    ] = None,
    backbone: BackboneOption = "",
) -> None:
    """Judge an adapter: metrics with intervals, groups, calibration, thresholds, abstention.

    For tasks that choose one label. Nothing leaves this machine.
    """
    from dataclasses import replace

    from lorica.common.saved.given import read_given
    from lorica.common.saved.predict import Predictor, columns_of
    from lorica.common.saved.quality.answers import answers
    from lorica.common.saved.quality.choices import threshold_for
    from lorica.common.saved.quality.judged import judge, write_judged
    from lorica.common.saved.quality.page import print_judged, write_page
    from lorica.common.tasks.predictions import ClassPrediction

    console = Console()
    predictor = Predictor(adapter, backbone)
    given = read_given(file, predictor.plan, text=text, label=label)
    if given.labels is None:
        raise LoricaError(
            Code.DATA_COLUMN,
            f"{file} has no column '{label or predictor.plan.data.label}' with the right answers.",
            mend="Name it with --label.",
        )
    rows = [row for row in given.read if given.labels[row]]
    left = len(given.rows) - len(rows)
    with console.status("reading the records"):
        beside = columns_of([given.rows[row] for row in rows], predictor.columns, str(file))
        images = [given.images[row] for row in rows] if given.images is not None else None
        found = predictor([given.texts[row] for row in rows], beside, images)
    classes = [item for item in found if isinstance(item, ClassPrediction)]
    if len(classes) != len(found):
        raise LoricaError(
            Code.PLAN_BAD_VALUE,
            f"The adapter's task is {predictor.plan.task.kind}: `lorica evaluate` judges tasks "
            "that choose one label.",
            mend="`lorica predict --file` prints this task's score beside its predictions.",
        )
    judged_on = answers(
        predictor.plan.task.labels,
        [item.probabilities for item in classes],
        [given.labels[row] for row in rows],
    )
    with console.status("drawing intervals"):
        judged = judge(
            judged_on,
            groups={name: _column(given, rows, name, file) for name in by or []},
            units=_column(given, rows, unit, file) if unit else None,
            draws=draws,
            seed=seed,
        )
    wanted = [
        threshold_for(judged_on, *_wanted(item, "recall"))  # type: ignore[arg-type]
        for item in recall or []
    ] + [
        threshold_for(judged_on, *_wanted(item, "precision"))  # type: ignore[arg-type]
        for item in precision or []
    ]
    judged = replace(judged, thresholds=wanted)
    print_judged(judged, console)
    if left:
        console.print(
            Text(f"{left} rows without a text or an answer were left out."), style="yellow"
        )
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_judged(out / "evaluation.json", judged)
        write_page(out / "evaluation.html", judged, adapter=str(adapter), data=str(file))
        console.print(Text(f"Wrote {out / 'evaluation.html'} and evaluation.json."))


def _column(given: Given, rows: list[int], name: str, file: Path) -> list[str]:
    if not given.rows or name not in given.rows[0]:
        has = ", ".join(given.rows[0]) if given.rows else "none"
        raise LoricaError(
            Code.DATA_COLUMN, f"{file} has no column '{name}'; its columns are: {has}."
        )
    return [given.rows[row][name] for row in rows]


def _wanted(setting: str, kind: str) -> tuple[str, str, float]:
    name, equals, share = setting.rpartition("=")
    try:
        if not equals:
            raise ValueError
        return name, kind, float(share)
    except ValueError:
        raise typer.BadParameter(f"--{kind} takes LABEL=SHARE, got {setting!r}.") from None
