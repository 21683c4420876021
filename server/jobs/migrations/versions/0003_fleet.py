"""What a fleet knows of each job, and what is still to be done in Temporal and the bucket."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

UNFINISHED = sa.text("state IN ('queued', 'in_progress')")


def upgrade() -> None:
    """To this version: only adds, so that the release before still reads and writes."""
    op.add_column("jobs", sa.Column("first_id", sa.String(38)))
    op.add_column("jobs", sa.Column("file_bytes", sa.BigInteger))
    op.add_column("jobs", sa.Column("upload_bytes", sa.BigInteger))
    op.add_column("jobs", sa.Column("slice", sa.String(63)))
    op.add_column("jobs", sa.Column("workflow_at", sa.Double))
    if _may_be_a_fleets():
        op.create_index("ix_jobs_owner_id", "jobs", ["owner", "id"])
        op.create_index("ix_jobs_expires_at", "jobs", ["expires_at"])
        op.create_index("ix_jobs_unfinished", "jobs", ["id"], postgresql_where=UNFINISHED)
    for name in ("cancellations", "deletions"):
        op.create_table(
            name,
            sa.Column("job_id", sa.String(38), primary_key=True),
            sa.Column("noted_at", sa.Double, nullable=False),
            sa.Column("was_started", sa.Boolean, nullable=False),
        )


def downgrade() -> None:
    """Back to the one before."""
    for name in ("cancellations", "deletions"):
        op.drop_table(name)
    if _may_be_a_fleets():
        for name in ("ix_jobs_unfinished", "ix_jobs_expires_at", "ix_jobs_owner_id"):
            op.drop_index(name, "jobs")
    for name in ("workflow_at", "slice", "upload_bytes", "file_bytes", "first_id"):
        op.drop_column("jobs", name)


def _may_be_a_fleets() -> bool:
    """Not on SQLite, where an index is more to write on a full disk, and nobody asks it."""
    return op.get_context().dialect.name == "postgresql"
