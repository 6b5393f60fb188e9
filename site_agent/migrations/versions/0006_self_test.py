"""What the self-test found of each engine."""

import sqlalchemy as sa
from alembic import op

revision = "0006_self_test"
down_revision = "0005_evaluated_model"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "self_test",
        sa.Column("engine", sa.String(), primary_key=True),
        sa.Column("version", sa.String(), nullable=False),
        sa.Column("passed", sa.Boolean(), nullable=False),
        sa.Column("checks", sa.String(), nullable=False),
        sa.Column("at", sa.String(), nullable=False),
    )
