"""``make bench NAME=ledger``: run one benchmark; without a name, list them."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Run the benchmark that the first argument names, with the arguments after it."""
    files = (HERE / "speed").glob("[!_]*.py")
    known = {path.stem.removesuffix("_speed").replace("_", "-"): path for path in files}
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in known:
        print(f"Benchmarks: {', '.join(sorted(known))}. For example: make bench NAME={min(known)}")
        sys.exit(2)
    sys.argv = [str(known[name]), *sys.argv[2:]]
    sys.path.insert(0, str(HERE / "speed"))  # as of a script that is run by its name
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
