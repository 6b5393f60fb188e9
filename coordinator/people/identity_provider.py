"""The organisation's OpenID provider: `identity_provider.toml` in the coordinator's home, its secret among the keys."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Annotated

from pydantic import Field, StringConstraints, ValidationError

from coordinator.keystore import write_private
from coordinator.settings import SettingsError
from protocol.identifiers import Frozen

FILE = "identity_provider.toml"
SECRET_FILE = "identity_provider.secret"  # noqa: S105 - a file's name
DEFAULT_METHODS = ("mfa", "otp", "hwk", "swk", "fpt", "sc")
_Text = Annotated[str, StringConstraints(pattern=r"^[\x21-\x7e]{1,255}$")]


class IdentityProvider(Frozen):
    """issuer: its https address, as its tokens name it. client_id: what it calls this coordinator. ca: a file with the
    certificate authority (PEM) that vouches for it, else the system's. multi_factor: values of `amr` (RFC 8176) that
    tell of a second factor."""

    issuer: Annotated[str, StringConstraints(pattern=r"^https://[\x21-\x7e]{1,240}$")]
    client_id: _Text
    ca: str | None = None
    multi_factor: Annotated[tuple[_Text, ...], Field(min_length=1)] = DEFAULT_METHODS
    secret: Annotated[str, StringConstraints(min_length=1, max_length=1000)] = Field(exclude=True, repr=False)


def load_identity_provider(home: Path) -> IdentityProvider | None:
    """What the operator has said; None where no provider is used. Raises SettingsError."""
    try:
        told = tomllib.loads((home / FILE).read_text(encoding="utf-8"))
        secret = (home / "keys" / SECRET_FILE).read_text(encoding="utf-8").strip()
        return IdentityProvider.model_validate({**told, "secret": secret})
    except FileNotFoundError as error:
        if not (home / FILE).exists():
            return None
        raise SettingsError(f"{error.filename} is missing.", "Run `cloister-coordinator people provider`.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, ValidationError):
        raise SettingsError(
            f"{home / FILE} is not valid.", "Write it with `cloister-coordinator people provider`."
        ) from None


def save_identity_provider(
    home: Path, *, issuer: str, client_id: str, secret: str, ca: Path | None, multi_factor: tuple[str, ...]
) -> IdentityProvider:
    """Write it. Raises SettingsError naming what is wrong."""
    try:
        said = IdentityProvider(
            issuer=issuer, client_id=client_id, ca=str(ca.resolve()) if ca else None,
            multi_factor=multi_factor or DEFAULT_METHODS, secret=secret,
        )  # fmt: skip
    except ValidationError as error:
        names = ", ".join(sorted({str(item["loc"][0]) for item in error.errors()}))
        raise SettingsError(
            f"The identity provider's settings are wrong in: {names}.",
            "Give its https address, the client's id and secret, and names of methods.",
        ) from None
    fields = said.model_dump(exclude_none=True)
    text = "".join(f"{key} = {json.dumps(value)}\n" for key, value in fields.items())
    for path, data in ((home / "keys" / SECRET_FILE, secret), (home / FILE, text)):
        write_private(path, data.encode())
    return said
