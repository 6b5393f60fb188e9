"""Alembic's entry: runs the revisions over the connection that `coordinator.database` hands it."""

from __future__ import annotations

from alembic import context

from coordinator.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,
    render_as_batch=True,
)
context.run_migrations()
