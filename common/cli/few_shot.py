"""``lorica few-shot``: an adapter from a handful of labelled texts, without a federation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from lorica.common.cli.options import PlanArgument, SetOption
from lorica.common.display.console import Console

if TYPE_CHECKING:  # loads torch
    from lorica.common.saved.pseudo_labels import PseudoLabelled


def few_shot(
    out: Annotated[Path, typer.Option("--out", "-o", help="The adapter's folder, a new one.")],
    plan: PlanArgument = None,
    file: Annotated[
        Path | None,
        typer.Option("--file", "-f", help="Labelled records; the plan's data.train if left out."),
    ] = None,
    shots: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Records of each label, chosen by --seed; 0: none, labels' names and "
            "task.descriptions alone. All if left out.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the choice.")] = 0,
    unlabelled: Annotated[
        Path | None,
        typer.Option(
            help="Records without labels, to be used where the adapter is sure of their label."
        ),
    ] = None,
    threshold: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="How sure, for --unlabelled: a probability.")
    ] = 0.7,
    check: Annotated[
        Path | None,
        typer.Option(
            help="Further labelled records, by which it is judged whether the unlabelled ones help."
        ),
    ] = None,
    settings: SetOption = None,
) -> None:
    """Make an adapter of k records a label: their mean features, blended with the labels' meaning.

    It has no differential privacy where there are records: it stays where they may stay.
    Unlabelled records can help where little else is known, and harm where more is: give --check.
    """
    from lorica.common.data.records import read_records
    from lorica.common.plan.io import load_plan
    from lorica.common.saved.exported.written import require_new
    from lorica.common.saved.few_shot import few_shot as made_of
    from lorica.common.saved.folder import save_adapter
    from lorica.common.saved.given import read_given
    from lorica.common.saved.pseudo_labels import pseudo_labelled

    console = Console()
    require_new(out)
    if check is not None and unlabelled is None:
        raise typer.BadParameter("--check judges what --unlabelled does: give both.")
    wanted = load_plan(plan, settings or [])
    records = read_records(str(file) if file else wanted.data.train, wanted.columns)
    with console.status("reading the records"):
        made = made_of(wanted, records, shots, seed)
        pseudo = None
        state, own = made.state, made.plan
        if unlabelled is not None:
            given = read_given(unlabelled, wanted, label="")
            judged = read_records(str(check), wanted.columns) if check else None
            texts = [given.texts[row] for row in given.read]
            pseudo = pseudo_labelled(made, texts, threshold, judged, records.texts)
            state, own = pseudo.state, pseudo.plan
        save_adapter(out, state, own, made.backbone)
    console.print(Text(f"Wrote {out}: {_what(made.records, made.shots)}."), soft_wrap=True)
    if made.left_out is not None:
        console.print(
            Text(
                f"A label's name or description counts as {made.worth:g} records; of the records, "
                f"each left out of its own prototype, {made.left_out:.1%} are told rightly."
            ),
            soft_wrap=True,
        )
        console.print(
            Text("It has no differential privacy: it tells of the records it was made of."),
            style="yellow",
            soft_wrap=True,
        )
    elif not made.plan.privacy.private:
        console.print(
            Text("Its labels are those of the records: name them in task.labels, if all may know."),
            style="yellow",
            soft_wrap=True,
        )
    if pseudo is not None:
        for line, style in _said(pseudo, threshold, private=made.plan.privacy.private):
            console.print(Text(line), style=style, soft_wrap=True)
    if made.records and made.without:
        console.print(Text(f"By their meaning alone: {', '.join(made.without)}."), soft_wrap=True)


def _said(pseudo: PseudoLabelled, threshold: float, *, private: bool) -> list[tuple[str, str]]:
    """What unlabelled records came to, in lines with their styles."""
    share = pseudo.passed / pseudo.records
    said = [
        (
            f"Of {pseudo.records:,} unlabelled records {pseudo.passed:,} ({share:.1%}) reached the "
            f"threshold of {threshold:g}, for {pseudo.labels} of {len(pseudo.plan.task.labels)} "
            "labels.",
            "",
        )
    ]
    if pseudo.before is not None and pseudo.after is not None:
        sure = ""
        if pseudo.surely_right is not None:
            sure = (
                f" Of the {pseudo.sure:,} of them that reach the threshold, "
                f"{pseudo.surely_right:.1%}."
            )
        said.append(
            (
                f"Of {pseudo.checked:,} labelled records that took no part {pseudo.before:.1%} are "
                f"told rightly without the unlabelled ones, {pseudo.after:.1%} with them.{sure}",
                "",
            )
        )
    if not pseudo.kept:
        why = "it tells fewer rightly with them" if pseudo.passed else "none is sure enough"
        said.append((f"The adapter is as it was without them: {why}.", "yellow"))
        return said
    if not pseudo.checked:
        said.append(
            (
                "Whether they help is not known: no labelled record that took no part was there to "
                "tell. Give some with --check.",
                "yellow",
            )
        )
    if private:
        said.append(
            (
                "It has no differential privacy: it tells of the unlabelled records, too.",
                "yellow",
            )
        )
    return said


def _what(records: int, shots: int) -> str:
    if not records:
        return "labels by their names and descriptions, no record in it"
    return f"prototypes of {records} records, at most {shots} of a label"
