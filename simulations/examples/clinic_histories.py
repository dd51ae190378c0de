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
    COLUMNS,
    ELSEWHERE,
    MISLABELED,
    MISSPELLED,
    TIMED,
    Draws,
    Patient,
    Row,
    filled,
    findings_of,
    misspelled,
    split,
)
from lorica.simulations.examples.clinic_vocabulary import (
    DEPARTMENTS,
    HOSPITALS,
    NEIGHBORS,
    SHARED_BY,
    Hospital,
    phrases,
)

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
    draws = Draws(seed)
    rows: list[Row] = []
    for hospital in HOSPITALS:
        for number in range(1, round(_TIMES_AS_MANY * hospital.patients) + 1):
            patient = Patient(draws, hospital, number)
            for visit in range(draws.weighted(_VISITS) + 1):
                rows.append(_note(draws, patient, visit))
    return rows


def train_test(seed: int = 0) -> tuple[list[Row], list[Row]]:
    """The rows of :func:`generate` as (train, test); no patient is in both, and a fifth of every
    hospital's patients is in test."""
    return split(generate(seed), seed)


def _note(draws: Draws, patient: Patient, visit: int) -> Row:
    hospital, department = patient.hospital, patient.department
    if visit and draws.chance(ELSEWHERE):
        department = DEPARTMENTS[draws.weighted(hospital.mix)]
    findings = findings_of(draws, patient, department)
    denials = _denials(draws, hospital, department, findings)
    text = _composed(draws, patient, visit, findings[:_FINDINGS], denials)
    label = draws.one(NEIGHBORS[department]) if draws.chance(MISLABELED) else department
    return dict(zip(COLUMNS, (patient.id, hospital.name, text, label), strict=True))


def _denials(draws: Draws, hospital: Hospital, department: str, findings: list[str]) -> list[str]:
    """What speaks against departments that have nothing to do with the findings."""
    involved = {department}
    for symptom, departments in SHARED_BY.items():
        if any(phrase in findings for phrase in phrases(hospital.shared[symptom])):
            involved.update(departments)
    clear = zip(DEPARTMENTS, phrases(hospital.clear), strict=True)
    return draws.some([phrase for name, phrase in clear if name not in involved], _DENIALS)


def _composed(
    draws: Draws, patient: Patient, visit: int, findings: list[str], denials: list[str]
) -> str:
    """A note in the hospital's manner: the complaint in any place among three asides."""
    hospital = patient.hospital
    opening = draws.one(phrases(hospital.again if visit else hospital.first))
    since = draws.one(phrases(hospital.since)) if draws.chance(TIMED) else ""
    joiners = draws.some(hospital.joiners, len(findings) - 1)
    findings = draws.some(findings, len(findings))
    complaint = findings[0]
    for joiner, finding in zip(joiners, findings[1:], strict=True):
        complaint += joiner + finding
    main = f"{opening} {complaint} {since}".rstrip()
    past = draws.some(phrases(hospital.history), _HISTORIES)
    asides = draws.some([*past, *denials], _ASIDES)
    place = draws.below(len(asides) + 1)
    text = filled(draws, patient, ". ".join([*asides[:place], main, *asides[place:]]) + ".")
    return misspelled(draws, text) if draws.chance(MISSPELLED) else text
