"""Make a new coordinator: all of it, or nothing.

Everything is built in a folder beside the home and renamed into place at the very end, so a failure at any point
leaves no half-made home. A PostgreSQL database must be empty; what was made in it is rolled back together.
"""

from __future__ import annotations

import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine, inspect
from sqlalchemy.exc import OperationalError

from coordinator.appliance import Appliance, Clock, system_clock
from coordinator.audit.append import COORDINATOR, append
from coordinator.audit.repository import LogRepository
from coordinator.audit.sequencer import integrate_once, log_key
from coordinator.database import database_problem, open_engine, transaction, upgrade
from coordinator.keystore import Entropy, load_keys, make_keys, write_private
from coordinator.people import accounts
from coordinator.policy.change import begin_with_package
from coordinator.schema import metadata
from coordinator.settings import FILE, Settings, SettingsError, default_listen, make_settings
from protocol.audit_event import EventType
from protocol.canonical import sha256_hex
from protocol.enrolment import Token
from protocol.identifiers import Role
from protocol.merkle import EMPTY_ROOT

SQLITE_FILE = "coordinator.db"


@dataclass(frozen=True)
class Initialised:
    """A new coordinator and its first administrator's one-time token."""

    settings: Settings
    fingerprint: str
    token: Token


def initialise(
    home: Path, *, address: str, listen: str | None = None, database: str | None = None, name: str | None = None,
    administrator: str = "administrator", clock: Clock = system_clock, entropy: Entropy = secrets.token_bytes,
) -> Initialised:  # fmt: skip
    """Make keys, certificates, database, log and settings in `home`, which must not exist.

    Raises SettingsError for a home that exists, a bad address or a database that is in use.
    """
    home = home.expanduser().resolve()
    if home.exists() or home.is_symlink():
        raise SettingsError(
            f"{home} exists already.", "Choose another --home; a coordinator is never made over another."
        )
    building = home.with_name(f".{home.name}.{entropy(6).hex()}.new")
    final = _settings(home, address, listen, database, name or f"coordinator-{entropy(4).hex()}")
    here = final.model_copy(
        update={"home": building, "database": final.database if database else _sqlite_url(building)}
    )
    building.parent.mkdir(parents=True, exist_ok=True)
    building.mkdir(mode=0o700)
    try:
        write_private(building / FILE, final.to_toml().encode())
        made = _build(here, home, administrator, clock, entropy)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    return Initialised(final, made.ca, made)


def _settings(home: Path, address: str, listen: str | None, database: str | None, name: str) -> Settings:
    return make_settings(
        home,
        name=name,
        address=address,
        listen=listen or default_listen(address),
        database=database or _sqlite_url(home),
    )


def _build(settings: Settings, home: Path, administrator: str, clock: Clock, entropy: Entropy) -> Token:
    settings.log_folder.mkdir(mode=0o700)
    make_keys(settings, now=clock(), entropy=entropy)
    engine = open_engine(settings.database)
    try:
        if inspect(engine).get_table_names():
            raise SettingsError(
                "The database is not empty.", "Give --database an empty one: each coordinator has its own."
            )
        appliance = Appliance(settings, engine, load_keys(settings), clock, entropy)
        try:
            token = _fill(appliance, administrator)
            settings.home.rename(home)
        except BaseException:
            _empty(engine)
            raise
        return token
    except OperationalError as error:
        raise database_problem(error) from error
    finally:
        engine.dispose()


def _fill(appliance: Appliance, administrator: str) -> Token:
    settings, keys = appliance.settings, appliance.keys
    upgrade(appliance.engine)
    with transaction(appliance.engine) as session:
        LogRepository(session, settings.origin).start(EMPTY_ROOT)
        append(
            session, appliance, EventType.LOG_STARTED, actor=COORDINATOR, subject=settings.name,
            digests={"log_key": sha256_hex(log_key(appliance).text.encode()), "ca": keys.authority.fingerprint},
        )  # fmt: skip
        begin_with_package(session, appliance)
        token = accounts.invite(session, appliance, administrator, Role.ADMINISTRATOR)
    integrate_once(appliance)
    return token


def _empty(engine: Engine) -> None:
    """Take back what was made in a database that was empty before."""
    metadata.drop_all(engine)
    with transaction(engine) as session:
        session.connection().exec_driver_sql("DROP TABLE IF EXISTS alembic_version")


def _sqlite_url(home: Path) -> str:
    return f"sqlite:///{home / SQLITE_FILE}"
