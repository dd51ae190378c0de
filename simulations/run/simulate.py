"""A whole simulation: data, sites, rounds, baselines, and the results folder."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lorica.client.benefit.compared import compare_models
from lorica.client.training.models import Models
from lorica.client.training.personal import FolderPersonal
from lorica.client.training.trainer import LocalTrainer
from lorica.common.adapter.state import State
from lorica.common.backbone.files import settled_source
from lorica.common.backbone.loading import backbone_of
from lorica.common.data.fingerprint import fingerprint
from lorica.common.display.console import Console
from lorica.common.errors import Code, LoricaError
from lorica.common.machine.effort import Effort
from lorica.common.machine.files import storage_errors, write_atomically
from lorica.common.plan import RunPlan
from lorica.common.plan.lora import lora_sentence
from lorica.common.plan.methods import METHODS
from lorica.common.plan.subject import SYNTHETIC_NOTES
from lorica.common.privacy.of_plan import RunPrivacy, run_privacy
from lorica.common.saved.card import CardResults
from lorica.common.saved.folder import save_adapter
from lorica.common.tasks import task_of
from lorica.common.tasks.run_data import RunData, label_sources, load_data, with_labels
from lorica.common.wire.messages import Request
from lorica.server.recording.recording import Recording
from lorica.server.results.folder import (
    ADAPTER,
    CHECKPOINT,
    PICTURE,
    PLAN,
    REPORT,
    ROUNDS,
    START,
    SUMMARY,
    RunFolder,
)
from lorica.server.rounds.evaluation import CentralEvaluator
from lorica.server.rounds.loop import Evaluator, RoundLoop
from lorica.simulations.run.at_sites import AtSite, ByStratum, PersonalEvaluator, at_site
from lorica.simulations.run.baselines import ALONE, BASELINES, POOLED, Baseline, Baselines
from lorica.simulations.run.engines import Main, run_in_process, virtual_nodes
from lorica.simulations.run.keep import Keep
from lorica.simulations.run.progress import LiveProgress
from lorica.simulations.run.sites import (
    make_trainer,
    make_trainers,
    share_cache,
    stands_in,
)
from lorica.simulations.run.summary import (
    FEDERATION,
    cost_before,
    cost_of,
    epsilon_after,
    summarise,
    worst_of,
)
from lorica.simulations.run.workers import (
    SiteWorkers,
    Workers,
    site_workers,
    threads_of_each,
    with_threads,
    worker_count,
)

PERSONAL_FOLDER = "personal"

_NODES_SECONDS = 60.0


class Simulation:
    """One plan simulated on this machine."""

    def __init__(
        self,
        plan: RunPlan,
        out: Path,
        console: Console,
        *,
        data: RunData | None = None,
        keep: Keep | None = None,
    ) -> None:
        """Read the data and make the sites; nothing is written yet.

        Args:
            plan: the run.
            out: the results folder.
            console: where progress is shown.
            data: training and test data, if not those that the plan names.
            keep: the run store and trackers that hear of the run; none when omitted.

        Raises:
            LoricaError: LOR-30x data, LOR-20x backbone, LOR-308 or LOR-402 a site that could not
                take part, LOR-406 no noise level meets the budget.
        """
        self._console, self._keep = console, keep or Keep()
        self._folder = RunFolder(out)
        plan = plan.model_copy(update={"backbone": settled_source(plan.backbone)})
        self._data = data or load_data(plan)
        self._folder.data = fingerprint(self._data.train, self._data.test)
        self.plan = with_labels(plan, *label_sources(plan, self._data))
        self._personal = out / PERSONAL_FOLDER
        self._worst: dict[str, Any] | None = None
        self._cost: dict[str, Any] = {}
        models = Models()
        self._trainers: Mapping[str, LocalTrainer] = make_trainers(
            self._data.train, self.plan, personal=self._personal, models=models
        )
        if _asks_for_size(self.plan):
            self.plan = _expecting(self.plan, self._trainers.values())
        self._units: dict[str, int] = {}
        self._privacy = self._check_sites()
        self._backbone = backbone_of(self.plan)
        self._count = worker_count(self.plan, len(self._trainers))
        with with_threads(threads_of_each(self._count)):  # else workers could not use it
            if self.plan.simulation.engine == "in-process":
                # Tried out before anything is kept: the trial settles the shapes of batches, and
                # what is computed in others is of no use to sites.
                models.get(self.plan, self._backbone, self._data.train)
            self._long = share_cache(self.plan, self._backbone, self._data.train, hands=self._count)
        self._evaluate = CentralEvaluator(self.plan, self._backbone, self._data.test)
        judge = self._data.judge
        self._judge = CentralEvaluator(self.plan, self._backbone, judge) if judge else None

    def run(
        self,
        *,
        resume: bool = False,
        replace: bool = False,
        report: bool = True,
        changed_data: bool = False,
    ) -> dict[str, Any]:
        """Run the federation and its baselines and write the results folder.

        Args:
            resume: go on from the folder's last whole round.
            replace: remove an earlier run's results first.
            report: write the report and the picture, too.
            changed_data: go on, too, where the data are others than the run began with.

        Returns:
            The summary, as in summary.json.
        """
        self._folder.data_may_change = changed_data
        if replace:
            self._clear()
        if resume:
            self._folder.checkpoint(self.plan)  # what is wrong with it is said before all else
            self._cost = cost_before(self._folder.path / SUMMARY)
        else:
            self._folder.create(self.plan)
            self._forget()
        with Effort() as effort, ExitStack() as stack:
            baselines = self._baselines()
            runs = Baselines(
                baselines,
                lambda one, kept: self._main(
                    one.plan, one.folder, one.run, kept, [one.trainer.site]
                ),
            )
            workers = stack.enter_context(self._workers(runs))  # before anything starts threads
            with self._keep.run(self.plan, self._folder.path, cost_of=self._cost_of) as kept:
                if said := lora_sentence(self.plan):
                    self._console.print(said, style="dim", highlight=False)
                with LiveProgress(
                    self._console, self.plan.privacy.epsilon, self._spent
                ) as progress:
                    state = self._federate(kept.beside(progress), workers)
                save_adapter(
                    self._folder.path / ADAPTER,
                    state,
                    self.plan,
                    self._backbone,
                    dataclasses.replace(self._folder.results(), seeded=self._seeded),
                )
                scores = runs.run(
                    self._console,
                    self._keep,
                    kept.run_id,
                    workers if isinstance(workers, SiteWorkers) else None,
                )
                compared = self._compared(baselines, scores)
                stack.close()
                with with_threads(threads_of_each(self._count)):  # as what is kept of records
                    benefit = self._benefit(state)
                summary = self._finish(
                    compared, self._at_sites(state), benefit, effort, report=report
                )
                self._keep.summary(kept.run_id, summary)
        return summary

    def _cost_of(self, site: str, weight: int) -> RunPrivacy | None:
        return self._privacy.get(site)

    def _forget(self) -> None:
        """Remove what an earlier run of this plan may have left to its sites."""
        if not self._personal.exists():
            return
        for site in self._trainers:
            path = FolderPersonal(self._personal, site).path(FEDERATION, self.plan)
            with storage_errors(path):
                path.unlink(missing_ok=True)

    def _clear(self) -> None:
        """Remove an earlier run's results, and nothing else that may lie in the folder."""
        path = self._folder.path
        with storage_errors(path):
            for name in (ADAPTER, START, BASELINES, PERSONAL_FOLDER):
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
            self._units[site] = trainer.units(self.plan)
        return found

    def _workers(self, baselines: Baselines) -> AbstractContextManager[Workers | None]:
        """Processes for the federation's sites, if it gets any."""
        local = self.plan.training.mode == "local"  # as many steps at every site
        costs = {name: 1 if local else units for name, units in self._units.items()}
        if self.plan.simulation.engine == "ray":
            from lorica.simulations.cluster.ray_sites import RaySites

            return RaySites(self.plan, self._data.train, self._personal, costs)
        nodes = baselines.beside(virtual_nodes(self._trainers, self.plan))
        return site_workers(nodes, costs, self._count)

    def _federate(self, kept: Recording, workers: Workers | None) -> State:
        main = self._main(self.plan, self._folder, FEDERATION, kept, list(self._trainers))
        return run_in_process(main, self._trainers, workers, plan=self.plan)

    def _main(
        self, plan: RunPlan, folder: RunFolder, run: str, kept: Recording, sites: list[str]
    ) -> Main:
        backbone = self._backbone
        evaluate = self._evaluator(plan, run, sites)

        def start() -> State:
            return task_of(plan).start(backbone)

        return lambda grid: RoundLoop(
            grid,
            plan,
            folder,
            run=run,
            start=start,
            evaluate=evaluate,
            observer=kept.observer,
            stop=kept.stop,
            judge=self._judge,
            nodes=len(sites),
            wait_seconds=_NODES_SECONDS,
            stand_in=stands_in(plan),
        ).run()

    def _evaluator(self, plan: RunPlan, run: str, sites: list[str]) -> Evaluator:
        if not METHODS[plan.aggregation.method].personal:
            return self._evaluate
        stores = {site: FolderPersonal(self._personal, site) for site in sites}
        return PersonalEvaluator(self._evaluate, plan, run, stores)

    def _at_sites(self, state: State) -> dict[str, AtSite]:
        """How good each site's adapter is for it; the same adapter, unless each has its own."""
        central = self._evaluate
        evaluate = self._evaluator(self.plan, FEDERATION, list(self._trainers))
        personal = evaluate if isinstance(evaluate, PersonalEvaluator) else None
        judged = ByStratum(central.metrics, central.judge(state), central.strata)
        found = {}
        for site, trainer in self._trainers.items():
            if personal is not None:
                table = central.judge(personal.of(site, state))
                judged = ByStratum(central.metrics, table, central.strata)
            found[site] = judged.of(trainer.strata(self.plan))
        self._worst = judged.worst()
        return found

    def _benefit(self, state: State) -> dict[str, Any]:
        """What every site's guard would decide inside its walls, and what that is worth on test
        data; empty where sites' own models are not asked for."""
        if self.plan.simulation.baselines in ("zero-shot", "alone"):
            return {}
        central, found = self._evaluate, {}
        evaluate = self._evaluator(self.plan, FEDERATION, list(self._trainers))
        for site, trainer in self._trainers.items():
            theirs = evaluate.of(site, state) if isinstance(evaluate, PersonalEvaluator) else state
            own = trainer.own(self.plan)
            benefit = compare_models(
                self.plan, self._backbone, own, theirs, seed=self.plan.simulation.seed
            )
            strata = trainer.strata(self.plan)
            tested = {
                name: at_site(
                    central.metrics, central.judge(found_state), central.strata, strata
                ).score
                for name, found_state in benefit.states.items()
            }
            found[site] = benefit.content() | {"tested": tested}
        return found

    def _baselines(self) -> list[Baseline]:
        """The runs that the federation is compared with: every site's, and last all data pooled."""
        if self.plan.simulation.baselines not in ("alone", "all"):
            return []
        plan = self.plan
        if plan.rounds.minimum_sites > 1 or plan.sealed:
            plan = plan.for_one_site()
        count = len(self._trainers)
        found = [
            self._baseline(
                f"{site} alone ({number} of {count})", f"{ALONE}-{number:02d}", plan, own
            )
            for number, (site, own) in enumerate(self._trainers.items(), 1)
        ]
        plan = plan.replace(privacy={"epsilon": float("inf")})
        everything = make_trainer(POOLED, self._data.train, plan, personal=self._personal)
        return [*found, self._baseline("all data pooled, no privacy", POOLED, plan, everything)]

    def _compared(self, baselines: list[Baseline], scores: Mapping[str, float]) -> dict[str, Any]:
        """Scores to compare with."""
        found: dict[str, Any] = {"zero_shot": self._folder.rounds()[0].score}
        if baselines:
            *alone, pooled = baselines
            each = {one.trainer.site: scores[one.title] for one in alone}
            found |= {"alone": each, "alone_mean": sum(each.values()) / len(each)}
            found["pooled_without_privacy"] = scores[pooled.title]
        return found

    def _baseline(self, title: str, name: str, plan: RunPlan, trainer: LocalTrainer) -> Baseline:
        """One, in a folder of this name."""
        own = _expecting(plan, [trainer]) if plan.rounds.expected_units else plan
        folder = RunFolder(self._folder.path / BASELINES / name)
        return Baseline(title, POOLED if name == POOLED else ALONE, own, folder, trainer)

    @property
    def _seeded(self) -> bool:
        """Whether whoever has the plan can subtract the noise that was added to real records."""
        made_up = self.plan.data.train in SYNTHETIC_NOTES
        seeded = self.plan.simulation.noise == "seeded"
        return seeded and self.plan.privacy.private and not made_up

    def _keep_start(self) -> str:
        """Where the untrained start was written, as it is better than what was trained: nothing is
        left that is worse than what costs no ε. "" where it is not."""
        results, first = self._folder.results(), self._folder.rounds()[0]
        end = results.metrics.get(results.headline)
        if end is None or results.start is None or end >= results.start:
            return ""
        card = CardResults(first.metrics, kept_round=0, headline=results.headline)
        state = task_of(self.plan).start(self._backbone)
        save_adapter(self._folder.path / START, state, self.plan, self._backbone, card)
        return START

    def _spent(self, rounds: int) -> float:
        """Largest ε over the sites after so many rounds."""
        each = {id(cost): cost for cost in self._privacy.values()}.values()
        costs = {cost.stages: cost for cost in each}  # equal ones once
        asked = range(1, rounds + 1)
        return max(epsilon_after(cost, self.plan, rounds, asked) for cost in costs.values())

    def _finish(
        self,
        baselines: dict[str, Any],
        at_sites: Mapping[str, AtSite],
        benefit: dict[str, Any],
        effort: Effort,
        *,
        report: bool,
    ) -> dict[str, Any]:
        rounds = self._folder.rounds()
        summary = summarise(
            self.plan, rounds, baselines, self._privacy, self._trainers, self._data, at_sites
        )
        if benefit:
            summary["benefit"] = benefit
        summary["worst"] = worst_of(at_sites, self._worst, rounds)
        summary["cost"] = self._cost or cost_of(effort, rounds)
        summary["cut_texts"] = asdict(self._long)
        summary["start"] = self._keep_start()
        write_atomically(
            self._folder.path / SUMMARY, json.dumps(summary, indent=2, ensure_ascii=False) + "\n"
        )
        if report:
            from lorica.simulations.reports.picture import picture
            from lorica.simulations.reports.report import write_report

            write_report(self._folder.path / REPORT, self.plan, rounds, summary)
            picture(summary, rounds, self._folder.path / PICTURE, budget=self.plan.privacy.epsilon)
        return summary


def _asks_for_size(plan: RunPlan) -> bool:
    """Whether the sites' size decides something that the plan does not say."""
    asks = plan.training.mode == "gradient" and plan.training.lora == "auto"
    return asks and plan.adapter.kind != "head" and not plan.rounds.expected_units


def _expecting(plan: RunPlan, trainers: Collection[LocalTrainer]) -> RunPlan:
    """The plan with what a simulator knows of the sites' size."""
    units = sum(trainer.sampling_units(plan) for trainer in trainers)
    return plan.replace(rounds={"expected_units": units, "expected_sites": len(trainers)})


def resumable(out: Path) -> RunPlan:
    """The plan of an interrupted or finished simulation in ``out``.

    Raises:
        LoricaError: LOR-604 when there is none.
    """
    if not out.is_dir():
        raise LoricaError(Code.RUN_NOT_RESUMABLE, f"There is no folder {out}.")
    return RunFolder(out).plan()
