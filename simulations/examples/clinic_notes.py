"""The demo data set: SYNTHETIC clinic triage notes. No patient exists; not for clinical use.

Every note is composed by this module from words and sentences that we wrote ourselves
(:mod:`lorica.simulations.examples.clinic_vocabulary`). Nothing comes from a medical record, no
patient or hospital named here exists, and neither the notes nor a model trained on them may serve
to judge a person's health. They are here so that Lorica can be tried without any download.

Four hospitals write in four manners and see different departments: each nearly lacks two or
three of the eight, so that none does well alone and together they can. A patient has one to six
notes, mostly for one department, with the same few complaints recurring. Some notes are clear,
some share a complaint with other departments, some say little; a few per cent are labeled with
a neighboring department, as triage does err.

The rows depend on the seed alone, not on the Python version or the process: of
:class:`random.Random` only ``random()`` is used, whose sequence Python keeps stable.
"""

from __future__ import annotations

import csv
import hashlib
import io
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from lorica.common.machine.files import storage_errors, write_atomically
from lorica.simulations.examples.clinic_vocabulary import (
    DEPARTMENTS,
    HOSPITALS,
    NEIGHBORS,
    SHARED_BY,
    Hospital,
    phrases,
)

Row = dict[str, str]
T = TypeVar("T")

COLUMNS = ("patient_id", "hospital", "text", "label")
TEST_SHARE = 0.2
"""Share of each hospital's patients that :func:`train_test` sets aside."""

# How the notes come about: shares of patients or of notes. Tuned so that on the embedded model's
# frozen embeddings a linear classifier of all hospitals' notes does well, one of a single hospital
# clearly worse, and neither is perfect.
_VISITS = (26, 31, 21, 12, 6, 4)  # patients with 1, 2, … 6 notes
_ELSEWHERE = 0.12  # later notes for a department drawn anew
_MISLABELED = 0.04
_RECURRING = 0.6  # notes about the patient's own complaints
_CLARITY = (70, 17, 10, 3)  # clues alone; clue + shared; clue + general; shared alone
_THIRD_CLUE = 0.5  # of the notes with clues alone
_GENERAL = 0.4  # notes with a (further) general symptom
TIMED = 0.5  # notes that say since when
_EXTRAS = (0.45, 0.25)  # notes with an aside; with a closing sentence
_HISTORY, _OWN_HISTORY = 0.75, 0.6  # asides that are history, not a denial; of these the patient's
_ASIDE_FIRST = 0.25
MISSPELLED = 0.2
_FEWEST_WORDS, _MOST_WORDS = 8, 35


class Draws:
    """Draws that are the same in every Python version."""

    def __init__(self, seed: int) -> None:
        self._next = random.Random(seed).random

    def chance(self, probability: float) -> bool:
        return self._next() < probability

    def below(self, count: int) -> int:
        return int(self._next() * count)

    def one(self, items: Sequence[T]) -> T:
        return items[self.below(len(items))]

    def some(self, items: Sequence[T], count: int) -> list[T]:
        """``count`` different items (all, where there are fewer) in random order."""
        rest = list(items)
        return [rest.pop(self.below(len(rest))) for _ in range(min(count, len(rest)))]

    def weighted(self, weights: Sequence[int]) -> int:
        """An index, with probability in proportion to its (whole, so exactly summed) weight."""
        left = self._next() * sum(weights)
        for index, weight in enumerate(weights):
            left -= weight
            if left < 0:
                return index
        return len(weights) - 1


class Patient:
    """What stays the same over a patient's notes: identity, complaints, history."""

    def __init__(self, draws: Draws, hospital: Hospital, number: int) -> None:
        self.hospital = hospital
        self.id = f"{hospital.prefix}-{number:04d}"
        self.department = DEPARTMENTS[draws.weighted(hospital.mix)]
        low, high = hospital.ages
        self.age = low + draws.below(high - low + 1)
        self.sex = draws.below(2)
        self.complaints = draws.some(phrases(hospital.clues[self.department]), 4)
        self.history = draws.some(phrases(hospital.history), 3)


def generate(seed: int = 0) -> list[Row]:
    """About 3,100 notes, patient after patient, hospital after hospital.

    Args:
        seed: another seed gives other patients and notes of the same kind.

    Returns:
        Rows with the keys of :data:`COLUMNS`; all values are text, none is empty.
    """
    return written(seed, _VISITS, _text)


Text = Callable[[Draws, Patient, int, str], str]
"""Writes a note: of a patient, at a visit from 0 on, for a department."""


def written(seed: int, visits: Sequence[int], text: Text, times_as_many: float = 1.0) -> list[Row]:
    """Notes, patient after patient, hospital after hospital.

    Args:
        seed: of everything.
        visits: weights of the numbers of a patient's notes, from 1 on.
        text: writes a note.
        times_as_many: patients, of those that the hospitals have.
    """
    draws = Draws(seed)
    rows: list[Row] = []
    for hospital in HOSPITALS:
        for number in range(1, round(times_as_many * hospital.patients) + 1):
            patient = Patient(draws, hospital, number)
            for visit in range(draws.weighted(visits) + 1):
                rows.append(_row(draws, patient, visit, text))
    return rows


def train_test(seed: int = 0) -> tuple[list[Row], list[Row]]:
    """The rows of :func:`generate` as (train, test); no patient is in both.

    Test holds :data:`TEST_SHARE` of the patients of every hospital, chosen by a hash of seed
    and patient, each with all their notes.
    """
    return split(generate(seed), seed)


def split(rows: list[Row], seed: int) -> tuple[list[Row], list[Row]]:
    """Rows as (train, test), as :func:`train_test` says."""
    patients: dict[str, dict[str, None]] = {}  # dict, not set: keeps the order
    for row in rows:
        patients.setdefault(row["hospital"], {})[row["patient_id"]] = None
    aside: dict[str, None] = {}
    for members in patients.values():
        shuffled = sorted(
            members, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest()
        )
        aside.update(dict.fromkeys(shuffled[: round(TEST_SHARE * len(shuffled))]))
    train = [row for row in rows if row["patient_id"] not in aside]
    test = [row for row in rows if row["patient_id"] in aside]
    return train, test


def write_csv(folder: Path, seed: int = 0) -> tuple[Path, Path]:
    """Write ``train.csv`` and ``test.csv`` (UTF-8) into ``folder``, made if absent.

    Returns:
        The two paths. A file appears whole or not at all.

    Raises:
        LoricaError: LOR-601 disk full, LOR-602 refused by the system.
    """
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    train, test = train_test(seed)
    paths = folder / "train.csv", folder / "test.csv"
    for path, rows in zip(paths, (train, test), strict=True):
        content = io.StringIO()
        writer = csv.DictWriter(content, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(path, content.getvalue())
    return paths


def _row(draws: Draws, patient: Patient, visit: int, text: Text) -> Row:
    hospital, department = patient.hospital, patient.department
    if visit and draws.chance(_ELSEWHERE):
        department = DEPARTMENTS[draws.weighted(hospital.mix)]
    note = text(draws, patient, visit, department)
    label = draws.one(NEIGHBORS[department]) if draws.chance(_MISLABELED) else department
    return dict(zip(COLUMNS, (patient.id, hospital.name, note, label), strict=True))


def findings_of(draws: Draws, patient: Patient, department: str) -> list[str]:
    """Two to four phrases, the telling ones first: clues, shared symptoms, general symptoms."""
    hospital = patient.hospital
    clues: Sequence[str] = phrases(hospital.clues[department])
    if department == patient.department and draws.chance(_RECURRING):
        clues = patient.complaints
    shared = [
        phrase
        for symptom, departments in SHARED_BY.items()
        if department in departments
        for phrase in phrases(hospital.shared[symptom])
    ]
    unspecific = 1 if draws.chance(_GENERAL) else 0
    match draws.weighted(_CLARITY):
        case 0:
            found = draws.some(clues, 3 if draws.chance(_THIRD_CLUE) else 2)
        case 1:
            found = draws.some(clues, 1) + draws.some(shared, 1)
        case 2:
            found = draws.some(clues, 1)
            unspecific += 1
        case _:
            found = draws.some(shared, 2)
    return found + draws.some(phrases(hospital.general), unspecific)


def denials_of(hospital: Hospital, department: str, findings: list[str]) -> list[str]:
    """What speaks against each department that has nothing to do with the findings."""
    involved = [department]
    for symptom, departments in SHARED_BY.items():
        if any(phrase in findings for phrase in phrases(hospital.shared[symptom])):
            involved.extend(departments)
    clear = zip(DEPARTMENTS, phrases(hospital.clear), strict=True)
    return [phrase for name, phrase in clear if name not in involved]


def _text(draws: Draws, patient: Patient, visit: int, department: str) -> str:
    """A note of 8 to 35 words in the hospital's manner."""
    hospital = patient.hospital
    findings = findings_of(draws, patient, department)
    denial = draws.one(denials_of(hospital, department, findings))
    opening = draws.one(phrases(hospital.again if visit else hospital.first))
    since = draws.one(phrases(hospital.since)) if draws.chance(TIMED) else ""
    joiners = draws.some(hospital.joiners, len(findings) - 1)
    while _words(opening, *findings, *joiners, since) > _MOST_WORDS:
        findings, joiners = findings[:-1], joiners[:-1]
    main = complaint_of(draws, opening, findings, joiners, since)

    past = patient.history if draws.chance(_OWN_HISTORY) else phrases(hospital.history)
    aside = draws.one(past) if draws.chance(_HISTORY) else denial
    extras = [aside, draws.one(phrases(hospital.closings))]
    wanted = [s for s, share in zip(extras, _EXTRAS, strict=True) if draws.chance(share)]
    if _words(main, *wanted) < _FEWEST_WORDS:
        wanted = extras
    while _words(main, *wanted) > _MOST_WORDS:
        wanted.pop()
    sentences = [main, *wanted]
    if aside in wanted and draws.chance(_ASIDE_FIRST):
        sentences = [aside, main, *wanted[1:]]
    text = filled(draws, patient, ". ".join(sentences) + ".")
    return misspelled(draws, text) if draws.chance(MISSPELLED) else text


def complaint_of(
    draws: Draws, opening: str, findings: list[str], joiners: list[str], since: str
) -> str:
    """What a patient comes for: the findings in random order, one joiner between any two."""
    findings = draws.some(findings, len(findings))
    complaint = findings[0]
    for joiner, finding in zip(joiners, findings[1:], strict=True):
        complaint += joiner + finding
    return f"{opening} {complaint} {since}".rstrip()


def _words(*sentences: str) -> int:
    return sum(len(sentence.split()) for sentence in sentences)


def filled(draws: Draws, patient: Patient, text: str) -> str:
    values = {
        "age": str(patient.age),
        "sex": draws.one(patient.hospital.sexes[patient.sex]),
        "he": ("he", "she")[patient.sex],
        "his": ("his", "her")[patient.sex],
        "side": draws.one(patient.hospital.sides),
        "n": str(2 + draws.below(5)),
    }
    text = text.format(**values)
    return text[0].upper() + text[1:]


def misspelled(draws: Draws, text: str) -> str:
    """``text`` with one long word misspelled: two letters swapped or one left out."""
    words = text.split(" ")
    long = [i for i, word in enumerate(words) if len(word) >= 5 and word.isalpha()]
    if not long:
        return text
    at = draws.one(long)
    word = words[at]
    cut = 1 + draws.below(len(word) - 3)
    swapped = word[cut + 1] + word[cut] if draws.chance(0.5) else word[cut]
    words[at] = word[:cut] + swapped + word[cut + 2 :]
    return " ".join(words)
