"""A person's home: their key, the coordinator that they pinned, their session; and how they sign in."""

from __future__ import annotations

import base64
import json
import os
import secrets
import shutil
import stat
import tomllib
from dataclasses import dataclass
from pathlib import Path

from coordinator.client.connection import Connection, fetch_authority, pinned_context
from protocol.enrolment import Token, registration_message, session_message
from protocol.errors import CloisterError, Malformed
from protocol.identifiers import Role
from protocol.signing import SigningKey

HOME_VARIABLE = "CLOISTER_PERSON_HOME"
DEFAULT_HOME = "~/.cloister"
PASSPHRASE_CHARACTERS = 12


class AccountError(CloisterError):
    """The person's home is missing, in use, damaged or exposed, or its passphrase is wrong or too short."""

    code = "account"


@dataclass(frozen=True)
class Account:
    """Who this home belongs to, and at which coordinator."""

    home: Path
    name: str
    role: Role
    address: str
    ca: str

    @property
    def ca_path(self) -> Path:
        return self.home / "ca.pem"

    @property
    def key_path(self) -> Path:
        return self.home / "key.pem"

    @property
    def session_path(self) -> Path:
        return self.home / "session"

    def unlock(self, passphrase: bytes) -> SigningKey:
        """The person's key. Raises AccountError for a wrong passphrase or an exposed file."""
        try:
            return SigningKey.from_pem(_private(self.key_path), passphrase)
        except Malformed:
            raise AccountError(
                "The passphrase does not open your key.", "Type it again; without it, ask for a new invitation."
            ) from None

    def connect(self) -> Connection:
        """A connection with the current session. Raises AccountError when there is none."""
        if not self.session_path.exists():
            raise AccountError("You are not signed in.", "Run `cloister login`.")
        token = _private(self.session_path).decode("ascii", "replace").strip()
        return Connection(self.address, pinned_context(self.ca_path), token)


def person_home(home: Path | None) -> Path:
    """The folder: the one given, else the environment's, else ~/.cloister."""
    return (home or Path(os.environ.get(HOME_VARIABLE) or DEFAULT_HOME)).expanduser().resolve()


def open_account(home: Path | None) -> Account:
    """The account in a home. Raises AccountError when there is none or it is damaged."""
    folder = person_home(home)
    try:
        document = tomllib.loads((folder / "person.toml").read_text(encoding="utf-8"))
        return Account(folder, document["name"], Role(document["role"]), document["address"], document["ca"])
    except FileNotFoundError:
        raise AccountError(
            f"There is no account in {folder}.", "Run `cloister login TOKEN` with the token that you were given."
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, KeyError, ValueError):
        raise AccountError(f"{folder}/person.toml is damaged.", "Restore it, or ask for a new invitation.") from None


def register(token_text: str, home: Path | None, passphrase: bytes) -> Account:
    """Make a key, encrypted under the passphrase, and register it with the coordinator that the token names.

    The CA is compared with the token's fingerprint before anything secret is sent. The home appears whole or not at
    all. Raises AccountError, Malformed, VerificationFailed or what the connection raises.
    """
    token, folder = Token.from_text(token_text), person_home(home)
    if token.kind != "person":
        raise AccountError("This token is for a site, not for a person.", "Use it with `cloister-site enrol`.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise AccountError(
            f"{folder} holds an account already.", "Choose another --home, or move this one away: it holds a key."
        )
    if len(passphrase.decode("utf-8", "replace")) < PASSPHRASE_CHARACTERS:
        raise AccountError(
            f"The passphrase is shorter than {PASSPHRASE_CHARACTERS} characters.", "Choose a longer one."
        )
    building = folder.with_name(f".{folder.name}.{secrets.token_hex(6)}.new")
    building.parent.mkdir(parents=True, exist_ok=True)
    building.mkdir(mode=0o700)
    try:
        ca, key = fetch_authority(token), SigningKey.generate()
        _write(building / "ca.pem", ca)
        _write(building / "key.pem", key.to_pem(passphrase))
        role = _register(token, key, building / "ca.pem")
        account = Account(folder, token.name, role, token.address, token.ca)
        _write(building / "person.toml", _document(account))
        os.replace(building, folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return account


def sign_in(account: Account, key: SigningKey) -> None:
    """Answer a fresh challenge with the person's key and keep the session that comes back."""
    with Connection(account.address, pinned_context(account.ca_path)) as connection:
        challenge = _text(connection.post("/v1/people/challenge", {"name": account.name}), "challenge")
        signature = key.sign(session_message(account.ca, account.name, challenge))
        answer = connection.post(
            "/v1/people/session",
            {"name": account.name, "challenge": challenge, "signature": base64.b64encode(signature).decode()},
        )
    _write(account.session_path, _text(answer, "token").encode())


def sign_out(account: Account) -> None:
    """End the session at the coordinator and forget it here."""
    with account.connect() as connection:
        connection.delete("/v1/people/session")
    account.session_path.unlink()


def _register(token: Token, key: SigningKey, ca: Path) -> Role:
    public = key.public.text
    proof = key.sign(registration_message(token.secret, token.name, public))
    with Connection(token.address, pinned_context(ca)) as connection:
        answer = connection.post(
            "/v1/people/register",
            {"secret": token.secret, "name": token.name, "key": public, "proof": base64.b64encode(proof).decode()},
        )
    try:
        return Role(_text(answer, "role"))
    except ValueError:
        raise Malformed("The coordinator answered with a role that does not exist.", "Update this program.") from None


def _text(answer: object, field: str) -> str:
    value = answer.get(field) if isinstance(answer, dict) else None
    if not isinstance(value, str):
        raise Malformed(f"The coordinator's answer has no {field}.", "Update this program.")
    return value


def _document(account: Account) -> bytes:
    fields = {"name": account.name, "role": account.role.value, "address": account.address, "ca": account.ca}
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in fields.items()).encode()


def _write(path: Path, data: bytes) -> None:
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, path)


def _private(path: Path) -> bytes:
    try:
        data, mode = path.read_bytes(), path.stat().st_mode
    except FileNotFoundError:
        raise AccountError(f"{path} is missing.", "Restore it, or ask for a new invitation.") from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise AccountError(f"{path} is accessible to other users.", f"Run: chmod 600 {path}")
    return data
