"""What the site's own round gate decided about each attempt."""

import sqlalchemy as sa
from alembic import op

revision = "0009_round_decision"
down_revision = "0008_evidence"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "round_decision",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("study", sa.String(), nullable=False),
        sa.Column("plan_digest", sa.String(), nullable=False),
        sa.Column("phase", sa.String(), nullable=False),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("outcome", sa.String(), nullable=False),
        sa.Column("rules", sa.String(), nullable=False),
        sa.Column("facts_digest", sa.String(), nullable=False),
        sa.Column("document", sa.String(), nullable=False),
        sa.Column("at", sa.String(), nullable=False),
    )
    op.create_index("ix_round_decision_study", "round_decision", ["study"])
    op.create_index("ix_round_decision_plan_digest", "round_decision", ["plan_digest"])
