"""Names of modules and what they hold, where no import checker reads them: docs, docstrings,
configuration. Every room is small enough to be seen at a glance."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SIDES = ("common", "client", "server", "simulations")
NAME = re.compile(rf"\blorica\.(?:{'|'.join(SIDES)})(?:\.\w+)*")
MOST_MODULES, MOST_ROOMS = 15, 14


def tracked(*patterns: str) -> list[Path]:
    found = subprocess.run(
        ["git", "ls-files", "-z", *patterns], cwd=ROOT, capture_output=True, text=True
    )
    if found.returncode != 0:
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in found.stdout.split("\0") if name]
    return [path for path in paths if path.is_file() and ".types" not in path.parts]


@cache
def defined(module: Path) -> frozenset[str]:
    """Names that a module binds at its top level, and those of its classes."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.alias):
            names.add((node.asname or node.name).split(".")[-1])
    return frozenset(names)


def resolves(name: str) -> bool:
    """Whether ``lorica.room.module.Thing`` is a package, a module or a name in one."""
    place, rest = ROOT, name.split(".")[1:]
    while rest and (place / rest[0]).is_dir():
        place, rest = place / rest.pop(0), rest
    if not rest:
        return True
    module = place / f"{rest[0]}.py"
    if module.is_file():
        return len(rest) == 1 or rest[1] in defined(module)
    return rest[0] in defined(place / "__init__.py")


@pytest.mark.process
def test_every_name_of_a_module_in_docs_docstrings_and_configuration_resolves() -> None:
    files = tracked("*.py", "*.md", "*.toml", "*.sh", "*.yml", "*.yaml", "docker", "Makefile")
    wrong = []
    for path in files:
        if "tests" in path.parts or "migrations" in path.parts:
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        wrong += [
            f"{path.relative_to(ROOT)}: {name}"
            for name in sorted(set(NAME.findall(text)))
            if not resolves(name)
        ]
    assert len(files) > 400
    assert not wrong


def test_a_name_that_is_nowhere_is_found() -> None:
    assert resolves("lorica.common.plan.run.RunPlan")
    assert resolves("lorica.client.ledger")
    assert not resolves("lorica.common.plan.run.NoSuchThing")
    assert not resolves("lorica.client.no_such_room.module")


@pytest.mark.process
def test_no_room_has_more_than_a_screenful_of_modules() -> None:
    modules: dict[Path, int] = {}
    for path in tracked(*(f"{side}/*.py" for side in SIDES)):
        if path.name != "__init__.py":
            modules[path.parent] = modules.get(path.parent, 0) + 1
    crowded = {str(room.relative_to(ROOT)): n for room, n in modules.items() if n > MOST_MODULES}
    assert not crowded
    for side in SIDES:
        rooms = [path for path in (ROOT / side).iterdir() if (path / "__init__.py").is_file()]
        assert len(rooms) <= MOST_ROOMS, side


@pytest.mark.process
def test_no_two_modules_import_each_other() -> None:
    """Over any number of modules, imports within functions and for types alone among them."""
    source = (
        "import grimp, json; graph = grimp.build_graph('lorica', cache_dir=None); "
        "find = graph.find_modules_directly_imported_by; "
        "print(json.dumps({module: sorted(find(module)) for module in graph.modules}))"
    )
    found = subprocess.run(
        [sys.executable, "-c", source],
        env=os.environ | {"PYTHONPATH": str(ROOT / ".types")},  # as the import linter sees it
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    left = {module: set(needed) for module, needed in json.loads(found.stdout).items()}
    assert len(left) > 400
    while free := {module for module, needed in left.items() if not needed & left.keys()}:
        for module in free:
            del left[module]
    assert not left, f"on a circle of imports, or above one: {sorted(left)}"
