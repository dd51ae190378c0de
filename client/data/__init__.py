"""How a site reads its records: one way for every kind of source, for training and for checks.

Batches go through the same steps whatever the source: the roles of columns are checked, labels
are mapped, duplicates are dealt with, and what is large is held on disk. A failure at any step
leaves nothing behind: no record is used and nothing is charged.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lorica.client.config.data import SiteData
from lorica.client.data.classes import with_classes
from lorica.client.data.duplicates import without_duplicates
from lorica.common.data import kind_of
from lorica.common.data.batches import Batch
from lorica.common.data.kinds import IMAGE
from lorica.common.data.records import Records, Roles, checked
from lorica.common.data.request import CONNECTORS, DataRequest, read_batches
from lorica.common.plan.traits import TRAITS

if TYPE_CHECKING:
    from lorica.client.config.site import SiteConfig
    from lorica.client.data.fetched import Fetched


__all__ = ["SITE_CONNECTORS", "SiteData", "read_records", "roles_of", "shown", "site_batches"]
