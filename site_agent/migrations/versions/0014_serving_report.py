"""What the site tells of the models that it serves."""

import sqlalchemy as sa
from alembic import op

revision = "0014_serving_report"
down_revision = ("0013_dataset_declaration", "0013_departure")
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "serving_report",
        sa.Column("number", sa.Integer(), primary_key=True),
        sa.Column("change", sa.String(), nullable=False),
        sa.Column("server", sa.String(), nullable=True),
        sa.Column("document", sa.String(), nullable=False),
        sa.Column("answer", sa.String(), nullable=True),
    )
    op.create_index("ix_serving_report_server", "serving_report", ["server"])
    op.create_index("ix_serving_report_answer", "serving_report", ["answer"])
