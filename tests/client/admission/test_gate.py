"""What refusals tell a coordinator that asks as it likes: one bit a question, whatever is wrong."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

import pytest

from lorica.client.admission.gate import Admission
from lorica.client.admission.questions import Questions
from lorica.client.admission.readiness import rounded_units
from lorica.client.answering.endpoint import answer
from lorica.client.config.site import Policy, SiteConfig, SiteData, SiteIdentity
from lorica.client.mechanism.noise import SecureNoise
from lorica.client.training.trainer import LocalTrainer
from lorica.common.data.records import Records
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.wire.messages import Request, pack_request, unpack_reply

FIGURE = 100
CLASSES = RunPlan().replace(task={"labels": ["money", "health"]}, privacy={"epsilon": 1.0})
NUMBERS = CLASSES.replace(
    task={"kind": "text-regression", "labels": [], "minimum": 0.0, "maximum": 100.0},
    privacy={"evaluation_metrics": ["loss"]},
)


def site(folder: Path, labels: list[str], *, questions: int = 8) -> LocalTrainer:
    """A real trainer whose policy fixes the figure 100, whatever the number of records."""
    folder.mkdir(exist_ok=True)
    config = SiteConfig(
        site=SiteIdentity(name="north"),
        data=SiteData(source="records.csv"),
        policy=Policy(
            sampling_units=FIGURE,
            tasks=["text-classification", "text-regression"],
            questions=questions,
            maximum_delta=0.5,
        ),
    )
    count = len(labels)
    texts, units = [f"text {i}" for i in range(count)], [str(i) for i in range(count)]
    return LocalTrainer(
        "north",
        Records(texts, labels, units, [""] * count),
        noise=lambda *_: SecureNoise(),
        admission=Admission(config, questions=Questions(folder / "questions.json", questions)),
    )


def codes(trainer: LocalTrainer, plans: Iterable[RunPlan]) -> list[str]:
    """What the coordinator is told of each plan: "" takes part, else the code of the refusal."""
    told = []
    for number, plan in enumerate(plans):
        packed = pack_request(Request(plan, f"r{number}"))
        reply = answer("capabilities", packed, lambda: trainer)
        told.append(unpack_reply(reply, fingerprint=plan.fingerprint, round=0).code)
    return told


def largest_admitted(trainer: LocalTrainer, plan_of: object, low: int, high: int) -> int:
    """By bisection, the largest number whose plan the site takes part in."""
    assert callable(plan_of)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if codes(trainer, [plan_of(middle)]) == [""] else (low, middle)
    return low


@pytest.mark.parametrize("count", [137, 4992])
def test_the_expected_batch_tells_the_sites_figure_and_never_the_true_number(
    tmp_path: Path, count: int
) -> None:
    """Twenty free questions gave the exact number of records: LOR-308 compared with it."""
    trainer = site(tmp_path, ["money", "health"] * (count // 2) + ["money"] * (count % 2))

    def plan(batch: int) -> RunPlan:
        return CLASSES.replace(
            training={"mode": "local", "expected_batch_size": batch}, rounds={"warm_start": 0.0}
        )

    assert largest_admitted(trainer, plan, 64, 1 << 13) == FIGURE


@pytest.mark.parametrize("count", [137, 4992])
def test_delta_tells_the_sites_figure_and_never_the_true_number(tmp_path: Path, count: int) -> None:
    """LOR-402 compared δ·N with 1: here bisected is the least M with δ = 1/M that is taken."""
    trainer = site(tmp_path, ["money"] * count)
    low, high = 2, 1 << 20
    while high - low > 1:
        middle = (low + high) // 2
        fits = codes(trainer, [CLASSES.replace(privacy={"delta": 1 / middle})]) == [""]
        low, high = (low, middle) if fits else (middle, high)
    assert high == 100 * FIGURE, "a hundred times the figure, as the policy wants it"


def test_a_thousand_plans_tell_of_neighbouring_sites_at_most_one_bit_a_question(
    tmp_path: Path,
) -> None:
    """Two sites that differ in one record; plans chosen to tell them apart, a restart between."""
    names = [f"label {i}" for i in range(1000)]
    usual = ["money", "health"] * 60
    plans = [CLASSES.replace(task={"labels": ["money", "health", name]}) for name in names]
    odd = [*usual, names[7]]
    asked = {}
    for which, labels in (("with", odd), ("without", usual)):
        told = codes(site(tmp_path / which, labels), plans[:500])
        told += codes(site(tmp_path / which, labels), plans[500:])
        asked[which] = told
        assert set(told) <= {"", Code.DATA_UNFIT.value, Code.POLICY_REFUSED.value}
        assert sum(code != Code.POLICY_REFUSED.value for code in told) == 8
    differing = sum(a != b for a, b in zip(asked["with"], asked["without"], strict=True))
    assert 1 <= differing <= 8  # the attack works, and as far as the policy lets it


UNFIT: dict[str, tuple[RunPlan, list[str]]] = {
    "a label that the plan lacks": (CLASSES, ["money"] * 120 + ["fraud"]),
    "a target above its bound": (NUMBERS, ["50"] * 120 + ["100.5"]),
    "a target that is no number": (NUMBERS, ["50"] * 120 + ["fifty"]),
    "a target that is missing": (NUMBERS, ["50"] * 120 + [""]),
}


@pytest.mark.parametrize("what", sorted(UNFIT))
def test_whatever_about_the_records_is_wrong_the_coordinator_is_told_the_same(
    tmp_path: Path, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    """One code; the site's own log has the reason."""
    plan, labels = UNFIT[what]
    with caplog.at_level(logging.WARNING, logger="lorica.site"):
        assert codes(site(tmp_path, labels), [plan]) == [Code.DATA_UNFIT.value]
    assert "record 121" in caplog.text


def test_records_that_changed_are_a_question_of_their_own(tmp_path: Path) -> None:
    """The same plan, day after day, would tell of what came and went."""
    told = [
        codes(site(tmp_path, ["money"] * (120 + day), questions=3), [CLASSES])[0]
        for day in range(5)
    ]
    assert told == ["", "", "", Code.POLICY_REFUSED.value, Code.POLICY_REFUSED.value]
    assert codes(site(tmp_path, ["money"] * 120, questions=3), [CLASSES]) == [""], "asked before"


def test_a_site_without_a_figure_of_its_own_is_not_made() -> None:
    config = SiteConfig(site=SiteIdentity(name="a"), data=SiteData(source="x.csv"))
    with pytest.raises(LoricaError, match=r"policy\.sampling_units is 0") as caught:
        Admission(config)
    assert caught.value.code is Code.SITE_CONFIG


def test_a_suggested_figure_is_the_first_digit_rounded_down() -> None:
    given = [0, 7, 87, 100, 137, 4992, 1_000_000]
    assert [rounded_units(units) for units in given] == [0, 7, 80, 100, 100, 4000, 1_000_000]
