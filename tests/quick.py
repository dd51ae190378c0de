"""Which tests a change asks for: those of the rooms that it touches (``make quick``).

``python tests/quick.py [BASE]`` prints the folders and files of tests, one a line, for what differs
from BASE (``main``; the last commit, where ``main`` is checked out itself), what is not yet
committed or known to git included. Tests mirror the tree, so a module's tests are those of the
folder of its name, or of the one above; where there is none, those of the files that import it.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SIDES = ("common", "client", "server", "simulations")
PACKAGING = "tests/packaging"


def git(*arguments: str) -> list[str]:
    """Lines that git prints."""
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def changed(base: str = "") -> set[str]:
    """Paths that differ from ``base``, from the project's root."""
    if not base:
        here = git("rev-parse", "--abbrev-ref", "HEAD")[0]
        base = "main" if here != "main" and git("branch", "--list", "main") else "HEAD"
    since = git("merge-base", base, "HEAD")[0]
    new = git("ls-files", "--others", "--exclude-standard")
    return {*git("diff", "--name-only", "--no-renames", since), *new}


def importers(room: str, root: Path = ROOT) -> set[str]:
    """Test files that import something of a room, "client/site"."""
    module = "lorica." + room.replace("/", ".")
    found = (root / "tests").rglob("test_*.py")
    return {p.relative_to(root).as_posix() for p in found if module in p.read_text("utf-8")}


def asked_by(path: str, root: Path = ROOT) -> set[str]:
    """Folders and files of tests that a changed file asks for; tests themselves included."""
    side, *rest = Path(path).parts
    room = Path(path).parent.as_posix()
    if side == "tests":
        if Path(path).name.startswith("test_"):
            return {path} if (root / path).exists() else set()
        # Helpers: of a folder's tests; those at the top of all, of what imports them.
        if room != "tests":
            return {room}
        return importers_of_helper(Path(path).stem, root)
    if side not in SIDES or not rest:
        return {PACKAGING}
    if room == side:  # a module at a side's top
        alone = f"tests/{side}/test_{Path(path).stem}.py"
        module = path.removesuffix(".py")
        return {alone} if (root / alone).exists() else importers(module, root) or {PACKAGING}
    for above in [Path(room), *Path(room).parents][:-2]:
        if any((root / "tests" / above).glob("test_*.py")):
            return {f"tests/{above.as_posix()}"}
    return importers(room, root)


def importers_of_helper(name: str, root: Path = ROOT) -> set[str]:
    """Test files that import ``tests.<name>``; none for conftest, which all have."""
    if name == "conftest":
        return set()
    found = (root / "tests").rglob("test_*.py")
    return {
        p.relative_to(root).as_posix()
        for p in found
        if f"from tests.{name} import" in p.read_text("utf-8")
    }


def selected(paths: set[str], root: Path = ROOT) -> list[str]:
    """Tests for all the paths, without those that a chosen folder holds already."""
    chosen = {test for path in paths for test in asked_by(path, root)}
    inside = {one for one in chosen if any(p.as_posix() in chosen for p in Path(one).parents)}
    return sorted(one for one in chosen - inside if "tests/e2e" not in one)


if __name__ == "__main__":
    print("\n".join(selected(changed(*sys.argv[1:2]))))
