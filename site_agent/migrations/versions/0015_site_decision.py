"""What the hospital's own gates decided, with the facts that they decided on."""

import sqlalchemy as sa
from alembic import op

revision = "0015_site_decision"
down_revision = "0014_serving_report"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "site_decision",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("gate", sa.String(), nullable=False),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("policy", sa.String(), nullable=False),
        sa.Column("outcome", sa.String(), nullable=False),
        sa.Column("facts", sa.String(), nullable=True),
        sa.Column("at", sa.String(), nullable=False),
    )
    op.create_index("ix_site_decision_gate", "site_decision", ["gate"])
    op.create_index("ix_site_decision_subject", "site_decision", ["subject"])
