"""A real simulation, one of whose sites breaks down for good in the middle of it.

Run by the browser tests: ``python failing_site.py OUT ROUND KEY=VALUE …``. The site's trainer
raises, as it would when its disk is gone; everything from there to the store is the real thing.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from lorica.common.plan.io import load_plan
from lorica.server.store import RunStore
from lorica.simulations.run.keep import Keep
from lorica.simulations.run.simulate import Simulation


def main() -> None:
    """Simulate; the last site fails from round ROUND on."""
    out, first, settings = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    simulation = Simulation(load_plan(None, settings), out, Console(), keep=Keep(RunStore.open()))
    trainer: Any = list(simulation._trainers.values())[-1]

    def failing(answer: Any) -> Any:
        def answered(request: Any, *rest: Any, **named: Any) -> Any:
            if request.round >= first:
                raise OSError("the disk of this site is gone")
            return answer(request, *rest, **named)

        return answered

    for name in ("train", "begin_training"):  # alone, and together with other sites
        setattr(trainer, name, failing(getattr(trainer, name)))
    simulation.run()


if __name__ == "__main__":
    main()
