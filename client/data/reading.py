"""How a site reads its records, whatever the source."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lorica.client.config.data import SiteData
from lorica.client.data.classes import with_classes
from lorica.client.data.duplicates import without_duplicates
from lorica.client.data.forgotten import forgotten
from lorica.common.data.batches import Batch
from lorica.common.data.kinds import IMAGE, kind_of
from lorica.common.data.levels import Levels
from lorica.common.data.records import Records, Roles, checked
from lorica.common.data.request import CONNECTORS, DataRequest, read_batches
from lorica.common.plan.traits import TRAITS

if TYPE_CHECKING:
    from lorica.client.config.site import SiteConfig
    from lorica.client.data.fetched import Fetched


SITE_CONNECTORS = CONNECTORS | {
    "sql": "lorica.client.data.sql",
    "fhir": "lorica.client.data.fhir",
    "dicom": "lorica.client.data.dicom",
}
"""All kinds that a site reads."""


def read_records(config: SiteConfig, root: Path, fetched: Fetched | None = None) -> Records:
    """The site's private records, less those of units that are forgotten.

    Args:
        config: the site's configuration.
        root: the folder that its paths start from, where site.toml is.
        fetched: the source's rows, where they came over a network.

    Raises:
        LoricaError: LOR-30x, LOR-310, LOR-312, LOR-32x, LOR-33x; LOR-207 when the source needs a
            package that is not installed.
    """
    from lorica.client.data.held import hold

    data = config.data
    names = all(TRAITS[task].one_label_each for task in config.policy.tasks)
    roles = replace(roles_of(data, root), labels_are_names=names)
    where = shown(data)
    lists = frozenset[str]().union(*(TRAITS[task].lists for task in config.policy.tasks))
    plain = roles.plain(lists)
    columns = None if roles.image else roles.wanted
    found = fetched.batches() if fetched else site_batches(data, root, columns, plain=plain)
    left = forgotten(config, root).without(checked(found, roles, where))
    parts = with_classes(left, data, where, names=names)
    return hold(without_duplicates(parts, data, where), where, root)


def site_batches(
    data: SiteData, root: Path, columns: Collection[str] | None, *, plain: Collection[str] = ()
) -> Iterator[Batch]:
    """Batches of a site's source as they are: the columns asked for, or all (None)."""
    request = DataRequest(
        data.source,
        kind_at(data, root),
        root,
        columns=None if columns is None else list(dict.fromkeys(columns)),
        plain=plain,
        split=data.split,
        table=data.table,
        file=data.file,
        text=data.text,
        label=data.label,
        image=data.image,
        image_side=data.image_side,
        levels=Levels(data.window),
        options={
            "query": data.query,
            "password": data.password,
            "timeout": data.timeout_seconds,
            "fhir": data.fhir,
            "window": data.window,
            "unit": data.unit,
        },
    )
    yield from read_batches(request, SITE_CONNECTORS)


def kind_at(data: SiteData, root: Path) -> str:
    """The kind of the site's source: as ``data`` says, or told from the source; JSON is FHIR where
    section data.fhir says what to take of it. Raises LOR-301, LOR-326."""
    found = data.kind or kind_of(data.source, root)
    json = found in ("json", "jsonl") and not data.source.lower().endswith(".jsonl")
    return "fhir" if json and not data.kind and "fhir" in data.model_fields_set else found


def roles_of(data: SiteData, root: Path) -> Roles:
    """The roles of the site's columns."""
    kind = kind_at(data, root)
    return Roles(
        data.text,
        data.label,
        data.unit,
        image=IMAGE if kind in ("images", "dicom") else data.image,
        missing_unit=data.missing_unit,
        setting='{key} = "{column}" in site.toml',
        table=data.columns,
        table_key="data.columns",
        alike=data.alike,
        choice='data.alike = "{}" in site.toml',
    )


def shown(data: SiteData) -> str:
    """The source's name for messages: of a database, without user and password."""
    scheme, found, rest = data.source.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}" if found else data.source
