"""A small run of every task: its data, its backbone and its plan, made in a folder.

Three sites, δ = 1e-4, the record as the unit; the privacy budget is the caller's to set. What is
called for is what a task needs to learn something in seconds, on data that are honestly synthetic
or come with scikit-learn. No figure was chosen by the test data that a run is scored on.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lorica.common.plan import RunPlan
from lorica.simulations.examples.clinic_notes import train_test
from lorica.simulations.examples.clinic_vocabulary import HOSPITALS, LARKFIELD
from lorica.simulations.examples.digits import (
    NAMES,
    SOURCE,
    TARGET,
    TURNS,
    VIT_MODULES,
    make_vit,
    write_digits,
)
from lorica.simulations.examples.small_language import (
    MODULES,
    Family,
    make_language_model,
    words_of,
)
from lorica.simulations.examples.table_records import (
    STOCK,
    STOCK_LABELS,
    STOCK_TABLE,
    TRIAGE,
    TRIAGE_LABELS,
    triage_rows,
    write_stock,
)
from lorica.simulations.examples.task_notes import (
    Row,
    entity_rows,
    multi_label_rows,
    referral_rows,
    sentence_rows,
    severity_rows,
    write_jsonl,
)

SITES, DELTA, RECORDS = 3, 1e-4, 900
_TEST_SEED = 1


def base(**sections: Any) -> RunPlan:
    """What all tasks have in common."""
    return (
        RunPlan()
        .replace(
            privacy={"delta": DELTA},
            simulation={"sites": SITES, "workers": 1},
            adapter={"kind": "head"},
            rounds={"count": 30},
        )
        .replace(**sections)
    )


def text(folder: Path) -> RunPlan:
    """Triage notes of four hospitals, eight departments; the embedded backbone."""
    train, test = train_test()
    step = len(train) // RECORDS
    rows: list[list[Row]] = [list(train[::step][:RECORDS]), list(test)]
    return base(data=_written(folder, "text", *rows))


def multi_label(folder: Path) -> RunPlan:
    """Findings of one or two departments."""
    data = _written(folder, "multi-label", *_both(multi_label_rows, RECORDS))
    return base(task={"kind": "multi-label-classification"}, data=data, rounds={"count": 60})


def regression(folder: Path) -> RunPlan:
    """The mean severity of two complaints, from 0 to 10."""
    data = _written(folder, "regression", *_both(severity_rows, RECORDS))
    task = {"kind": "text-regression", "minimum": 0.0, "maximum": 10.0}
    return base(task=task, data=data, rounds={"count": 60})


def entities(folder: Path) -> RunPlan:
    """Findings and durations in notes, as BIO tags."""
    data = _written(folder, "entities", *_both(entity_rows, RECORDS * 2 // 3))
    task = {"kind": "token-classification", "labels": ["finding", "duration"]}
    return base(task=task, data=data, rounds={"count": 40}, server={"head_rate": 4.0})


def causal_lm(folder: Path) -> RunPlan:
    """Which department sees a finding: a small GPT-2 that knows the form of the answers alone."""
    known = [f"{row['text']}\n{row['label']}" for row in referral_rows(2000, seed=2, right=False)]
    data = _written(folder, "causal-lm", *_both(referral_rows, 2 * RECORDS))
    model = make_language_model(folder / "gpt2", "gpt2", known, words_of(known))
    return _language("causal-lm", "gpt2", model, data)


def masked_lm(folder: Path) -> RunPlan:
    """The language of a children's hospital: a small BERT that knows the words, in sentences of
    which every part is in another hospital's manner."""
    train = sentence_rows(2 * RECORDS, LARKFIELD)
    test = sentence_rows(RECORDS // 3, LARKFIELD, seed=_TEST_SEED)
    known = [row["text"] for row in sentence_rows(4000, *HOSPITALS, seed=2)]
    words = words_of([*known, *(row["text"] for row in [*train, *test])])
    model = make_language_model(folder / "bert", "bert", known, words, steps=600)
    return _language("masked-lm", "bert", model, _written(folder, "masked-lm", train, test))


def images(folder: Path) -> RunPlan:
    """Digits 5 to 9 on a small vision transformer that was pre-trained on the digits 0 to 4."""
    make_vit(folder / "vit", classes=SOURCE)
    return digits(folder, folder / "vit")


def images_scratch(folder: Path) -> RunPlan:
    """The same on the same transformer with random weights."""
    make_vit(folder / "vit-random")
    return digits(folder, folder / "vit-random")


def triage_text(folder: Path) -> RunPlan:
    """Whether a patient is admitted, of which the note tells half."""
    data = _written(folder, "triage", *_both(triage_rows, 2 * RECORDS))
    return base(task={"labels": TRIAGE_LABELS}, data=data)


def triage(folder: Path) -> RunPlan:
    """The same with the other half, age and creatinine, in a table beside it."""
    kind = {"kind": "text-table-classification"}
    return triage_text(folder).replace(task=kind, table=TRIAGE)


def stock_image(folder: Path) -> RunPlan:
    """Whether as many are there as a handwritten digit, 5 to 9, asks for; without that table, on
    the transformer that was pre-trained on the digits 0 to 4."""
    make_vit(folder / "vit", classes=SOURCE)
    train, test = write_stock(folder / "stock", TARGET)
    return digits(folder, folder / "vit").replace(
        task={"labels": STOCK_LABELS},
        data={"train": str(train), "test": str(test), "table": STOCK_TABLE},
    )


def stock(folder: Path) -> RunPlan:
    """The same with the number that is there in a table beside it."""
    return stock_image(folder).replace(task={"kind": "image-table-classification"}, table=STOCK)


TASKS: dict[str, Callable[[Path], RunPlan]] = {
    "text": text,
    "multi-label": multi_label,
    "regression": regression,
    "entities": entities,
    "causal-lm": causal_lm,
    "masked-lm": masked_lm,
    "images": images,
    "images-scratch": images_scratch,
    "triage": triage,
    "triage-text": triage_text,
    "stock": stock,
    "stock-image": stock_image,
}
"""Name -> what makes its data (and its backbone) in a folder, and its plan."""


def digits(folder: Path, backbone: Path) -> RunPlan:
    """Digits 5 to 9 on a backbone of images."""
    train, test = write_digits(folder / "digits", TARGET)
    return base(
        backbone={"source": str(backbone)},
        task={"kind": "image-classification", "labels": [NAMES[digit] for digit in TARGET]},
        data={"train": str(train), "test": str(test)},
        server={"head_rate": 4.0},
        rounds={"count": 60, "warm_start": 0.3},
    )


def reuse_plans(folder: Path) -> tuple[RunPlan, RunPlan]:
    """A model is developed, then reused: both runs begin on a vision transformer that was
    pre-trained on the digits 0 and 1.

    Returns:
        The source run, without privacy: to tell the digits 0 to 4 apart and how they are turned,
        with LoRA on all linear modules; and the target run: the digits 5 to 9 at ε = 8.
    """
    first = folder / "vit-first"
    make_vit(first, classes=(0, 1), steps=600)
    train, test = write_digits(folder / "turned", SOURCE, turns=TURNS)
    source = base(
        backbone={"source": str(first)},
        task={"kind": "image-classification"},
        data={"train": str(train), "test": str(test)},
        privacy={"epsilon": float("inf")},
        adapter={"kind": "lora", "rank": 16, "layers": [], "target_modules": VIT_MODULES},
        training={"mode": "local", "local_steps": 30, "expected_batch_size": 64},
        rounds={"count": 12},
    )
    return source, digits(folder, first)


def _language(kind: str, family: Family, backbone: Path, data: dict[str, str]) -> RunPlan:
    return base(
        backbone={"source": str(backbone)},
        task={"kind": kind, "mask_share": 0.2},
        adapter={"kind": "lora", "target_modules": MODULES[family], "layers": []},
        data=data,
        privacy={"clip_norm": 0.5},
        training={"max_length": 48, "lora_sample_rate": 0.3},
        aggregation={"method": "fedavg"},
        server={"lora_rate": 0.005},
        rounds={"count": 24},
    )


def _both(rows: Callable[..., list[Row]], count: int) -> tuple[list[Row], list[Row]]:
    """Rows to train on, and a third as many others to test on."""
    return rows(count), rows(count // 3, seed=_TEST_SEED)


def _written(folder: Path, name: str, train: list[Row], test: list[Row]) -> dict[str, str]:
    """Section data of a plan, its files written."""
    return {
        part: str(write_jsonl(folder / f"{name}-{part}.jsonl", rows))
        for part, rows in (("train", train), ("test", test))
    }
