"""SYNTHETIC records whose answer lies half in a text or an image and half in a table beside it.

Answers are drawn from what both say, with noise; neither alone tells them, and how much each tells
follows from the constants here.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lorica.simulations.examples.clinic_vocabulary import DEPARTMENTS, TARNWELL
from lorica.simulations.examples.digits import NAMES, TEST_SHARE, digits
from lorica.simulations.examples.task_notes import SEVERITY, phrase_of

Row = dict[str, Any]

TRIAGE: dict[str, Any] = {
    "columns": ["age", "creatinine"],
    "centers": [55.0, 90.0],
    "scales": [20.0, 40.0],
    "categories": ["sex = f | m"],
}
"""The plan's section table for :func:`triage_rows`: what anybody knows of such columns."""

TRIAGE_LABELS = ["admit", "send home"]
_MISSING = 0.1

STOCK: dict[str, Any] = {"columns": ["stock"], "centers": [7.0], "scales": [1.5]}
"""The same for :func:`write_stock`."""

STOCK_LABELS = ["in stock", "short"]
STOCK_TABLE = "orders.csv"


def triage_rows(count: int, *, seed: int = 0) -> list[Row]:
    """Notes that say how bad a complaint is, with age, creatinine (µmol/l, missing in a tenth) and
    sex, which has no part in it. Patients are admitted when complaint, age and kidneys together
    are bad enough."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        grade = draw.choice([*SEVERITY])
        age = min(max(draw.gauss(55, 20), 18), 98)
        creatinine = min(max(draw.gauss(90, 40), 30), 400)
        complaint = phrase_of(draw, TARNWELL.clues[draw.choice(DEPARTMENTS)])
        risk = (grade - 5) / 2.83 + 0.7 * (age - 55) / 20 + 0.7 * (creatinine - 90) / 40
        rows.append(
            {
                "text": f"Seen today: {complaint}. It is {draw.choice(SEVERITY[grade])}.",
                "label": TRIAGE_LABELS[risk + draw.gauss(0, 0.3) <= 0],
                "age": round(age),
                "creatinine": None if draw.random() < _MISSING else round(creatinine),
                "sex": draw.choice("fm"),
            }
        )
    return rows


def write_stock(folder: Path, classes: Sequence[int], *, seed: int = 0) -> tuple[Path, Path]:
    """Orders: a handwritten digit of scikit-learn's (how many are wanted) and, in a table, how many
    are there, drawn from the same digits. Folders for training and for testing."""
    from PIL import Image

    images, wanted = digits(classes)
    random_numbers = np.random.default_rng(seed)
    test = random_numbers.random(len(images)) < TEST_SHARE
    there = random_numbers.choice(list(classes), len(images))
    for name, chosen in (("train", ~test), ("test", test)):
        home = folder / name
        home.mkdir(parents=True, exist_ok=True)
        lines = ["file,label,stock"]
        for number in np.flatnonzero(chosen).tolist():
            file = f"{number:04}-{NAMES[wanted[number]]}.png"
            Image.fromarray(images[number]).convert("RGB").save(home / file)
            label = STOCK_LABELS[int(wanted[number] > there[number])]
            lines.append(f"{file},{label},{there[number]}")
        (home / STOCK_TABLE).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "train", folder / "test"
