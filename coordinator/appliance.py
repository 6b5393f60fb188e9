"""The opened coordinator: what the command line, the server and the round driver alike work with."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Engine

from coordinator.database import open_engine, require_current, upgrade
from coordinator.keystore import Entropy, Keys, load_keys
from coordinator.settings import Settings, load_settings
from protocol.errors import CloisterError

Clock = Callable[[], datetime]


def system_clock() -> datetime:
    """Now, in UTC."""
    return datetime.now(UTC)


@dataclass(frozen=True)
class Appliance:
    """Settings, database, keys, and the two things a decision never takes for itself: time and randomness."""

    settings: Settings
    engine: Engine
    keys: Keys
    clock: Clock = system_clock
    entropy: Entropy = secrets.token_bytes

    @property
    def home(self) -> Path:
        return self.settings.home


def open_appliance(
    home: Path, *, migrate: bool = False, clock: Clock = system_clock, entropy: Entropy = secrets.token_bytes
) -> Appliance:
    """Open the coordinator in `home`; with `migrate`, bring its database up to date first.

    Raises SettingsError, KeystoreError or DatabaseError, each with its remedy.
    """
    settings = load_settings(home.expanduser().resolve())
    keys = load_keys(settings)
    engine = open_engine(settings.database)
    try:
        if migrate:
            upgrade(engine)
        else:
            require_current(engine)
    except CloisterError:
        engine.dispose()
        raise
    return Appliance(settings, engine, keys, clock, entropy)
