"""What sites' bits about their guards say, and how alike sites are."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_ADDED = ("kept_own", "alike")


def upgrade() -> None:
    """Apply."""
    for name in _ADDED:
        op.add_column(
            "rounds", sa.Column(name, sa.JSON(), nullable=False, server_default=sa.text("'{}'"))
        )


def downgrade() -> None:
    """Take back."""
    for name in reversed(_ADDED):
        op.drop_column("rounds", name)
