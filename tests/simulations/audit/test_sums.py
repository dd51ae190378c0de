"""``lorica audit --method sum`` on real sealed sums: a sound federation passes, and each known
fault is caught: too little noise, an honest site that gives none, a ledger that forgets who can
collude, a site that believes a coordinator's lies about survivors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
import typer
from typer.testing import CliRunner

import lorica.client.training.sealing
from lorica.client.mechanism.noise import SeededNoise
from lorica.client.secure_sum.memory import KeptInMemory
from lorica.client.secure_sum.part import PartInSum
from lorica.common.plan import RunPlan
from lorica.common.plan.io import to_toml
from lorica.common.privacy.shared_noise import OWN_NOISE
from lorica.common.secure_sum.messages import Opening, survivors_statement
from lorica.simulations.audit.attacks.lying import LIES, lie_told
from lorica.simulations.audit.audit import run_audit
from lorica.simulations.audit.cli import audit as audit_command
from lorica.simulations.audit.evidence.findings import Audit
from lorica.simulations.audit.watched import subject, sums
from lorica.simulations.audit.watched.canaries import Entries, fair_coins
from lorica.simulations.audit.watched.subject import Seats, Subject
from lorica.simulations.audit.watched.sums import SummedFederation
from tests.simulations.audit.helpers import default_plan, refused, small_plan

CLAIM = 8.0


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> RunPlan:
    return small_plan(tmp_path_factory.mktemp("audit")).replace(
        privacy={"epsilon": CLAIM},
        training={"mode": "gradient"},
        rounds={"count": 4, "warm_start": 0.4},
        simulation={"sites": 3},
    )


@pytest.fixture(scope="module")
def site(plan: RunPlan) -> Subject:
    return Subject.of(plan).in_sums


@pytest.fixture(scope="module")
def sound(plan: RunPlan) -> Audit:
    return run_audit(plan, ["sum"])


def half_the_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every honest site."""
    whole = SeededNoise.discrete

    def half(self: SeededNoise, count: int, variance: int) -> npt.NDArray[np.int64]:
        return whole(self, count, max(1, variance // 4))

    monkeypatch.setattr(SeededNoise, "discrete", half)


def one_honest_site_gives_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left is the audited site's own share."""
    of = Subject.noise_of
    monkeypatch.setattr(
        Subject,
        "noise_of",
        lambda self, name: (
            sums._without_noise(of(self, name)) if name.startswith("honest") else of(self, name)
        ),
    )


def test_sealed_sums_pass_with_a_bound_below_the_claim(sound: Audit) -> None:
    assert {f.method for f in sound.findings} == {"sum-dp", "sum-f-dp", "sum-mechanism"}
    assert all(1.0 < finding.lower_bound < CLAIM for finding in sound.findings)
    assert sound.strongest.lower_bound > 0.5 * CLAIM
    assert not sound.failed
    assert len([c for c in sound.checks if c.name.startswith("lying about survivors")]) == 3
    assert "sealed sums over 4 sites: 2 honest, 2 that collude" in sound.facts["audited"]["sum"]
    sound.refuse()


@pytest.mark.parametrize("fault", [half_the_noise, one_honest_site_gives_none])
def test_too_little_noise_in_the_sum_exceeds_the_claim(
    plan: RunPlan, fault: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert callable(fault)
    fault(monkeypatch)
    audit = run_audit(plan, ["sum"])
    assert audit.strongest.lower_bound > CLAIM
    assert "epsilon is at least" in refused(audit)


def test_a_ledger_that_takes_shared_noise_for_the_sites_own_is_found(
    plan: RunPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lorica.client.training.sealing, "shared_noise", lambda *_: OWN_NOISE)
    audit = run_audit(plan, ["sum"], canaries=50)
    failed = {check.name for check in audit.failed}
    assert "sealed: ledger of the sums, alone" in failed
    assert "sums were made that nobody paid for" in refused(audit)


def test_without_noise_a_canary_shows_exactly_when_it_was_drawn(
    plan: RunPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    # All sites' real records are known, to what clipping keeps back for its own rounding.
    monkeypatch.setattr(SeededNoise, "discrete", sums.NoNoise.discrete)
    sampled = Subject.of(plan.replace(training={"sample_rate": 0.5})).in_sums
    generator = np.random.default_rng(0)
    coins = fair_coins(60, generator)
    federation = SummedFederation(sampled, coins, lambda shape: Entries(100, shape, generator))
    federation.train("run")
    seen, watch = federation.seen, federation.audited.watch
    assert [stage.value for stage in watch.stages] == ["class sums", "head", "head", "head"]
    assert np.abs(seen[:, 60:]).max() < 1e-3
    assert np.abs(seen[:, :60][:, ~coins]).max() < 1e-3
    shown = seen[:, np.flatnonzero(coins)]
    assert np.abs(shown - shown.round()).max() < 1e-3
    assert (shown[0].round() == 1.0).all()
    assert set(shown[1:].round().ravel()) == {0.0, 1.0}
    other = next(one for name, one in federation._sites.items() if name != sampled.site)
    assert float(torch.stack(other.watch.reals).abs().max()) > 0.1


def test_a_sealed_plan_is_audited_with_its_own_numbers(plan: RunPlan) -> None:
    sealed = plan.replace(
        privacy={"trust": "sum", "honest_sites": 3},
        rounds={"minimum_sites": 4},
        simulation={"sites": 5},
    )
    found = Subject.of(sealed)
    assert found.seats == Seats(5, 3, 4)
    assert not found.plan.sealed
    assert found.in_sums.plan.sealed and found.in_sums.plan.honest_sites == 3
    assert len(found.records) + len(found.others) == len(subject.load_data(sealed).train)


@pytest.mark.parametrize("lie", LIES)
def test_a_lying_coordinator_is_refused_and_unmasks_nothing(site: Subject, lie: str) -> None:
    check = lie_told(site, lie, LIES[lie])
    assert check.passed, check.detail
    assert "LOR-534" in check.detail


@pytest.mark.parametrize("lie", ["two sets of them", "a replayed stage"])
def test_a_site_that_forgets_what_it_agreed_to_is_unmasked(
    site: Subject, lie: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(KeptInMemory, "first", lambda self, *asked: asked[-1])
    check = lie_told(site, lie, LIES[lie])
    assert not check.passed
    assert "got " in check.detail and "the vector of site 0 in round" in check.detail


def test_a_site_that_checks_no_set_of_survivors_is_unmasked_alone(
    site: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    def agree(self: PartInSum, opening: Opening) -> bytes:
        one = self._one
        return survivors_statement(one.digest, opening.survivors, one.terms.sites)

    monkeypatch.setattr(PartInSum, "_agree", agree)
    monkeypatch.setattr(PartInSum, "_check_signatures", lambda *_: None)
    check = lie_told(site, "one site alone", LIES["one site alone"])
    assert not check.passed
    assert all(f"the vector of site {number} in round 1" in check.detail for number in range(3))


@pytest.mark.slow("an audit by its command")
def test_command_writes_bounds_and_refusals(plan: RunPlan, tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(to_toml(plan), encoding="utf-8")
    app = typer.Typer()
    app.command()(audit_command)
    arguments = [str(path), "--method", "sum", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "sum: audits the plan's releases on frozen features, in sealed sums" in result.output
    assert "lying about survivors, one site alone" in result.output
    page = (tmp_path / "out" / "audit.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 2 and "no vector unmasked" in page


@pytest.mark.slow("the default plan in sealed sums, audited whole")
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_default_recipe_is_below_the_claim_and_with_half_the_noise_above_it(
    share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    if share < 1:
        half_the_noise(monkeypatch)
    audit = run_audit(default_plan(), ["sum"])
    if share == 1.0:
        assert all(1.0 < finding.lower_bound < CLAIM for finding in audit.findings)
        audit.refuse()
    else:
        assert audit.strongest.lower_bound > CLAIM
        refused(audit)
