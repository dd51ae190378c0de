"""A whole simulation: data, sites, rounds, baselines, and the results folder."""

from __future__ import annotations

import json
import math
import resource
import shutil
import sys
from collections import Counter
from collections.abc import Collection, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console

from lorica.client.trainer import LocalTrainer
from lorica.common.accounting import epsilon
from lorica.common.adapter_folder import save_adapter
from lorica.common.adapters import State
from lorica.common.backbones import load_backbone
from lorica.common.errors import Code, LoricaError
from lorica.common.holdout import RunData, label_sources, load_data, with_labels
from lorica.common.messages import Request
from lorica.common.plan import RunPlan
from lorica.common.site_privacy import RunPrivacy, run_privacy
from lorica.common.storage import storage_errors, write_atomically
from lorica.common.tasks import task_of
from lorica.server.evaluation import CentralEvaluator
from lorica.server.records import Observer, RoundRecord
from lorica.server.rounds import Evaluator, RoundLoop
from lorica.server.run_folder import CHECKPOINT, PLAN, ROUNDS, RunFolder
from lorica.simulations.federation import Main, run_in_process, run_on_ray
from lorica.simulations.progress import LiveProgress
from lorica.simulations.sites import make_trainer, make_trainers

FEDERATION, ALONE, POOLED = "federation", "alone", "pooled"
"""Run ids within a simulation; they also tell streams of seeded noise apart."""

SUMMARY, REPORT, PICTURE, ADAPTER, BASELINES = (
    "summary.json",
    "report.html",
    "picture.png",
    "adapter",
    "baselines",
)

_NODES_SECONDS = 60.0
_PACKAGES = ("lorica", "flwr", "torch", "transformers", "peft", "opacus", "dp-accounting", "numpy")


class Simulation:
    """One plan simulated on this machine."""

    def __init__(
        self, plan: RunPlan, out: Path, console: Console, *, data: RunData | None = None
    ) -> None:
        """Read the data and make the sites; nothing is written yet.

        Args:
            plan: the run.
            out: the results folder.
            console: where progress is shown.
            data: training and test data, if not those that the plan names.

        Raises:
            LoricaError: LOR-30x data, LOR-20x backbone, LOR-308 or LOR-402 a site that could not
                take part, LOR-406 no noise level meets the budget.
        """
        self._console = console
        self._folder = RunFolder(out)
        self._data = data or load_data(plan)
        self.plan = with_labels(plan, *label_sources(plan, self._data))
        self._trainers = make_trainers(self._data.train, self.plan)
        self._privacy = self._check_sites()
        self._backbone = load_backbone(self.plan.backbone)
        self._evaluate = CentralEvaluator(self.plan, self._backbone, self._data.test)

    def run(self, *, resume: bool = False, replace: bool = False) -> dict[str, Any]:
        """Run the federation and its baselines and write the results folder.

        Args:
            resume: go on from the folder's last whole round.
            replace: remove an earlier run's results first.

        Returns:
            The summary, as in summary.json.
        """
        if replace:
            self._clear()
        if not resume:
            self._folder.create(self.plan)
        with LiveProgress(self._console, self.plan.privacy.epsilon, self._spent) as progress:
            state = self._federate(progress)
        save_adapter(self._folder.path / ADAPTER, state, self.plan, self._backbone)
        return self._finish(self._baselines())

    def _clear(self) -> None:
        """Remove an earlier run's results, and nothing else that may lie in the folder."""
        path = self._folder.path
        with storage_errors(path):
            for name in (ADAPTER, BASELINES):
                if (path / name).is_dir():
                    shutil.rmtree(path / name)
            for name in (SUMMARY, REPORT, PICTURE, CHECKPOINT, ROUNDS, PLAN):
                (path / name).unlink(missing_ok=True)

    def _check_sites(self) -> dict[str, RunPrivacy]:
        """What the run costs at every site; raises what any site would refuse with, in full."""
        if self.plan.rounds.minimum_sites > len(self._trainers):
            raise LoricaError(
                Code.TOO_FEW_SITES,
                f"rounds.minimum_sites is {self.plan.rounds.minimum_sites}, but the simulation has "
                f"{len(self._trainers)} sites.",
                mend="Lower rounds.minimum_sites or raise simulation.sites.",
            )
        found = {}
        for site, trainer in self._trainers.items():
            try:
                trainer.capabilities(Request(self.plan, FEDERATION))
            except LoricaError as error:
                raise LoricaError(
                    error.code, f"Site '{site}': {error.detail}", mend=error.mend
                ) from error
            found[site] = run_privacy(self.plan, trainer.sampling_units(self.plan))
        return found

    def _federate(self, observer: Observer) -> State:
        ray = self.plan.simulation.engine == "ray"
        main = self._main(self.plan, self._folder, FEDERATION, observer, len(self._trainers))
        if ray:
            return run_on_ray(main, len(self._trainers))
        return run_in_process(main, self._trainers)

    def _main(
        self, plan: RunPlan, folder: RunFolder, run: str, observer: Observer, nodes: int
    ) -> Main:
        backbone = self._backbone
        evaluate: Evaluator = self._evaluate

        def start() -> State:
            return task_of(plan).start(backbone)

        return lambda grid: RoundLoop(
            grid,
            plan,
            folder,
            run=run,
            start=start,
            evaluate=evaluate,
            observer=observer,
            nodes=nodes,
            wait_seconds=_NODES_SECONDS,
        ).run()

    def _baselines(self) -> dict[str, Any]:
        """Scores to compare with; every trained one is a resumable run of its own."""
        found: dict[str, Any] = {"zero_shot": self._folder.rounds()[0].score}
        if self.plan.simulation.baselines != "all":
            return found
        root = self._folder.path / BASELINES
        plan = self.plan
        if plan.rounds.minimum_sites > 1:
            plan = plan.for_one_site()
        alone = {}
        for number, (site, trainer) in enumerate(self._trainers.items(), 1):
            title = f"{site} alone ({number} of {len(self._trainers)})"
            alone[site] = self._baseline(plan, root / f"{ALONE}-{number:02d}", trainer, title)
            trainer.close()
        found |= {"alone": alone, "alone_mean": sum(alone.values()) / len(alone)}
        plan = plan.replace(privacy={"epsilon": float("inf")})
        everything = make_trainer(POOLED, self._data.train, plan)
        found["pooled_without_privacy"] = self._baseline(
            plan, root / POOLED, everything, "all data pooled, no privacy"
        )
        return found

    def _baseline(self, plan: RunPlan, path: Path, trainer: LocalTrainer, title: str) -> float:
        folder = RunFolder(path)
        if not (path / PLAN).exists():
            folder.create(plan)
        run = POOLED if path.name == POOLED else ALONE
        with LiveProgress(self._console, plan.privacy.epsilon) as progress:
            progress.note(f"Baseline: {title}")
            main = self._main(plan, folder, run, progress, 1)
            run_in_process(main, {trainer.site: trainer})
        score = folder.rounds()[-1].score
        assert score is not None
        return score

    def _spent(self, rounds: int) -> float:
        """Largest ε over the sites after so many rounds."""
        costs = {cost.stages: cost for cost in self._privacy.values()}  # equal ones once
        return max(_epsilon_after(cost, self.plan, range(1, rounds + 1)) for cost in costs.values())

    def _finish(self, baselines: dict[str, Any]) -> dict[str, Any]:
        from lorica.simulations.plots import picture
        from lorica.simulations.report import write_report

        rounds = self._folder.rounds()
        summary = summarise(self.plan, rounds, baselines, self._privacy, self._trainers, self._data)
        write_atomically(
            self._folder.path / SUMMARY, json.dumps(summary, indent=2, ensure_ascii=False) + "\n"
        )
        write_report(self._folder.path / REPORT, self.plan, rounds, summary)
        picture(summary, rounds, self._folder.path / PICTURE, budget=self.plan.privacy.epsilon)
        return summary


def summarise(
    plan: RunPlan,
    rounds: list[RoundRecord],
    baselines: dict[str, Any],
    costs: Mapping[str, RunPrivacy],
    trainers: Mapping[str, LocalTrainer],
    data: RunData,
) -> dict[str, Any]:
    """The content of summary.json. A simulator knows every site's data and may say so."""
    last, trained = rounds[-1], rounds[1:]
    privacy = {
        site: _privacy_of(site, cost, trained, plan, trainers[site]) for site, cost in costs.items()
    }
    return {
        "run": FEDERATION,
        "method": plan.aggregation.method,
        "headline": last.headline,
        "score": last.score,
        "metrics": last.metrics,
        "accuracy": last.accuracy,
        "macro_f1": last.macro_f1,
        "loss": last.loss,
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
        "test_records": len(data.test),
        "label_counts": {
            site: dict(sorted(Counter(trainer.strata(plan)).items()))
            for site, trainer in trainers.items()
        },
        "versions": versions(),
        "plan_fingerprint": plan.fingerprint,
    }


def _privacy_of(
    site: str, cost: RunPrivacy, trained: list[RoundRecord], plan: RunPlan, trainer: LocalTrainer
) -> dict[str, Any]:
    """What a site spent: every round in which it was asked counts, whatever came of it."""
    spent: list[float | str] = []
    asked: list[int] = []
    for record in trained:
        if any(entry.site == site for entry in record.sites):
            asked.append(record.round)
        value = _epsilon_after(cost, plan, asked)
        spent.append(value if math.isfinite(value) else "inf")
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
        content["evaluations"] = _evaluations(plan, asked)
    return content


def _epsilon_after(cost: RunPrivacy, plan: RunPlan, rounds: Collection[int]) -> float:
    return epsilon(cost.events(rounds, _evaluations(plan, rounds)), plan.privacy.delta)


def _evaluations(plan: RunPlan, rounds: Collection[int]) -> int:
    """How many evaluations at sites these rounds have."""
    return len(set(plan.evaluation_rounds).intersection(rounds))


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


def resumable(out: Path) -> RunPlan:
    """The plan of an interrupted or finished simulation in ``out``.

    Raises:
        LoricaError: LOR-604 when there is none.
    """
    if not out.is_dir():
        raise LoricaError(Code.RUN_NOT_RESUMABLE, f"There is no folder {out}.")
    return RunFolder(out).plan()
