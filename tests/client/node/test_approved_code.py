"""Only approved bundles run: hostile ones are refused before anything of them is unpacked."""

from __future__ import annotations

import hashlib
import io
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from flwr.cli.install import install_from_fab
from typer.testing import CliRunner

from lorica.client.cli import app
from lorica.client.config.site import SiteConfig, SiteData, SiteIdentity, documented_site
from lorica.client.node.approved_code import (
    APPS,
    FOLDER,
    approve,
    approved,
    node_environment,
    prepare,
    withdraw,
)
from lorica.client.node.fab import read_bundle
from lorica.client.node.guarded_clientapp import Guard
from lorica.common.errors import Code, LoricaError
from lorica.common.wire.bundle import build_bundle

CONFIG = SiteConfig(site=SiteIdentity(name="north"), data=SiteData(source="unused.csv"))
EVIL = b"from pathlib import Path\nPath('/tmp/lorica-was-here').write_text('x')\n"


def bundle_of(files: dict[str, bytes], *, manifest: bool = True) -> bytes:
    """A bundle as an attacker makes it, with a manifest that fits."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        lines = []
        for path, data in files.items():
            archive.writestr(zipfile.ZipInfo(path), data)
            lines.append(f"{path},{hashlib.sha256(data).hexdigest()},{len(data) * 8}")
        if manifest:
            archive.writestr(".info/CONTENT", "\n".join(lines))
    return out.getvalue()


def project(version: str = "0.1.0", name: str = "lorica", publisher: str = "lorica") -> bytes:
    return (
        f'[project]\nname = "{name}"\nversion = "{version}"\n'
        f'[tool.flwr.app]\npublisher = "{publisher}"\n'
        '[tool.flwr.app.components]\nserverapp = "server.app:app"\nclientapp = "client.app:app"\n'
    ).encode()


def evil(**changes: str) -> bytes:
    return bundle_of({"pyproject.toml": project(**changes), "client/app.py": EVIL})


def with_entry(change: Callable[[zipfile.ZipInfo], None]) -> bytes:
    out = io.BytesIO(evil())
    with zipfile.ZipFile(out, "a") as archive:
        info = zipfile.ZipInfo("client/extra.py")
        change(info)
        archive.writestr(info, b"/etc/passwd")
    return out.getvalue()


def renamed(path: str) -> bytes:
    return with_entry(lambda info: setattr(info, "filename", path))


def linked(info: zipfile.ZipInfo) -> None:
    info.external_attr = (stat.S_IFLNK | 0o777) << 16


def bomb() -> bytes:
    return bundle_of({"pyproject.toml": project(), "client/zeros.bin": bytes(200 << 20)})


def two_of_a_name() -> bytes:
    out = io.BytesIO(evil())
    with zipfile.ZipFile(out, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("client/app.py", b"app = None\n")
    return out.getvalue()


HOSTILE: dict[str, Callable[[], bytes]] = {
    "no zip": lambda: b"MZ" + bytes(100),
    "nothing": lambda: b"",
    "a path that climbs": lambda: renamed("../../escaped.py"),
    "an absolute path": lambda: renamed("/tmp/escaped.py"),
    "a path of another system": lambda: renamed("client\\..\\..\\escaped.py"),
    "a path with control characters": lambda: renamed("client/\x1b[2J.py"),
    "a path that is written in two ways": lambda: renamed("client//app.py"),
    "a symbolic link": lambda: with_entry(linked),
    "two files of one name": two_of_a_name,
    "a bomb": bomb,
    "no manifest": lambda: bundle_of({"pyproject.toml": project()}, manifest=False),
    "a file that the manifest lacks": lambda: with_entry(lambda info: None),
    "no project": lambda: bundle_of({"client/app.py": EVIL}),
    "a version that is a path": lambda: evil(version="0.1.0/../../x"),
    "a name that is a path": lambda: evil(name="../x"),
    "a publisher that is a path": lambda: evil(publisher="a/../.."),
    "a project that is no TOML": lambda: bundle_of({"pyproject.toml": b"\xff["}),
}


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_a_hostile_bundle_cannot_be_approved_and_leaves_nothing(name: str, tmp_path: Path) -> None:
    with pytest.raises(LoricaError) as caught:
        approve(HOSTILE[name](), tmp_path)
    assert caught.value.code is Code.CODE_NOT_APPROVED
    assert not list(tmp_path.rglob("*.fab"))


@pytest.mark.process
def test_two_builds_of_the_bundle_are_the_same_bytes_in_another_process() -> None:
    script = (
        "import hashlib; from lorica.common.wire.bundle import build_bundle;"
        "print(hashlib.sha256(build_bundle()).hexdigest())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == hashlib.sha256(build_bundle()).hexdigest()


def test_the_home_holds_the_approved_bundle_and_cannot_be_written(tmp_path: Path) -> None:
    bundle = approve(build_bundle(), tmp_path)
    apps = prepare(CONFIG, tmp_path) / APPS
    assert [path.name for path in apps.iterdir()] == [bundle.folder]
    for path in [apps, *apps.rglob("*")]:
        assert not path.stat().st_mode & 0o222
    assert prepare(CONFIG, tmp_path) / APPS == apps


def test_without_an_approval_nothing_starts(tmp_path: Path) -> None:
    with pytest.raises(LoricaError) as caught:
        prepare(CONFIG, tmp_path)
    assert caught.value.code is Code.CODE_NOT_APPROVED


def changed(path: Path, content: bytes) -> None:
    path.parent.chmod(0o700)
    path.unlink(missing_ok=True)
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["client/app.py", "client/more.py", "sitecustomize.py"])
def test_a_change_of_what_is_installed_is_found_at_the_next_start(
    name: str, tmp_path: Path
) -> None:
    bundle = approve(build_bundle(), tmp_path)
    changed(prepare(CONFIG, tmp_path) / APPS / bundle.folder / name, EVIL)
    with pytest.raises(LoricaError, match="not what was approved"):
        prepare(CONFIG, tmp_path)


def test_a_change_of_what_was_approved_is_found_at_the_next_start(tmp_path: Path) -> None:
    bundle = approve(build_bundle(), tmp_path)
    prepare(CONFIG, tmp_path)
    changed(tmp_path / FOLDER / f"{bundle.sha256}.fab", evil())
    with pytest.raises(LoricaError, match="is not its name"):
        prepare(CONFIG, tmp_path)


def test_a_withdrawn_bundle_is_no_longer_installed(tmp_path: Path) -> None:
    approve(build_bundle(), tmp_path)
    other = approve(evil(version="0.2.0"), tmp_path)
    prepare(CONFIG, tmp_path)
    assert withdraw(other.sha256, tmp_path)
    apps = prepare(CONFIG, tmp_path) / APPS
    assert other.folder not in {path.name for path in apps.iterdir()}
    assert len(approved(tmp_path)) == 1


def test_flowers_own_installer_can_be_led_out_of_the_read_only_folder(tmp_path: Path) -> None:
    """Why there is a guard; if this fails, Flower has mended it."""
    bundle = approve(build_bundle(), tmp_path)
    home = prepare(CONFIG, tmp_path)
    version = f"0.1.0.{bundle.sha256[:8]}/../../../outside"
    installed = install_from_fab(evil(version=version), install_dir=home, skip_prompt=True)
    assert installed.resolve().parent == tmp_path
    assert (installed / "client/app.py").read_bytes() == EVIL


ATTACKS = {
    "another bundle": lambda sha256: evil(),
    "one that leads out of the folder": lambda sha256: evil(
        version=f"0.1.0.{sha256[:8]}/../../../outside"
    ),
    "the approved one with a byte more": lambda sha256: build_bundle() + b"\0",
    "one of the same name and version": lambda sha256: evil(version="0.1.0"),
}


@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_the_guard_refuses_what_is_not_approved_and_writes_nothing(
    name: str, tmp_path: Path
) -> None:
    bundle = approve(build_bundle(), tmp_path)
    prepare(CONFIG, tmp_path)
    before = sorted(tmp_path.rglob("*"))
    guard = Guard(tmp_path)
    with pytest.raises(LoricaError) as caught:
        guard.install(ATTACKS[name](bundle.sha256), skip_prompt=True)
    assert caught.value.detail == Code.CODE_NOT_APPROVED.entry.title  # Flower sends it on
    with pytest.raises(LoricaError):
        guard.loader(lambda **_: None)()
    assert sorted(tmp_path.rglob("*")) == before


RUN = """
import sys
from pathlib import Path
from lorica.client.node.guarded_clientapp import Guard, put_in_place
put_in_place(Guard(Path(sys.argv[1])))
from flwr.supernode.runtime import run_clientapp as flower
fab = Path(sys.argv[2]).read_bytes()
flower.install_from_fab(fab, skip_prompt=True)
load = flower.get_load_client_app_fn(default_app_ref="", app_path=None, multi_app=True)
print(type(load(*sys.argv[3:])).__name__)
"""


def guarded(root: Path, fab: Path, *named: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-c", RUN, str(root), str(fab), *named],
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.process
def test_flower_loads_the_approved_app_through_the_guard_and_no_other_folder(
    tmp_path: Path,
) -> None:
    """Flower's own functions as its ClientApp process calls them, with the coordinator's words."""
    bundle = approve(build_bundle(), tmp_path)
    prepare(CONFIG, tmp_path)
    fab = tmp_path / "came.fab"
    fab.write_bytes(bundle.content)
    good = guarded(tmp_path, fab, "lorica/lorica", bundle.version, bundle.sha256)
    assert good.stdout.strip().endswith("ClientApp"), good.stderr
    prepare(CONFIG, tmp_path)  # nothing was written beside it, as root might
    elsewhere = f"{bundle.version}.{bundle.sha256[:8]}/../../../outside"
    assert guarded(tmp_path, fab, "lorica/lorica", elsewhere, bundle.sha256).returncode


@pytest.mark.process
def test_the_node_starts_the_guarded_program(tmp_path: Path) -> None:
    approve(build_bundle(), tmp_path)
    environment = node_environment(prepare(CONFIG, tmp_path))
    done = subprocess.run(
        ["flwr-clientapp", "--help"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "--runtime-api-address" in done.stdout
    first = Path(environment["PATH"].split(":")[0]) / "flwr-clientapp"
    assert "client/node/launch.py" in first.read_text()


def test_the_commands_show_confirm_and_list(tmp_path: Path) -> None:
    site, run = tmp_path / "site.toml", CliRunner().invoke
    site.write_text(documented_site("north", "records.csv"))
    own = read_bundle(build_bundle())
    other = tmp_path / "other.fab"
    other.write_bytes(evil(version="9.9.9"))
    unconfirmed = run(app, ["approve", "--config", str(site)])
    assert isinstance(unconfirmed.exception, LoricaError)
    assert not approved(tmp_path)
    shown = run(app, ["approve", str(other), "--config", str(site)])
    assert "lorica-was-here" in shown.output
    assert "DIFFERS" in shown.output
    done = run(app, ["approve", "--yes", "--config", str(site)])
    assert done.exit_code == 0
    assert "byte for byte" in done.output
    listed = run(app, ["fab-check", "--config", str(site)])
    assert own.sha256 in listed.output.replace("\n", "")
    gone = run(app, ["withdraw", own.sha256[:10], "--config", str(site)])
    assert gone.exit_code == 0
    assert not approved(tmp_path)
