"""The site's own vetoes of releases."""

import sqlalchemy as sa
from alembic import op

revision = "0010_release_veto"
down_revision = "0009_round_decision"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "release_veto",
        sa.Column("release", sa.String(), primary_key=True),
        sa.Column("subject_digest", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("words", sa.String(), nullable=False),
        sa.Column("envelope", sa.LargeBinary(), nullable=False),
        sa.Column("vetoed_at", sa.String(), nullable=False),
        sa.Column("delivered", sa.Boolean(), nullable=False),
    )
