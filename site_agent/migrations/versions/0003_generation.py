"""The count by which a ledger that was put back from a backup is noticed, and what such a ledger had forgotten."""

import sqlalchemy as sa
from alembic import op

revision = "0003_generation"
down_revision = "0002_ledger"
branch_labels = None
depends_on = None


def upgrade() -> None:
    generation = op.create_table(
        "ledger_generation",
        sa.Column("id", sa.Integer(), sa.CheckConstraint("id = 1"), primary_key=True),
        sa.Column("generation", sa.Integer(), nullable=False),
    )
    op.bulk_insert(generation, [{"id": 1, "generation": 0}])
    op.create_table(
        "forgotten_charge",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("held_out", sa.Boolean(), nullable=False),
        sa.Column("epsilon", sa.Float(), nullable=False),
        sa.Column("delta", sa.Float(), nullable=False),
        sa.Column("acknowledged_at", sa.String(), nullable=False),
    )
