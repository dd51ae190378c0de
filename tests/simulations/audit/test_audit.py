"""``lorica audit`` on the real pipeline: a sound site passes; deliberately broken ones are caught.

Which faults a lower bound can catch, and which it cannot:

- noise off, noise halved, clipping off, a tensor without noise: more leaks than is claimed, and the
  bound says so.
- shuffling in place of Poisson sampling: *no bound on what canaries show can catch it*. A unit
  comes a fixed number of times instead of a random one, and at the same noise that shows
  rather less of the unit itself (simulated: ε = 7.0 where 8 is claimed for Poisson). What
  shuffling breaks is the proof: units' turns depend on each other, and the claimed ε was computed
  for turns that do not. The check of the sampling sees it.
- a charge that is skipped: every run leaks what it should, so there is nothing for canaries to
  see; too many runs do. The ledger sees it: it lets no uncharged reply leave, and the
  audit compares what it holds with the steps that were taken.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

import lorica.client.mechanism.dp_sgd
from lorica.client.mechanism.dp_sgd import DPTrainer, NoisyOptimizer
from lorica.client.mechanism.noise import NoiseSource, SeededNoise
from lorica.common.adapter.state import pack_state, unpack_state
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.plan.io import to_toml
from lorica.common.plan.traits import TASK_KINDS, TRAITS
from lorica.common.tasks.run_data import load_data
from lorica.common.wire.messages import Request
from lorica.simulations.audit.audit import run_audit
from lorica.simulations.audit.cli import audit as audit_command
from lorica.simulations.audit.evidence.findings import ERROR_SHARES, Audit
from lorica.simulations.audit.watched.canaries import (
    Coordinates,
    Layout,
    RandomDirections,
    fair_coins,
)
from lorica.simulations.audit.watched.steps import AuditedTrainer
from lorica.simulations.audit.watched.subject import Subject
from lorica.simulations.run.partition import partition
from tests.simulations.audit.helpers import (
    CLAIM,
    ForgetfulLedger,
    default_plan,
    refused,
    small_plan,
    without_ledger,
)


class NoNoise(NoisyOptimizer):
    """Steps without noise, charged as if with it."""

    share = 0.0

    def __init__(self, *args: Any, noise_multiplier: float, **options: Any) -> None:
        super().__init__(*args, noise_multiplier=self.share * noise_multiplier, **options)


class HalfNoise(NoNoise):
    """Half the noise that is charged for."""

    share = 0.5


class NoClipping(NoisyOptimizer):
    """Sums gradients as they are."""

    def clip_and_accumulate(self) -> None:
        for parameter in self.params:
            total = parameter.grad_sample.double().sum(0)
            held = parameter.summed_grad
            parameter.summed_grad = total if held is None else held + total


class NoNoiseOnTheHead(NoisyOptimizer):
    """Forgets the noise of one group of parameters."""

    def add_noise(self) -> None:
        super().add_noise()
        for parameter in self.param_groups[0]["params"]:
            parameter.grad = parameter.summed_grad.to(parameter.dtype)


class Shuffling(DPTrainer):
    """Batches of one size from shuffled epochs instead of Poisson sampling."""

    def run(self, steps: int, on_step: Callable[[int], Any] | None = None) -> None:
        count = len(self._units)
        size = round(count * self._sample_rate)
        generator, order = np.random.default_rng(steps), np.empty(0, dtype=np.int64)
        for _ in range(steps):
            if len(order) < size:
                order = generator.permutation(count)
            self._step([np.array([unit]) for unit in order[:size]], 0)
            order = order[size:]


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> RunPlan:
    return small_plan(tmp_path_factory.mktemp("audit"))


@pytest.fixture(scope="module")
def sound(plan: RunPlan) -> Audit:
    return run_audit(plan, ["gradient"])


@pytest.fixture
def broken(plan: RunPlan, monkeypatch: pytest.MonkeyPatch) -> Callable[[type], Audit]:
    """The audit of a site whose engine has a part replaced by a broken subclass of it."""

    def audit(part: type) -> Audit:
        name = "DPTrainer" if issubclass(part, DPTrainer) else "NoisyOptimizer"
        monkeypatch.setattr(lorica.client.mechanism.dp_sgd, name, part)
        return run_audit(plan, ["gradient"])

    return audit


def test_a_sound_site_passes_with_a_bound_below_the_claim(sound: Audit) -> None:
    assert 1.0 < sound.strongest.lower_bound < CLAIM
    assert not sound.failed
    sound.refuse()


@pytest.mark.parametrize("part", [NoNoise, HalfNoise, NoClipping, NoNoiseOnTheHead])
def test_too_little_noise_or_clipping_exceeds_the_claim(
    part: type, broken: Callable[[type], Audit]
) -> None:
    audit = broken(part)
    assert audit.strongest.lower_bound > CLAIM
    assert "epsilon is at least" in refused(audit)


def test_shuffling_shows_in_the_sampling_and_not_in_the_bound(
    broken: Callable[[type], Audit],
) -> None:
    audit = broken(Shuffling)
    assert not audit.exceeded
    assert [check.name for check in audit.failed] == ["Poisson sampling"]
    refused(audit)


def test_unpaid_steps_show_in_the_ledger_and_not_in_the_bound(
    plan: RunPlan, sound: Audit, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_ledger(monkeypatch)
    audit = run_audit(plan, ["gradient"])
    assert audit.strongest.lower_bound == sound.strongest.lower_bound
    assert [check.name for check in audit.failed] == ["ledger"]
    assert "nobody paid for" in refused(audit)


def test_the_ledger_lets_no_reply_leave_whose_charge_was_skipped(
    plan: RunPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lorica.simulations.audit.watched.planted.MemoryLedger", ForgetfulLedger)
    with pytest.raises(LoricaError, match="never charged") as caught:
        run_audit(plan, ["gradient"])
    assert caught.value.code is Code.PRIVACY_BUDGET


def test_the_same_seed_gives_the_same_audit(plan: RunPlan, sound: Audit) -> None:
    again = run_audit(plan, ["gradient"])
    bounds = [finding.lower_bound for finding in again.findings]
    assert bounds == [finding.lower_bound for finding in sound.findings]
    assert np.array_equal(again.scatters[0].included, sound.scatters[0].included)


def test_all_bounds_together_have_the_confidence_asked_for(sound: Audit) -> None:
    assert sum(ERROR_SHARES.values()) == pytest.approx(1.0)
    for finding in sound.findings:
        assert 1 - finding.confidence == pytest.approx(ERROR_SHARES[finding.method] * 0.05)


def watched(plan: RunPlan, canaries: int, references: int) -> AuditedTrainer:
    """A site after one round from the common start; half of the canaries are in."""
    subject = Subject.of(plan.replace(privacy={"epsilon": 5.0}))
    generator = np.random.default_rng(0)

    def make(layout: Layout) -> Coordinates:
        return Coordinates(canaries + references, layout, generator)

    coins = fair_coins(canaries, generator)

    def noise(run: str, round: int) -> NoiseSource:
        return SeededNoise(run, round)

    trainer = AuditedTrainer("s", subject.records, plan, coins, make, noise=noise)
    trainer.train(Request(plan, "run", 1, pack_state(subject.start)))
    return trainer


@pytest.mark.parametrize("unit", ["record", "person"])
def test_without_noise_a_canary_shows_exactly_when_it_was_drawn(plan: RunPlan, unit: str) -> None:
    # Clipping brings the oversized canary to exactly C, and real records' part is exactly known.
    plan = plan.replace(
        privacy={"epsilon": float("inf"), "unit": unit, "max_records_per_unit": 2},
        training={"expected_batch_size": 100},
    )
    watch = watched(plan, 60, 40).watch
    seen, draws = np.array(watch.scores), np.array(watch.draws)
    assert seen.shape == (4, 100)
    assert np.abs(seen[:, 60:]).max() < 1e-5
    assert np.abs(seen[:, :60][:, ~watch.included]).max() < 1e-5
    shown = seen[:, np.flatnonzero(watch.included)]
    assert np.abs(shown - shown.round()).max() < 1e-5
    assert set(shown.round().ravel()) == {0.0, 1.0}
    assert shown.round().sum() < draws.sum()


def test_watching_changes_nothing_that_leaves_the_site(plan: RunPlan) -> None:
    subject = Subject.of(plan)
    request = Request(subject.plan, "run", 1, pack_state(subject.start))
    nobody = np.zeros(0, dtype=bool)
    audited = subject.trainer(
        nobody, lambda layout: Coordinates(5, layout, np.random.default_rng(0))
    )
    ours, theirs = audited.train(request), subject.plain_trainer().train(request)
    assert len(audited.watch.scores) == subject.plan.training.local_steps
    update, plain = unpack_state(ours.blob), unpack_state(theirs.blob)
    assert all(torch.equal(update[name], plain[name]) for name in plain)


@pytest.mark.parametrize("kind", [Coordinates, RandomDirections])
def test_directions_have_each_groups_share_and_are_nearly_orthogonal(kind: type) -> None:
    layout = Layout(["a"], [np.arange(0, 700), np.arange(700, 1000)], [0.9, 0.4])
    directions = kind(50, layout, np.random.default_rng(0))
    vectors = directions.vectors(np.arange(50)).double()
    for group, share in zip(layout.groups, layout.shares, strict=True):
        lengths = vectors[:, torch.from_numpy(group)].norm(dim=1)
        assert torch.allclose(lengths, torch.full((50,), share, dtype=torch.float64), atol=1e-6)
    overlaps = vectors @ vectors.T - torch.eye(50)
    assert float(overlaps.abs().max()) < (1e-6 if kind is Coordinates else 0.25)
    probe = torch.randn(1000, dtype=torch.float64)
    assert directions.project(probe) == pytest.approx((vectors @ probe).numpy(), abs=1e-5)


@pytest.mark.slow("every attack on one plan")
def test_all_methods_make_one_report(plan: RunPlan, tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(to_toml(plan), encoding="utf-8")
    app = typer.Typer()
    app.command()(audit_command)
    arguments = [str(path), "--seed", "3", "--canaries", "200", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert "Claimed: ε = 4.00" in result.output
    assert "gradient: audits the plan's local steps" in result.output
    content = json.loads((tmp_path / "out" / "audit.json").read_text(encoding="utf-8"))
    assert content["claimed_epsilon"] == CLAIM
    assert content["confidence"] == 0.95
    assert content["seed"] == 3
    methods = {entry["method"]: entry["lower_bound"] for entry in content["methods"]}
    assert list(methods) == ["adapter", *ERROR_SHARES]
    assert content["lower_bound"] == methods[content["method"]] == max(methods.values())
    page = (tmp_path / "out" / "audit.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 6
    assert "<script" not in page


def test_canaries_audit_local_steps_and_membership_the_plan_as_it_is(plan: RunPlan) -> None:
    """A plan of the coordinator's steps: its canary audit is that of its local steps."""
    steps = {"mode": "gradient", "lora": "always", "lora_rounds": 1}
    synchronised = plan.replace(training=steps, rounds={"warm_start": 0.4})
    found, expected = (run_audit(p, ["gradient"], canaries=200) for p in (synchronised, plan))
    assert [f.lower_bound for f in found.findings] == [f.lower_bound for f in expected.findings]
    assert not found.failed
    assert "rounds.warm_start = 0" in found.facts["audited"]["gradient"]
    attacked = run_audit(synchronised, ["membership"])
    assert attacked.facts["audited"] == {"membership": "the plan as it is"}
    assert attacked.strongest.lower_bound < CLAIM
    subject = Subject.of(synchronised)
    assert subject.plan.training.mode == "gradient"
    assert subject.in_local_steps.plan.training.mode == "local"


def test_a_broken_site_ends_the_command_with_its_code_and_keeps_the_report(
    plan: RunPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lorica.client.mechanism.dp_sgd, "NoisyOptimizer", NoNoise)
    path = tmp_path / "plan.toml"
    path.write_text(to_toml(plan), encoding="utf-8")
    app = typer.Typer()
    app.command()(audit_command)
    arguments = [str(path), "--method", "gradient", "--out", str(tmp_path)]
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, LoricaError)
    assert result.exception.code is Code.AUDIT_EXCEEDED
    content = json.loads((tmp_path / "audit.json").read_text(encoding="utf-8"))
    assert content["passed"] is False
    assert content["lower_bound"] > content["claimed_epsilon"]


def test_what_cannot_be_audited_is_refused(plan: RunPlan) -> None:
    with pytest.raises(LoricaError, match="no claim") as caught:
        run_audit(plan.replace(privacy={"epsilon": float("inf")}))
    assert caught.value.code is Code.PRIVACY_EPSILON
    with pytest.raises(LoricaError, match="site-00") as caught:
        run_audit(plan, site="nowhere")
    assert caught.value.code is Code.DATA_PARTITION
    with pytest.raises(LoricaError, match="canaries") as caught:
        run_audit(plan, ["gradient"], canaries=2000)
    assert caught.value.code is Code.PLAN_BAD_VALUE
    with pytest.raises(LoricaError) as caught:
        run_audit(plan.replace(training={"expected_batch_size": 5000}), ["gradient"])
    assert caught.value.code is Code.DATA_TOO_FEW_RECORDS


def test_default_plans_batches_fit_the_largest_site_without_canaries() -> None:
    plan = default_plan()
    data = load_data(plan)
    largest = max(map(len, partition(data.train, plan.simulation).values()))
    assert plan.training.expected_batch_size < largest


@pytest.mark.slow("the default plan, audited whole")
@pytest.mark.parametrize("part", [None, HalfNoise])
def test_default_audit_is_below_the_claim_and_with_half_the_noise_above_it(
    part: type | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if part is not None:
        monkeypatch.setattr(lorica.client.mechanism.dp_sgd, "NoisyOptimizer", part)
    audit = run_audit(default_plan(), ["gradient"])
    assert audit.claimed_epsilon == 8.0
    bounds = [finding.lower_bound for finding in audit.findings]
    assert max(finding.seconds for finding in audit.findings) < 600
    if part is None:
        assert all(1.0 < bound < 8.0 for bound in bounds)
        audit.refuse()
    else:
        assert audit.strongest.lower_bound > 8.0
        refused(audit)


@pytest.mark.parametrize("kind", sorted(set(TASK_KINDS) - {"text-classification"}))
def test_tasks_that_the_audit_cannot_attack_are_refused_before_anything_is_read(
    tmp_path: Path, kind: str
) -> None:
    """Each with the code, the task's name and what can be audited instead; nothing is written."""
    traits = TRAITS[kind]  # type: ignore[index]
    table = {"columns": ["age"], "centers": [50.0], "scales": [20.0]}
    plan = RunPlan().replace(
        backbone={"source": "/no/such/folder"},
        data={"train": "/no/such/file.csv"},
        task={"kind": kind},
        table=table if traits.table else {},
    )
    with pytest.raises(LoricaError) as caught:
        run_audit(plan)
    assert caught.value.code is Code.AUDIT_UNSUPPORTED
    assert f'"{kind}"' in caught.value.detail and "text-classification" in caught.value.detail
    (tmp_path / "plan.toml").write_text(to_toml(plan))
    app = typer.Typer()
    app.command()(audit_command)
    out = tmp_path / "audit"
    done = CliRunner().invoke(app, [str(tmp_path / "plan.toml"), "--out", str(out)])
    assert done.exit_code != 0
    assert isinstance(done.exception, LoricaError) and not out.exists()
