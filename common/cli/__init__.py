"""The `lorica` command."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of the ``lorica`` script."""
    if sys.argv[1:] == ["--version"]:  # asked by scripts: nothing else is loaded
        from lorica.common.version import __version__

        sys.stdout.write(f"lorica {__version__}\n")
        return
    from lorica.common.cli.command import run

    run()
