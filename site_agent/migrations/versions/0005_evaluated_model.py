"""Which model each consumed attempt was about."""

import sqlalchemy as sa
from alembic import op

revision = "0005_evaluated_model"
down_revision = "0004_acknowledged_alarm"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("consumed_attempt", sa.Column("model", sa.String(), nullable=True))
