"""What a real site must have settled before it answers anybody, looked at for the site alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lorica.client.config.site import SiteConfig
from lorica.common.errors import Code, LoricaError

if TYPE_CHECKING:
    from lorica.common.data.records import Records


def rounded_units(units: int) -> int:
    """A figure for so many units that tells little of their number: its first digit, rounded
    down. 4,992 gives 4,000, and 87 gives 80; 0 for none."""
    place = 10 ** (len(str(units)) - 1)
    return units // place * place


def count_units(records: Records, config: SiteConfig) -> int:
    """The true number of units that the site's policy protects: private."""
    if config.policy.unit == "record":
        return len(records)
    return len(set(records.units))


def require_figure(config: SiteConfig, units: int | None = None) -> None:
    """Return if the site has fixed its figure for the number of its units.

    Args:
        config: site.toml.
        units: the true number, where it is known: for a suggestion to the site's operators.

    Raises:
        LoricaError: LOR-409 it has not.
    """
    figure = config.policy.sampling_units
    if figure and (units is None or figure <= units):
        return
    held = "" if units is None else f" The data have {units:,} (keep that to yourselves)."
    wrong = f"is {figure:,}, more than there are" if figure else "is 0, and a site needs a figure"
    raise LoricaError(
        Code.SITE_CONFIG,
        f"policy.sampling_units {wrong}: the number of its units, rounded down, from which noise "
        f"and sampling are computed in place of the true number.{held}",
        mend="Set it in site.toml"
        + ("." if units is None else f", for example sampling_units = {rounded_units(units)}."),
    )


def require_coordinators(config: SiteConfig) -> None:
    """Return if the site lists the coordinators that it answers. Raises LOR-409."""
    if not config.policy.coordinators:
        raise LoricaError(
            Code.SITE_CONFIG,
            "policy.coordinators is empty: a site answers nobody whom it does not list.",
            mend="List the coordinator's public key, as its invitation does (`lorica coordinator "
            "key` prints it at the coordinator).",
        )


def require_records(config: SiteConfig, records: Records) -> None:
    """Return if there are as many units as the policy wants. Raises LOR-308."""
    units = count_units(records, config)
    if units < config.policy.minimum_units:
        raise LoricaError(
            Code.DATA_TOO_FEW_RECORDS,
            f"The data have {units} units, policy.minimum_units is {config.policy.minimum_units}.",
            mend="Leave the site out until it has more, or lower policy.minimum_units.",
        )
