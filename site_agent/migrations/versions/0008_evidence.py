"""What the hospital has on record, and what of it the coordinator was told."""

import sqlalchemy as sa
from alembic import op

revision = "0008_evidence"
down_revision = "0007_stored_vector"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "site_evidence",
        sa.Column("digest", sa.String(), primary_key=True),
        sa.Column("scope", sa.String(), nullable=False, index=True),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("record", sa.String(), nullable=False),
        sa.Column("recorded_at", sa.String(), nullable=False),
        sa.Column("revoked_at", sa.String(), nullable=True),
    )
    op.create_table(
        "attested_safeguards",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("safeguards", sa.String(), nullable=False),
        sa.Column("attested_on", sa.String(), nullable=False),
    )
    op.create_table(
        "sent_statement",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("content", sa.String(), nullable=False),
        sa.Column("made_at", sa.String(), nullable=False),
        sa.Column("clock_skew", sa.Float(), nullable=False),
        sa.Column("first_made_at", sa.String(), nullable=False),
    )
