"""Who looked into an alarm about the log: when, and with which closed reason."""

import sqlalchemy as sa
from alembic import op

revision = "0004_acknowledged_alarm"
down_revision = "0003_generation"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("log_alarm", sa.Column("acknowledged_at", sa.String(), nullable=True))
    op.add_column("log_alarm", sa.Column("reason", sa.String(), nullable=True))
