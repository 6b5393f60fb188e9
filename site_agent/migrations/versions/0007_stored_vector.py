"""Masked vectors that are sent in chunks, apart from the packets that announce them."""

import sqlalchemy as sa
from alembic import op

revision = "0007_stored_vector"
down_revision = "0006_self_test"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "stored_vector",
        sa.Column("attempt", sa.Integer(), sa.ForeignKey("consumed_attempt.id"), primary_key=True),
        sa.Column("vector", sa.LargeBinary(), nullable=False),
    )
