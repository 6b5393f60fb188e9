"""The coordinator's settings: `coordinator.toml` in its home, read once, immutable after.

A setting that is missing has the default below; one that is unknown or out of range is an error that names it.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, StringConstraints, ValidationError

from protocol.enrolment import Address
from protocol.errors import CloisterError
from protocol.identifiers import Frozen

FILE = "coordinator.toml"
HOME_VARIABLE = "CLOISTER_COORDINATOR_HOME"
DEFAULT_HOME = "~/.cloister-coordinator"
_DATABASE = re.compile(r"^(sqlite:///|postgresql\+psycopg://).+")


_WANTED = {
    "name": "2 to 63 lower-case letters, digits, dots and hyphens, a letter first",
    "address": "HOST:PORT",
    "listen": "HOST:PORT",
    "database": "a sqlite:///PATH or postgresql+psycopg://USER@HOST/NAME URL",
    "sequencer_interval": "seconds, 0.01 to 60",
    "round_deadline": "seconds, 1 to 86400",
    "key_deadline": "seconds, 1 to 86400",
    "patience": "seconds, 1 to 31536000",
    "slowest_link": "bytes per second, 1024 to 1000000000",
    "poll_seconds": "seconds, 0.05 to 60",
    "body_limit": "bytes, 65536 to 268435456",
}


class SettingsError(CloisterError):
    """The home or its settings file is missing, unreadable or wrong."""

    code = "settings"


class Settings(Frozen):
    """`home`: the folder all else lies in. `address`: host:port that sites and people use. `listen`: host:port to
    bind. `database`: SQLAlchemy URL, SQLite or PostgreSQL. Durations are seconds. `slowest_link`: bytes per second of
    the slowest line to a site that rounds wait for; a round's deadline grows by what its model needs on it. `patience`:
    how long a study waits for sites or papers before it fails."""

    home: Path
    name: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9.-]{1,62}$")]
    address: Address
    listen: Address
    database: Annotated[str, StringConstraints(pattern=_DATABASE.pattern)]
    sequencer_interval: Annotated[float, Field(ge=0.01, le=60)] = 0.2
    round_deadline: Annotated[float, Field(ge=1, le=86_400)] = 60.0
    key_deadline: Annotated[float, Field(ge=1, le=86_400)] = 120.0
    patience: Annotated[float, Field(ge=1, le=31_536_000)] = 604_800.0
    slowest_link: Annotated[int, Field(ge=1 << 10, le=10**9)] = 1 << 17
    poll_seconds: Annotated[float, Field(ge=0.05, le=60)] = 1.0
    body_limit: Annotated[int, Field(ge=1 << 16, le=1 << 28)] = 4 << 20

    @property
    def origin(self) -> str:
        """The transparency log's origin line."""
        return f"cloister/{self.name}"

    @property
    def keys_folder(self) -> Path:
        return self.home / "keys"

    @property
    def log_folder(self) -> Path:
        return self.home / "log"

    def to_toml(self) -> str:
        """The settings file: everything but the home itself."""
        lines = ["# Settings of this Cloister coordinator. Restart `cloister-coordinator serve` after a change."]
        # A JSON string without control characters is also a TOML basic string.
        lines += [f"{key} = {json.dumps(value)}" for key, value in self.model_dump(exclude={"home"}).items()]
        return "\n".join(lines) + "\n"


def default_home() -> Path:
    """The home that is used when none is given: the environment's, else ~/.cloister-coordinator."""
    return Path(os.environ.get(HOME_VARIABLE) or DEFAULT_HOME).expanduser()


def make_settings(home: Path, **values: Any) -> Settings:
    """Settings from values. Raises SettingsError naming each field that is wrong."""
    try:
        settings = Settings(home=home, **values)
    except ValidationError as error:
        names = sorted({str(item["loc"][0]) if item["loc"] else "?" for item in error.errors()})
        wanted = "; ".join(f"{name}: {_WANTED.get(name, 'there is no such setting')}" for name in names)
        raise SettingsError(f"The coordinator's settings are wrong in: {', '.join(names)}.", f"{wanted}.") from None
    for text in (settings.address, settings.listen):
        split_address(text)
    return settings


def load_settings(home: Path) -> Settings:
    """The settings of an existing home. Raises SettingsError when it is missing, unreadable or wrong."""
    path = home / FILE
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(
            f"There is no coordinator in {home}.",
            f"Run `cloister-coordinator init`, or give --home or {HOME_VARIABLE} if it lies elsewhere.",
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        raise SettingsError(f"{path} is not valid TOML.", "Correct it, or restore it from a backup.") from None
    except OSError as error:
        raise SettingsError(f"{path} can't be read: {error.strerror}.", "Run as the coordinator's own user.") from None
    if "home" in document:
        raise SettingsError(f"{path} sets home.", "Remove that line: the home is the folder the file lies in.")
    return make_settings(home, **document)


def split_address(text: str) -> tuple[str, int]:
    """(host, port) of "host:port"; an IPv6 host stands in brackets. Raises SettingsError."""
    host, _, port = text.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    if bare != host or ":" in bare:
        try:
            valid = bare != host and ipaddress.ip_address(bare).version == 6
        except ValueError:
            valid = False
    else:
        valid = bool(re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?", bare))
    if not valid or not (port.isascii() and port.isdigit() and len(port) <= 5) or not 1 <= int(port) <= 65_535:
        raise SettingsError(
            f"{text!r} is not an address of the form HOST:PORT.",
            "Give a host name or IP address and a port, such as cloister.example.org:8443.",
        )
    return bare, int(port)


def default_listen(address: str) -> str:
    """Where to bind for an address: the same on the loopback interface, every interface otherwise."""
    host, port = split_address(address)
    try:
        ip = ipaddress.ip_address(host)
        loopback = ip.is_loopback
        if loopback and ip.version == 6:
            return f"[{host}]:{port}"
    except ValueError:
        loopback = host == "localhost"
    return f"127.0.0.1:{port}" if loopback else f"0.0.0.0:{port}"
