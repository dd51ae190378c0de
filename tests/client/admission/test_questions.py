"""A coordinator that asks with one plan after the other learns a bounded number of facts."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from lorica.client.admission.consent import Consent
from lorica.client.admission.gate import Admission
from lorica.client.admission.questions import Questions, question
from lorica.client.config.site import Policy, SiteConfig, SiteData, SiteIdentity
from lorica.client.mechanism.noise import SecureNoise
from lorica.client.training.opening import site_questions
from lorica.client.training.trainer import LocalTrainer
from lorica.common.data.records import Records
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.wire.messages import CAPABILITIES, Request
from tests.client.service.helpers import KEY

PLAN = RunPlan().replace(
    task={"kind": "text-regression", "minimum": 0.0, "maximum": 100.0},
    training={"mode": "local"},
    privacy={"epsilon": 1.0, "delta": 1e-5, "evaluation_metrics": ["loss"]},
)
LARGEST = 97.531
NOTHING = Records([], [], [], [])


def site(folder: Path, questions: int = 8, consent: str = "none") -> LocalTrainer:
    """A site with 200 private numbers, anew over the same folder."""
    drawn = random.Random(1)
    targets = [f"{drawn.uniform(0, 90):.3f}" for _ in range(199)] + [str(LARGEST)]
    texts, units = [f"text {i}" for i in range(200)], [str(i) for i in range(200)]
    config = SiteConfig(
        site=SiteIdentity(name="north"),
        data=SiteData(source="records.csv"),
        policy=Policy(
            tasks=["text-regression"], questions=questions, consent=consent, sampling_units=200
        ),
    )
    asked = site_questions(config, folder)
    assert (asked is None) == (consent == "per-run")
    return LocalTrainer(
        "north",
        Records(texts, targets, units, [""] * 200),
        noise=lambda *_: SecureNoise(),
        admission=Admission(
            config,
            consent=Consent(folder / "consent") if consent == "per-run" else None,
            questions=asked,
        ),
    )


def takes_part(trainer: LocalTrainer, maximum: float) -> bool | None:
    """Whether the site takes part under a bound; None when it will not say."""
    try:
        trainer.capabilities(Request(PLAN.replace(task={"maximum": maximum}), f"r{maximum}"))
    except LoricaError as error:
        if error.code is Code.POLICY_REFUSED:
            return None
        assert error.code is Code.DATA_UNFIT
        return False
    return True


def largest_target(folder: Path, questions: int) -> tuple[float, float]:
    """What a bisecting coordinator learns: between which numbers the largest target lies."""
    folder.mkdir()
    low, high = 0.0, 100.0
    for _ in range(20):
        middle = (low + high) / 2
        fits = takes_part(site(folder, questions), middle)  # a restart gives nothing back
        if fits is None:
            break
        low, high = (low, middle) if fits else (middle, high)
    return low, high


def test_bisecting_finds_the_largest_target_no_nearer_than_the_policy_lets_it(
    tmp_path: Path,
) -> None:
    low, high = largest_target(tmp_path / "bound", 5)
    assert low < LARGEST <= high and high - low == pytest.approx(100 / 2**5)
    low, high = largest_target(tmp_path / "unbound", 1000)
    assert high - low < 1e-3  # the attack itself works


def test_what_was_asked_is_answered_again_and_what_is_not_compared_is_no_question(
    tmp_path: Path,
) -> None:
    trainer = site(tmp_path, questions=1)
    assert takes_part(trainer, 90.0) is False
    assert takes_part(site(tmp_path, questions=1), 90.0) is False
    assert takes_part(trainer, 99.0) is None
    other = PLAN.replace(rounds={"count": 7}, privacy={"epsilon": 2.0})
    assert question(other) == question(PLAN) != question(PLAN.replace(task={"minimum": 1.0}))
    assert (tmp_path / "questions.json").stat().st_mode & 0o077 == 0


def test_a_refusal_for_too_many_questions_does_not_depend_on_the_records(tmp_path: Path) -> None:
    trainer = site(tmp_path, questions=1)
    assert takes_part(trainer, 99.0) is True
    with pytest.raises(LoricaError, match=r"policy\.questions allows 1") as caught:
        trainer.capabilities(Request(PLAN.replace(task={"maximum": 1.0}), "r"))
    assert "questions.json" in caught.value.mend


def test_a_damaged_file_forgets_nothing(tmp_path: Path) -> None:
    asked = Questions(tmp_path / "questions.json", 8)
    asked.ask(PLAN, NOTHING)
    (tmp_path / "questions.json").write_text('{"a": 1')
    with pytest.raises(LoricaError, match="is damaged"):
        asked.ask(PLAN, NOTHING)


def test_where_people_decide_about_runs_they_decide_about_this(tmp_path: Path) -> None:
    trainer = site(tmp_path, questions=1, consent="per-run")
    for maximum in (95.0, 98.0, 99.0):
        with pytest.raises(LoricaError) as caught:
            asked = Request(PLAN.replace(task={"maximum": maximum}), "r", site="north")
            trainer.capabilities(KEY.sign(asked, CAPABILITIES))
        assert caught.value.code is Code.AWAITING_APPROVAL
