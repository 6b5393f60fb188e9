"""The coordinator's database: SQLite in WAL mode or PostgreSQL, with the same promise on both.

One writer at a time: a writing transaction takes the write lock before its first statement (BEGIN IMMEDIATE on
SQLite, an advisory lock on PostgreSQL), so what it read can't change before it commits. Reading never waits for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, Engine, MetaData, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError, ProgrammingError
from sqlalchemy.orm import registry
from sqlmodel import Session, SQLModel

from coordinator.errors import storage_problem
from coordinator.settings import SettingsError
from protocol.errors import CloisterError

BUSY_SECONDS = 10
_WRITE_LOCK = 0x636C6F69  # "cloi": the advisory lock that makes PostgreSQL's writers take turns
_LOCK_NOT_AVAILABLE = "55P03"
_READERS = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
    "AND backend_type = 'client backend' AND backend_xmin IS NOT NULL"
)
"""Transactions that may still see what was erased: a table that is written anew keeps it for them."""
_MIGRATIONS = Path(__file__).with_name("migrations")

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)
_registry = registry(metadata=metadata)


class Table(SQLModel, registry=_registry):
    """Base of the coordinator's tables; its metadata is apart from the site's, so both fit in one process."""

    metadata: ClassVar[MetaData]


class DatabaseError(CloisterError):
    """The database can't be opened, or is not at the version this program needs."""

    code = "database"


def open_engine(url: str) -> Engine:
    """An engine for a sqlite:/// or postgresql+psycopg:// URL. Raises SettingsError for any other."""
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise SettingsError(
            "The database setting is not a URL.", "Use sqlite:///PATH or postgresql+psycopg://…"
        ) from None
    if parsed.drivername in ("sqlite", "sqlite+pysqlite"):
        return _sqlite(parsed)
    if parsed.drivername == "postgresql+psycopg":
        engine = create_engine(
            parsed, pool_pre_ping=True, connect_args={"connect_timeout": BUSY_SECONDS, "client_encoding": "utf8"}
        )
        event.listen(engine, "begin", _begin_postgresql)
        return engine
    raise SettingsError(
        f"The database driver {parsed.drivername!r} is not supported.", "Use sqlite:///PATH or postgresql+psycopg://…"
    )


def _sqlite(url: URL) -> Engine:
    engine = create_engine(url, connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False})

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _: object) -> None:
        connection.isolation_level = None  # BEGIN is ours to say
        for pragma in ("journal_mode=WAL", "foreign_keys=ON", "synchronous=FULL", "secure_delete=ON"):
            connection.execute(f"PRAGMA {pragma}").close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("cloister_writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _begin_postgresql(connection: Connection) -> None:
    if connection.get_execution_options().get("cloister_writes", False):
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_WRITE_LOCK})")


@contextmanager
def transaction(engine: Engine) -> Iterator[Session]:
    """A session that may write: commits at the end of the block, rolls back on any error.

    Rows stay readable after the commit. Raises DatabaseError when the write lock isn't free within 10 s (SQLite).
    """
    with _session(engine.execution_options(cloister_writes=True)) as session, session.begin():
        yield session


@contextmanager
def reading(engine: Engine) -> Iterator[Session]:
    """A session over one consistent snapshot of the database; whatever it changed is thrown away."""
    options: dict[str, Any] = {}
    if engine.dialect.name == "postgresql":
        options = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
    with _session(engine.execution_options(**options)) as session:
        yield session


@contextmanager
def _session(engine: Engine) -> Iterator[Session]:
    try:
        with Session(engine, expire_on_commit=False) as session:
            yield session
    except OperationalError as error:
        raise database_problem(error) from error


def database_problem(error: DBAPIError) -> CloisterError:
    """What a driver's error means to an operator: StorageFull, or DatabaseError with its remedy."""
    full = storage_problem(error)
    if full is not None:
        return full
    reason = "is busy" if "locked" in str(error.orig) else "can't be opened or reached"
    return DatabaseError(
        f"The coordinator's database {reason}.",
        "Check its URL, that it runs and that its volume is writable, then retry.",
    )


def forget_erased(engine: Engine) -> bool:
    """Rid the database's files of what was erased: SQLite overwrites it as it is freed, and its journal is emptied
    here; PostgreSQL leaves a dead row's bytes in its page, so each table is written anew, one after the other, while
    others wait for it; its journal is recycled by the server, and what is archived of it is its operator's. False
    while a reader keeps the journal in use, the old rows in sight, or a table from being written anew."""
    if engine.dialect.name == "sqlite":
        with engine.connect() as connection:
            raw = connection.connection.cursor()
            return int(raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]) == 0
    with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        readers = int(connection.exec_driver_sql(_READERS).scalar_one())
        connection.exec_driver_sql(f"SET lock_timeout = '{BUSY_SECONDS}s'")
        try:
            for name in sorted(metadata.tables):
                connection.exec_driver_sql(f'VACUUM (FULL) "{name}"')
        except OperationalError as error:
            if getattr(error.orig, "sqlstate", None) != _LOCK_NOT_AVAILABLE:
                raise
            return False
        finally:
            connection.exec_driver_sql("RESET lock_timeout")
    return readers == 0


def upgrade(engine: Engine) -> None:
    """Bring the database to this program's version (Alembic). Raises DatabaseError when it is newer."""
    _migrate(engine, lambda config: command.upgrade(config, "heads"))


def require_current(engine: Engine) -> None:
    """Raise DatabaseError unless the database is exactly at this program's version."""
    script = ScriptDirectory(str(_MIGRATIONS))
    try:
        with engine.connect() as connection:
            found = set(MigrationContext.configure(connection).get_current_heads())
    except (OperationalError, ProgrammingError) as error:
        raise database_problem(error) from error
    if found != set(script.get_heads()):
        raise DatabaseError(
            "The coordinator's database is at another version than this program.",
            "Run `cloister-coordinator migrate`, or install the version that wrote it.",
        )


def _migrate(engine: Engine, step: Any) -> None:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    try:
        with engine.execution_options(cloister_writes=True).begin() as connection:
            known = {item.revision for item in ScriptDirectory(str(_MIGRATIONS)).walk_revisions()}
            found = set(MigrationContext.configure(connection).get_current_heads())
            if not found <= known:
                raise DatabaseError(
                    "The coordinator's database was written by a newer version.",
                    "Install that version, or restore a backup.",
                )
            config.attributes["connection"] = connection
            step(config)
    except OperationalError as error:
        raise database_problem(error) from error


def one_row(result: Any) -> bool:
    """Whether an UPDATE or DELETE touched exactly one row."""
    return int(result.rowcount) == 1
