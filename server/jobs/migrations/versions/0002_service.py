"""Whose database this is, and the version of each stored job."""

import secrets

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """To this version."""
    op.add_column("jobs", sa.Column("version", sa.Integer, nullable=False, server_default="1"))
    table = op.create_table(
        "service",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("database_id", sa.String(32), nullable=False),
        sa.Column("folder_id", sa.String(32)),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("holder", sa.Text),
        sa.Column("oldest_reader", sa.Integer, nullable=False),
    )
    row = {"id": 1, "database_id": secrets.token_hex(16), "epoch": 0, "oldest_reader": 2}
    op.bulk_insert(table, [row])


def downgrade() -> None:
    """Back to the one before."""
    op.drop_table("service")
    op.drop_column("jobs", "version")
