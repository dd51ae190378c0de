"""A person's consent per run: durable, of one run under one plan, and seen by the coordinator."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lorica.client.admission.consent import MOST_PENDING, Consent
from lorica.client.answering.endpoint import answer
from lorica.client.cli import app
from lorica.client.config.site import load_site
from lorica.client.training.opening import open_trainer
from lorica.client.training.trainer import LocalTrainer
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.wire.messages import (
    CAPABILITIES,
    TRAIN,
    Kind,
    Request,
    pack_request,
    unpack_reply,
)
from lorica.common.wire.signing import CoordinatorKey
from tests.client.service.helpers import KEY, make_site, request_for, small_plan


@pytest.fixture
def plan(small_backbone: Path) -> RunPlan:
    return small_plan(small_backbone)


@pytest.fixture
def site(tmp_path: Path, small_backbone: Path) -> Path:
    return make_site(tmp_path / "site", small_backbone, consent="per-run")


def trainer_at(site: Path) -> LocalTrainer:
    trainer, _ = open_trainer(load_site(site), site.parent)
    return trainer


def question(plan: RunPlan, run: str = "r", key: CoordinatorKey = KEY) -> Request:
    """Whether the site takes part in a run, signed."""
    return key.sign(Request(plan, run, site="north"), CAPABILITIES)


def code_of(trainer: LocalTrainer, request: Request, method: str = "capabilities") -> str:
    """The code of a refusal as the coordinator, who signs anew, sees it; "ok" without one."""
    kinds: dict[str, Kind] = {"capabilities": CAPABILITIES, "train": TRAIN}
    request = KEY.sign(request, kinds[method])
    packed = answer(method, pack_request(request), lambda: trainer)
    reply = unpack_reply(packed, fingerprint=request.plan.fingerprint, round=request.round)
    return reply.code if reply.status == "refused" else "ok"


def test_a_run_waits_until_it_is_approved_and_costs_nothing_before(
    site: Path, plan: RunPlan
) -> None:
    trainer, consent = trainer_at(site), Consent(site.parent / "consent")
    asked, train = question(plan), request_for(plan, TRAIN, 1)
    assert code_of(trainer, asked) == Code.AWAITING_APPROVAL.value
    assert code_of(trainer, train, "train") == Code.AWAITING_APPROVAL.value
    assert trainer._ledger is not None
    assert not trainer._ledger.history().charges
    assert [(item.run, item.plan) for item in consent.pending()] == [("r", plan)]
    consent.decide("r", "approved")
    assert consent.pending() == []
    assert code_of(trainer, asked) == "ok"
    assert code_of(trainer, train, "train") == "ok"


def test_a_decision_outlives_the_trainer_and_holds_for_one_plan_alone(
    site: Path, plan: RunPlan
) -> None:
    code_of(trainer_at(site), question(plan))
    Consent(site.parent / "consent").decide("r", "approved")
    again = trainer_at(site)
    assert code_of(again, question(plan)) == "ok"
    longer = plan.replace(rounds={"count": 4})
    assert code_of(again, question(longer)) == Code.AWAITING_APPROVAL.value
    assert code_of(again, question(plan, "another")) == Code.AWAITING_APPROVAL.value


def test_a_run_that_was_approved_can_be_denied_and_gets_no_further_round(
    site: Path, plan: RunPlan
) -> None:
    trainer, consent = trainer_at(site), Consent(site.parent / "consent")
    code_of(trainer, question(plan))
    consent.decide("r", "approved")
    assert code_of(trainer, request_for(plan, TRAIN, 1), "train") == "ok"
    consent.decide("r", "denied")
    assert code_of(trainer, request_for(plan, TRAIN, 2), "train") == Code.RUN_DENIED.value
    assert code_of(trainer, question(plan)) == Code.RUN_DENIED.value


def test_what_the_policy_refuses_is_not_put_before_anybody(site: Path, plan: RunPlan) -> None:
    greedy = plan.replace(privacy={"epsilon": 1000.0})
    assert code_of(trainer_at(site), question(greedy)) == Code.POLICY_REFUSED.value
    assert Consent(site.parent / "consent").pending() == []


def test_two_plans_of_one_run_id_are_told_apart(tmp_path: Path, plan: RunPlan) -> None:
    consent = Consent(tmp_path / "consent")
    other = plan.replace(rounds={"count": 4})
    for asked in (plan, other):
        with pytest.raises(LoricaError):
            consent.check(question(asked))
    with pytest.raises(LoricaError) as caught:
        consent.decide("r", "approved")
    assert caught.value.code is Code.RUN_NOT_ASKED
    consent.decide("r", "approved", other.fingerprint[:10])
    assert [item.plan for item in consent.pending()] == [plan]


@pytest.mark.parametrize("run", ["../../escape", "a/b", "x" * 5000, "\x00", "\u202eevil", "ü.json"])
def test_a_run_id_is_never_a_path(tmp_path: Path, plan: RunPlan, run: str) -> None:
    consent = Consent(tmp_path / "consent")
    with pytest.raises(LoricaError):
        consent.check(question(plan, run))
    assert [item.run for item in consent.pending()] == [run]
    made = [path for path in tmp_path.rglob("*.json") if "backbone" not in path.parts]
    assert [path.parent for path in made] == [tmp_path / "consent" / "pending"]


def test_junk_neither_fills_the_disk_nor_pushes_an_honest_request_out(
    tmp_path: Path, plan: RunPlan
) -> None:
    """Sixty requests of another coordinator, and sixty more of the honest one's own."""
    consent, other = Consent(tmp_path / "consent"), CoordinatorKey.create(tmp_path / "other.pem")
    with pytest.raises(LoricaError):
        consent.check(question(plan, "honest"))
    for key in (other, KEY):
        for number in range(60):
            with pytest.raises(LoricaError) as caught:
                consent.check(question(plan, f"junk {number}", key))
        assert caught.value.code is Code.TOO_MANY_PENDING
    waiting = consent.pending()
    assert "honest" in {item.run for item in waiting}
    assert Counter(item.coordinator for item in waiting) == {
        KEY.public: MOST_PENDING, other.public: MOST_PENDING,
    }  # fmt: skip
    consent.decide("honest", "approved")
    consent.check(question(plan, "honest"))


def test_a_request_that_nobody_signed_is_put_before_nobody(tmp_path: Path, plan: RunPlan) -> None:
    consent = Consent(tmp_path / "consent")
    with pytest.raises(LoricaError) as caught:
        consent.check(Request(plan, "r"))
    assert caught.value.code is Code.REQUEST_UNSIGNED
    assert consent.pending() == []


@pytest.mark.parametrize("width", [80, 300])
def test_what_a_coordinator_writes_is_shown_as_it_is(
    site: Path, plan: RunPlan, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    """Markup that ended the list half-way ("[/x]"), hid words, or wrote lines of its own."""
    monkeypatch.setenv("COLUMNS", str(width))
    labels = ["money", "health", "[conceal]secret[/]", "\x1b[2Jwiped", "\u202eturned", "x" * 90]
    trainer = trainer_at(site)
    runs = ["[/x]", "[conceal]hidden[/conceal]", "a\nRun b: approved", "\x1b[8mblack", "\u202er"]
    for run in runs:
        asked = plan.replace(task={"labels": labels})
        assert code_of(trainer, question(asked, run)) == Code.AWAITING_APPROVAL.value
    listed = CliRunner().invoke(app, ["pending", "--config", str(site)])
    assert listed.exit_code == 0, listed.exception
    shown = listed.output
    for text in ("Run [/x]", "[conceal]hidden[/conceal]", "[conceal]secret[/]", "wiped"):
        assert text in shown
    assert not any(line.startswith("Run b") for line in shown.splitlines())
    assert shown.replace("\n", "").isprintable() and "x" * 41 not in shown
    decided = CliRunner().invoke(app, ["deny-run", "[/x]", "--config", str(site)])
    assert decided.exit_code == 0 and "Run [/x]" in decided.output


def test_the_commands_list_what_a_run_costs_and_decide(site: Path, plan: RunPlan) -> None:
    trainer, run = trainer_at(site), CliRunner().invoke
    code_of(trainer, question(plan))
    listed = run(app, ["pending", "--config", str(site)])
    assert listed.exit_code == 0, listed.exception
    assert "ε of the run" in listed.output
    assert plan.fingerprint[:12] in listed.output  # wrapped at the width of the screen
    unknown = run(app, ["approve-run", "nobody asked", "--config", str(site)])
    assert isinstance(unknown.exception, LoricaError)
    done = run(app, ["approve-run", "r", "--config", str(site)])
    assert done.exit_code == 0
    assert code_of(trainer, question(plan)) == "ok"
    run(app, ["deny-run", "r", "--config", str(site)])
    assert code_of(trainer, question(plan)) == Code.RUN_DENIED.value
    assert "denied by" in run(app, ["pending", "--config", str(site)]).output


def test_a_damaged_decision_is_no_approval(site: Path, plan: RunPlan) -> None:
    trainer, consent = trainer_at(site), Consent(site.parent / "consent")
    code_of(trainer, question(plan))
    consent.decide("r", "approved")
    (path,) = (site.parent / "consent" / "decided").iterdir()
    path.write_text(path.read_text()[:20])
    assert code_of(trainer, question(plan)) == Code.RUN_NOT_ASKED.value
