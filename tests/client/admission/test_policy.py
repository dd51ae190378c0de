"""The site's policy and configuration, and what a run would cost."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lorica.client.admission.gate import Admission
from lorica.client.admission.policy import check_noise, check_plan
from lorica.client.config.site import SiteConfig, documented_site, load_site
from lorica.client.ledger import Charge
from lorica.client.mechanism.noise import SecureNoise
from lorica.client.site.cost import run_cost
from lorica.client.training.opening import open_ledger
from lorica.client.training.trainer import LocalTrainer
from lorica.common.adapter.state import pack_state
from lorica.common.backbone.files import backbone_sha256
from lorica.common.backbone.loading import load_backbone
from lorica.common.cli.command import app
from lorica.common.data.records import read_records
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.plan.io import load_plan, to_toml
from lorica.common.plan.stages import Stage
from lorica.common.privacy.accountant import epsilon
from lorica.common.privacy.event import PrivacyEvent
from lorica.common.privacy.of_plan import RunPrivacy
from lorica.common.tasks.text_classification import TextClassifier, starting_state
from lorica.common.wire.messages import Request
from tests.conftest import SMALL_WORDS


@pytest.fixture
def plan(small_backbone: Path) -> RunPlan:
    return load_plan(
        None,
        [
            f"backbone.source={small_backbone}",
            "task.labels=a,b",
            "privacy.unit=patient",
            "training.expected_batch_size=8",
            "training.mode=local",
            "training.local_steps=1",
            "rounds.warm_start=0",
            "rounds.count=3",
        ],
    )


@pytest.fixture
def config(tmp_path: Path, plan: RunPlan) -> SiteConfig:
    with (tmp_path / "records.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", "patient"])
        for i in range(120):
            words = [SMALL_WORDS[(i * 5 + k) % len(SMALL_WORDS)] for k in range(3)]
            writer.writerow([" ".join(words), "ab"[i % 2], f"p{i // 2}"])
    text = documented_site("north", "records.csv", units=60)
    sha256 = backbone_sha256(Path(plan.backbone.source))
    text = text.replace('unit = ""', 'unit = "patient"').replace(
        'unit = "record"', 'unit = "patient"'
    )
    text = text.replace("minimum_units = 100", "minimum_units = 20")
    start, end = text.index("backbones = "), text.index("# Largest LoRA rank")
    listed = f'backbones = ["{sha256}"]\nbackbone_folders = ["{plan.backbone.source}"]\n'
    text = text[:start] + listed + text[end:]
    (tmp_path / "site.toml").write_text(text)
    return load_site(tmp_path / "site.toml")


def check(plan: RunPlan, config: SiteConfig, units: int = 60) -> None:
    sha256 = backbone_sha256(Path(plan.backbone.source))
    check_plan(plan, config, backbone_sha256=sha256, units=units)


@pytest.mark.parametrize("rare", [True, False])
def test_which_plan_is_refused_does_not_tell_whether_a_record_has_a_mapped_label(
    plan: RunPlan, config: SiteConfig, tmp_path: Path, rare: bool
) -> None:
    """Both by the policy alone, whether or not some record has the label that the plan lacks."""
    records = read_records(str(tmp_path / "records.csv"), plan.data, unit="patient")
    records = replace(records, labels=["c" if rare else "a", *records.labels[1:]])
    classes = {"a": "a", "b": "b", "c": "c"}
    named = config.model_copy(update={"data": config.data.model_copy(update={"classes": classes})})
    admission = Admission(named, tmp_path)
    site = LocalTrainer("n", records, noise=lambda *_: SecureNoise(), admission=admission)
    with pytest.raises(LoricaError, match=r"data\.classes maps") as caught:
        site.capabilities(Request(plan, "r"))
    assert caught.value.code is Code.POLICY_REFUSED
    site.capabilities(Request(plan.replace(task={"labels": ["a", "b", "c"]}), "r"))


def test_a_plan_within_the_policy_is_allowed(plan: RunPlan, config: SiteConfig) -> None:
    check(plan, config)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("privacy", "epsilon", 8.01),
        ("privacy", "epsilon", float("inf")),
        ("privacy", "delta", 1.1e-5),
        ("privacy", "unit", "record"),
        ("adapter", "rank", 65),
        ("rounds", "count", 1001),
        ("training", "local_steps", 100_000),
    ],
)
def test_a_plan_that_asks_for_more_is_refused(
    plan: RunPlan, config: SiteConfig, section: str, key: str, value: object
) -> None:
    with pytest.raises(LoricaError) as caught:
        check(plan.replace(**{section: {key: value}}), config)
    assert caught.value.code is Code.POLICY_REFUSED
    assert "60" not in caught.value.public_reason


def test_metrics_that_the_policy_does_not_list_are_refused(
    plan: RunPlan, config: SiteConfig
) -> None:
    asked = plan.replace(privacy={"evaluation_metrics": ["accuracy", "per_label"]})
    check(asked, config)  # no evaluation at sites, so nothing of the kind would leave
    with pytest.raises(LoricaError, match="per_label"):
        check(asked.replace(rounds={"evaluate_every": 1}), config)


def test_a_plan_of_another_unit_than_the_ledgers_is_refused_and_the_command_says_so(
    tmp_path: Path, plan: RunPlan, config: SiteConfig
) -> None:
    """Whichever way around: a site that protects records has no budget per patient, either."""
    by_record = config.model_copy(
        update={"policy": config.policy.model_copy(update={"unit": "record"})}
    )
    check(plan.replace(privacy={"unit": "record"}), by_record, 120)
    for site, unit in ((config, "record"), (by_record, "patient"), (config, "customer")):
        with pytest.raises(LoricaError, match=r"privacy\.unit is") as caught:
            check(plan.replace(privacy={"unit": unit}), site)
        assert caught.value.code is Code.POLICY_REFUSED
    cost = run_cost(plan, by_record, tmp_path)
    assert any("privacy.unit is 'patient', required is 'record'" in why for why in cost.refusals)


def test_another_backbone_and_too_few_units_are_refused(plan: RunPlan, config: SiteConfig) -> None:
    weights = load_backbone(plan.backbone).sha256  # without config and tokenizer
    whole = backbone_sha256(Path(plan.backbone.source))
    for sha256, units in (("0" * 64, 60), (weights, 60), (whole, 19)):
        with pytest.raises(LoricaError) as caught:
            check_plan(plan, config, backbone_sha256=sha256, units=units)
        assert caught.value.code is Code.POLICY_REFUSED


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("maximum_rnk = 64", "maximum_rank"), ("maximum_rank = 0", "maximum_rank"), ("[", "TOML")],
)
def test_a_wrong_site_toml_is_refused_with_the_key_at_fault(
    tmp_path: Path, config: SiteConfig, wrong: str, right: str
) -> None:
    path = tmp_path / "site.toml"
    path.write_text(path.read_text().replace("maximum_rank = 64", wrong))
    with pytest.raises(LoricaError) as caught:
        load_site(path)
    assert caught.value.code is Code.SITE_CONFIG
    assert right in str(caught.value)


def test_cost_agrees_with_the_accountant_and_counts_what_the_ledger_holds(
    tmp_path: Path, plan: RunPlan, config: SiteConfig
) -> None:
    before = run_cost(plan, config, tmp_path)
    events = before.privacy.events(3, 0)
    assert before.units == 60
    assert before.run_epsilon == pytest.approx(epsilon(events, 1e-5))
    assert (before.spent, before.refusals) == (0.0, [])
    ledger = open_ledger(config, tmp_path, create=True)
    ledger.charge(Charge("old", 1, "train", tuple(events), "patient", "f" * 64))
    ledger.close()
    after = run_cost(plan, config, tmp_path)
    assert after.spent == pytest.approx(before.run_epsilon)
    # Of two runs the second may have been chosen after the first: counted by the filter, above PLD.
    assert epsilon(events * 2, 1e-5) <= after.after < 2 * before.run_epsilon
    assert "period" in after.refusals[0]


def test_a_trainer_with_a_ledger_on_disk_answers_the_same_after_a_restart(
    tmp_path: Path, plan: RunPlan, config: SiteConfig
) -> None:
    data = plan.replace(data={"unit": "patient"}).data
    records = read_records(str(tmp_path / "records.csv"), data, unit="patient")
    backbone = load_backbone(plan.backbone)
    state = starting_state(TextClassifier(backbone, plan), backbone, plan)

    def answer(round: int) -> bytes:
        ledger = open_ledger(config, tmp_path, create=True)
        trainer = LocalTrainer(
            "north",
            records,
            noise=lambda stream, round: SecureNoise(),
            admission=Admission(config),
            ledger=ledger,
        )
        try:
            return trainer.train(Request(plan, "run", round, pack_state(state))).blob
        finally:
            ledger.close()

    first, again, second = answer(1), answer(1), answer(2)
    assert first == again != second
    ledger = open_ledger(config, tmp_path)
    assert len(ledger.history().charges) == 2
    ledger.close()


def test_the_command_shows_the_cost_and_ends_with_14_when_it_would_be_refused(
    tmp_path: Path, plan: RunPlan, config: SiteConfig
) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(to_toml(plan))
    site = ["--site", str(tmp_path / "site.toml")]
    fine = CliRunner().invoke(app, ["site", "plan", str(path), *site])
    assert fine.exit_code == 0, fine.output
    assert "would take part" in fine.output
    assert "NONE: the site does not start" in fine.output
    assert "one bit about the guard" in fine.output and "not asked for" in fine.output
    toml = tmp_path / "site.toml"
    assert "coordinators = []" in toml.read_text()
    toml.write_text(toml.read_text().replace("coordinators = []", f'coordinators = ["{"0" * 64}"]'))
    assert "1 by key" in CliRunner().invoke(app, ["site", "plan", str(path), *site]).output
    bit = ["--set", "privacy.benefit_epsilon=2", *site]
    unasked = CliRunner().invoke(app, ["site", "plan", str(path), *bit])
    assert unasked.exit_code == 14 and "policy.benefit_epsilon is 0" in " ".join(
        unasked.output.split()
    )
    toml.write_text(toml.read_text().replace("benefit_epsilon = 0.0", "benefit_epsilon = 2.0"))
    told = CliRunner().invoke(app, ["site", "plan", str(path), *bit])
    assert told.exit_code == 0 and "ε = 2: true in 88% of cases" in told.output
    refused = CliRunner().invoke(
        app, ["site", "plan", str(path), "--set", "privacy.epsilon=100", *site]
    )
    assert refused.exit_code == 14
    assert "ceiling" in refused.output


def test_a_site_charges_the_bit_as_a_part_of_the_run(
    tmp_path: Path, plan: RunPlan, config: SiteConfig
) -> None:
    """Before it takes part: the run's ε is the plan's with or without."""
    asking = plan.replace(privacy={"benefit_epsilon": 2.0})
    cost, without = (run_cost(one, config, tmp_path) for one in (asking, plan))
    assert cost.run_epsilon == pytest.approx(without.run_epsilon, rel=1e-2)
    assert cost.run_epsilon <= 8.0 and cost.privacy.whole[-1].response == 2.0
    assert [reason for reason in cost.refusals if "one bit about" in reason]
    assert not without.refusals


def test_what_costs_only_delta_is_refused(plan: RunPlan, config: SiteConfig) -> None:
    """q = 1e-7 with σ = 0.2 is charged ε = 0.0000 and gives away, now and then, whom it draws."""
    event = PrivacyEvent(0.2, 1e-7, 1)
    assert epsilon([event], 1e-5) < 5e-5
    for sigma, rate, why in ((0.2, 0.1, "noise multiplier"), (2.0, 1e-7, "sample rate")):
        privacy = RunPrivacy(plan, ((Stage.LOCAL, PrivacyEvent(sigma, rate, 1)),), None)
        with pytest.raises(LoricaError, match=f"the {why} of") as caught:
            check_noise(privacy, config.policy)
        assert caught.value.code is Code.POLICY_REFUSED
    check_noise(RunPrivacy(plan, ((Stage.LOCAL, PrivacyEvent(0.5, 0.1, 1)),), None), config.policy)


def test_a_trainer_and_the_cost_refuse_what_lies_below_the_floors(
    tmp_path: Path, plan: RunPlan, config: SiteConfig
) -> None:
    high = config.policy.model_copy(update={"minimum_noise": 50.0})
    strict = config.model_copy(update={"policy": high})
    cost = run_cost(plan, strict, tmp_path)
    assert any("noise multiplier of" in why for why in cost.refusals)
    data = plan.replace(data={"unit": "patient"}).data
    trainer = LocalTrainer(
        "north",
        read_records(str(tmp_path / "records.csv"), data, unit="patient"),
        noise=lambda stream, round: SecureNoise(),
        admission=Admission(strict, tmp_path),
    )
    with pytest.raises(LoricaError, match="noise multiplier of"):
        trainer.capabilities(Request(plan, "run"))


@pytest.mark.parametrize(
    ("delta", "units", "why"),
    [(1e-10, 0, "the floor 1e-09"), (1e-5, 2000, "it may be 5e-06 at most"), (1e-5, 1000, "")],
)
def test_delta_is_bounded_from_below_and_by_the_site_s_own_figure(
    plan: RunPlan, config: SiteConfig, delta: float, units: int, why: str
) -> None:
    fixed = config.policy.model_copy(update={"sampling_units": units})
    site = config.model_copy(update={"policy": fixed})
    asked = plan.replace(privacy={"delta": delta})
    if not why:
        check(asked, site)
        return
    with pytest.raises(LoricaError, match=why) as caught:
        check(asked, site)
    assert caught.value.code is Code.POLICY_REFUSED


@pytest.mark.parametrize(
    ("ceilings", "named"),
    [
        ({"maximum_epsilon_alone": 10.0}, "if all other sites collude"),
        ({"maximum_epsilon_sums": 1.0}, "against who sees sums"),
    ],
)
def test_every_figure_of_a_sealed_sum_has_a_ceiling(
    plan: RunPlan, config: SiteConfig, ceilings: dict[str, float], named: str
) -> None:
    plan = plan.replace(
        training={"mode": "gradient"}, privacy={"trust": "sum", "honest_sites": 9, "unit": "record"}
    )
    policy = config.policy.model_copy(
        update={"unit": "record", "backbones": ["f" * 64], "maximum_epsilon_alone": 1e3}
    )
    open_to_it = config.model_copy(update={"policy": policy})
    check_plan(plan, open_to_it, backbone_sha256="f" * 64, units=120)
    strict = open_to_it.model_copy(update={"policy": policy.model_copy(update=ceilings)})
    with pytest.raises(LoricaError, match=named) as caught:
        check_plan(plan, strict, backbone_sha256="f" * 64, units=120)
    assert caught.value.code is Code.POLICY_REFUSED
