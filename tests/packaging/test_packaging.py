"""What is built and installed: every module, no data; and which side imports which."""

from __future__ import annotations

import ast
import io
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import Distribution
from pathlib import Path

import pytest

from lorica.common.plan import RunPlan
from lorica.common.plan.io import to_run_config

ROOT = Path(__file__).resolve().parents[2]
SIDES = ("common", "client", "server", "simulations")
MAY_IMPORT = {
    "common": {"common"},
    "client": {"client", "common"},
    "server": {"server", "common"},
    "simulations": set(SIDES),
}
PLANTED = {
    "client/patients.csv": "text,label\n",
    "common/secrets.yaml": "password: x\n",
    "server/results.json": "{}",
    "simulations/data/train.csv": "text,label\n",
    "tests/test_planted.py": "",
    "runs/a/adapter/head.safetensors": "",
}
"""Files that may lie about in a checkout and must not leave it."""


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, with strangers among them."""
    copy = tmp_path_factory.mktemp("checkout") / "lorica"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for side in SIDES:
        shutil.copytree(ROOT / side, copy / side, ignore=shutil.ignore_patterns("__pycache__"))
    for name, content in PLANTED.items():
        path = copy / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return copy


@pytest.fixture(scope="session")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, unpacked; built by setuptools without the network."""
    pytest.importorskip("setuptools", minversion="77")
    out = tmp_path_factory.mktemp("wheel")
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", build, str(out)], cwd=checkout, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (built,) = out.glob("lorica-*.whl")
    assert built.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(built) as archive:
        archive.extractall(out / "unpacked")
    return out / "unpacked"


def sources(root: Path, *suffixes: str) -> dict[str, bytes]:
    """Files of the four packages by path, such as "common/plan/run.py"."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for side in SIDES
        for path in sorted((root / side).rglob("*"))
        if path.is_file() and path.suffix in suffixes and "__pycache__" not in path.parts
    }


@pytest.mark.process
def test_the_wheel_holds_every_module(wheel: Path) -> None:
    """Against the sources: a package forgotten in pyproject.toml would be missing."""
    expected = sources(ROOT, ".py")
    assert {f"{side}/__init__.py" for side in SIDES} <= set(expected)
    assert sources(wheel / "lorica", ".py") == expected


@pytest.mark.process
def test_the_wheel_holds_plans_and_templates(wheel: Path) -> None:
    expected = sources(ROOT, ".toml", ".j2", ".html", ".css")
    assert "simulations/plans/demo.toml" in expected
    assert any("/templates/" in name for name in expected)
    found = sources(wheel / "lorica", ".toml", ".j2", ".html", ".css")
    assert found == expected


@pytest.mark.process
def test_the_wheel_holds_no_tests_and_no_data(wheel: Path) -> None:
    files = [path.relative_to(wheel) for path in wheel.rglob("*") if path.is_file()]
    assert {path.parts[0].partition("-")[0] for path in files} == {"lorica"}
    assert {path.parts[1] for path in files if path.parts[0] == "lorica"} == set(SIDES)
    planted = {Path(name).name for name in PLANTED}
    assert not planted & {path.name for path in files}
    shipped = {path for path in files if path.parts[0] == "lorica" and path.name != "LICENSE"}
    code = {
        ".py",
        ".pyi",
        ".typed",
        ".proto",
        ".toml",
        ".j2",
        ".html",
        ".css",
        ".js",
        ".svg",
        ".woff2",
    }
    assert {path.suffix for path in shipped} <= code


def python(code: str, *, path: Path, cwd: Path, **environment: str) -> str:
    """What a fresh interpreter prints that finds ``path`` before anything installed."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(path), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


LOAD_ALL = """
import importlib, sys
from importlib.metadata import distribution
found = distribution("lorica")
for point in found.entry_points:
    point.load()
    module = sys.modules[point.module]
    print(point.group, point.name, module.__file__, sep="|")
print("version", found.version, found.locate_file(""), sep="|")
"""


@pytest.mark.process
def test_every_entry_point_loads_from_the_wheel(wheel: Path, tmp_path: Path) -> None:
    lines = [row.split("|") for row in python(LOAD_ALL, path=wheel, cwd=tmp_path).splitlines()]
    points = [row for row in lines if row[0] != "version"]
    assert all(Path(file).is_relative_to(wheel) for _, _, file in points)
    named = {(group, name) for group, name, _ in points}
    assert {
        ("console_scripts", "lorica"),
        ("lorica.commands", "simulate"),
        ("lorica.commands", "demo"),
        ("lorica.trainers", "partition-id"),
        ("lorica.datasets", "clinic-notes"),
        ("lorica.datasets", "clinic-histories"),
    } <= named
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert lines[-1][1] == config["project"]["version"]


@pytest.mark.process
def test_the_metadata_name_what_the_extras_need(wheel: Path) -> None:
    (folder,) = wheel.glob("lorica-*.dist-info")
    held = Distribution.at(folder)
    extras = set(held.metadata.get_all("Provides-Extra") or [])
    assert {"train", "simulation", "server", "embedded", "dev"} <= extras
    base = [line for line in held.requires or [] if "extra ==" not in line]
    heavy = ("torch", "transformers", "peft", "opacus", "ray", "matplotlib")
    assert not [line for line in base if line.startswith(heavy)], "the base stays light"
    assert (folder / "licenses" / "LICENSE").is_file()


BASE_ONLY = """
import sys
blocked = ("torch", "transformers", "peft", "opacus", "dp_accounting", "sklearn", "scipy", "ray",
           "jinja2", "matplotlib", "pandas")
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
sys.argv = ["lorica", *ARGUMENTS]
from lorica.common.cli import main
try:
    main()
except SystemExit as ended:
    print("status", ended.code)
"""


@pytest.mark.process
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["plan", "defaults"], "[backbone]"),
        (["--version"], "lorica "),
        (["--help"], "simulate"),
        (["simulate"], "status 12"),
    ],
)
def test_the_base_installation_works_and_says_what_is_missing(
    wheel: Path, tmp_path: Path, arguments: list[str], expected: str
) -> None:
    """Without any extra: commands that need one end with LOR-207."""
    code = BASE_ONLY.replace("ARGUMENTS", repr(arguments))
    assert expected in python(code, path=wheel, cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []


APPS = ("server/__init__.py", "server/app.py", "client/__init__.py", "client/app.py")


@pytest.fixture(scope="session")
def bundle(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Flower bundle (FAB) of the checkout, unpacked."""
    build = pytest.importorskip("flwr.cli.build")
    content = build.build_fab_from_disk(checkout)
    out = tmp_path_factory.mktemp("fab")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        archive.extractall(out)
    return out


def test_the_bundle_holds_the_two_apps_and_nothing_else(bundle: Path) -> None:
    files = {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()}
    modules = {name for name in files if name.endswith(".py")}
    assert modules == set(APPS)
    assert not {Path(name).name for name in PLANTED} & {Path(name).name for name in files}
    others = files - modules
    assert "pyproject.toml" in others
    assert all(Path(name).parts[0] in (".info", "pyproject.toml", "LICENSE") or name.endswith(".md")
               for name in others)  # fmt: skip


@pytest.mark.process
@pytest.mark.parametrize(
    ("component", "kind"),
    [("server.app", "flwr.serverapp:ServerApp"), ("client.app", "flwr.clientapp:ClientApp")],
)
def test_an_app_is_importable_from_the_bundle(
    bundle: Path, wheel: Path, component: str, kind: str
) -> None:
    """As Flower does: the bundle's folder first, Lorica installed beside it."""
    module, _, name = kind.partition(":")
    code = (
        f"import sys; sys.path.insert(0, {str(bundle)!r})\n"
        f"from {component} import app\nfrom {module} import {name}\n"
        f"import lorica.common.plan.run as plan\n"
        f"print(isinstance(app, {name}), sys.modules[{component!r}].__file__, plan.__file__)"
    )
    is_app, app_file, plan_file = python(code, path=wheel, cwd=bundle).split()
    assert is_app == "True"
    assert Path(app_file).is_relative_to(bundle)
    assert Path(plan_file).is_relative_to(wheel)


# Which side imports which, read from the sources.


def imported(path: Path, package: list[str]) -> Iterator[tuple[int, str]]:
    """Line and absolute name of every import in a module, those in functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{stem}.{alias.name}") for alias in node.names)


def test_relative_and_nested_imports_are_seen(tmp_path: Path) -> None:
    """The reader below, on a module that hides what it imports."""
    (tmp_path / "x.py").write_text(
        "import lorica.server.rounds.loop as r\n"
        "def f():\n    from ..simulations import grid\n    from . import noise\n"
        "if TYPE_CHECKING:\n    from lorica import client\n"
    )
    found = {name for _, name in imported(tmp_path / "x.py", ["lorica", "common"])}
    assert found == {
        "lorica.server.rounds.loop",
        "lorica.simulations.grid",
        "lorica.common.noise",
        "lorica.client",
    }


@pytest.mark.parametrize("side", SIDES)
def test_a_side_imports_only_the_sides_below_it(side: str) -> None:
    """common imports none, client and server not each other, nobody simulations."""
    wrong = []
    for path in sorted((ROOT / side).rglob("*.py")):
        package = ["lorica", *path.relative_to(ROOT).parent.parts]
        for line, name in imported(path, package):
            parts = name.split(".")
            if parts[0] in SIDES:
                wrong.append(f"{path}:{line} imports {name}: not importable when installed")
            elif parts[0] == "lorica" and parts[1] not in MAY_IMPORT[side]:
                wrong.append(f"{path}:{line} imports {name}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("app", ["server/app.py", "client/app.py"])
def test_an_app_of_the_bundle_imports_lorica_alone(app: str) -> None:
    names = {name.split(".")[0] for _, name in imported(ROOT / app, ["lorica"])}
    assert names == {"lorica"}


def test_flowers_default_config_is_the_plans() -> None:
    """``flwr run .`` can only override keys that the app's configuration lists."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    sections = config["tool"]["flwr"]["app"]["config"]
    flat = {
        f"{name}.{key}": value for name, keys in sections.items() for key, value in keys.items()
    }
    assert flat == to_run_config(RunPlan())
