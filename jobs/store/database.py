"""Open a store: SQLite in WAL mode, or any URL that SQLAlchemy knows; its schema is brought up."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, inspect, make_url, select, text
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from lorafusion.errors import StoreError
from lorafusion.files import home
from lorafusion.jobs.store.tables import HEAD

__all__ = ["FILE", "Database", "default_url", "url_of"]

FILE = "store.db"

# Until a writer that waits for another gives up. A write takes milliseconds.
_BUSY_S = 30
_VERSION = text("SELECT version_num FROM alembic_version")


def default_url() -> str:
    """Of the store under ``$LORAFUSION_HOME``."""
    return _sqlite(home() / FILE)


def url_of(place: Path) -> str:
    """Of a store that is there: its file, or the folder that it is in.

    Raises:
        StoreError: There is none.
    """
    file = place / FILE if place.is_dir() else place
    if not file.is_file():
        raise StoreError(
            f"store {place}: no store is there. Allowed: a folder with {FILE}, as `lorafusion "
            "train` leaves in its output, or a URL such as sqlite:////path/store.db."
        )
    return _sqlite(file)


def _sqlite(file: Path) -> str:
    return f"sqlite:///{file.absolute()}"


class Database:
    """Connections to one store."""

    def __init__(self, url: str) -> None:
        """Open it, and make or bring up its tables.

        Raises:
            StoreError: The URL is none, its driver is missing, the database cannot be reached, or
                it belongs to a newer version of lorafusion.
        """
        self.url = url
        try:
            self._engine = _engine(url)
            self._bring_up()
        except (ArgumentError, NoSuchModuleError, ImportError) as error:
            raise StoreError(
                f"store {_shown(url)}: {error}. Allowed: sqlite:///FILE, or a URL of SQLAlchemy "
                "whose driver is installed, such as postgresql+psycopg://USER@HOST/DATABASE."
            ) from error
        except SQLAlchemyError as error:
            raise StoreError(f"store {_shown(url)} cannot be opened: {error}") from error

    @property
    def place(self) -> str:
        """Where it is, without a password."""
        return _shown(self.url)

    @contextmanager
    def write(self) -> Generator[Connection]:
        """A transaction that is committed at the end of the block, or not at all.

        Raises:
            StoreError: The database does not answer, is full or cannot be written.
        """
        try:
            with self._engine.begin() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise StoreError(f"store {self.place} cannot be written: {error}") from error

    @contextmanager
    def read(self) -> Generator[Connection]:
        """A connection that sees what is committed, and waits for nobody.

        Raises:
            StoreError: The database does not answer.
        """
        try:
            with self._engine.connect() as connection:
                yield connection.execution_options(isolation_level="AUTOCOMMIT")
        except SQLAlchemyError as error:
            raise StoreError(f"store {self.place} cannot be read: {error}") from error

    def now(self, connection: Connection) -> float:
        """Seconds since 1970 by one clock for all workers: the server's, where there is one."""
        if self._engine.dialect.name == "sqlite":
            return time.time()
        now = connection.scalar(select(text("extract(epoch from clock_timestamp())")))
        assert now is not None
        return float(now)

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def _bring_up(self) -> None:
        """Alembic takes longer to import than most commands take: not where nothing is to do."""
        with self._engine.connect() as connection:
            known = inspect(connection).has_table("alembic_version")
            version = connection.scalar(_VERSION) if known else None
        if version == HEAD:
            return
        from lorafusion.jobs.store.migrate import bring_up

        bring_up(self._engine, self.place)


def _engine(url: str) -> Engine:
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        return create_engine(parsed, pool_pre_ping=True, hide_parameters=True)
    if parsed.database:
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(
        parsed,
        connect_args={"timeout": _BUSY_S, "isolation_level": None},
        hide_parameters=True,  # jobs of other people do not belong in an error
    )
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # FULL: what was answered is on the disk, whatever happens to the machine.
    for setting in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {setting}")


def _begin_sqlite(connection: Connection) -> None:
    """Take the lock at the start: one that is asked for in mid-transaction can be refused."""
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _shown(url: str) -> str:
    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return repr(url)
