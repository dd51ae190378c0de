"""A small data set, plan and backbone of every task, for tests that take them all."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lorica.common.data.records import Records
from lorica.common.data.table import Table
from lorica.common.plan import RunPlan
from lorica.common.plan.traits import TRAITS
from lorica.common.tasks.fusion.usage import usual_row
from tests.images import SIDE, make_image_backbone

MONEY = ["card", "cash", "loan", "bank", "money", "lost"]
HEALTH = ["fever", "pain", "heart", "skin", "cough", "doctor"]
PLAIN = ["the", "is", "was", "today", "again", "very", "my", "old", "new"]

Row = dict[str, Any]


def _classes(draw: random.Random, row: int) -> Row:
    label, words = [("money", MONEY), ("health", HEALTH)][row % 2]
    return {"text": " ".join(draw.choices(words, k=draw.randint(2, 6))), "label": label}


def _sets(draw: random.Random, row: int) -> Row:
    chosen = [[], ["money"], ["health"], ["money", "health"]][row % 4]
    words = draw.choices(PLAIN, k=2)
    words += draw.choices(MONEY, k=3) if "money" in chosen else []
    words += draw.choices(HEALTH, k=3) if "health" in chosen else []
    draw.shuffle(words)
    return {"text": " ".join(words), "label": chosen}


def _number(draw: random.Random, row: int) -> Row:
    ill = row % 7
    words = draw.choices(HEALTH, k=ill) + draw.choices(MONEY, k=6 - ill)
    draw.shuffle(words)
    return {"text": " ".join(words), "label": 10 + 5 * ill}


def _entities(draw: random.Random, row: int) -> Row:
    tokens, tags = [], []
    for _ in range(draw.randint(3, 6)):
        what = draw.random()
        if what < 0.3:
            tokens.append(draw.choice(HEALTH))
            tags.append("B-symptom")
        elif what < 0.5:
            tokens += [draw.choice(["old", "new"]), draw.choice(["street", "bank"])]
            tags += ["B-place", "I-place"]
        else:
            tokens.append(draw.choice(["the", "is", "was", "today", "again", "very", "my"]))
            tags.append("O")
    return {"text": tokens, "label": tags}


AGE, WARDS = (50.0, 20.0), ("er", "day")  # center and scale; values


def _beside(draw: random.Random, old: bool) -> Row:
    """Cells that tell old from young; some are missing."""
    age = AGE[0] + AGE[1] * (draw.uniform(0.3, 2) if old else -draw.uniform(0.3, 2))
    return {"age": f"{age:.1f}" if draw.random() < 0.9 else "", "ward": draw.choice([*WARDS, ""])}


def _text_and_table(draw: random.Random, row: int) -> Row:
    topic, words = [("money", MONEY), ("health", HEALTH)][row % 2]
    old = row // 2 % 2 == 1
    text = " ".join(draw.choices(words, k=draw.randint(2, 6)))
    return {"text": text, "label": f"{'old' if old else 'young'} {topic}"} | _beside(draw, old)


def _image_and_table(draw: random.Random, row: int) -> Row:
    """ "image" is an array; it is written as a file."""
    grey = np.random.default_rng(draw.getrandbits(32)).integers(30, 60, (SIDE, SIDE, 1))
    image = np.repeat(grey, 3, axis=2).astype(np.uint8)
    left, old = row % 2 == 1, row // 2 % 2 == 1
    image[:, slice(0, SIDE // 2) if left else slice(SIDE // 2, SIDE)] += 120
    label = f"{'old' if old else 'young'} {'left' if left else 'right'}"
    return {"image": image, "label": label} | _beside(draw, old)


ROWS: dict[str, Callable[[random.Random, int], Row]] = {
    "text-classification": _classes,
    "text-table-classification": _text_and_table,
    "image-table-classification": _image_and_table,
    "multi-label-classification": _sets,
    "text-regression": _number,
    "token-classification": _entities,
}
"""Task -> one record of it."""

SECTIONS: dict[str, dict[str, Any]] = {
    "text-classification": {"labels": ["health", "money"]},
    "text-table-classification": {
        "labels": ["old health", "old money", "young health", "young money"]
    },
    "image-table-classification": {
        "labels": ["old left", "old right", "young left", "young right"]
    },
    "multi-label-classification": {"labels": ["health", "money"]},
    "text-regression": {"minimum": 10.0, "maximum": 40.0},
    "token-classification": {"labels": ["place", "symptom"]},
}
"""Task -> keys of the plan's section task."""

TABLE = {
    "columns": ["age"],
    "centers": [AGE[0]],
    "scales": [AGE[1]],
    "categories": [f"ward = {' | '.join(WARDS)}"],
    "hidden": 8,
}
"""The plan's section table, for tasks that read one."""

KINDS = sorted(ROWS)


def rows_of(kind: str, count: int, *, seed: int = 0) -> list[Row]:
    """Records of a task, as objects of a JSONL file."""
    draw = random.Random(seed)
    return [ROWS[kind](draw, row) for row in range(count)]


def write_rows(path: Path, rows: list[Row]) -> Path:
    """The records as a JSONL file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_data(folder: Path, kind: str, rows: list[Row]) -> Path:
    """The records as a JSONL file, or as a folder of images with a table in it."""
    if not TRAITS[kind].images:  # type: ignore[index]
        return write_rows(folder / f"{kind}.jsonl", rows)
    from PIL import Image

    home = folder / kind
    home.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, row in enumerate(rows):
        Image.fromarray(row["image"]).save(home / f"{number}.png")
        lines.append(f"{number}.png,{row['label']},{row['age']},{row['ward']}\n")
    (home / IMAGE_TABLE).write_text("file,label,age,ward\n" + "".join(lines), encoding="utf-8")
    return home


IMAGE_TABLE = "table.csv"


def write_backbone(folder: Path, kind: str, text_backbone: Path) -> Path:
    """The backbone of a task: of texts, which is there, or of images."""
    if not TRAITS[kind].images:  # type: ignore[index]
        return text_backbone
    return folder if folder.exists() else make_image_backbone(folder, "vit", spread=0.8)


def example(kind: str, plan: RunPlan, folder: Path) -> tuple[str, Records]:
    """What the README's code reads, as an argument of `lorica predict`, and as a record."""
    row = usual_row(plan.table)
    cells = {name: [str(value)] for name, value in row.items()}
    table = Table.of(cells, "The example") if cells else None
    if not TRAITS[kind].images:  # type: ignore[index]
        return "some text", Records(["some text"], [""], [""], [""], None, table)
    from PIL import Image

    image = ROWS[kind](random.Random(5), 1)["image"]
    Image.fromarray(image).save(folder / "picture.png")
    name = str(folder / "picture.png")
    return name, Records([name], [""], [""], [""], [image], table)


def plan_of(kind: str, backbone: Path, data: Path | None = None, **sections: Any) -> RunPlan:
    """A plan of a task on the small backbone, with its labels filled in."""
    traits = TRAITS[kind]  # type: ignore[index]
    modules = {"target_modules": ["q_proj", "v_proj"]} if traits.images else {}
    plan = RunPlan().replace(
        backbone={"source": str(backbone)},
        task={"kind": kind, **SECTIONS[kind]},
        table=TABLE if traits.table else {},
        adapter={"rank": 4, "layers": [-2, -1], **modules},
        data={"train": str(data), "table": IMAGE_TABLE * traits.images} if data else {},
        privacy={"delta": 1e-3},
        simulation={"sites": 3},
    )
    return plan.replace(**sections)
