"""The tables, as the migrations leave them."""

import sqlalchemy as sa

SCHEMA = 3
"""Number of this version's schema, the latest migration's. See `service.oldest_reader`."""

JOB_VERSION, TEXT_JOB_VERSION = 3, 1
"""Of the stored jobs that this version writes. A release that gives requests a new field, or jobs
a new state, raises it; one that went back then knows which rows it does not understand. 2 had
pictures and clips, 3 has videos made from others, too; a job of text alone is written as 1 was."""

UNFINISHED = sa.text("state IN ('queued', 'in_progress')")

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
    sa.Column("first_id", sa.String(38)),
    sa.Column("file_bytes", sa.BigInteger),
    sa.Column("upload_bytes", sa.BigInteger),
    sa.Column("slice", sa.String(63)),
    sa.Column("workflow_at", sa.Double),
    sa.UniqueConstraint("owner", "idempotency_key", name="uq_jobs_owner_idempotency_key"),
    sa.Index("ix_jobs_owner_id", "owner", "id").ddl_if(dialect="postgresql"),
    sa.Index("ix_jobs_expires_at", "expires_at").ddl_if(dialect="postgresql"),
    sa.Index("ix_jobs_unfinished", "id", postgresql_where=UNFINISHED).ddl_if(dialect="postgresql"),
)
"""`first_id` and `file_bytes` say again what is in `request` and `metadata`, for SQL; NULL in rows
of releases before. `upload_bytes`, `slice` and `workflow_at` are a fleet's alone: what the pictures
and clips take up, which slice makes the video, when the workflow was started, NULL for not yet. So
are the indexes: a server of one slice has all of it in memory, and on a full disk each index is
more to write for a deletion."""

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


def _notes(name: str) -> sa.Table:
    return sa.Table(
        name,
        metadata,
        sa.Column("job_id", sa.String(38), primary_key=True),
        sa.Column("noted_at", sa.Double, nullable=False),
        sa.Column("was_started", sa.Boolean, nullable=False),
    )


cancellations = _notes("cancellations")
"""Of a fleet: jobs whose workflow is still to be told that they were cancelled."""

deletions = _notes("deletions")
"""Of a fleet: jobs without a row, of which Temporal and the bucket may still have something.

`was_started` says whether a workflow is known to have been started: one that was not may be so by
now, by a server that accepted the job a moment ago.
"""
