"""The demo's data set: SYNTHETIC clinic notes amid histories. No patient exists; not for clinical
use.

The notes of :mod:`lorica.simulations.examples.clinic_notes`, of the same four hospitals and the
same words, as busy clinics write them: beside what a patient comes for stand old diagnoses, other
people's illnesses and what is *not* found, all of which name other departments. A frozen sentence
embedding mixes all that a note says, so that a head on it does poorly; a model that learns which
clause is the complaint does well. The notes were made so: to show what an adapter is for. How much
one gains on your records is another question.

More patients than there, most of them with a single note: what hides in noise is a patient.

The rows depend on the seed alone, as there.
"""

from __future__ import annotations

from lorica.simulations.examples.clinic_notes import (
    MISSPELLED,
    TIMED,
    Draws,
    Patient,
    Row,
    complaint_of,
    denials_of,
    filled,
    findings_of,
    misspelled,
    split,
    written,
)
from lorica.simulations.examples.clinic_vocabulary import Hospital, phrases

_TIMES_AS_MANY = 2.1  # patients, of those of the clinic notes
_VISITS = (85, 12, 3)  # patients with 1, 2, 3 notes
_FINDINGS, _DENIALS, _HISTORIES = 2, 2, 2  # at most
_ASIDES = 3


def generate(seed: int = 0) -> list[Row]:
    """About 3,200 notes, patient after patient, hospital after hospital.

    Args:
        seed: another seed gives other patients and notes of the same kind.

    Returns:
        Rows with the keys of :data:`lorica.simulations.examples.clinic_notes.COLUMNS`; all values
        are text, none is empty.
    """
    return written(seed, _VISITS, _text, _TIMES_AS_MANY)


def train_test(seed: int = 0) -> tuple[list[Row], list[Row]]:
    """The rows of :func:`generate` as (train, test); no patient is in both, and a fifth of every
    hospital's patients is in test."""
    return split(generate(seed), seed)


def _text(draws: Draws, patient: Patient, visit: int, department: str) -> str:
    """A note in the hospital's manner: the complaint in any place among three asides."""
    hospital = patient.hospital
    findings = findings_of(draws, patient, department)
    denials = _denials(draws, hospital, department, findings)
    findings = findings[:_FINDINGS]
    opening = draws.one(phrases(hospital.again if visit else hospital.first))
    since = draws.one(phrases(hospital.since)) if draws.chance(TIMED) else ""
    joiners = draws.some(hospital.joiners, len(findings) - 1)
    main = complaint_of(draws, opening, findings, joiners, since)
    past = draws.some(phrases(hospital.history), _HISTORIES)
    asides = draws.some([*past, *denials], _ASIDES)
    place = draws.below(len(asides) + 1)
    text = filled(draws, patient, ". ".join([*asides[:place], main, *asides[place:]]) + ".")
    return misspelled(draws, text) if draws.chance(MISSPELLED) else text


def _denials(draws: Draws, hospital: Hospital, department: str, findings: list[str]) -> list[str]:
    """What the note says is not found."""
    return draws.some(denials_of(hospital, department, findings), _DENIALS)
