"""The synthetic clinic notes: same on every machine, of the promised shape, never split wrongly."""

from __future__ import annotations

import csv
import hashlib
import json
import string
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

from lorica.common.errors import Code, LoricaError
from lorica.simulations.examples import clinic_notes
from lorica.simulations.examples.clinic_notes import COLUMNS, Row, generate, train_test, write_csv
from lorica.simulations.examples.clinic_vocabulary import (
    DEPARTMENTS,
    HOSPITALS,
    NEIGHBORS,
    SHARED_BY,
    Hospital,
    phrases,
)

SHA256_OF_SEED_0 = "39bd9422efc12a39b1870c23272b6a7ff93c31b14dc357e9b42962f2e5ed8ef3"
SHA256_OF_TEST_OF_SEED_0 = "2f36f1646a9e5a4586f7c7f73d338b6f43e68f254ea9edd8ba54a2c1b0d985aa"
SEEDS = [0, 1, 7]


def digest(rows: list[Row]) -> str:
    lines = (json.dumps([row[column] for column in COLUMNS]) for row in rows)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def label_shares(rows: list[Row], hospital: str) -> dict[str, float]:
    counts = Counter(row["label"] for row in rows if row["hospital"] == hospital)
    return {label: counts[label] / counts.total() for label in DEPARTMENTS}


def patients(rows: list[Row]) -> Counter[str]:
    return Counter(row["patient_id"] for row in rows)


def test_rows_of_seed_0_are_the_pinned_ones() -> None:
    # Fails on any change of words or draws: then measure the difficulty anew and pin the new hash.
    assert digest(generate()) == SHA256_OF_SEED_0
    assert digest(train_test()[1]) == SHA256_OF_TEST_OF_SEED_0


def test_same_seed_gives_same_rows() -> None:
    assert generate(3) == generate(3)
    assert train_test(3) == train_test(3)


def test_other_seed_gives_other_notes() -> None:
    texts = {row["text"] for row in generate(0)}
    others = {row["text"] for row in generate(1)}
    assert len(texts & others) < 0.01 * len(texts)


@pytest.mark.parametrize("seed", SEEDS)
def test_size_and_columns(seed: int) -> None:
    rows = generate(seed)
    assert 2800 <= len(rows) <= 3600
    assert all(tuple(row) == COLUMNS for row in rows)
    assert {row["label"] for row in rows} == set(DEPARTMENTS)
    assert {row["hospital"] for row in rows} == {hospital.name for hospital in HOSPITALS}


@pytest.mark.parametrize("seed", SEEDS)
def test_texts_are_finished_and_of_8_to_35_words(seed: int) -> None:
    for row in generate(seed):
        assert 8 <= len(row["text"].split()) <= 35
        assert not set("{}\n") & set(row["text"])
        assert row["text"] == row["text"].strip()
        assert "  " not in row["text"]
        assert ".." not in row["text"]


@pytest.mark.parametrize("seed", SEEDS)
def test_almost_no_two_texts_are_equal(seed: int) -> None:
    texts = [row["text"] for row in generate(seed)]
    assert len(set(texts)) > 0.995 * len(texts)


def test_patients_have_one_to_six_notes_at_one_hospital() -> None:
    rows = generate()
    notes = patients(rows)
    assert set(notes.values()) == set(range(1, 7))
    assert 2.2 < len(rows) / len(notes) < 2.8
    assert len({(row["patient_id"], row["hospital"]) for row in rows}) == len(notes)


def test_most_notes_of_a_patient_are_for_one_department() -> None:
    labels: dict[str, Counter[str]] = {}
    for row in generate():
        labels.setdefault(row["patient_id"], Counter())[row["label"]] += 1
    several = [counts for counts in labels.values() if counts.total() > 1]
    main = sum(max(counts.values()) for counts in several)
    assert 0.85 < main / sum(counts.total() for counts in several) < 0.98
    assert any(len(counts) > 1 for counts in several)


@pytest.mark.parametrize("seed", SEEDS)
def test_no_patient_is_in_both_train_and_test(seed: int) -> None:
    train, test = train_test(seed)
    assert not patients(train).keys() & patients(test).keys()
    assert sorted(map(digest, ([row] for row in train + test))) == sorted(
        map(digest, ([row] for row in generate(seed)))
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_a_fifth_of_every_hospitals_patients_is_test(seed: int) -> None:
    _, test = train_test(seed)
    for hospital in HOSPITALS:
        members = patients([row for row in test if row["hospital"] == hospital.name])
        assert len(members) == round(hospital.patients / 5)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_label_is_in_train_and_test(seed: int) -> None:
    for rows, fewest in zip(train_test(seed), (150, 25), strict=True):
        counts = Counter(row["label"] for row in rows)
        assert min(counts[label] for label in DEPARTMENTS) >= fewest


@pytest.mark.parametrize("seed", SEEDS)
def test_hospitals_differ_in_their_labels(seed: int) -> None:
    rows = generate(seed)
    shares = {hospital.name: label_shares(rows, hospital.name) for hospital in HOSPITALS}
    for one, other in combinations(shares.values(), 2):
        total_variation = sum(abs(one[label] - other[label]) for label in DEPARTMENTS) / 2
        assert total_variation > 0.2
    for name, share in shares.items():
        assert sum(value < 0.06 for value in share.values()) >= 2, f"{name} sees everything"


def test_hospitals_differ_in_their_words() -> None:
    # A phrase that two hospitals share would make one's notes easy for the other.
    for one, other in combinations(HOSPITALS, 2):
        common = clue_phrases(one) & clue_phrases(other)
        assert len(common) <= 3, common


def clue_phrases(hospital: Hospital) -> set[str]:
    return {phrase for text in hospital.clues.values() for phrase in phrases(text)}


@pytest.mark.parametrize("hospital", HOSPITALS, ids=lambda hospital: hospital.prefix)
def test_vocabulary_is_complete(hospital: Hospital) -> None:
    assert tuple(hospital.clues) == DEPARTMENTS
    assert tuple(hospital.shared) == tuple(SHARED_BY)
    assert len(phrases(hospital.clear)) == len(hospital.mix) == len(DEPARTMENTS)
    assert sum(hospital.mix) == 100
    for text in hospital.clues.values():
        assert len(phrases(text)) >= 8
    everything = [text for text in vars(hospital).values() if isinstance(text, str)]
    everything += [*hospital.clues.values(), *hospital.shared.values()]
    fields = {field for text in everything for _, field, _, _ in string.Formatter().parse(text)}
    assert fields <= {None, "age", "sex", "he", "his", "side", "n"}


def test_neighbors_are_other_departments() -> None:
    assert set(NEIGHBORS) == set(DEPARTMENTS)
    for department, neighbors in NEIGHBORS.items():
        assert neighbors
        assert set(neighbors) < set(DEPARTMENTS) - {department}
    assert {name for departments in SHARED_BY.values() for name in departments} == set(DEPARTMENTS)


def test_about_4_percent_of_labels_are_a_neighbors(monkeypatch: pytest.MonkeyPatch) -> None:
    # The only draw of NEIGHBORS decides a wrong label, so marking its outcome counts them.
    marked = dict.fromkeys(DEPARTMENTS, ("wrong",))
    monkeypatch.setattr(clinic_notes, "NEIGHBORS", marked)
    labels = Counter(row["label"] for row in generate())
    assert 0.03 < labels["wrong"] / labels.total() < 0.05


def test_csv_files_give_back_the_rows(tmp_path: Path) -> None:
    paths = write_csv(tmp_path / "new" / "folder", seed=5)
    assert [path.name for path in paths] == ["train.csv", "test.csv"]
    for path, rows in zip(paths, train_test(5), strict=True):
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            assert list(reader) == rows
            assert tuple(reader.fieldnames or ()) == COLUMNS
    assert sorted(path.name for path in paths[0].parent.iterdir()) == ["test.csv", "train.csv"]


def test_unwritable_folder_is_a_coded_error(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(LoricaError) as caught:
        write_csv(blocked / "folder")
    assert caught.value.code is Code.STORAGE_DENIED


def test_module_says_that_the_notes_are_synthetic() -> None:
    text = clinic_notes.__doc__ or ""
    assert "SYNTHETIC" in text
    assert "No patient exists" in text
    assert "not for clinical use" in text
