"""The content of summary.json: what a simulation found, what it cost, what it was made with."""

from __future__ import annotations

import json
import math
import resource
import sys
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import fmean
from typing import Any

from lorica.client.training.trainer import LocalTrainer
from lorica.common.machine.effort import Effort
from lorica.common.plan import RunPlan
from lorica.common.plan.methods import METHODS
from lorica.common.privacy.accountant import epsilon
from lorica.common.privacy.of_plan import RunPrivacy
from lorica.common.privacy.sealed import run_figures, sum_terms
from lorica.common.saved.trained import trained_summary
from lorica.common.tasks.run_data import RunData
from lorica.server.results.round import RoundRecord, measured_result
from lorica.simulations.run.at_sites import AtSite
from lorica.simulations.run.sites import stands_in

FEDERATION = "federation"
"""Run id of a simulation's federation at its sites."""

_PACKAGES = ("lorica", "flwr", "torch", "transformers", "peft", "opacus", "dp-accounting", "numpy")


def summarise(
    plan: RunPlan,
    rounds: list[RoundRecord],
    baselines: dict[str, Any],
    costs: Mapping[str, RunPrivacy],
    trainers: Mapping[str, LocalTrainer],
    data: RunData,
    at_sites: Mapping[str, AtSite],
) -> dict[str, Any]:
    """The content of summary.json. A simulator knows every site's data and may say so.

    Where every site has an adapter of its own, the run's quality is the mean over the sites', on
    all test data.
    """
    last, trained = rounds[-1], rounds[1:]
    spending = _Spending(plan, trained)
    asked: dict[str, set[int]] = {}
    for record in trained:
        for entry in record.sites:
            asked.setdefault(entry.site, set()).add(record.round)
    privacy, label_counts = {}, {}
    for site, cost in costs.items():
        trainer, rounds_of = trainers[site], asked.get(site, set())
        privacy[site] = _privacy_of(rounds_of, spending, cost, trained[-1].round, plan, trainer)
        label_counts[site] = dict(sorted(Counter(trainer.strata(plan)).items()))
    return {
        "run": FEDERATION,
        "method": plan.aggregation.method,
        **_quality(plan, last, at_sites),
        "trained": trained_summary(
            plan,
            last.kept_round,
            {record.round: record.judged for record in rounds if record.judged is not None},
        ),
        "score_at_sites": {site: found.score for site, found in at_sites.items()},
        "score_at_sites_mean": fmean(found.score for found in at_sites.values()),
        "baselines": baselines,
        "epsilon": {site: content["epsilon_by_round"][-1] for site, content in privacy.items()},
        "privacy": privacy,
        "bytes_up_per_round": round(sum(r.bytes_up for r in trained) / len(trained)),
        "bytes_down_per_round": round(sum(r.bytes_down for r in trained) / len(trained)),
        "seconds": sum(record.seconds for record in rounds),
        "peak_rss_bytes": _peak_rss_bytes(),
        "seed": plan.simulation.seed,
        "noise": plan.simulation.noise,
        "engine": plan.simulation.engine,
        "trust": plan.privacy.trust,
        **({"sums": _sums(plan, trained, len(trainers))} if plan.sealed else {}),
        **({"kept_own": last.kept_own} if last.kept_own else {}),
        "test_records": len(data.test),
        "label_counts": label_counts,
        "versions": versions(),
        "plan_fingerprint": plan.fingerprint,
    }


def cost_of(effort: Effort, rounds: Sequence[RoundRecord]) -> dict[str, Any]:
    """What the run and its baselines took since this process began or went on with it; and, for
    every site, the seconds from request to answer over all rounds. Sites of one machine that are
    computed together share these, so no processor seconds are told of each."""
    waited: defaultdict[str, float] = defaultdict(float)
    for record in rounds:
        for site in record.sites:
            waited[site.site] += site.seconds
    return {
        "cpu_seconds": effort.cpu_seconds,
        "joules": effort.joules,
        "seconds_by_site": dict(waited),
    }


def cost_before(summary: Path) -> dict[str, Any]:
    """What a run that had ended cost, by its summary; empty where it had not ended."""
    try:
        found = json.loads(summary.read_text(encoding="utf-8")).get("cost", {})
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError, AttributeError):
        return {}


def worst_of(
    at_sites: Mapping[str, AtSite], group: dict[str, Any] | None, rounds: Sequence[RoundRecord]
) -> dict[str, Any]:
    """Who is served worst: of several sites, of labels on test data, and of labels by the sites'
    own noised counts, where the plan asked for them."""
    found: dict[str, Any] = {}
    if len(at_sites) > 1:
        site = min(at_sites, key=lambda name: at_sites[name].score)
        found["site"] = {"name": site, "score": at_sites[site].score}
    if group is not None:
        found["label"] = group
    counted = [record.site_accuracy_by_label for record in measured_result(rounds)]
    if told := next((by_label for by_label in reversed(counted) if by_label), None):
        label = min(told, key=lambda name: told[name])
        found["label_at_sites"] = {"name": label, "score": told[label]}
    return found


def _sums(plan: RunPlan, trained: list[RoundRecord], sites: int) -> dict[str, Any]:
    """What the coordinator saw of sealed sums, and the three ε of the whole run."""
    found = run_figures(plan, sum_terms(plan, sites))
    return {
        "honest_sites": plan.honest_sites,
        "sites_by_round": [record.sealed for record in trained],
        "protocol": "stand-in: vectors were added up in the open" if stands_in(plan) else "run",
        **{
            f"epsilon_{name}": value if math.isfinite(value) else "inf"
            for name, value in asdict(found).items()
        },
    }


def _quality(plan: RunPlan, last: RoundRecord, at_sites: Mapping[str, AtSite]) -> dict[str, Any]:
    """The task's metrics on all test data."""
    found, headline = last.metrics, last.headline
    if METHODS[plan.aggregation.method].personal:
        each = [site.on_all_test_data.values for site in at_sites.values()]
        found = {name: fmean(values[name] for values in each) for name in each[0]}
    named = {name: found.get(name) for name in ("accuracy", "macro_f1", "loss")}
    return {"headline": headline, "score": found.get(headline), "metrics": found, **named}


def _privacy_of(
    rounds: Collection[int],
    spending: _Spending,
    cost: RunPrivacy,
    last: int,
    plan: RunPlan,
    trainer: LocalTrainer,
) -> dict[str, Any]:
    """What a site spent: every round in which it was asked to train counts, and every evaluation,
    whatever came of them."""
    asked = sorted(rounds)
    spent = spending(cost, tuple(asked))
    main = cost.training
    events = [
        {
            "stage": stage.value,
            "noise_multiplier": event.noise_multiplier,
            "sample_rate": event.sample_rate,
            "steps": event.steps,
        }
        for stage, event in cost.events_by_stage(asked)
    ]
    content: dict[str, Any] = {
        "events": events,
        "noise_multiplier": main.noise_multiplier,
        "sample_rate": main.sample_rate,
        "steps": sum(event["steps"] for event in events),
        "delta": plan.privacy.delta,
        "unit": plan.privacy.unit,
        "units": trainer.sampling_units(plan),
        "records": len(trainer.labels),
        "epsilon_by_round": spent,
    }
    if cost.evaluation is not None:
        content["evaluation_noise_multiplier"] = cost.evaluation.noise_multiplier
        content["evaluations"] = plan.evaluations_until(last)
    return content


class _Spending:
    """ε after every round, worked out once for sites that cost the same and were asked in the same
    rounds."""

    def __init__(self, plan: RunPlan, trained: list[RoundRecord]) -> None:
        self._plan, self._trained = plan, [record.round for record in trained]
        self._found: dict[tuple[int, tuple[int, ...]], list[float | str]] = {}

    def __call__(self, cost: RunPrivacy, asked: tuple[int, ...]) -> list[float | str]:
        """By round; ``asked``: the rounds in which the site was asked to train, rising."""
        key = id(cost), asked
        if key not in self._found:
            values = [
                epsilon_after(cost, self._plan, last, asked[: bisect_right(asked, last)])
                for last in self._trained
            ]
            self._found[key] = [value if math.isfinite(value) else "inf" for value in values]
        return self._found[key]


def epsilon_after(cost: RunPrivacy, plan: RunPlan, last: int, asked: Collection[int]) -> float:
    """ε of a site after round ``last`` that was asked to train in these rounds."""
    bit = last + 1 == plan.benefit_round
    events = cost.events(asked, plan.evaluations_until(last), benefit=bit)
    return epsilon(events, plan.privacy.delta)


def _peak_rss_bytes() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    peaks = (
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return max(peaks) * unit


def versions() -> dict[str, str]:
    """Versions of Python, Lorica and the packages that results depend on."""
    found = {"python": sys.version.split()[0]}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
