"""``lorica site check``: everything that a site needs, looked at one by one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lorica.client.admission.readiness import (
    count_units,
    require_coordinators,
    require_figure,
    require_records,
)
from lorica.client.config.site import SiteConfig, load_site
from lorica.client.node.link import NodeLink
from lorica.common.errors import Code, LoricaError
from lorica.common.machine.checks import (
    Finding,
    check_certificate,
    check_clock,
    check_disk,
    check_reachable,
    check_versions,
    checked,
)
from lorica.common.wire.bundle import build_bundle, bundle_sha256


def check_site(site: Path) -> Iterator[Finding]:
    """Findings on a site, as they come. Records are read and counted, the ledger is verified;
    nothing is changed.

    Args:
        site: path of site.toml.

    Raises:
        LoricaError: LOR-409 site.toml cannot be read: nothing else can be looked at.
    """
    config, root = load_site(site), site.resolve().parent
    yield Finding("site.toml", True, f"site {config.site.name}")
    yield checked("versions", check_versions)
    yield checked("code", lambda: f"this version's bundle is {bundle_sha256(build_bundle())}")
    yield checked("disk", lambda: check_disk(root))
    yield checked("data", lambda: _data(config, root))
    yield checked("ledger", lambda: _ledger(config, site))
    yield checked("policy", lambda: _policy(config))
    if config.policy.backbone_folders:
        yield checked("models", lambda: _models(config, root))
    yield from _network(config, root)


def check_connection(link: NodeLink) -> None:
    """Return if the coordinator can be reached, is who it should be, and knows the site.

    Raises:
        LoricaError: the first thing that is wrong.
    """
    check_reachable(link.host, link.port)
    check_certificate(link.host, link.port, link.authority)
    check_clock(link.host, link.port, link.authority)
    link.check_admitted()


def _network(config: SiteConfig, root: Path) -> Iterator[Finding]:
    try:
        link = NodeLink(config, root)
    except LoricaError as error:
        yield Finding("federation", False, f"{error} {error.mend}")
        return
    for name, check in (
        ("network", lambda: check_reachable(link.host, link.port)),
        ("certificate", lambda: check_certificate(link.host, link.port, link.authority)),
        ("clock", lambda: check_clock(link.host, link.port, link.authority)),
        ("admission", link.check_admitted),
    ):
        finding = checked(name, check)
        yield finding
        if not finding.ok:
            return  # what comes after it cannot be told


def _data(config: SiteConfig, root: Path) -> str:
    from lorica.client.data.reading import read_records

    records = read_records(config, root)
    units = count_units(records, config)
    require_records(config, records)
    require_figure(config, units)
    return f"{len(records):,} records of {units:,} units, {len(records.label_names)} labels"


def _ledger(config: SiteConfig, site: Path) -> str:
    from lorica.client.ledger.opening import require_guarantee
    from lorica.client.ledger.verify import inspect

    path = site.resolve().parent / config.ledger.path
    if not path.exists():
        raise LoricaError(
            Code.LEDGER_MISSING,
            f"There is no privacy ledger at {path}, and the trainer makes none.",
            mend="If the data were never used before, make one: `lorica site ledger create "
            f"--config {site}`. Otherwise put back the one that they were used with.",
        )
    found = inspect(path)
    found.require_sound()
    require_guarantee(found.history, config.site.name, config.policy.unit, config.ledger.delta)
    return f"{found.count} entries, an unbroken chain"


def _policy(config: SiteConfig) -> str:
    if config.policy.noise != "secure":
        raise LoricaError(
            Code.SITE_CONFIG,
            'policy.noise is "seeded": answers are not private.',
            mend='Set it to "secure" wherever real records are.',
        )
    require_coordinators(config)
    return f"{len(config.policy.coordinators)} coordinator(s) answered, ε at most " + (
        f"{config.policy.maximum_epsilon:g}"
    )


def _models(config: SiteConfig, root: Path) -> str:
    """That every folder of policy.backbone_folders holds a model which the policy allows."""
    from lorica.client.admission.backbones import model_hash

    policy = config.policy
    for entry in policy.backbone_folders:
        whole = model_hash(entry, root)
        if whole not in {listed.partition(":")[0] for listed in policy.backbones}:
            raise LoricaError(
                Code.SITE_CONFIG,
                f"policy.backbone_folders lists {entry}, but policy.backbones does not allow the "
                f"model in it, whose SHA-256 is {whole}.",
                mend="List that hash in policy.backbones, or take the folder off the list.",
            )
    return f"{len(policy.backbone_folders)} of the site's own in place and allowed"
