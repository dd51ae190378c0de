"""What is audited: one site of a plan, run through the real round loop as a federation of one.

The guarantee is the site's own, so it is audited at the site, with no other sites' noise to
hide behind.
"""

from __future__ import annotations

import dataclasses
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lorica.client.mechanism.noise import NoiseSource, SecureNoise, SeededNoise
from lorica.client.training.trainer import LocalTrainer, NoiseFactory
from lorica.common.adapter.state import State
from lorica.common.backbone.loading import Backbone, backbone_of
from lorica.common.data.records import PACKAGED, Records, read_records
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.plan.methods import alternates
from lorica.common.plan.stages import Stage, ever_trained, schedule
from lorica.common.plan.tensors import Part, part_of
from lorica.common.plan.traits import TaskKind
from lorica.common.privacy.event import PrivacyEvent
from lorica.common.privacy.of_plan import run_privacy
from lorica.common.tasks import task_of
from lorica.common.tasks.run_data import load_data, with_labels
from lorica.common.wire.messages import Request
from lorica.server.results.folder import RunFolder
from lorica.server.results.observers import Silent
from lorica.server.rounds.loop import RoundLoop
from lorica.simulations.audit.evidence.family import Family
from lorica.simulations.audit.watched.releases import MakeEntries, ReleasingTrainer
from lorica.simulations.audit.watched.steps import AuditedTrainer, MakeDirections
from lorica.simulations.run.engines import run_in_process
from lorica.simulations.run.partition import partition

TASKS: tuple[TaskKind, ...] = ("text-classification",)
"""Tasks that audits can attack."""


@dataclass(frozen=True)
class Seats:
    """The sites of an audited sealed sum; by default, those for a plan that seals none."""

    sites: int = 4
    """n, the audited one with them."""
    honest: int = 2
    """h: the audited site and h - 1 others give noise, and n - h collude and give none."""
    fewest: int = 1
    """rounds.minimum_sites."""


@dataclass(frozen=True)
class Subject:
    """One site under audit."""

    plan: RunPlan
    """With labels, for a federation of one, and with all of ε for training."""
    site: str
    records: Records
    strangers: Records
    """Held-out records that nobody trained on; those of this site where the data tell."""
    backbone: Backbone
    start: State
    others: Records
    """What other sites of a sealed sum hold: the plan's other sites' records, or the held-out ones
    where it has no other site."""
    seats: Seats
    """How many sites a sealed sum is audited with."""

    @classmethod
    def of(cls, plan: RunPlan, site: str = "") -> Subject:
        """Read a plan's data and take one site: ``site``, or the one with most records.

        Raises:
            LoricaError: LOR-410 a task that the audit cannot attack, LOR-401 when the plan claims
                no privacy, LOR-309 no such site, and what reading data and models raises.
        """
        if plan.task.kind not in TASKS:
            raise LoricaError(
                Code.AUDIT_UNSUPPORTED,
                f'task.kind is "{plan.task.kind}"; an audit can attack {" or ".join(TASKS)} alone.',
            )
        if not plan.privacy.private:
            raise LoricaError(
                Code.PRIVACY_EPSILON, "privacy.epsilon is inf: there is no claim to audit."
            )
        data = load_data(plan)
        parts = partition(data.train, plan.simulation)
        seats = Seats()
        if plan.sealed:
            seats = Seats(max(len(parts), plan.honest_sites), plan.honest_sites)
            fewest = min(plan.rounds.minimum_sites, seats.sites)
            seats = dataclasses.replace(seats, fewest=fewest)
        plan = with_labels(plan, data.train).for_one_site()
        plan = plan.replace(
            rounds={"evaluate_every": 0},
            simulation={"engine": "in-process"},
            wire={"update": "float32"},  # rounding follows the noise and could only hide it
            training={"smoothing": 0.0, "proximal": 0.0},  # they follow the noise and hide it
        )
        if alternates(plan.aggregation.method):
            raise LoricaError(
                Code.PLAN_BAD_VALUE,
                f"The audit watches one set of trained values, but aggregation.method "
                f'"{plan.aggregation.method}" trains them in turn.',
                mend="Audit the plan with another method; noise and clipping are the same.",
            )
        if site and site not in parts:
            raise LoricaError(
                Code.DATA_PARTITION,
                f"The plan makes no site '{site}'; its sites are: {', '.join(parts)}.",
                mend="Give one of these as --site.",
            )
        name = site or max(parts, key=lambda found: len(parts[found]))
        backbone = backbone_of(plan)
        start = task_of(plan).start(backbone)
        records, strangers = data.train.take(parts[name]), _strangers(plan, name, data.test)
        elsewhere = [row for other, rows in parts.items() if other != name for row in rows]
        others = data.train.take(elsewhere) if elsewhere else data.test
        return cls(plan, name, records, strangers, backbone, start, others, seats)

    @property
    def in_local_steps(self) -> Subject:
        """The same site under the same ε, all of it for local DP-SGD steps.

        Canaries are placed in the noised sums of
        :class:`~lorica.client.mechanism.dp_sgd.NoisyOptimizer` steps of one σ and one sample rate.
        So what they audit is training.mode "local" without a warm start, whatever the plan's own
        mode.
        """
        changed = self.plan.replace(training={"mode": "local"}, rounds={"warm_start": 0.0})
        return dataclasses.replace(self, plan=changed)

    @property
    def in_releases(self) -> Subject:
        """The same site under the same ε, all of it for releases on frozen features.

        A plan of mode "gradient" that trains no LoRA factors has no others and stays as it is; its
        LoRA rounds become rounds of the head. A plan of mode "local" has none but its warm start:
        the default recipe is put in its place.
        """
        if all(stage.on_frozen_features for stage, _ in schedule(self.plan)):
            return self
        changes: dict[str, dict[str, Any]] = {"training": {"mode": "gradient", "lora": "never"}}
        if self.plan.training.mode == "local":
            rounds = RunPlan().rounds
            changes["rounds"] = {"count": rounds.count, "warm_start": rounds.warm_start}
            changes["server"] = {"local_optimizer": "none"}
            changes["aggregation"] = {"method": RunPlan().aggregation.method}
        return dataclasses.replace(self, plan=self.plan.replace(**changes))

    @property
    def in_sums(self) -> Subject:
        """The site of :attr:`in_releases`, hidden among others in sealed sums."""
        found, seats = self.in_releases, self.seats
        plan = found.plan.replace(
            privacy={"trust": "sum", "honest_sites": seats.honest},
            rounds={"minimum_sites": seats.fewest, "fraction": 1.0, "over_provision": 0.0},
            simulation={"sites": seats.sites},
        )
        return dataclasses.replace(found, plan=plan)

    @property
    def group_sizes(self) -> list[int]:
        """Trained values of every clip group: the head's, and the LoRA factors' if any."""
        sizes = {True: 0, False: 0}
        for name in ever_trained(self.plan, self.start):
            sizes[part_of(name) is Part.HEAD] += self.start[name].numel()
        return [size for size in sizes.values() if size]

    @property
    def records_per_unit(self) -> int:
        """Most records that a unit brings to a step."""
        privacy = self.plan.privacy
        return 1 if privacy.unit == "record" else privacy.max_records_per_unit

    def trainer(self, included: np.ndarray, make: MakeDirections) -> AuditedTrainer:
        """The site with canaries among its records.

        Raises:
            LoricaError: LOR-308, LOR-402 or LOR-406, why the site would refuse the plan.
        """
        return AuditedTrainer(
            self.site, self.records, self.plan, included, make, noise=self.noise_of(self.site)
        )

    def releasing_trainer(self, included: np.ndarray, make: MakeEntries) -> ReleasingTrainer:
        """The same, watched in its releases on frozen features.

        Raises:
            LoricaError: as :meth:`trainer`.
        """
        return ReleasingTrainer(
            self.site, self.records, self.plan, included, make, noise=self.noise_of(self.site)
        )

    def plain_trainer(self) -> LocalTrainer:
        """The site without canaries."""
        return LocalTrainer(self.site, self.records, noise=self.noise_of(self.site))

    def family(self, trainer: LocalTrainer) -> Family:
        """The mechanism that a trainer claims to run, and its kin."""
        event = run_privacy(self.plan, trainer.sampling_units(self.plan)).training
        return Family.of(event, self.plan.rounds.count, self.plan.privacy.delta)

    def events(self, trainer: LocalTrainer) -> dict[Stage, PrivacyEvent]:
        """What a trainer claims to run in all rounds of every stage."""
        privacy = run_privacy(self.plan, trainer.sampling_units(self.plan))
        return dict(privacy.events_by_stage(self.plan.rounds.count))

    def train(self, trainer: LocalTrainer, run: str) -> State:
        """All rounds of the plan with this one site; returns the final global state.

        Raises:
            LoricaError: what the site refused with, in full.
        """
        trainer.capabilities(Request(self.plan, run))
        with tempfile.TemporaryDirectory() as path:
            folder = RunFolder(Path(path))
            folder.create(self.plan)
            try:
                return run_in_process(
                    lambda grid: RoundLoop(
                        grid,
                        self.plan,
                        folder,
                        run=run,
                        start=lambda: self.start,
                        evaluate=None,
                        observer=Silent(),
                    ).run(),
                    {self.site: trainer},
                )
            except LoricaError as error:
                cause = getattr(trainer, "failure", None)
                raise (cause or error) from error

    def noise_of(self, site: str) -> NoiseFactory:
        """A site's sampling and noise, of the kind that the plan simulates with."""
        seed, secure = self.plan.simulation.seed, self.plan.simulation.noise == "secure"

        def source(run: str, round: int) -> NoiseSource:
            return SecureNoise() if secure else SeededNoise(seed, run, site, round)

        return source


def _strangers(plan: RunPlan, site: str, test: Records) -> Records:
    """The site's own part of the test data, where they can be told apart; else all."""
    if plan.simulation.partition != "by-column":
        return test
    if plan.data.train.startswith(PACKAGED) and not plan.data.test:
        column = plan.simulation.column
        test = read_records(plan.data.train, plan.data, group=column, test=True)
    own = [row for row, group in enumerate(test.groups) if group == site]
    return test.take(own) if own else test
