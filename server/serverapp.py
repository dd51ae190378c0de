"""The ServerApp that a coordinator or Flower starts: one run of a plan."""

from __future__ import annotations

import os
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from lorica.common.plan.io import from_run_config
from lorica.common.wire.bundle import RUN_KEY
from lorica.common.wire.pulling import pull_promptly
from lorica.server.results.folder import RunFolder
from lorica.server.rounds.run import FOLDER_VARIABLE, run_plan


def make_server_app() -> ServerApp:
    """A ServerApp that runs the plan in Flower's run config."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        pull_promptly()
        submitted = str(context.run_config.get(RUN_KEY, ""))
        if submitted:
            from lorica.server.coordinator.serve import serve_run

            serve_run(grid, submitted, context.run_id)
            return
        plan = from_run_config(context.run_config)
        folder = RunFolder(Path(os.environ.get(FOLDER_VARIABLE, f"runs/flower-{context.run_id}")))
        run_plan(grid, plan, folder, run=f"flower-{context.run_id}")

    return app
