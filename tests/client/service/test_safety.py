"""A trainer does not start with unsafe settings, and what it holds is not read from beside it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lorica.client.config.site import load_site
from lorica.client.service.safety import require_safe
from lorica.client.training.opening import SEEDED_VARIABLE, require_noise
from lorica.common.errors import Code, LoricaError
from tests.client.service.helpers import make_site


@pytest.fixture
def site(tmp_path: Path, small_backbone: Path) -> Path:
    return make_site(tmp_path / "north", small_backbone)


@pytest.mark.parametrize(
    "open_to_all",
    ["site.toml", "ledger.sqlite", "ledger.sqlite.anchor", "records.csv", "approved", "."],
)
def test_what_everybody_may_write_is_refused_and_the_sentence_mends_it(
    site: Path, open_to_all: str
) -> None:
    root = site.parent
    (root / "approved").mkdir(exist_ok=True)
    require_safe(site, load_site(site))
    found = root / open_to_all
    found.chmod(found.stat().st_mode | 0o002)
    with pytest.raises(LoricaError, match="every user of this machine") as caught:
        require_safe(site, load_site(site))
    assert caught.value.code is Code.SITE_CONFIG
    subprocess.run(caught.value.mend, shell=True, check=True)  # what it says helps
    require_safe(site, load_site(site))


def test_the_trainer_refuses_before_it_opens_anything(site: Path) -> None:
    site.chmod(0o666)
    ended = subprocess.run(
        [sys.executable, "-P", "-m", "lorica.client.service.main", "--config", site],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode != 0 and "LOR-409" in ended.stderr and "chmod o-w" in ended.stderr
    assert not (site.parent / "trainer.sock").exists()


def test_seeded_noise_is_refused_outside_tests(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_site(site)
    assert config.policy.noise == "seeded"
    require_noise(config)  # these tests say so
    for value in ("", "1", "yes"):
        monkeypatch.setenv(SEEDED_VARIABLE, value)
        with pytest.raises(LoricaError, match="protect nothing") as caught:
            require_noise(config)
        assert caught.value.code is Code.SITE_CONFIG


def test_the_command_line_cannot_ask_for_less_isolation_than_site_toml(site: Path) -> None:
    site.write_text(site.read_text().replace('isolation = "auto"', 'isolation = "require"'))
    ended = subprocess.run(
        [
            *(sys.executable, "-P", "-m", "lorica.client.service.main"),
            *("--config", site, "--isolate", "off"),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "LOR-715" in ended.stderr and "trainer.isolation" in ended.stderr


def test_no_core_is_dumped_and_no_neighbour_reads_the_memory() -> None:
    script = (
        "import resource, ctypes\n"
        "from lorica.client.service.safety import close_doors\n"
        "close_doors()\n"
        "print(resource.getrlimit(resource.RLIMIT_CORE), ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ended.stdout.split("\n")[0] == "(0, 0) 0", ended.stderr


@pytest.mark.process
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has network namespaces")
def test_the_trainer_of_lorica_site_start_is_in_a_network_namespace_of_its_own(site: Path) -> None:
    """As documented, with the default settings, and seen from outside."""
    if subprocess.run(["unshare", "-n", "true"], capture_output=True).returncode or os.geteuid():
        pytest.skip("only root, allowed to make namespaces, can look at another process's")
    site.write_text(site.read_text().replace('isolation = "auto"', ""))
    assert load_site(site).trainer.isolation == "require"
    lorica = [sys.executable, "-c", "from lorica.common.cli import main; main()"]
    started = subprocess.Popen(
        [*lorica, "site", "start", "--only", "trainer", "--config", str(site)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        socket = site.parent / "trainer.sock"
        deadline = time.monotonic() + 300
        while not socket.is_socket() and time.monotonic() < deadline:
            assert started.poll() is None
            time.sleep(0.1)
        children = Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split()
        assert len(children) == 1
        threads = list(Path(f"/proc/{children[0]}/task").iterdir())
        seen = {(thread / "ns/net").readlink() for thread in threads}
        assert len(seen) == 1 and seen != {Path("/proc/self/ns/net").readlink()}
    finally:
        started.send_signal(signal.SIGTERM)
        try:
            started.wait(60)
        except subprocess.TimeoutExpired:
            started.kill()
            raise
