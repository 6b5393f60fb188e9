"""What was purged at the site by its retention gate, and its departure."""

import sqlalchemy as sa
from alembic import op

revision = "0013_departure"
down_revision = "0012_withdrawal"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "site_purge",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("record_class", sa.String(), nullable=False),
        sa.Column("about", sa.String(), nullable=False),
        sa.Column("items", sa.Integer(), nullable=False),
        sa.Column("decision", sa.String(), nullable=False),
        sa.Column("purged_at", sa.String(), nullable=False),
    )
    op.create_table(
        "departure",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("retained", sa.Integer(), nullable=False),
        sa.Column("decision_digest", sa.String(), nullable=False),
        sa.Column("left_at", sa.String(), nullable=False),
        sa.Column("delivered", sa.Boolean(), nullable=False),
    )
