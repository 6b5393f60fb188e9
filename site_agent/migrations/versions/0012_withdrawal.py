"""Patients who withdrew, up to when the list is complete, and what the coordinator was told."""

import sqlalchemy as sa
from alembic import op

revision = "0012_withdrawal"
down_revision = "0011_reported_incident"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "withdrawn_patient",
        sa.Column("patient_hash", sa.LargeBinary(), primary_key=True),
        sa.Column("ground", sa.String(), nullable=False),
        sa.Column("batch", sa.String(), nullable=False, index=True),
        sa.Column("recorded_at", sa.String(), nullable=False),
    )
    op.create_table(
        "withdrawals_attested",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("through", sa.String(), nullable=False),
        sa.Column("attested_at", sa.String(), nullable=False),
    )
    op.create_table(
        "withdrawal_notice",
        sa.Column("review", sa.String(), primary_key=True),
        sa.Column("study", sa.String(), nullable=False, index=True),
        sa.Column("notice", sa.LargeBinary(), nullable=False),
        sa.Column("made_at", sa.String(), nullable=False),
        sa.Column("delivered", sa.Boolean(), nullable=False),
    )
    op.add_column("snapshot", sa.Column("told_patients", sa.Integer(), nullable=True))
    op.add_column("snapshot", sa.Column("told_held_out", sa.Integer(), nullable=True))
    op.add_column("snapshot", sa.Column("replaced_by", sa.String(), nullable=True))
