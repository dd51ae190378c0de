"""A site opened from its site.toml: ledger, personal tensors, consent, questions, trainer."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import stat
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from lorica.client.admission.answered import Answered
from lorica.client.admission.consent import Consent
from lorica.client.admission.gate import Admission
from lorica.client.admission.questions import Questions
from lorica.client.admission.readiness import (
    count_units,
    require_coordinators,
    require_figure,
    require_records,
)
from lorica.client.config.site import SiteConfig
from lorica.client.data.fetched import Fetched
from lorica.client.ledger import Budgets, FileLedger
from lorica.client.ledger.head import Heads, Witness
from lorica.client.secure_sum.peers import Peers
from lorica.client.training.personal import FolderPersonal
from lorica.common.errors import Code, LoricaError
from lorica.common.machine.files import create_atomically, storage_errors
from lorica.common.machine.secret import derived

if TYPE_CHECKING:
    from lorica.client.ledger import Ledger
    from lorica.client.mechanism.noise import NoiseSource
    from lorica.client.training.sealing import Sealing
    from lorica.client.training.trainer import LocalTrainer

SEEDED_VARIABLE, SEEDED_WORDS = "LORICA_SEEDED_NOISE", "protects nothing"
"""Environment variable, and its one value, without which policy.noise = "seeded" is refused."""

_SECRET_BYTES = 32

_log = logging.getLogger("lorica.site")


def require_noise(config: SiteConfig) -> None:
    """Return unless the noise is seeded and this is no test.

    Raises:
        LoricaError: LOR-409.
    """
    if config.policy.noise == "seeded" and os.environ.get(SEEDED_VARIABLE) != SEEDED_WORDS:
        raise LoricaError(
            Code.SITE_CONFIG,
            'policy.noise is "seeded": whoever knows the seed subtracts the noise, so answers '
            "would be charged and protect nothing.",
            mend='Set policy.noise = "secure". A test that must repeat itself sets the '
            f'environment variable {SEEDED_VARIABLE}="{SEEDED_WORDS}".',
        )


def site_budgets(config: SiteConfig) -> Budgets:
    """The ledger's budgets of a site's configuration."""
    ledger = config.ledger
    return Budgets(
        ledger.lifetime_epsilon, ledger.run_epsilon, ledger.period, ledger.period_epsilon
    )


def personal_store(config: SiteConfig, folder: Path) -> FolderPersonal:
    """Where the site keeps what methods such as "fedsa" leave to it: beside its ledger."""
    return FolderPersonal(_beside_ledger(config, folder, "personal"), config.site.name)


def open_ledger(config: SiteConfig, folder: Path, *, create: bool = False) -> FileLedger:
    """The site's ledger; paths are taken from ``folder``, where site.toml is.

    Raises:
        LoricaError: LOR-61x when there is none or it cannot be trusted.
    """
    return FileLedger(
        folder / config.ledger.path,
        data_set=config.site.name,
        unit=config.policy.unit,
        delta=config.ledger.delta,
        budgets=site_budgets(config),
        create=create,
    )


def site_secret(config: SiteConfig, folder: Path, *, charges: int = 0) -> bytes:
    """The site's secret, which its noise follows from and which seals its ledger's heads; made
    when it is absent, for the trainer's own user alone.

    Args:
        config: site.toml.
        folder: that its paths start from.
        charges: how many the ledger holds. With another secret an older ledger would be taken for
            the newest, and a request answered before would get another noise: so with any charge
            none is made.

    Raises:
        LoricaError: LOR-409 others may read it, it is not what was made, or it is gone; LOR-60x.
    """
    path = _beside_ledger(config, folder, "noise.key")
    if charges and not path.exists():
        raise LoricaError(
            Code.SITE_CONFIG,
            f"{path} is gone, but the ledger beside it has {charges} charges made with it: without "
            "it nobody sees whether the ledger is the newest, and answers would get fresh noise.",
            mend="Put it back from the copy that belongs to the ledger. If it is lost, take the "
            "data's budget as spent: end the use of this data set.",
        )
    create_atomically(path, secrets.token_bytes(_SECRET_BYTES), mode=0o600)
    with storage_errors(path), path.open("rb") as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        found = file.read(_SECRET_BYTES + 1)
    if mode & 0o077:
        raise LoricaError(
            Code.SITE_CONFIG,
            f"{path} has mode {mode:04o}: who reads it can take the noise off what the site sent.",
            mend=f"chmod 600 {path}",
        )
    if len(found) != _SECRET_BYTES:
        raise LoricaError(
            Code.SITE_CONFIG,
            f"{path} has not the {_SECRET_BYTES} bytes that were made.",
            mend="Put it back from the copy that belongs to the ledger beside it.",
        )
    return found


def kept_secret(config: SiteConfig, folder: Path) -> bytes:
    """:func:`site_secret`, for commands that are no trainer: the ledger, where there is one, says
    whether a secret may still be made.

    Raises:
        LoricaError: as of :func:`site_secret`; LOR-61x a ledger that cannot be trusted.
    """
    charges = 0
    if (folder / config.ledger.path).exists():
        with contextlib.closing(open_ledger(config, folder)) as ledger:
            charges = len(ledger.history().charges)
    return site_secret(config, folder, charges=charges)


def site_consent(config: SiteConfig, folder: Path) -> Consent | None:
    """People's decisions about runs, beside the ledger; None where the policy needs none."""
    if config.policy.consent == "none":
        return None
    return Consent(_beside_ledger(config, folder, "consent"))


def site_questions(config: SiteConfig, folder: Path) -> Questions | None:
    """What plans have asked of the records, beside the ledger; None where people decide."""
    if config.policy.consent == "per-run":
        return None
    return Questions(_beside_ledger(config, folder, "questions.json"), config.policy.questions)


def data_file(config: SiteConfig, folder: Path) -> Path:
    """Where the fingerprint of the site's records lies."""
    return (folder / config.ledger.path).with_suffix(".data.json")


def site_peers(config: SiteConfig, folder: Path) -> Peers:
    """Whom the site hides among in sealed sums, and its own key for them, beside the ledger."""
    return Peers(_beside_ledger(config, folder, "peers"), config.policy.peers)


def site_sealing(config: SiteConfig, folder: Path) -> Sealing:
    """The site in sealed sums."""
    from lorica.client.secure_sum.memory import KeptInFolder
    from lorica.client.training.sealing import Sealing

    return Sealing(
        config.site.name,
        peers=site_peers(config, folder),
        fewest_peers=config.policy.fewest_peers,
        memory=KeptInFolder(_beside_ledger(config, folder, "sums")),
    )


def _beside_ledger(config: SiteConfig, folder: Path, name: str) -> Path:
    return (folder / config.ledger.path).parent / name


def open_trainer(
    config: SiteConfig, root: Path, fetched: Fetched | None = None
) -> tuple[LocalTrainer, Ledger]:
    """The trainer of a site's configuration, with its records and its ledger.

    Args:
        config: site.toml.
        root: the folder that its paths start from.
        fetched: the source's rows, where they came over a network.

    Raises:
        LoricaError: LOR-409 something that a real site must have settled is not, LOR-30x the
            data, LOR-333 they have changed, LOR-61x the ledger, LOR-207 a package is missing.
    """
    from lorica.client.data.changes import require_unchanged
    from lorica.client.data.reading import read_records
    from lorica.client.mechanism.noise import RequestNoise, SeededNoise
    from lorica.client.training.trainer import LocalTrainer
    from lorica.common.cache.files import CacheFolder
    from lorica.common.cache.shelf import SHELF
    from lorica.common.wire.sealing import load_site_key

    def seeded(stream: str, round: int) -> NoiseSource:
        return SeededNoise(0, stream, config.site.name, round)

    require_noise(config)
    if config.policy.noise == "seeded":
        _log.warning('policy.noise is "seeded": the updates of this site protect NOTHING')
    with ExitStack() as undo:
        ledger = open_ledger(config, root)
        undo.callback(ledger.close)
        if config.data.cache:
            most = int(config.data.cache_gigabytes * 1e9)
            SHELF.keep_in(CacheFolder(root / config.data.cache, most))
        require_coordinators(config)
        secret = site_secret(config, root, charges=len(ledger.history().charges))
        witness = Witness(root / config.ledger.witness, secret) if config.ledger.witness else None
        if witness is not None:
            witness.check(ledger.history())
        records = read_records(config, root, fetched)
        require_unchanged(records, data_file(config, root), accept=config.data.changed == "accept")
        require_figure(config, count_units(records, config))
        require_records(config, records)
        trainer = LocalTrainer(
            config.site.name,
            records,
            noise=RequestNoise(secret) if config.policy.noise == "secure" else seeded,
            admission=Admission(
                config,
                root,
                consent=site_consent(config, root),
                questions=site_questions(config, root),
                answered=Answered(
                    _beside_ledger(config, root, "answered"), config.policy.request_hours
                ),
            ),
            ledger=ledger,
            heads=Heads(ledger, secret, witness),
            personal=personal_store(config, root),
            sealing=site_sealing(config, root),
            aside=derived(secret, "aside"),
            key=load_site_key(root / config.federation.key) if config.federation.address else None,
        )
        undo.pop_all()
    return trainer, ledger
