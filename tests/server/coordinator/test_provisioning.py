"""Setting up a coordinator, taking sites in and putting them out; files for their owner alone."""

from __future__ import annotations

import socket
import ssl
import stat
import subprocess
import threading
import time
import urllib.request
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from typer.testing import CliRunner

from lorica.common.cli.command import app
from lorica.common.errors import Code, LoricaError
from lorica.common.machine.checks import check_certificate
from lorica.common.wire.invitation import Invitation, Registration
from lorica.server.coordinator.certificates import (
    alternative_names,
    authority_pair,
    create_authority,
    days_left,
    issue,
    read_certificate,
)
from lorica.server.coordinator.home import CoordinatorConfig, CoordinatorHome
from lorica.server.coordinator.proxy import end_orphans, find_nginx, proxy_command, write_proxy
from lorica.server.coordinator.register import Register
from lorica.server.coordinator.services import monitor_command, superlink_command
from lorica.server.coordinator.setup import (
    admit,
    create_coordinator,
    invite,
    private_pair,
    public_pair,
    renew_certificates,
    revoke,
)

WEEK = timedelta(days=7)


@pytest.fixture
def home(tmp_path: Path) -> CoordinatorHome:
    """A coordinator that was just set up."""
    made = CoordinatorHome(tmp_path / "coordinator")
    config = CoordinatorConfig(
        address="coordinator.example.org:9443", names=["10.1.2.3"], port=9443
    )
    create_coordinator(made, config)
    return made


def request_of(invitation: Invitation, folder: Path) -> Path:
    key = ec.generate_private_key(ec.SECP384R1())
    path = folder / "registration.json"
    path.write_text(Registration.make(invitation, key).model_dump_json())
    return path


def test_secrets_are_for_their_owner_alone_and_folders_closed(home: CoordinatorHome) -> None:
    invite(home, "north", WEEK)
    write_proxy(home, home.config())
    public = {authority_pair(home.authority).certificate, home.proxy / "nginx.conf"}
    public |= {public_pair(home).certificate, private_pair(home).certificate}
    seen = 0
    for path in [home.path, *home.path.rglob("*")]:
        mode = stat.S_IMODE(path.stat().st_mode)
        if path.is_dir():
            assert mode == 0o700, path
        elif path not in public:
            assert mode == 0o600, path
            seen += 1
    assert seen >= 7


def test_a_coordinator_is_never_set_up_over_another(home: CoordinatorHome) -> None:
    before = home.signing_key.read_bytes()
    with pytest.raises(LoricaError) as caught:
        create_coordinator(home, CoordinatorConfig())
    assert caught.value.code is Code.FEDERATION_EXISTS
    assert home.signing_key.read_bytes() == before


def test_certificates_name_all_names_and_chain_to_the_authority(home: CoordinatorHome) -> None:
    authority = read_certificate(authority_pair(home.authority).certificate)
    public = read_certificate(public_pair(home).certificate)
    public.verify_directly_issued_by(authority)
    names = public.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "coordinator.example.org" in names.get_values_for_type(x509.DNSName)
    assert "10.1.2.3" in {str(ip) for ip in names.get_values_for_type(x509.IPAddress)}
    private = read_certificate(private_pair(home).certificate)
    names = private.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "coordinator.example.org" not in names.get_values_for_type(x509.DNSName)
    assert days_left(authority) > 3600 and 390 < days_left(public) < 400


def test_renewal_changes_certificate_and_key_and_keeps_the_authority(home: CoordinatorHome) -> None:
    pair, ca = public_pair(home), authority_pair(home.authority)
    before = [path.read_bytes() for path in (pair.certificate, pair.key, ca.certificate)]
    renew_certificates(home)
    after = [path.read_bytes() for path in (pair.certificate, pair.key, ca.certificate)]
    assert before[0] != after[0] and before[1] != after[1] and before[2] == after[2]
    assert stat.S_IMODE(pair.key.stat().st_mode) == 0o600


def test_renewal_without_the_authoritys_key_says_so(home: CoordinatorHome) -> None:
    authority_pair(home.authority).key.unlink()
    with pytest.raises(LoricaError, match="only it can sign"):
        renew_certificates(home)


def test_a_name_that_no_certificate_can_hold_is_refused() -> None:
    with pytest.raises(LoricaError, match="neither a host name"):
        alternative_names(["bücher.example"])


def test_a_site_is_admitted_by_its_request_once(home: CoordinatorHome, tmp_path: Path) -> None:
    invitation = invite(home, "north", WEEK)
    request = request_of(invitation, tmp_path)
    entry, known = admit(home, request)
    assert entry.state == "admitted" and not known  # nothing runs
    assert admit(home, request)[0].public_key == entry.public_key  # the same again is no error
    with pytest.raises(LoricaError) as caught:
        admit(home, request_of(invitation, tmp_path))  # another key, the invitation was used
    assert caught.value.code is Code.INVITATION_INVALID
    assert invitation.secret not in home.register.read_text()


def test_only_the_newest_invitation_of_a_site_counts(home: CoordinatorHome, tmp_path: Path) -> None:
    old, new = invite(home, "north", WEEK), invite(home, "north", WEEK)
    with pytest.raises(LoricaError) as caught:
        admit(home, request_of(old, tmp_path))
    assert caught.value.code is Code.REGISTRATION_REFUSED
    admit(home, request_of(new, tmp_path))


def test_an_expired_invitation_admits_nobody(home: CoordinatorHome, tmp_path: Path) -> None:
    invitation = invite(home, "north", timedelta(seconds=-1))
    assert invitation.expires < datetime.now(UTC)
    with pytest.raises(LoricaError, match="expired"):
        admit(home, request_of(invitation, tmp_path))


def test_a_revoked_key_is_never_taken_again(home: CoordinatorHome, tmp_path: Path) -> None:
    request = request_of(invite(home, "north", WEEK), tmp_path)
    key = admit(home, request)[0].public_key
    revoke(home, "north")
    with pytest.raises(LoricaError):
        admit(home, request)
    invite(home, "north", WEEK)
    with pytest.raises(LoricaError):
        admit(home, request)
    entry = Register(home.register).sites()["north"]
    assert entry.state == "revoked" and entry.retired == [key] and not entry.public_key


def test_a_key_of_one_site_is_not_anothers(home: CoordinatorHome, tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    path = tmp_path / "request.json"
    path.write_text(Registration.make(invite(home, "north", WEEK), key).model_dump_json())
    admit(home, path)
    path.write_text(Registration.make(invite(home, "south", WEEK), key).model_dump_json())
    with pytest.raises(LoricaError, match="the key of site north"):
        admit(home, path)


@pytest.mark.parametrize("name", ["", "../x", "A", "a b", "ä", "-a", "a" * 64, "a/b", "a\n"])
def test_names_that_could_be_something_else_are_refused(home: CoordinatorHome, name: str) -> None:
    with pytest.raises(LoricaError) as caught:
        invite(home, name, WEEK)
    assert caught.value.code is Code.INVITATION_INVALID


def test_revoking_or_admitting_a_stranger_is_refused(home: CoordinatorHome, tmp_path: Path) -> None:
    with pytest.raises(LoricaError) as caught:
        revoke(home, "nobody")
    assert caught.value.code is Code.SITE_UNKNOWN
    stranger = invite(home, "north", WEEK).model_copy(update={"site": "nobody"})
    with pytest.raises(LoricaError) as caught:
        admit(home, request_of(stranger, tmp_path))
    assert caught.value.code is Code.SITE_UNKNOWN


def test_many_changes_at_once_lose_none(home: CoordinatorHome) -> None:
    register = Register(home.register)
    names = [f"site-{i}" for i in range(20)]
    threads = [threading.Thread(target=register.invite, args=(name, WEEK)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(register.sites()) == sorted(names)


def test_the_superlink_is_private_authenticated_and_installs_nothing(home: CoordinatorHome) -> None:
    command = superlink_command(home, home.config())
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert command[command.index("--fleet-api-address") + 1].startswith("127.0.0.1:")
    assert "--database" not in command  # in memory
    assert "--enable-supernode-auth" in command and "--insecure" not in command
    assert "--disable-runtime-dependency-installation" in command


@pytest.mark.process
def test_nginx_takes_its_settings(home: CoordinatorHome) -> None:
    try:
        nginx = find_nginx()
    except LoricaError:
        pytest.skip("nginx is not installed")
    command = [*proxy_command(nginx, write_proxy(home, home.config())), "-t"]
    tested = subprocess.run(command, capture_output=True, text=True, check=False)
    assert tested.returncode == 0, tested.stderr


@pytest.mark.process
def test_workers_of_a_killed_proxy_give_its_port_back(home: CoordinatorHome) -> None:
    try:
        nginx = find_nginx()
    except LoricaError:
        pytest.skip("nginx is not installed")
    with socket.socket() as tried:
        tried.bind(("127.0.0.1", 0))
        port = int(tried.getsockname()[1])
    config = home.config().model_copy(update={"listen": "127.0.0.1", "port": port})
    command = proxy_command(nginx, write_proxy(home, config))
    with subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE) as master:
        assert master.stderr is not None
        for line in master.stderr:
            if b"start worker process " in line:
                break
        assert end_orphans(home) == []  # its master lives
        master.kill()
        master.wait()
    assert end_orphans(home)

    def free() -> bool:
        with socket.socket() as tried:
            return tried.connect_ex(("127.0.0.1", port)) != 0

    deadline = time.monotonic() + 10
    while not free() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert free() and end_orphans(home) == []


@pytest.mark.parametrize(
    ("names", "days", "stranger", "said"),
    [
        (["localhost"], 9, False, ""),
        (["localhost"], -1, False, "has expired"),
        (["localhost"], 9, True, "is not signed by the authority"),
        (["elsewhere.example"], 9, False, "does not name localhost"),
    ],
)
def test_what_is_wrong_with_a_certificate_is_said(
    tmp_path: Path, names: list[str], days: int, stranger: bool, said: str
) -> None:
    for folder in ("ours", "theirs", "tls"):
        (tmp_path / folder).mkdir()
    create_authority(tmp_path / "ours", "ours")
    create_authority(tmp_path / "theirs", "theirs")
    home = CoordinatorHome(tmp_path)
    issue(tmp_path / ("theirs" if stranger else "ours"), public_pair(home), names, days=days)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(public_pair(home).certificate, public_pair(home).key)
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=_greet_one, args=(server, context))
        thread.start()
        authority = authority_pair(tmp_path / "ours").certificate
        try:
            if not said:
                assert "good for another" in check_certificate(
                    "localhost", server.getsockname()[1], authority
                )
            else:
                with pytest.raises(LoricaError, match=said) as caught:
                    check_certificate("localhost", server.getsockname()[1], authority)
                assert caught.value.code is Code.CERTIFICATE
        finally:
            thread.join()


def _greet_one(server: socket.socket, context: ssl.SSLContext) -> None:
    raw, _ = server.accept()
    try:
        context.wrap_socket(raw, server_side=True).close()
    except OSError:
        raw.close()


def test_the_commands_set_up_and_invite(tmp_path: Path) -> None:
    home, run = str(tmp_path / "c"), CliRunner()
    made = run.invoke(app, ["coordinator", "init", "example.org", "--home", home])
    assert made.exit_code == 0, made.output
    out = tmp_path / "token"
    made = run.invoke(app, ["coordinator", "invite", "north", "--home", home, "--out", str(out)])
    assert made.exit_code == 0, made.output
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    invitation = Invitation.from_token(out.read_text())
    assert (invitation.site, invitation.address) == ("north", "example.org:8443")
    listed = run.invoke(app, ["coordinator", "sites", "--home", home])
    assert "north" in listed.output and "invited" in listed.output


def test_a_command_in_a_folder_without_a_coordinator_says_so(tmp_path: Path) -> None:
    found = CliRunner().invoke(app, ["coordinator", "invite", "a", "--home", str(tmp_path)])
    assert isinstance(found.exception, LoricaError)
    assert found.exception.code is Code.FEDERATION_MISSING


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["example.org:8440"], "port and private_port must differ"),
        (["example.org", "--private-port", "8443"], "port and private_port must differ"),
        (["example.org:99999"], "not of the form host:port"),
        (["example.org:"], "not of the form host:port"),
    ],
)
def test_settings_that_cannot_be_are_named_and_nothing_is_written(
    tmp_path: Path, arguments: list[str], said: str
) -> None:
    home = tmp_path / "c"
    found = CliRunner().invoke(app, ["coordinator", "init", *arguments, "--home", str(home)])
    assert isinstance(found.exception, LoricaError)
    assert found.exception.code is Code.COORDINATOR_CONFIG
    assert said in found.exception.detail and "Value error" not in found.exception.detail
    assert not home.exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [("port = 0", "port: Input"), ("ports = 1", "ports"), ("port", "not valid TOML")],
)
def test_a_coordinator_toml_that_cannot_be_is_no_missing_coordinator(
    tmp_path: Path, content: str, said: str
) -> None:
    home = CoordinatorHome(tmp_path)
    home.config_file.write_text(content)
    with pytest.raises(LoricaError, match=said) as caught:
        home.config()
    assert caught.value.code is Code.COORDINATOR_CONFIG


@pytest.mark.process
def test_the_monitor_listens_where_coordinator_toml_says_but_not_open_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On this machine by default; at 0.0.0.0, as in a container, only with an account."""
    assert monitor_command(CoordinatorConfig())[3:] == [
        *("monitor", "--host", "127.0.0.1", "--port", "8600"),
    ]
    with socket.socket() as tried:
        tried.bind(("127.0.0.1", 0))
        port = tried.getsockname()[1]
    home, url = CoordinatorHome(tmp_path), f"http://127.0.0.1:{port}"
    home.config_file.write_text(
        f'monitor_host = "0.0.0.0"\nmonitor_port = {port}\nmonitor_url = "{url}"\n'
    )
    monkeypatch.setenv("LORICA_STORE", f"sqlite:///{tmp_path / 'runs.sqlite'}")
    command = monitor_command(home.config())
    refused = CliRunner().invoke(app, command[3:])
    assert isinstance(refused.exception, LoricaError)
    assert refused.exception.code is Code.MONITOR_OPEN

    add = ["monitor", "user", "add", "olga", "--role", "operator", "--password-stdin"]
    added = CliRunner().invoke(app, add, input="a few words at random\n")
    assert added.exit_code == 0, added.output
    serving = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 600  # a busy machine
        while True:
            try:
                with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
                    assert answer.status == 200
                break
            except OSError:
                assert serving.poll() is None and time.monotonic() < deadline
                time.sleep(0.2)
    finally:
        serving.terminate()
        serving.wait(300)
