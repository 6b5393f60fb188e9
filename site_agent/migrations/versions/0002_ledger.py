"""Consents, the privacy ledger, consumed attempts and the secrets of running studies."""

import sqlalchemy as sa
from alembic import op

revision = "0002_ledger"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "study_grant",
        sa.Column("plan_digest", sa.String(), primary_key=True),
        sa.Column("study", sa.String(), nullable=False, index=True),
        sa.Column("spec_digest", sa.String(), nullable=False),
        sa.Column("snapshot", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("plan", sa.LargeBinary(), nullable=False),
        sa.Column("consent", sa.LargeBinary(), nullable=False),
        sa.Column("decision", sa.String(), nullable=False),
        sa.Column("evidence", sa.String(), nullable=False),
        sa.Column("decided_at", sa.String(), nullable=False, index=True),
        sa.Column("delivered", sa.Boolean(), nullable=False),
    )
    op.create_table(
        "cohort_charge",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("study", sa.String(), nullable=False, index=True),
        sa.Column("plan_digest", sa.String(), nullable=False, index=True),
        sa.Column("snapshot", sa.String(), nullable=False, index=True),
        sa.Column("phase", sa.String(), nullable=False),
        sa.Column("held_out", sa.Boolean(), nullable=False),
        sa.Column("epsilon", sa.Float(), nullable=False),
        sa.Column("delta", sa.Float(), nullable=False),
        sa.Column("steps_allowed", sa.Integer(), nullable=False),
        sa.Column("steps_charged", sa.Integer(), nullable=False),
        sa.Column("exact", sa.Boolean(), nullable=False),
        sa.Column("released", sa.Boolean(), nullable=False),
        sa.Column("reserved_at", sa.String(), nullable=False),
        sa.UniqueConstraint("plan_digest", "phase", "held_out"),
        sa.CheckConstraint("steps_charged <= steps_allowed"),
    )
    op.create_table(
        "consumed_attempt",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("study", sa.String(), nullable=False, index=True),
        sa.Column("plan_digest", sa.String(), nullable=False),
        sa.Column("phase", sa.String(), nullable=False),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("request_digest", sa.String(), nullable=False),
        sa.Column("packet", sa.LargeBinary(), nullable=True),
        sa.Column("consumed_at", sa.String(), nullable=False),
        sa.UniqueConstraint("study", "phase", "round", "attempt"),
    )
    op.create_table(
        "secure_sum_keys",
        sa.Column("study", sa.String(), primary_key=True),
        sa.Column("plan_digest", sa.String(), nullable=False),
        sa.Column("state", sa.LargeBinary(), nullable=False),
    )
    op.create_table(
        "key_step_reply",
        sa.Column("study", sa.String(), primary_key=True),
        sa.Column("step", sa.String(), primary_key=True),
        sa.Column("request_digest", sa.String(), nullable=False),
        sa.Column("packet", sa.LargeBinary(), nullable=False),
    )
    op.create_table(
        "refusal_record",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("study", sa.String(), nullable=False, index=True),
        sa.Column("phase", sa.String(), nullable=False),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("code", sa.String(), nullable=False),
        sa.Column("at", sa.String(), nullable=False, index=True),
    )
