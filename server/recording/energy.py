"""Energy that this machine used for a run: by codecarbon, where it is installed, which estimates
what it cannot read; else by the processor's own counters, where they can be read."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
from collections.abc import Iterator
from dataclasses import dataclass

from lorica.common.machine.effort import Effort

JOULES_PER_KWH = 3.6e6

_log = logging.getLogger("lorica.store")


@dataclass
class Energy:
    """What was measured."""

    kwh: float | None = None
    """Of this machine, sites on others not included; None when it was not measured."""


@contextlib.contextmanager
def measured_energy() -> Iterator[Energy]:
    """Measure what is done within; nothing is sent anywhere, and no failure gets out."""
    energy = Energy()
    if importlib.util.find_spec("codecarbon") is None:
        with Effort() as effort:
            try:
                yield energy
            finally:
                joules = effort.joules
                energy.kwh = None if joules is None else joules / JOULES_PER_KWH
        return
    try:
        from codecarbon import OfflineEmissionsTracker

        tracker = OfflineEmissionsTracker(
            country_iso_code="USA",  # emissions are not used, energy does not depend on it
            save_to_file=False,
            log_level="critical",
            allow_multiple_runs=True,
            measure_power_secs=15,
        )
        tracker.start()
    except Exception as error:  # noqa: BLE001 - measuring is not worth a run
        _log.warning("codecarbon does not work here, so energy is not measured: %s", error)
        yield energy
        return
    try:
        yield energy
    finally:
        with contextlib.suppress(Exception):
            tracker.stop()
            energy.kwh = float(tracker.final_emissions_data.energy_consumed)
