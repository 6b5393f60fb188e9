"""What the hospital declares of each snapshot."""

import sqlalchemy as sa
from alembic import op

revision = "0013_dataset_declaration"
down_revision = "0012_withdrawal"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "dataset_declaration",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("snapshot", sa.String(), sa.ForeignKey("snapshot.digest"), nullable=False),
        sa.Column("declaration", sa.String(), nullable=False),
        sa.Column("without_consent", sa.Integer(), nullable=True),
        sa.Column("declared_at", sa.String(), nullable=False),
    )
    op.create_index("ix_dataset_declaration_snapshot", "dataset_declaration", ["snapshot"])
