"""`lorica site …`: one module per group of commands."""

from __future__ import annotations

from lorica.client.cli.main import app

__all__ = ["app"]
