"""The site's own database: SQLite in WAL mode, one file, every commit flushed to disk.

Nothing else writes it: the ledger, the consents and the log's head are only as good as this file.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.exc import DatabaseError, IntegrityError, ProgrammingError
from sqlmodel import Session

from protocol.errors import CloisterError
from site_agent.durable_files import private_umask, write_durably
from site_agent.settings import SiteHome

MARK = "ledger.generation"
FIRST_MARK = (
    b'{"generation": 0, "held_out": {"delta": 0.0, "epsilon": 0.0}, "training": {"delta": 0.0, "epsilon": 0.0}}'
)
MIGRATIONS = Path(__file__).parent / "migrations"
BUSY_SECONDS = 10.0


class DatabaseUnusable(CloisterError):
    """`site.db` is missing, damaged, locked, full or newer than this program."""

    code = "database-unusable"


def open_database(home: SiteHome) -> Engine:
    """The engine of an enrolled site's database, brought to this program's schema. Raises DatabaseUnusable."""
    if not home.database.is_file():
        raise DatabaseUnusable(
            f"{home.database} is missing.", "Restore it from a backup: it holds the site's privacy ledger."
        )
    engine = connect(home.database)
    upgrade(engine)
    return engine


def create_database(path: Path) -> Engine:
    """A new database with every table, and the mark of a ledger in which nothing was ever reserved.

    Raises DatabaseUnusable.
    """
    with private_umask():
        engine = connect(path)
        upgrade(engine)
        write_durably(mark_of(engine), FIRST_MARK)
    return engine


def mark_of(engine: Engine) -> Path:
    """The file beside a database by which `site_agent.training.generation` notices that it was put back."""
    return Path(str(engine.url.database)).with_name(MARK)


def connect(path: Path) -> Engine:
    """An engine on this file: WAL, foreign keys, synchronous=FULL, 10 s of patience, writes begin immediately."""
    engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False})

    @event.listens_for(engine, "connect")
    def _pragmas(connection: sqlite3.Connection, _record: Any) -> None:
        # The driver must not begin transactions by itself: `_begin` below does.
        connection.isolation_level = None
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "secure_delete=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        # A deferred transaction that reads and then writes fails at once when another has written meanwhile.
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


@contextlib.contextmanager
def transaction(engine: Engine) -> Iterator[Session]:
    """One transaction: committed when the block ends, rolled back when it raises.

    Raises DatabaseUnusable for a full disk, a locked or a damaged file; SQLAlchemy's IntegrityError as it is.
    """
    try:
        with Session(engine, expire_on_commit=False) as session, session.begin():
            yield session
    except (IntegrityError, ProgrammingError):
        raise
    except DatabaseError as error:
        raise _unusable(error) from None


def upgrade(engine: Engine) -> None:
    """Bring the schema to this program's revisions; each is applied in a transaction of its own.

    `PRAGMA user_version` counts the revisions that are in: Alembic is imported only when one is missing, so an
    idle agent does not carry it.
    """
    known = len(list((MIGRATIONS / "versions").glob("[0-9]*.py")))
    try:
        with engine.connect() as connection:
            present = int(connection.exec_driver_sql("PRAGMA user_version").scalar_one())
    except DatabaseError as error:
        raise _unusable(error) from None
    if present == known:
        return
    if present > known:
        raise DatabaseUnusable(
            "The site's database was written by a newer version of cloister-site.", "Install that version again."
        )
    from alembic import command
    from alembic.config import Config
    from alembic.util.exc import CommandError

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    try:
        with engine.connect() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "heads")
        with engine.connect() as connection:
            connection.exec_driver_sql(f"PRAGMA user_version = {known:d}")
            connection.commit()
    except CommandError:
        raise DatabaseUnusable(
            "The site's database holds a schema that this version of cloister-site does not know.",
            "Install the version that wrote it, or restore a backup.",
        ) from None
    except DatabaseError as error:
        raise _unusable(error) from None


def _unusable(error: DatabaseError) -> DatabaseUnusable:
    cause = str(error.orig).lower()
    if "full" in cause or "disk i/o" in cause:
        return DatabaseUnusable("The disk that holds the site's database is full or failing.", "Free space and retry.")
    if "locked" in cause:
        return DatabaseUnusable(
            "The site's database is locked by another process.", "Stop the other cloister-site process and retry."
        )
    return DatabaseUnusable(
        "The site's database can't be used as asked.", "Check the file; restore a backup if it is damaged."
    )
