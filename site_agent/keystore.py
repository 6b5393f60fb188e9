"""The site's secrets on disk: the identity key, the witness key, the secret that keys patient hashes, the key under
which the secrets of running studies lie in the database.

Every file is 0600 in a folder that is 0700; a file that others may read is refused rather than used.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
import ssl
import stat
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from protocol.errors import CloisterError, Malformed
from protocol.signing import MlDsa44SigningKey, SigningKey
from site_agent.durable_files import write_durably
from site_agent.settings import SiteHome

SECRET_BYTES = 32
STATE_KEY = "secure-sum.key"
WITNESS_KEYS: dict[str, type[SigningKey] | type[MlDsa44SigningKey]] = {
    "ed25519": SigningKey,
    "ml-dsa-44": MlDsa44SigningKey,
}
_MAX_BYTES = 64 * 1024


class KeysUnusable(CloisterError):
    """A key file is missing, damaged or open to others."""

    code = "keys-unusable"


@dataclass(frozen=True)
class SiteKeys:
    """identity: signs what the site says and its TLS connections. witness: cosigns checkpoints, nothing else.

    secret: 32 bytes that key every hash of a patient or of data that is stored or leaves the site. state: 32 bytes that
    encrypt the state of secure aggregation in `site.db`, so that a copy of the database alone unmasks nothing.
    certificate: PEM of the client certificate (replaced by renewal); ca: PEM of the pinned CA.
    """

    identity: SigningKey
    witness: SigningKey | MlDsa44SigningKey
    secret: bytes = field(repr=False)
    state: bytes = field(repr=False)
    folder: Path

    @property
    def identity_path(self) -> Path:
        """PKCS #8 PEM of the identity key: also the TLS client key."""
        return self.folder / "identity.pem"

    @property
    def certificate_path(self) -> Path:
        """PEM of the site's client certificate."""
        return self.folder / "site.crt"

    @property
    def ca_path(self) -> Path:
        """PEM of the only CA the site trusts."""
        return self.folder / "ca.pem"

    @classmethod
    def generate(cls, folder: Path, *, witness: str = "ed25519") -> SiteKeys:
        """New keys from the operating system's generator, stored in the existing `folder`.

        witness: the kind of the key that cosigns, ed25519 or ml-dsa-44. Raises Malformed for another.
        """
        if witness not in WITNESS_KEYS:
            raise Malformed(f"{witness[:40]!r} is no kind of witness key.", f"Use {' or '.join(WITNESS_KEYS)}.")
        secret, state = secrets.token_bytes(SECRET_BYTES), secrets.token_bytes(SECRET_BYTES)
        keys = cls(SigningKey.generate(), WITNESS_KEYS[witness].generate(), secret, state, folder)
        write_durably(folder / "identity.pem", keys.identity.to_pem())
        write_durably(folder / "witness.pem", keys.witness.to_pem())
        write_durably(folder / "patient-hash.secret", keys.secret)
        write_durably(folder / STATE_KEY, keys.state)
        return keys

    def client_tls(self) -> ssl.SSLContext:
        """TLS 1.3, trusts the pinned CA alone, shows the site's certificate. KeysUnusable if a file is damaged."""
        context = trusting(self.ca_path)
        try:
            context.load_cert_chain(self.certificate_path, self.identity_path)
        except (OSError, ssl.SSLError):
            raise KeysUnusable(
                f"The site's certificate in {self.folder} is missing, damaged or not for this key.",
                "Restore the folder from a backup, or ask for a new invitation and enrol again.",
            ) from None
        return context


def trusting(ca: Path) -> ssl.SSLContext:
    """A client context: TLS 1.3 at least, host names checked, this CA and no other. KeysUnusable if unreadable."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_verify_locations(cafile=ca)
    except (OSError, ssl.SSLError):
        raise KeysUnusable(
            f"The pinned CA certificate {ca} is missing or damaged.",
            "Restore it from a backup, or ask for a new invitation and enrol again.",
        ) from None
    return context


def load_keys(home: SiteHome) -> SiteKeys:
    """The keys of an enrolled site. Raises KeysUnusable, naming the file and the remedy."""
    secret = read_secret(home)
    try:
        identity = SigningKey.from_pem(_read_private(home.keys / "identity.pem"))
        witness = _witness(_read_private(home.keys / "witness.pem"))
    except Malformed:
        raise KeysUnusable(
            f"A private key in {home.keys} is damaged.", "Restore the folder from a backup, or enrol again."
        ) from None
    return SiteKeys(identity, witness, secret, _state_key(home), home.keys)


def read_secret(home: SiteHome) -> bytes:
    """The 32-byte secret that keys patient hashes. Raises KeysUnusable."""
    secret = _read_private(home.keys / "patient-hash.secret")
    if len(secret) != SECRET_BYTES:
        raise KeysUnusable(
            f"{home.keys / 'patient-hash.secret'} is damaged.",
            "Restore it from a backup: without it patients can't be recognised and no study can be joined.",
        )
    return secret


def _state_key(home: SiteHome) -> bytes:
    """The key of the stored states, made where nothing is stored that needs another. Raises KeysUnusable where it is
    lost: a new one would open nothing, and every running study would fail at its next round."""
    path = home.keys / STATE_KEY
    if not path.exists():
        studies = _studies_with_states(home)
        if studies:
            raise KeysUnusable(
                f"{path} is lost, and the states of {', '.join(studies)} in {home.database} open with it alone.",
                "Restore it from a backup. If there is none, run `cloister-site renew-state-key`: this site then takes "
                "part in no further round of these studies.",
            )
        write_durably(path, secrets.token_bytes(SECRET_BYTES))
    key = _read_private(path)
    if len(key) != SECRET_BYTES:
        raise KeysUnusable(
            f"{path} is damaged.", "Restore it from a backup: without it no running study can be gone on with."
        )
    return key


def renew_state_key(home: SiteHome) -> tuple[str, ...]:
    """Give up the states that a lost key encrypted, and make another; the studies that this ends here. Raises
    KeysUnusable while the key is there."""
    path = home.keys / STATE_KEY
    if path.exists():
        raise KeysUnusable(f"{path} is there.", "Nothing has to be given up. If it is damaged, remove it first.")
    studies = _studies_with_states(home)
    if studies:
        with closing(sqlite3.connect(home.database)) as connection, connection:
            connection.execute("PRAGMA secure_delete = ON")
            connection.execute("DELETE FROM secure_sum_keys")
    write_durably(path, secrets.token_bytes(SECRET_BYTES))
    return studies


def _studies_with_states(home: SiteHome) -> tuple[str, ...]:
    if not home.database.exists():
        return ()
    with closing(sqlite3.connect(home.database)) as connection:
        there = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'secure_sum_keys'").fetchone()
        rows = connection.execute("SELECT study FROM secure_sum_keys ORDER BY study").fetchall() if there else []
    return tuple(row[0] for row in rows)


def _read_private(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if stat.S_IMODE(mode) & 0o077:
                raise KeysUnusable(
                    f"{path} may be read by others (mode {stat.S_IMODE(mode):04o}).", f"Run chmod 600 {path}."
                )
            return file.read(_MAX_BYTES)
    except OSError as error:
        raise KeysUnusable(
            f"The key file {path} can't be read ({error.strerror}).", "Restore it from a backup, or enrol again."
        ) from None


def _witness(pem: bytes) -> SigningKey | MlDsa44SigningKey:
    """The cosigning key in a PEM, of either kind. Raises Malformed."""
    try:
        return SigningKey.from_pem(pem)
    except Malformed:
        return MlDsa44SigningKey.from_pem(pem)
