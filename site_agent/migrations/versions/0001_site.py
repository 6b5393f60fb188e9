"""Snapshots and the site's view of the transparency log.

Rooms that come later add a revision of their own below this one (`down_revision = "0001"`); `upgrade` applies all.
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "snapshot",
        sa.Column("digest", sa.String(), primary_key=True),
        sa.Column("name", sa.String(), nullable=False, index=True),
        sa.Column("schema_text", sa.String(), nullable=False),
        sa.Column("schema_digest", sa.String(), nullable=False, index=True),
        sa.Column("records", sa.Integer(), nullable=False),
        sa.Column("dropped", sa.Integer(), nullable=False),
        sa.Column("patients", sa.Integer(), nullable=False),
        sa.Column("held_out", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.String(), nullable=False),
        sa.Column("registered_at", sa.String(), nullable=True),
    )
    op.create_table(
        "snapshot_patient",
        sa.Column("snapshot", sa.String(), sa.ForeignKey("snapshot.digest"), primary_key=True),
        sa.Column("patient_hash", sa.LargeBinary(), primary_key=True, index=True),
        sa.Column("held_out", sa.Boolean(), nullable=False),
    )
    op.create_table(
        "log_head",
        sa.Column("id", sa.Integer(), sa.CheckConstraint("id = 1"), primary_key=True),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("root", sa.LargeBinary(), nullable=False),
        sa.Column("note", sa.LargeBinary(), nullable=False),
        sa.Column("peaks", sa.LargeBinary(), nullable=False),
        sa.Column("policy_digest", sa.String(), nullable=True),
        sa.Column("seen_at", sa.String(), nullable=False),
    )
    op.create_table(
        "cosigned_checkpoint",
        sa.Column("size", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("root", sa.LargeBinary(), nullable=False),
        sa.Column("cosignature", sa.LargeBinary(), nullable=True),
        sa.Column("delivered", sa.Boolean(), nullable=False),
        sa.Column("at", sa.String(), nullable=False),
    )
    op.create_table(
        "log_alarm",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("code", sa.String(), nullable=False),
        sa.Column("detail", sa.String(), nullable=False),
        sa.Column("held_note", sa.LargeBinary(), nullable=True),
        sa.Column("served_note", sa.LargeBinary(), nullable=False),
        sa.Column("raised_at", sa.String(), nullable=False),
    )
    op.create_table(
        "accepted_witness_policy",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("policy_json", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("accepted_at", sa.String(), nullable=False),
    )
