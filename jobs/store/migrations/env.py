"""Run by alembic; :mod:`lorafusion.jobs.store.migrate` gives the connection."""

from alembic import context

from lorafusion.jobs.store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
