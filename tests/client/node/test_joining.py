"""A site joins a federation: its key is made here, stays here, and is for its owner alone."""

from __future__ import annotations

import stat
import tomllib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from typer.testing import CliRunner

from lorica.client.config.site import load_site
from lorica.client.node.joining import REQUEST, join, site_key
from lorica.client.site.check import check_site
from lorica.common.cli.command import app
from lorica.common.errors import Code, LoricaError
from lorica.common.machine.checks import Finding
from lorica.common.wire.invitation import Invitation, Registration


def invitation(secret: str = "cd" * 32, days: int = 7) -> Invitation:
    return Invitation(
        site="north",
        address="coordinator.example.org:8443",
        authority="-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n",
        coordinator="ab" * 32,
        expires=datetime.now(UTC) + timedelta(days=days),
        secret=secret,
    )


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_joining_makes_a_key_a_request_and_keeps_the_authority(tmp_path: Path) -> None:
    folder = tmp_path / "site"
    joined = join(folder, invitation().token())
    assert mode(folder) == 0o700 and mode(folder / "node.key") == 0o600
    key = load_ssh_private_key((folder / "node.key").read_bytes(), password=None)
    assert key.public_key() is not None
    Registration.from_text(joined.request.read_text()).check("cd" * 32)
    assert "PRIVATE" not in joined.request.read_text()
    assert (folder / "ca.crt").read_text() == invitation().authority


def test_the_same_invitation_gives_the_same_request_another_one_a_new_key(tmp_path: Path) -> None:
    token = invitation().token()
    first = join(tmp_path, token).registration
    assert join(tmp_path, token).registration == first
    key = (tmp_path / "node.key").read_bytes()
    second = join(tmp_path, invitation("ef" * 32).token()).registration
    assert second.public_key != first.public_key
    assert (tmp_path / "node.key.old").read_bytes() == key


def test_an_expired_invitation_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(LoricaError) as caught:
        join(tmp_path / "site", invitation(days=-1).token())
    assert caught.value.code is Code.INVITATION_INVALID
    assert not (tmp_path / "site").exists()


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    site_key(path)
    path.chmod(0o640)
    with pytest.raises(LoricaError, match="0640"):
        site_key(path)


@pytest.mark.parametrize("content", ["", "hello", "-----BEGIN OPENSSH PRIVATE KEY-----\nx\n"])
def test_what_is_no_key_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "node.key"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(LoricaError) as caught:
        site_key(path)
    assert caught.value.code is Code.FEDERATION_MISSING


def test_the_command_writes_a_site_toml_that_answers_this_coordinator_alone(tmp_path: Path) -> None:
    data = tmp_path / "records.csv"
    data.write_text("question,topic\n" + "a,x\nb,y\n" * 60)
    (tmp_path / "token").write_text(invitation().token())
    config = tmp_path / "site" / "site.toml"
    config.parent.mkdir()
    done = CliRunner().invoke(
        app,
        [
            "site",
            "init",
            "--token",
            str(tmp_path / "token"),
            "--data",
            str(data),
            "--text",
            "question",
            "--label",
            "topic",
            "--config",
            str(config),
        ],
    )
    assert done.exit_code == 0, done.output
    found = load_site(config)
    assert found.site.name == "north" and found.data.text == "question"
    assert found.policy.coordinators == ["ab" * 32]
    assert found.federation.address == "coordinator.example.org:8443"
    assert mode(config) == 0o600
    assert "# " in config.read_text() and tomllib.loads(config.read_text())
    assert (config.parent / REQUEST).exists()


def test_data_that_cannot_be_read_are_told_at_once_and_nothing_is_lost(tmp_path: Path) -> None:
    config = tmp_path / "site.toml"
    arguments = ["site", "init", "--token", invitation().token(), "--config", str(config)]
    done = CliRunner().invoke(app, [*arguments, "--data", str(tmp_path / "absent.csv")])
    assert done.exit_code != 0 and "data" in done.output
    assert config.exists() and (tmp_path / "node.key").exists()


def test_an_existing_site_toml_is_kept(tmp_path: Path) -> None:
    config, data = tmp_path / "site.toml", tmp_path / "r.csv"
    data.write_text("text,label\n" + "a,x\nb,y\n" * 60)
    text = '[site]\nname = "north"\n[data]\nsource = "r.csv"\n[policy]\nsampling_units = 100\n'
    config.write_text(text)
    before = config.read_text()
    done = CliRunner().invoke(
        app,
        [
            "site",
            "init",
            "--token",
            invitation().token(),
            "--config",
            str(config),
            "--data",
            str(data),
        ],
    )
    assert done.exit_code == 0, done.output
    assert config.read_text() == before
    assert "coordinator.example.org:8443" in done.output


@pytest.mark.parametrize(
    "source",
    [
        "postgresql+psycopg://reader@db.intern/clinic",
        "sqlite:///records.sqlite",
        "hub:org/notes@main",
        "embedded:clinic-notes",
    ],
)
def test_a_source_that_is_no_path_is_written_as_it_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    monkeypatch.setattr("lorica.client.site.check._data", lambda config, root: "not looked at")
    config = tmp_path / "site.toml"
    arguments = ["site", "init", "--token", invitation().token(), "--config", str(config)]
    done = CliRunner().invoke(app, [*arguments, "--data", source])
    assert done.exit_code == 0, done.output
    assert load_site(config).data.source == source


def test_a_path_from_here_is_written_as_one_from_the_folder_of_site_toml(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lorica.client.site.check._data", lambda config, root: "not looked at")
    monkeypatch.chdir(tmp_path)
    for data, expected in (("site/r.csv", "r.csv"), ("r.csv", str(tmp_path / "r.csv"))):
        arguments = ["site", "init", "--token", invitation().token(), "--config", "site/site.toml"]
        assert CliRunner().invoke(app, [*arguments, "--data", data]).exit_code == 0
        assert load_site(Path("site/site.toml")).data.source == expected
        Path("site/site.toml").unlink()


def test_the_next_steps_are_named_in_order_and_are_all_there_are(tmp_path: Path) -> None:
    config, data = tmp_path / "site.toml", tmp_path / "r.csv"
    data.write_text("text,label\n" + "a,x\nb,y\n" * 60)
    arguments = ["site", "init", "--token", invitation().token(), "--config", str(config)]
    done = CliRunner().invoke(app, [*arguments, "--data", str(data)])
    steps = ["ledger create", "approve", "check", "start"]
    places = [done.output.index(f"lorica site {step}") for step in steps]
    assert places == sorted(places)
    assert load_site(config).policy.sampling_units == 100, "of 120 units, rounded down"


def test_a_missing_ledger_is_not_ok_and_the_check_says_how_one_is_made(tmp_path: Path) -> None:
    config = tmp_path / "site.toml"
    (tmp_path / "r.csv").write_text("text,label\n" + "a,x\nb,y\n" * 60)
    text = '[site]\nname = "north"\n[data]\nsource = "r.csv"\n'
    config.write_text(text)

    def ledger() -> Finding:
        return next(found for found in check_site(config) if found.name == "ledger")

    found = ledger()
    assert not found.ok and "LOR-614" in found.text
    assert f"`lorica site ledger create --config {config}`" in found.text
    made = ["site", "ledger", "create", "--config", str(config)]
    unsettled = CliRunner().invoke(app, made).exception
    assert isinstance(unsettled, LoricaError) and unsettled.code is Code.SITE_CONFIG
    assert "sampling_units = 100" in unsettled.mend and not ledger().ok
    config.write_text(text + "[policy]\nsampling_units = 100\n")
    assert CliRunner().invoke(app, made).exit_code == 0
    assert ledger().ok
    config.write_text(config.read_text() + "[ledger]\ndelta = 1e-7\n")
    found = ledger()
    assert not found.ok and "LOR-615" in found.text
    assert "1e-07" in found.text
