"""A coordinator's folder: where everything is, and coordinator.toml.

::

    coordinator.toml     addresses and ports
    coordinator.pem      the key that signs requests to sites
    authority/           ca.key, ca.crt: the certificate authority
    tls/                 public.crt/.key for sites, private.crt/.key for the loopback interface
    sites.json           invited, admitted and revoked sites
    flower/ proxy/ logs/ run/    what services keep
    runs/ID/             a run's results; runs.sqlite: the run store
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, ValidationError, model_validator

from lorica.common.config import Section, documented, read_toml, sentences
from lorica.common.errors import Code, LoricaError
from lorica.common.machine.files import storage_errors, write_atomically
from lorica.common.machine.home import STORE_VARIABLE, home
from lorica.common.wire.invitation import parse_address

HOME_VARIABLE = "LORICA_COORDINATOR_HOME"
"""Environment variable: the coordinator's folder."""

_CONFIG = "coordinator.toml"


class CoordinatorConfig(Section):
    """coordinator.toml: where the coordinator listens and how sites reach it."""

    address: str = Field("localhost:8443")
    """Where sites reach the coordinator, host:port; invitations name it."""
    names: list[str] = Field([])
    """Further host names and IP addresses by which it is reached; the certificate holds them."""
    listen: str = Field("0.0.0.0")
    """Address of this machine that the proxy listens on for sites; "::" for all of IPv6, too."""
    port: int = Field(8443, ge=1, le=65535)
    """Port that the proxy listens on for sites."""
    private_port: int = Field(8440, ge=1, le=65535)
    """Port of the SuperLink on 127.0.0.1: whoever reaches it controls the federation."""
    largest_message: int = Field(2048, ge=1, le=100_000)
    """Largest message that is taken from a site, MiB."""
    most_units: int = Field(10_000_000, ge=1)
    """Units that a site is believed to have at most; one that declares more takes no part."""
    monitor: Literal["yes", "no"] = Field("yes")
    """Whether `lorica coordinator start` starts `lorica monitor`, too, where it is installed."""
    monitor_host: str = Field("127.0.0.1", min_length=1)
    """Address that `lorica monitor` listens on. At any other than this machine's own it starts only
    once it has an account, and with ``monitor_url``."""
    monitor_port: int = Field(8600, ge=1, le=65535)
    """Port of `lorica monitor`."""
    monitor_url: str = Field("")
    """Address of `lorica monitor` in people's browsers, where a reverse proxy with TLS, a container
    or an encrypted network is in between; empty: the address that it listens on."""
    store: str = Field("")
    """SQLAlchemy URL of the run store; empty: runs.sqlite in this folder."""

    @model_validator(mode="after")
    def _sound(self) -> Self:
        try:
            parse_address(self.address)
        except LoricaError as error:
            raise ValueError(error.detail) from None
        if self.port == self.private_port:
            raise ValueError("port and private_port must differ")
        return self

    @property
    def host(self) -> str:
        """The host of the public address."""
        return parse_address(self.address)[0]


class CoordinatorHome:
    """Paths in a coordinator's folder."""

    def __init__(self, path: Path) -> None:
        """``path``: the folder, which may not exist yet."""
        self.path = path.expanduser().resolve()
        self.config_file = self.path / _CONFIG
        self.signing_key = self.path / "coordinator.pem"
        self.authority = self.path / "authority"
        self.tls = self.path / "tls"
        self.register = self.path / "sites.json"
        self.flower = self.path / "flower"
        self.proxy = self.path / "proxy"
        self.logs = self.path / "logs"
        self.run = self.path / "run"
        self.runs = self.path / "runs"
        self.lock = self.run / "start.lock"

    @property
    def folders(self) -> list[Path]:
        """All folders, for their owner alone."""
        folders = [self.path, self.authority, self.tls, self.flower, self.proxy, self.logs]
        return [*folders, self.run, self.runs]

    def create(self, config: CoordinatorConfig) -> None:
        """Make the folders and coordinator.toml.

        Raises:
            LoricaError: LOR-722 there is one already, LOR-60x.
        """
        if self.config_file.exists():
            raise LoricaError(Code.FEDERATION_EXISTS, f"{self.path} holds a coordinator already.")
        with storage_errors(self.path):
            for folder in self.folders:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                folder.chmod(0o700)
        write_atomically(self.config_file, documented_coordinator(config))
        self.config_file.chmod(0o600)

    def config(self) -> CoordinatorConfig:
        """What coordinator.toml says.

        Raises:
            LoricaError: LOR-723 it is missing, LOR-731 it says what cannot be.
        """
        content = read_toml(
            self.config_file,
            "coordinator's configuration",
            Code.COORDINATOR_CONFIG,
            missing=Code.FEDERATION_MISSING,
        )
        try:
            return CoordinatorConfig.model_validate(content)
        except ValidationError as error:
            problem = f"In {self.config_file}: {sentences(error, CoordinatorConfig)}"
            raise LoricaError(Code.COORDINATOR_CONFIG, problem) from None

    @property
    def store_url(self) -> str:
        """URL of the run store: of coordinator.toml, else of LORICA_STORE, else in this folder."""
        configured = self.config().store or os.environ.get(STORE_VARIABLE, "")
        return configured or f"sqlite:///{self.path / 'runs.sqlite'}"


def first_config(address: str, **settings: object) -> CoordinatorConfig:
    """A coordinator that listens on the port of its public address.

    Raises:
        LoricaError: LOR-731 the address or another setting cannot be.
    """
    try:
        _, port = parse_address(address)
        return CoordinatorConfig.model_validate({"address": address, "port": port, **settings})
    except ValidationError as error:
        problem = sentences(error, CoordinatorConfig)
    except LoricaError as error:
        problem = error.detail
    raise LoricaError(
        Code.COORDINATOR_CONFIG,
        f"A coordinator cannot be set up so: {problem}",
        mend="Correct it; `lorica coordinator init --help` describes every option.",
    )


def default_home() -> Path:
    """The folder that LORICA_COORDINATOR_HOME names, else "coordinator" in LORICA_HOME."""
    named = os.environ.get(HOME_VARIABLE, "")
    return Path(named) if named else home() / "coordinator"


def documented_coordinator(config: CoordinatorConfig) -> str:
    """coordinator.toml with every field's meaning above it."""
    about = "# The coordinator of a Lorica federation; read at every start."
    return "\n".join([about, *documented(config)]) + "\n"
