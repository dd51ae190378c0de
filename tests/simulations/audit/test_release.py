"""``lorica audit --method release`` on the real releases: a sound site passes, each known fault
is caught.

A unit's turns show in the drawn units (sampling), too little noise, too little clipping and a stage
without noise in the bound, a skipped charge in the ledger.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

import lorica.client.mechanism.frozen_features
import lorica.client.training.session
from lorica.client.mechanism.frozen_features import Contributions, noised_sum
from lorica.client.mechanism.noise import NoiseSource
from lorica.client.mechanism.units import Units
from lorica.common.adapter.state import pack_state, unpack_state
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.plan.io import to_toml
from lorica.common.plan.stages import sent
from lorica.common.privacy.event import PrivacyEvent
from lorica.common.wire.messages import Request
from lorica.simulations.audit.audit import run_audit
from lorica.simulations.audit.cli import audit as audit_command
from lorica.simulations.audit.evidence.findings import Audit
from lorica.simulations.audit.watched.canaries import Entries, fair_coins
from lorica.simulations.audit.watched.releases import ReleasingTrainer, claimed_sum
from lorica.simulations.audit.watched.subject import Subject
from tests.simulations.audit.helpers import (
    ForgetfulLedger,
    default_plan,
    drawing,
    refused,
    small_plan,
    without_ledger,
)

CLAIM = 8.0
Break = Callable[[pytest.MonkeyPatch], None]


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> RunPlan:
    return small_plan(tmp_path_factory.mktemp("audit")).replace(
        privacy={"epsilon": CLAIM},
        training={"mode": "gradient"},
        rounds={"count": 12, "warm_start": 0.4},
    )


@pytest.fixture(scope="module")
def sound(plan: RunPlan) -> Audit:
    return run_audit(plan, ["release"])


def noise_times(share: float, *, sums: float | None = None) -> Break:
    """Noise is ``share`` times what is charged for, in the label sums ``sums`` times."""

    def spoil(monkeypatch: pytest.MonkeyPatch) -> None:
        def spoilt(
            given: Contributions, owner: torch.Tensor, event: PrivacyEvent, noise: NoiseSource
        ) -> torch.Tensor:
            of_head = bool((given.left.sum(1).abs() < 1e-6).any())  # residuals sum to 0
            factor = share if of_head or sums is None else sums
            less = dataclasses.replace(event, noise_multiplier=factor * event.noise_multiplier)
            return noised_sum(given, owner, less, noise)

        monkeypatch.setattr(lorica.client.training.session, "noised_sum", spoilt)

    return spoil


def no_clipping(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every norm is taken for 0."""

    def nothing(left: object, right: object, owner: object, sizes: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(sizes), dtype=torch.float64)

    monkeypatch.setattr(lorica.client.mechanism.frozen_features, "_norms", nothing)


def test_a_sound_site_passes_with_a_bound_below_the_claim(sound: Audit) -> None:
    assert {f.method for f in sound.findings} == {
        "release-dp",
        "release-f-dp",
        "release-mechanism",
    }
    assert 0.5 * CLAIM < sound.strongest.lower_bound < CLAIM
    assert all(1.0 < finding.lower_bound < CLAIM for finding in sound.findings)
    assert not sound.failed
    assert sound.findings[-1].seconds < 60
    assert sound.facts["audited"] == {"release": "the plan's releases on frozen features"}
    sound.refuse()


@pytest.mark.parametrize(
    "fault",
    [noise_times(0.0), noise_times(0.5), noise_times(1.0, sums=0.0), no_clipping],
    ids=["no noise", "half the noise", "label sums without noise", "no clipping"],
)
def test_too_little_noise_or_clipping_exceeds_the_claim(
    plan: RunPlan, fault: Break, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault(monkeypatch)
    audit = run_audit(plan, ["release"])
    assert audit.strongest.lower_bound > CLAIM
    assert "epsilon is at least" in refused(audit)


def test_unpaid_releases_show_in_the_ledger_and_not_in_the_bound(
    plan: RunPlan, sound: Audit, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_ledger(monkeypatch)
    audit = run_audit(plan, ["release"])
    assert audit.strongest.lower_bound == sound.strongest.lower_bound
    assert [check.name for check in audit.failed] == ["ledger of the releases"]
    assert "releases were made that nobody paid for" in refused(audit)


def test_the_ledger_lets_no_release_leave_whose_charge_was_skipped(
    plan: RunPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lorica.simulations.audit.watched.planted.MemoryLedger", ForgetfulLedger)
    with pytest.raises(LoricaError, match="never charged") as caught:
        run_audit(plan, ["release"])
    assert caught.value.code is Code.PRIVACY_BUDGET


def test_batches_of_a_part_of_the_units_pass_and_of_a_fixed_size_fail(
    plan: RunPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampled = plan.replace(training={"sample_rate": 0.5})
    audit = run_audit(sampled, ["release"])
    assert 1.0 < audit.strongest.lower_bound < CLAIM
    assert not audit.failed

    def fixed(self: Units, noise: NoiseSource, rate: float) -> list[np.ndarray]:
        keys = noise.gaussian((len(self),), 1.0).numpy()
        return [self._rows[unit] for unit in np.argsort(keys)[: round(rate * len(self))]]

    drawing(monkeypatch, fixed)
    audit = run_audit(sampled, ["release"])
    assert [check.name for check in audit.failed] == ["Poisson sampling, head"]
    refused(audit)


def test_a_unit_left_out_of_full_batches_is_seen(
    plan: RunPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Units.draw
    drawing(monkeypatch, lambda self, noise, rate: whole(self, noise, rate)[1:])
    failed = {check.name for check in run_audit(plan, ["release"], canaries=100).failed}
    assert {"Poisson sampling, class sums", "Poisson sampling, head"} <= failed


def request(plan: RunPlan, subject: Subject, round: int) -> Request:
    """A round from the common start."""
    names = sent(plan, round, subject.start)
    start = {name: subject.start[name] for name in names}
    return Request(plan, "run", round, pack_state(start))


@pytest.mark.parametrize("unit", ["record", "person"])
def test_without_noise_a_canary_shows_exactly_when_it_was_drawn(plan: RunPlan, unit: str) -> None:
    # Clipping brings the oversized canary to exactly C, and real records' part is exactly known.
    # All of a person's records come, or those drawn of them: a mean that the auditor works out.
    silent = plan.replace(
        privacy={"epsilon": float("inf"), "unit": unit, "max_records_per_unit": 2},
        training={"sample_rate": 0.5, "lora": "never"},
    )
    subject = dataclasses.replace(Subject.of(plan.replace(privacy={"unit": unit})), plan=silent)
    generator = np.random.default_rng(0)
    coins = fair_coins(60, generator)
    trainer = subject.releasing_trainer(coins, lambda shape: Entries(100, shape, generator))
    for round in (1, 2, 3):
        trainer.train(request(silent, subject, round))
    watch = trainer.watch
    seen = np.array(watch.scores)
    assert [stage.value for stage in watch.stages] == ["class sums", "head", "head"]
    assert np.abs(seen[:, 60:]).max() < 1e-4
    assert np.abs(seen[:, :60][:, ~watch.included]).max() < 1e-4
    shown = seen[:, np.flatnonzero(watch.included)]
    assert np.abs(shown - shown.round()).max() < 1e-4
    assert (shown[0].round() == 1.0).all()
    assert set(shown[1:].round().ravel()) == {0.0, 1.0}
    assert np.array(watch.draws).max() == (1 if unit == "record" else 2)


def test_watching_changes_nothing_that_leaves_the_site(plan: RunPlan) -> None:
    subject = Subject.of(plan)
    nobody = np.zeros(0, dtype=bool)
    generator = np.random.default_rng(0)
    audited: ReleasingTrainer = subject.releasing_trainer(
        nobody, lambda shape: Entries(5, shape, generator)
    )
    plain = subject.plain_trainer()
    for round in (1, 2):
        asked = request(subject.plan, subject, round)
        ours, theirs = (unpack_state(t.train(asked).blob) for t in (audited, plain))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("sizes", [[1] * 9, [1, 4, 2, 3]])
def test_what_the_auditor_expects_is_the_sum_without_noise(sizes: list[int]) -> None:
    generator = torch.Generator().manual_seed(3)
    left, right = (
        torch.randn(sum(sizes), width, generator=generator, dtype=torch.float64) for width in (4, 6)
    )
    owner = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    given = Contributions(left, right, 2.5)
    expected = lorica.client.mechanism.frozen_features._clipped_sum(
        left, right, owner, 2.5, exact=False
    )
    torch.testing.assert_close(claimed_sum(given, owner.numpy()), expected)


def test_plans_of_other_stages_are_audited_as_the_nearest_plan_of_releases(plan: RunPlan) -> None:
    own = Subject.of(plan)
    assert own.in_releases is own
    tuned = Subject.of(plan.replace(training={"lora": "always", "lora_rounds": 2})).in_releases
    assert tuned.plan.lora_rounds == 0
    assert tuned.plan.rounds == own.plan.rounds
    local = Subject.of(
        plan.replace(
            training={"mode": "local"},
            rounds={"count": 3, "warm_start": 0},
            aggregation={"method": "flexlora"},
        )
    ).in_releases
    assert local.plan.training.mode == "gradient"
    assert local.plan.rounds.count == RunPlan().rounds.count
    assert local.plan.rounds.warm_start == RunPlan().rounds.warm_start


def test_more_canaries_than_weights_are_refused(plan: RunPlan) -> None:
    with pytest.raises(LoricaError, match="weights of the head") as caught:
        run_audit(plan, ["release"], canaries=100_000)
    assert caught.value.code is Code.PLAN_BAD_VALUE


def test_command_writes_the_report_of_the_releases(plan: RunPlan, tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(to_toml(plan), encoding="utf-8")
    app = typer.Typer()
    app.command()(audit_command)
    arguments = [str(path), "--method", "release", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert "release: audits the plan's releases on frozen features" in result.output
    content = json.loads((tmp_path / "out" / "audit.json").read_text(encoding="utf-8"))
    assert content["claimed_epsilon"] == CLAIM
    assert content["confidence"] == 0.95
    assert content["method"] == "release-mechanism"
    assert 1.0 < content["lower_bound"] < CLAIM
    page = (tmp_path / "out" / "audit.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 2


@pytest.mark.slow("the default plan, audited whole")
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_default_recipe_is_below_the_claim_and_with_half_the_noise_above_it(
    share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise_times(share)(monkeypatch)
    audit = run_audit(default_plan(), ["release"])
    assert max(finding.seconds for finding in audit.findings) < 60
    if share == 1.0:
        assert all(1.0 < finding.lower_bound < CLAIM for finding in audit.findings)
        audit.refuse()
    else:
        assert audit.strongest.lower_bound > CLAIM
        refused(audit)
