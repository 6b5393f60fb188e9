"""`governance.toml` of the coordinator: what the organisation that runs it says of itself. There are no defaults for
facts: until somebody has said them, the gates that ask for them stay shut."""

from __future__ import annotations

import json
import tomllib
from datetime import date
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, StringConstraints, ValidationError

from coordinator.keystore import write_private
from protocol.errors import CloisterError
from protocol.identifiers import Frozen, Label

FILE = "governance.toml"
_MAX_BYTES = 256 * 1024
Country = Annotated[str, StringConstraints(pattern=r"^[A-Z]{2}$")]
_Words = Annotated[str, StringConstraints(min_length=1, max_length=200)]


class GovernanceWrong(CloisterError):
    """The file is not of the agreed form."""

    code = "governance-wrong"


class Subprocessor(Frozen):
    """A processor that the coordinator engages. notified, objected: the sites; baa: an agreement is signed with it."""

    name: Label
    notified: bool = False
    objected: bool = False
    baa: bool = False


class Governance(Frozen):
    """country: ISO 3166 alpha-2, where the coordinator runs. contact: whom people and authorities reach. security:
    where its technical and organisational measures are described. backup_tested: when a backup was last restored."""

    country: Country
    contact: _Words
    security: _Words
    backup_tested: date
    subprocessors: Annotated[tuple[Subprocessor, ...], Field(max_length=200)] = ()

    def to_toml(self) -> str:
        """The file's text. JSON strings, numbers and lists are TOML ones; a date is written bare."""
        lines = ["# What the organisation that runs this coordinator says of itself."]
        for name in ("country", "contact", "security"):
            lines.append(f"{name} = {json.dumps(getattr(self, name))}")
        lines.append(f"backup_tested = {self.backup_tested.isoformat()}")
        for one in self.subprocessors:
            lines += ["", "[[subprocessors]]", f"name = {json.dumps(one.name)}"]
            lines += [f"{flag} = {json.dumps(getattr(one, flag))}" for flag in ("notified", "objected", "baa")]
        return "\n".join([*lines, ""])


def load_governance(home: Path) -> Governance | None:
    """The file as understood, None where there is none. Raises GovernanceWrong."""
    path = home / FILE
    remedy = "Run `cloister-coordinator governance set`, or correct the file."
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_BYTES)
        return Governance.model_validate(tomllib.loads(raw.decode("utf-8")))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise GovernanceWrong(f"{FILE} can't be read ({error.strerror}).", remedy) from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError):
        raise GovernanceWrong(f"{FILE} is not a TOML file.", remedy) from None
    except ValidationError as error:
        names = ", ".join(sorted({str(item["loc"][0]) for item in error.errors() if item["loc"]}))
        raise GovernanceWrong(f"{FILE} has a wrong or missing setting: {names}.", remedy) from None


def save_governance(home: Path, governance: Governance) -> None:
    """Replace the file as a whole."""
    write_private(home / FILE, governance.to_toml().encode())


def coordinator_facts(governance: Governance | None, *, on: date) -> dict[str, Any]:
    """`coordinator.*`; nothing where nothing was said."""
    if governance is None:
        return {}
    facts: dict[str, Any] = {
        "country": governance.country,
        "subprocessors": [one.model_dump() for one in governance.subprocessors],
    }
    tested = (on - governance.backup_tested).days
    return {**facts, "backup_tested_days": tested} if tested >= 0 else facts
