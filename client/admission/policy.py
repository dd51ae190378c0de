"""The check of a plan against what a site allows.

The policy is part of ``site.toml`` (:mod:`lorica.client.config.site`) and belongs to the
institution. A plan that asks for more is refused with a reason; nothing is negotiated and nothing
is cut down silently (design rule 2).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lorica.client.config.site import Policy, SiteConfig
from lorica.common.display.wording import epsilon_text
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.plan.methods import METHODS
from lorica.common.plan.stages import total_steps
from lorica.common.plan.traits import TRAITS

_LEAST_DELTA = 1e-9  # as accountant.LEAST_DELTA, which would load numpy
_UNITS_PER_LEAK = 100  # δ·N is at most 1/100

if TYPE_CHECKING:  # the ClientApp reads the policy, and no records
    from lorica.common.data.records import Records
    from lorica.common.privacy.of_plan import RunPrivacy

_MOST_CHARACTERS = 1_000_000  # of a plan as it travels: a thousand label names are far below
_LEAST_NORM, _MOST_NORM = 1e-9, 1e9  # beyond, float32 cannot hold noisy sums at every σ


def check_plan(plan: RunPlan, config: SiteConfig, *, backbone_sha256: str, units: int) -> None:
    """Return if the site's policy allows the plan, raise otherwise.

    Args:
        plan: what the coordinator asks for.
        config: the site's configuration.
        backbone_sha256: hash of what the plan's backbone really is here, with its number format,
            as of :func:`lorica.client.admission.backbones.site_backbone`.
        units: the site's fixed figure for its number of units, never the true count: what a plan
            is refused for must tell nothing of the records.

    Raises:
        LoricaError: LOR-408 with the first thing that the policy does not allow.
    """
    policy = config.policy
    for allowed, what in (
        (
            plan.privacy.epsilon <= policy.maximum_epsilon,
            f"privacy.epsilon is {plan.privacy.epsilon:g}, the ceiling {policy.maximum_epsilon:g}",
        ),
        *_of_sums(plan, config),
        (
            plan.privacy.delta <= policy.maximum_delta,
            f"privacy.delta is {plan.privacy.delta:g}, the ceiling {policy.maximum_delta:g}",
        ),
        (
            not plan.privacy.private or plan.privacy.delta >= _LEAST_DELTA,
            f"privacy.delta is {plan.privacy.delta:g}, the floor {_LEAST_DELTA:g}",
        ),
        (
            not plan.privacy.private or plan.privacy.delta <= most_delta(config),
            f"privacy.delta is {plan.privacy.delta:g}, with policy.sampling_units "
            f"{policy.sampling_units} it may be {most_delta(config):.3g} at most",
        ),
        (
            plan.privacy.unit == policy.unit,
            f"privacy.unit is '{plan.privacy.unit}', required is '{policy.unit}'",
        ),
        (plan.task.kind in policy.tasks, f"the task '{plan.task.kind}' is not allowed"),
        (
            backbone_sha256 in policy.backbones,
            f"the backbone with SHA-256 {backbone_sha256} is not allowed",
        ),
        (
            plan.adapter.kind != "lora"
            or METHODS[plan.aggregation.method].any_rank
            or plan.adapter.rank <= policy.maximum_rank,
            f"adapter.rank is {plan.adapter.rank}, the ceiling {policy.maximum_rank}",
        ),
        (
            len(plan.task.labels) <= policy.maximum_labels,
            f"there are {len(plan.task.labels)} labels, the ceiling is {policy.maximum_labels}",
        ),
        (
            _LEAST_NORM <= plan.privacy.clip_norm <= _MOST_NORM,
            f"privacy.clip_norm is {plan.privacy.clip_norm:g}, outside {_LEAST_NORM:g} to "
            f"{_MOST_NORM:g}",
        ),
        (
            len(plan.canonical()) <= _MOST_CHARACTERS,
            f"the plan has more than {_MOST_CHARACTERS:,} characters",
        ),
        (
            plan.rounds.count <= policy.maximum_rounds,
            f"rounds.count is {plan.rounds.count}, the ceiling {policy.maximum_rounds}",
        ),
        (
            total_steps(plan) <= policy.maximum_steps,
            f"the run takes {total_steps(plan)} steps, the ceiling is {policy.maximum_steps}",
        ),
        (
            not plan.evaluation_rounds
            or set(plan.privacy.evaluation_metrics) <= set(policy.metrics),
            f"the metrics {', '.join(plan.privacy.evaluation_metrics)} are asked for, allowed are "
            f"{', '.join(policy.metrics) or 'none'}",
        ),
        (
            plan.privacy.benefit_epsilon <= policy.benefit_epsilon,
            "one bit about the site's guard is asked for, with an epsilon of "
            f"{plan.privacy.benefit_epsilon:g}; policy.benefit_epsilon is "
            f"{policy.benefit_epsilon:g}",
        ),
        (
            not (missing := _unnamed(plan, config)),
            f"task.labels lacks {missing!r}, which data.classes maps to",
        ),
        (
            units >= policy.minimum_units,
            f"policy.sampling_units is {units}, below policy.minimum_units",
        ),
    ):
        if not allowed:
            raise LoricaError(Code.POLICY_REFUSED, f"The site's policy refuses: {what}.")


def most_delta(config: SiteConfig) -> float:
    """The largest δ for so many units as the site says it has: δ allows a mechanism that gives
    each unit away with that probability, so that of N units N·δ may be; 1 where it says nothing,
    as what depends on the true number would tell it."""
    return 1 / (_UNITS_PER_LEAK * config.policy.sampling_units or 1)


def check_noise(privacy: RunPrivacy, policy: Policy) -> None:
    """Return if a run's noise and sample rates are above the policy's floors.

    ε and δ alone do not say so: at a tiny sample rate a step may release whom it draws nearly
    bare and yet cost little, as all of its cost is in δ.

    Raises:
        LoricaError: LOR-408.
    """
    if not privacy.plan.privacy.private:
        return
    named = [(stage.value, event) for stage, event in privacy.stages]
    if privacy.evaluation is not None:
        named.append(("evaluation", privacy.evaluation))
    for name, event in named:
        sigma, rate = event.noise_multiplier, event.sample_rate
        if sigma < policy.minimum_noise:
            what = f"the noise multiplier of {name} is {sigma:.3g}, the floor "
            what += f"{policy.minimum_noise:g}"
        elif rate < policy.minimum_sample_rate:
            what = f"the sample rate of {name} is {rate:.3g}, the floor "
            what += f"{policy.minimum_sample_rate:g}"
        else:
            continue
        raise LoricaError(Code.POLICY_REFUSED, f"The site's policy refuses: {what}.")


def _of_sums(plan: RunPlan, config: SiteConfig) -> list[tuple[bool, str]]:
    """What a plan with sealed sums must keep beside its own ε."""
    if not plan.sealed:
        return []
    from lorica.common.privacy.sealed import run_figures  # loads numpy

    found, policy = run_figures(plan), config.policy
    sums, alone = policy.maximum_epsilon_sums, policy.maximum_epsilon_alone
    return [
        (
            found.sums <= sums,
            f"epsilon against who sees sums is {epsilon_text(found.sums, 3)}, the ceiling {sums:g}",
        ),
        (
            found.alone <= alone,
            "epsilon if all other sites collude is "
            f"{epsilon_text(found.alone, 3)}, the ceiling {alone:g}",
        ),
    ]


def _unnamed(plan: RunPlan, config: SiteConfig) -> str:
    """A name that data.classes maps to and the plan lacks, whether or not a record has it: so what
    labels the records have is not told by which plans are refused. Empty: there is none."""
    if not TRAITS[plan.task.kind].one_label_each:
        return ""
    return min(set(config.data.classes.values()) - set(plan.task.labels), default="")


def require_labels(plan: RunPlan) -> None:
    """Return if the plan names what its task needs to be named. Raises LOR-307."""
    if plan.task.lacks_labels:
        raise LoricaError(
            Code.DATA_TOO_FEW_LABELS,
            f"task.labels names {len(plan.task.labels)} label(s); a site needs them all.",
        )


def check_records(plan: RunPlan, records: Records, *, where: str) -> None:
    """Return if the records are what the plan's task needs.

    Raises:
        LoricaError: LOR-306, LOR-311 or LOR-312 a record is not.
    """
    from lorica.common.tasks import task_of

    task_of(plan).check(records, where=where)
