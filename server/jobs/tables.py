"""The tables, as the migrations leave them."""

import sqlalchemy as sa

SCHEMA = 2
"""Number of this version's schema, the latest migration's. See `service.oldest_reader`."""

JOB_VERSION, TEXT_JOB_VERSION = 3, 1
"""Of the stored jobs that this version writes. A release that gives requests a new field, or jobs
a new state, raises it; one that went back then knows which rows it does not understand. 2 had
pictures and clips, 3 has videos made from others, too; a job of text alone is written as 1 was."""

metadata = sa.MetaData()

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("id", sa.String(38), primary_key=True),
    sa.Column("owner", sa.String(64), nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("request", sa.Text, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("finished_at", sa.Double),
    sa.Column("expires_at", sa.Double),
    sa.Column("error_code", sa.String(32)),
    sa.Column("error_message", sa.Text),
    sa.Column("metadata", sa.Text),
    sa.Column("idempotency_key", sa.String(255)),
    sa.Column("request_digest", sa.String(64)),
    sa.Column("version", sa.Integer, nullable=False, server_default="1"),
    sa.UniqueConstraint("owner", "idempotency_key", name="uq_jobs_owner_idempotency_key"),
)

service = sa.Table(
    "service",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("database_id", sa.String(32), nullable=False),
    sa.Column("folder_id", sa.String(32)),
    sa.Column("epoch", sa.BigInteger, nullable=False),
    sa.Column("holder", sa.Text),
    sa.Column("oldest_reader", sa.Integer, nullable=False),
)
"""One row, 1: which database this is, whose files it knows, who owns it.

`epoch` grows whenever a server takes the database; every write checks that it is still its own.
`oldest_reader` is the lowest `SCHEMA` that may use the database: a migration that only adds leaves
it, so that an older release still starts; one that changes what is there raises it.
"""
