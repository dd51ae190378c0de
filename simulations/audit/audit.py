"""One audit, whole: the subject, each method's own training run, and what they found."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lorica.common.plan import RunPlan
from lorica.simulations.audit.attacks.adapter import adapter_audit
from lorica.simulations.audit.attacks.gradient import gradient_audit
from lorica.simulations.audit.attacks.lying import lying_audit
from lorica.simulations.audit.attacks.membership import membership_audit
from lorica.simulations.audit.attacks.release import release_audit
from lorica.simulations.audit.attacks.sealed import sum_audit
from lorica.simulations.audit.attacks.update import update_audit
from lorica.simulations.audit.evidence.findings import Audit, Check, Finding, Scatter
from lorica.simulations.audit.watched.subject import Subject

METHODS = ("adapter", "release", "gradient", "update", "membership", "sum")


def run_audit(
    plan: RunPlan,
    methods: Sequence[str] = METHODS,
    *,
    site: str = "",
    canaries: int | None = None,
    confidence: float = 0.95,
    tell: Callable[[str], None] = lambda text: None,
) -> Audit:
    """Audit one site of a plan. Its seed is that of coins, directions and seeded noise.

    "release" audits the releases on frozen features, which are all that a plan of
    training.mode "gradient" without LoRA rounds makes; of others it audits the nearest such plan
    (:attr:`Subject.in_releases`). "sum" audits the same releases in sealed sums with other sites,
    some of which collude (:attr:`Subject.in_sums`), and lies to sites about who survived
    (:mod:`lorica.simulations.audit.attacks.lying`). "gradient" and "update" audit local DP-SGD
    steps: they run the plan with training.mode "local" and no warm start. "membership" attacks the
    adapter that the plan as it is makes. "adapter" makes no training run: it measures sums before
    noise under crafted adapters (:mod:`lorica.simulations.audit.attacks.adapter`). What was audited
    is in the audit's fact "audited".

    Args:
        plan: what to audit; ε must be finite.
        methods: any of :data:`METHODS`.
        site: which site; the one with most records when empty.
        canaries: how many; each method's own number when None.
        confidence: with which all bounds together hold.
        tell: hears what is being done.

    Raises:
        LoricaError: LOR-410 another task than text classification, LOR-401 no claim to audit,
            LOR-309 no such site, LOR-103 too many canaries, and whatever the site would refuse
            with.
    """
    subject = Subject.of(plan, site)
    steps, releases = subject.in_local_steps, subject.in_releases
    seed = plan.simulation.seed
    findings: list[Finding] = []
    checks: list[Check] = []
    scatters: list[Scatter] = []
    if "adapter" in methods:
        tell(f"sending crafted adapters to {subject.site}")
        adapter, found_checks = adapter_audit(
            subject.plan, subject.backbone, subject.records.texts, seed=seed
        )
        findings.append(adapter)
        checks += found_checks
    for method, attack, attacked, what in (
        ("release", release_audit, releases, "canaries in its releases"),
        ("gradient", gradient_audit, steps, "gradient-space canaries"),
    ):
        if method in methods:
            tell(f"training {subject.site} with {what}")
            found, more, scatter = attack(
                attacked, canaries=canaries, confidence=confidence, seed=seed
            )
            findings += found
            checks += more
            scatters.append(scatter)
    if "update" in methods:
        tell(f"training {subject.site} with update-space canaries")
        update, scatter = update_audit(steps, canaries=canaries, confidence=confidence, seed=seed)
        findings.append(update)
        scatters.append(scatter)
    if "membership" in methods:
        tell(f"training {subject.site} and attacking its adapter")
        membership, scatter = membership_audit(subject, confidence=confidence, seed=seed)
        findings.append(membership)
        scatters.append(scatter)
    if "sum" in methods:
        hidden = subject.in_sums
        tell(f"hiding {subject.site} with canaries among {hidden.seats.sites} sites' sealed sums")
        found, more, scatter = sum_audit(
            hidden, canaries=canaries, confidence=confidence, seed=seed
        )
        findings += found
        checks += more
        scatters.append(scatter)
        tell("lying to sites about who survived")
        checks += lying_audit(hidden)
    return Audit(
        claimed_epsilon=subject.plan.privacy.epsilon,
        delta=subject.plan.privacy.delta,
        confidence=confidence,
        findings=findings,
        checks=checks,
        scatters=scatters,
        facts={
            "site": subject.site,
            "records": len(subject.records),
            "seed": seed,
            "noise": subject.plan.simulation.noise,
            "plan_fingerprint": subject.plan.fingerprint,
            "audited": {method: _audited(method, subject) for method in methods},
        },
    )


def _audited(method: str, subject: Subject) -> str:
    """In words, which training a method attacked."""
    plan = subject.plan
    if method == "adapter":
        return "the sums of every stage, before noise, under crafted adapters"
    if method == "membership":
        return "the plan as it is"
    if method == "sum":
        seats, what = subject.seats, _audited("release", subject)
        return (
            f"{what}, in sealed sums over {seats.sites} sites: {seats.honest} honest, "
            f"{seats.sites - seats.honest} that collude with the coordinator and give no noise"
        )
    if method == "release":
        if subject.in_releases is subject:
            return "the plan's releases on frozen features"
        if plan.training.mode == "gradient":
            return 'the plan with training.lora = "never"'
        return 'the plan with training.mode = "gradient" and the default rounds'
    if plan == subject.in_local_steps.plan:
        return "the plan's local steps"
    return 'the plan with training.mode = "local" and rounds.warm_start = 0'
