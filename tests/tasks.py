"""A small data set, plan and model of every task, for tests that take them all."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lorica.common.plan import RunPlan

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


ROWS: dict[str, Callable[[random.Random, int], Row]] = {
    "text-classification": _classes,
    "multi-label-classification": _sets,
    "text-regression": _number,
    "token-classification": _entities,
}
"""Task -> one record of it."""

SECTIONS: dict[str, dict[str, Any]] = {
    "text-classification": {"labels": ["health", "money"]},
    "multi-label-classification": {"labels": ["health", "money"]},
    "text-regression": {"minimum": 10.0, "maximum": 40.0},
    "token-classification": {"labels": ["place", "symptom"]},
}
"""Task -> keys of the plan's section task."""

KINDS = sorted(ROWS)


def rows_of(kind: str, count: int, *, seed: int = 0) -> list[Row]:
    """Records of a task, as objects of a JSONL file."""
    draw = random.Random(seed)
    return [ROWS[kind](draw, row) for row in range(count)]


def write_rows(path: Path, rows: list[Row]) -> Path:
    """The records as a JSONL file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def plan_of(kind: str, backbone: Path, data: Path | None = None, **sections: Any) -> RunPlan:
    """A plan of a task on the small backbone, with its labels filled in."""
    plan = RunPlan().replace(
        backbone={"source": str(backbone)},
        task={"kind": kind, **SECTIONS[kind]},
        adapter={"rank": 4, "layers": [-2, -1]},
        data={"train": str(data)} if data else {},
        privacy={"delta": 1e-3},
        simulation={"sites": 3},
    )
    return plan.replace(**sections)
