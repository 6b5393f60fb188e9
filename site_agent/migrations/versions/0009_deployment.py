"""What a clinic says of the models it serves, and the decisions of its serving gate."""

import sqlalchemy as sa
from alembic import op

revision = "0009_deployment"
down_revision = "0008_evidence"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "deployment",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("study", sa.String(), nullable=False, index=True),
        sa.Column("said", sa.String(), nullable=False),
        sa.Column("said_at", sa.String(), nullable=False),
    )
    op.create_table(
        "serving_decision",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("moment", sa.String(), nullable=False),
        sa.Column("release", sa.String(), nullable=False),
        sa.Column("subject_digest", sa.String(), nullable=False),
        sa.Column("outcome", sa.String(), nullable=False),
        sa.Column("decision", sa.String(), nullable=False),
        sa.Column("decided_at", sa.String(), nullable=False),
    )
