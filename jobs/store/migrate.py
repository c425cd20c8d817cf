"""Bring a store's schema to this version, with alembic."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Engine

from lorafusion.errors import StoreError

__all__ = ["bring_up"]

FOLDER = Path(__file__).with_name("migrations")


def bring_up(engine: Engine, place: str) -> None:
    """Run what is missing, in one transaction; a second process that does the same waits.

    Raises:
        StoreError: The store was made by a newer version.
    """
    config = Config()
    config.set_main_option("script_location", str(FOLDER))
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            # Until the end of the transaction; SQLite's has taken its lock already.
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7190361)")
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            raise StoreError(
                f"store {place} belongs to another version of lorafusion ({error}). Use the "
                "version that made it, or name another store."
            ) from error
