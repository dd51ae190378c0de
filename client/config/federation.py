"""A site in a federation: its key, its registration request, where its coordinator is."""

from __future__ import annotations

from pydantic import Field

from lorica.common.config import Section


class SiteFederation(Section):
    """The federation that the site is part of; `lorica site init` fills it in."""

    address: str = ""
    """Where the coordinator is, host:port; empty: the site is part of no federation."""
    authority: str = "ca.crt"
    """Certificate of the authority that must have signed the coordinator's; nothing else is
    trusted. Path from the folder that site.toml is in."""
    key: str = "node.key"
    """The site's private key, by which the coordinator knows it; it never leaves this machine."""
    runtime_port: int = Field(0, ge=0, le=65535)
    """Port on 127.0.0.1 over which the node talks to its own ClientApp; 0: any that is free."""
