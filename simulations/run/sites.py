"""Virtual sites: LocalTrainers over parts of one data set."""

from __future__ import annotations

import atexit
import hashlib
import math
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from lorica.client.admission.figures import SiteFigures
from lorica.client.admission.gate import Admission
from lorica.client.mechanism.noise import NoiseSource, SecureNoise, SeededNoise
from lorica.client.training.models import Models
from lorica.client.training.personal import FolderPersonal
from lorica.client.training.sealing import Sealing
from lorica.client.training.trainer import LocalTrainer
from lorica.common.backbone.loading import Backbone
from lorica.common.cache.files import CacheFolder
from lorica.common.cache.prefix import CACHE_BYTES, FLOAT_BYTES
from lorica.common.cache.shelf import SHELF
from lorica.common.data.records import Records
from lorica.common.display.long_texts import LongTexts
from lorica.common.plan import RunPlan
from lorica.common.plan.stages import schedule
from lorica.common.secure_sum.identity import Identity
from lorica.common.secure_sum.terms import COMPLETE
from lorica.common.tasks import task_of
from lorica.common.tasks.inputs import long_texts
from lorica.simulations.run.partition import partition
from lorica.simulations.run.virtual import VirtualSites

_DISK_BYTES = 2**40  # a full disk says so before: what does not fit is computed each time
_WORTH_HANDS = 256
"""Records, from which more than one process computes what is kept of them."""


def make_trainer(
    site: str,
    records: Records,
    plan: RunPlan,
    *,
    personal: Path | None = None,
    rank: int | None = None,
    cache_bytes: int = CACHE_BYTES,
    models: Models | None = None,
) -> LocalTrainer:
    """A site's trainer with the plan's kind of noise.

    Seeded noise depends on seed, run, site, round and kind of request, so all answers are
    independent and a repeated request repeats its noise.

    Args:
        site: name of the site.
        records: its records; the simulated site declares the number of its units.
        plan: gives seed and kind of noise.
        personal: folder for what methods such as "fedsa" leave to the site; None keeps it in
            memory.
        rank: the LoRA rank it trains at, if below the plan's.
        cache_bytes: memory for its cached states, bytes.
        models: what the sites of the process share; None: it shares nothing.
    """
    seed, secure = plan.simulation.seed, plan.simulation.noise == "secure"

    def noise(stream: str, round: int) -> NoiseSource:
        return SecureNoise() if secure else SeededNoise(seed, stream, site, round)

    kept = FolderPersonal(personal, site) if personal else None
    declared = None
    if plan.simulation.declared == "rounded":
        units = len(records) if plan.privacy.unit == "record" else len(set(records.units))
        declared = rounded(units)
    return LocalTrainer(
        site,
        records,
        noise=noise,
        admission=Admission(figures=SiteFigures(units=declared, rank=rank)),
        personal=kept,
        cache_bytes=cache_bytes,
        sealing=_sealing(site, plan),
        aside=f"simulation {seed}".encode(),
        models=models,
    )


def _sealing(site: str, plan: RunPlan) -> Sealing | None:
    """A virtual site's identity, the same for the same seed."""
    if not plan.sealed:
        return None
    seed = hashlib.sha256(f"simulated site/{plan.simulation.seed}/{site}".encode()).digest()
    return Sealing(site, Identity.from_seed(seed), stand_in=stands_in(plan))


def stands_in(plan: RunPlan) -> bool:
    """Whether vectors are added up as they are, in place of the protocol of sealed sums: the sum is
    the same, to the bit."""
    wanted = plan.simulation.sealing
    return wanted == "stand-in" or (wanted == "auto" and plan.simulation.sites > COMPLETE)


def rounded(units: int) -> int:
    """The largest power of √2, rounded down, that is at most ``units`` (at least 1)."""
    power = math.floor(2 * math.log2(units))
    found = math.floor(2 ** ((power + 1) / 2))
    return found if found <= units else math.floor(2 ** (power / 2))


def make_trainers(
    records: Records, plan: RunPlan, *, personal: Path | None = None, models: Models | None = None
) -> VirtualSites:
    """All virtual sites of a plan, in the order of their partition ids; each is made when it is
    asked for.

    Args:
        records: of all sites.
        plan: says how they are divided.
        personal: as of :func:`make_trainer`.
        models: what the sites share; None makes it.

    Raises:
        LoricaError: LOR-309 when the data cannot be divided as the plan says.
    """
    parts = partition(records, plan.simulation, task_of(plan).strata(records))
    ranks: Sequence[int | None] = plan.simulation.ranks or [None]
    shared = models or Models()

    def make(number: int, site: str, rows: list[int]) -> LocalTrainer:
        return make_trainer(
            site,
            records.take(rows),
            plan,
            personal=personal,
            rank=ranks[number % len(ranks)],
            cache_bytes=CACHE_BYTES * len(rows) // len(records),
            models=shared,
        )

    return VirtualSites(parts, make, keep=plan.sealed)


def share_cache(
    plan: RunPlan, backbone: Backbone, records: Records, *, hands: int = 1
) -> LongTexts:
    """Have all virtual sites, however the records are divided, read from one cache of them.

    Args:
        plan: the run.
        backbone: loaded.
        records: of all sites.
        hands: processes that compute it.

    Returns:
        How long their texts are beside what is read of them.
    """
    task = task_of(plan)
    stages = [stage for stage, _ in schedule(plan)]
    encoded = task.encode(backbone, records)
    if plan.simulation.engine != "in-process":
        return long_texts(plan, backbone, encoded)  # sites are in other processes
    model, pooled = task.model(backbone).eval(), any(stage.on_frozen_features for stage in stages)
    if pooled and len(records) * model.pooled_width * FLOAT_BYTES > SHELF.limit_bytes:
        _keep_on_disk()
    SHELF.lay_out(
        model,
        encoded,
        backbone=backbone,
        states=any(not stage.on_frozen_features for stage in stages),
        pooled=pooled,
        hands=hands if len(records) >= _WORTH_HANDS else 1,
    )
    return long_texts(plan, backbone, encoded)


def _keep_on_disk() -> None:
    """Have features that do not fit in memory in files, for as long as this process lives: they are
    computed once, not anew in every round."""
    if SHELF.in_files:
        return
    folder = Path(tempfile.mkdtemp(prefix="lorica-features-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    SHELF.keep_in(CacheFolder(folder, _DISK_BYTES))
