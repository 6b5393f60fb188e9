"""The site's own reports of incidents."""

import sqlalchemy as sa
from alembic import op

revision = "0011_reported_incident"
down_revision = ("0009_deployment", "0010_release_veto")
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "reported_incident",
        sa.Column("incident", sa.String(), primary_key=True),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("scope", sa.String(), nullable=False),
        sa.Column("about", sa.String(), nullable=False),
        sa.Column("aware_at", sa.String(), nullable=False),
        sa.Column("report", sa.LargeBinary(), nullable=False),
        sa.Column("reported_at", sa.String(), nullable=False),
        sa.Column("delivered", sa.Boolean(), nullable=False),
        sa.Column("ended_at", sa.String(), nullable=True),
    )
