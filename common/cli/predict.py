"""``lorica predict``: a trained adapter on texts, images and tables."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer
from rich.text import Text

from lorica.common.cli.options import BackboneOption, Numbers, PrecisionOption
from lorica.common.display.console import Console
from lorica.common.display.tables import Table
from lorica.common.display.text import printable
from lorica.common.display.wording import metric_name, metric_text
from lorica.common.errors import Code, LoricaError

if TYPE_CHECKING:
    from lorica.common.saved.given import Given
    from lorica.common.saved.predict import Predictor
    from lorica.common.tasks.base import Prediction

_WRITTEN = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
_ALSO = {".json": "jsonl"}  # of what is read: its predictions go to the screen as lines


def predict(
    texts: Annotated[list[str] | None, typer.Argument(help="Texts to read.")] = None,
    adapter: Annotated[
        Path, typer.Option("--adapter", "-a", help="The adapter/ folder of a finished run.")
    ] = Path("adapter"),
    file: Annotated[
        Path | None,
        typer.Option(
            "--file",
            "-f",
            help="What training takes, too: .csv, .tsv, .txt, .json, .jsonl, .parquet, .arrow, a "
            "data set's folder, or a folder of images.",
        ),
    ] = None,
    text: Annotated[
        str,
        typer.Option(
            help="Column of --file with the text, or the images' file names; the plan's if empty."
        ),
    ] = "",
    label: Annotated[
        str | None,
        typer.Option(
            help="Column of --file with the right answers, by which the predictions are scored; "
            'the plan\'s if it is there. "": none.'
        ),
    ] = None,
    value: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN=VALUE",
            help="What a table's column holds beside the texts given here; repeatable. Columns "
            "that are left out count as missing. With --file they come from its columns.",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write .csv, .tsv or .jsonl here.")
    ] = None,
    precision: PrecisionOption = Numbers.FLOAT32,
    backbone: BackboneOption = "",
) -> None:
    """Use a trained adapter on texts (or images' names): arguments, a file, or lines of stdin.

    Every row and line stays, in its place; one without a text gets no prediction. Where the right
    answers are in the file, the score is printed beside (to standard error).
    """
    from lorica.common.machine.files import write_atomically
    from lorica.common.saved.given import Given, read_given
    from lorica.common.saved.predict import Predictor, as_csv, as_jsonl, columns_of

    kind = _output_kind(output, file)
    values = dict(map(_value, value or []))
    if file is not None and (values or texts):
        raise typer.BadParameter("texts and --value go without --file, which has its columns.")
    if file is None:
        texts = [os.fsencode(item).decode(errors="surrogateescape") for item in texts or []]
        listed = texts or _lines_of_stdin()
        predictor = Predictor(adapter, backbone, precision.value)
        name = text or "text"
        given = Given([{name: item} | values for item in listed], listed)
        beside = {column: [cell] * len(listed) for column, cell in values.items()}
    else:
        predictor = Predictor(adapter, backbone, precision.value)
        given = read_given(file, predictor.plan, text=text, label=label)
        beside = columns_of(given.rows, predictor.columns, str(file))
    # An empty argument is refused; an empty row among others stays without a prediction.
    answers = predictor(texts, beside) if texts else _predictions(predictor, given, beside)
    predictions: Sequence[Prediction | None] = answers
    if output is None and texts and sys.stdout.isatty():
        _show(given.texts, predictions)
        return
    if kind == "jsonl":
        lines = as_jsonl(given.rows, predictions)
    else:
        lines = as_csv(given.rows, predictions, "\t" if kind == "tsv" else ",")
    if output is None:
        _as_data(sys.stdout)
        sys.stdout.writelines(lines)
    else:
        write_atomically(output, "".join(lines))
    _tell(predictor, given, beside)


def _output_kind(output: Path | None, file: Path | None) -> str:
    """How predictions are written. Raises LOR-334, before anything is computed."""
    if output is None:
        ending = file.suffix.lower() if file is not None else ".jsonl"
        return (_WRITTEN | _ALSO).get(ending, "csv")
    if output.suffix.lower() not in _WRITTEN:
        raise LoricaError(
            Code.OUTPUT_KIND, f"--output {output} does not end in .csv, .tsv or .jsonl."
        )
    if file is not None and output.exists() and output.samefile(file):
        raise LoricaError(Code.OUTPUT_KIND, f"--output {output} is the file that is read.")
    return _WRITTEN[output.suffix.lower()]


def _predictions(
    predictor: Predictor, given: Given, beside: Mapping[str, Sequence[str]]
) -> list[Prediction | None]:
    """One for every row, None for rows with nothing to read."""
    found: list[Prediction | None] = [None] * len(given.rows)
    for row, prediction in zip(given.read, _of_rows(predictor, given, beside), strict=True):
        found[row] = prediction
    return found


def _of_rows(
    predictor: Predictor, given: Given, beside: Mapping[str, Sequence[str]]
) -> list[Prediction]:
    texts, table, images = _taken(given, beside, given.read)
    return predictor(texts, table, images)


def _taken(
    given: Given, beside: Mapping[str, Sequence[str]], rows: Sequence[int]
) -> tuple[list[str], dict[str, list[str]], list[object] | None]:
    texts = [given.texts[row] for row in rows]
    table = {name: [cells[row] for row in rows] for name, cells in beside.items()}
    images = None if given.images is None else [given.images[row] for row in rows]
    return texts, table, images


def _tell(predictor: Predictor, given: Given, beside: Mapping[str, Sequence[str]]) -> None:
    """To standard error: rows without a prediction, and the score."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    if without := len(given.rows) - len(given.read):
        console.print(f"{without:,} of {len(given.rows):,} rows hold no text: no prediction.")
    if given.labels is None or predictor.generates:
        return
    rows = [row for row in given.read if given.labels[row]]
    if not rows:
        return
    try:
        texts, table, images = _taken(given, beside, rows)
        metrics = predictor.score(texts, [given.labels[row] for row in rows], table, images)
    except LoricaError as error:
        console.print(Text(f"Not scored: {printable(str(error))}"))
        return
    shown = ", ".join(
        f"{metric_name(name)} {metric_text(name, value)}" for name, value in metrics.values.items()
    )
    console.print(Text(f"{len(rows):,} of {len(given.rows):,} rows have an answer: {shown}."))


def _show(texts: Sequence[str], predictions: Sequence[Prediction | None]) -> None:
    table = Table("text", "answer", "probability", box=None, header_style="bold")
    for item, prediction in zip(texts, predictions, strict=True):
        sure = None if prediction is None else prediction.certainty
        answer = "" if prediction is None else prediction.shown
        table.add_row(Text(item), Text(answer), "" if sure is None else f"{sure:.1%}")
    Console().print(table)


def _as_data(stream: TextIO) -> None:
    """Rows in a pipe or a file are data: UTF-8 whatever the terminal's letters are."""
    change = getattr(stream, "reconfigure", None)
    if change is not None and not stream.isatty():
        change(encoding="utf-8", errors="surrogateescape")


def _value(setting: str) -> tuple[str, str]:
    name, equals, cell = setting.partition("=")
    if not equals or not name.strip():
        raise typer.BadParameter(f"--value takes COLUMN=VALUE, got {setting!r}.")
    return name.strip(), cell.strip()


def _lines_of_stdin() -> list[str]:
    """Every line, blank ones too: the answers are in their order. UTF-8, as files are."""
    change = getattr(sys.stdin, "reconfigure", None)
    if change is not None:
        change(encoding="utf-8", errors="strict")
    try:
        return [line.rstrip("\r\n") for line in sys.stdin]
    except UnicodeDecodeError as error:
        raise LoricaError(
            Code.DATA_ENCODING,
            f"Standard input is not {error.encoding.upper()}: byte "
            f"0x{error.object[error.start]:02x} cannot be decoded.",
        ) from None
