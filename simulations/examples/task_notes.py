"""SYNTHETIC notes for all tasks of text: findings, severity, departments; no patient exists.

Composed of the phrases of :mod:`lorica.simulations.examples.clinic_vocabulary`, all written by us.
Answers are known by construction: which phrases a note was made of.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from lorica.simulations.examples.clinic_vocabulary import DEPARTMENTS, TARNWELL, Hospital, phrases

Row = dict[str, Any]

SEVERITY = {
    1: ("hardly noticeable", "trivial"),
    3: ("mild", "slight"),
    5: ("moderate", "tolerable"),
    7: ("severe", "bad enough to stop work"),
    9: ("unbearable", "the worst ever"),
}
"""Grade from 0 to 10 -> words for it."""


def multi_label_rows(count: int, *, seed: int = 0) -> list[Row]:
    """Notes with findings of one or two departments, which are the labels."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        chosen = draw.sample(DEPARTMENTS, draw.choice([1, 1, 2]))
        found = [phrase_of(draw, TARNWELL.clues[name]) for name in chosen for _ in range(2)]
        draw.shuffle(found)
        rows.append({"text": f"The patient describes {', '.join(found)}.", "label": chosen})
    return rows


def severity_rows(count: int, *, seed: int = 0) -> list[Row]:
    """Notes with two complaints and words for how bad each is; the label is the mean grade."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        first, second = draw.choice([*SEVERITY]), draw.choice([*SEVERITY])
        parts = [
            f"{phrase_of(draw, TARNWELL.clues[draw.choice(DEPARTMENTS)])}, {_of(draw, grade)}"
            for grade in (first, second)
        ]
        rows.append({"text": f"There is {'; also '.join(parts)}.", "label": (first + second) / 2})
    return rows


def entity_rows(count: int, *, seed: int = 0) -> list[Row]:
    """Notes as tokens with BIO tags: findings, and how long they have lasted."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        tokens: list[str] = []
        tags: list[str] = []
        _say(tokens, tags, draw.choice(["The patient reports", "Seen today because of"]))
        for number in range(draw.randint(1, 2)):
            if number:
                _say(tokens, tags, draw.choice(["and", "together with"]))
            finding = phrase_of(draw, TARNWELL.clues[draw.choice(DEPARTMENTS)])
            _say(tokens, tags, finding, "finding")
            if draw.random() < 0.6:
                _say(tokens, tags, phrase_of(draw, TARNWELL.since), "duration")
        _say(tokens, tags, ".")
        _say(tokens, tags, phrase_of(draw, TARNWELL.closings))
        rows.append({"text": tokens, "label": tags})
    return rows


def referral_rows(count: int, *, seed: int = 0, right: bool = True) -> list[Row]:
    """Questions where a finding belongs, each with the department as its answer.

    Args:
        count: number of rows.
        seed: of the draws.
        right: false answers with any department at random, as one who knows the form alone.
    """
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        name = draw.choice(DEPARTMENTS)
        text = f"who sees {phrase_of(draw, TARNWELL.clues[name])} ?"
        rows.append({"text": text, "label": name if right else draw.choice(DEPARTMENTS)})
    return rows


def sentence_rows(count: int, *hospitals: Hospital, seed: int = 0) -> list[Row]:
    """Unlabelled sentences: an opening, two findings of a department, how long, a closing; each
    part in the manner of one of the hospitals at random."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        name = draw.choice(DEPARTMENTS)
        first, one, two, since, last = draw.choices(hospitals, k=5)
        parts = [first.first, one.clues[name], two.clues[name], since.since]
        text = " ".join(phrase_of(draw, part) for part in parts)
        rows.append({"text": f"{text}. {phrase_of(draw, last.closings)}."})
    return rows


def write_jsonl(path: Path, rows: list[Row]) -> Path:
    """The rows as a JSONL file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _say(tokens: list[str], tags: list[str], text: str, kind: str = "") -> None:
    for place, token in enumerate(text.split()):
        tokens.append(token)
        tags.append(f"{'I' if place else 'B'}-{kind}" if kind else "O")


def _of(draw: random.Random, grade: int) -> str:
    return draw.choice(SEVERITY[grade])


def phrase_of(draw: random.Random, text: str) -> str:
    chosen = draw.choice(phrases(text))
    return chosen.format(
        age=draw.randint(20, 80),
        sex="patient",
        he="he",
        his="his",
        side=draw.choice(["left", "right"]),
        n=draw.randint(2, 9),
    )
