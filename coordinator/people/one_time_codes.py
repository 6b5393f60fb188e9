"""One-time codes of an authenticator app: TOTP (RFC 6238) with SHA-1, six digits, 30 seconds, as every app knows it.

A code is a second factor of signing in. It signs nothing: an approval is a signature by the person's own key.
"""

from __future__ import annotations

import base64
import hmac
from datetime import datetime

import pyotp
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from coordinator.keystore import Entropy, KeystoreError
from coordinator.people.states import CODE_SECONDS

SECRET_BYTES = 20  # RFC 4226, 4: 160 bits are recommended
_NONCE = 12
_DRIFT = 1  # steps that a phone's clock may be off


def new_code_secret(entropy: Entropy) -> str:
    """160 bits in base32."""
    return base64.b32encode(entropy(SECRET_BYTES)).decode("ascii")


def provisioning_uri(secret: str, name: str, issuer: str) -> str:
    """The otpauth:// address that an authenticator app reads."""
    return str(pyotp.TOTP(secret, name=name, issuer=issuer).provisioning_uri())


def matching_step(secret: str, code: str, *, now: datetime) -> int | None:
    """The time step, of the present one and its neighbours, whose code this is; None for none."""
    present, codes = int(now.timestamp()) // CODE_SECONDS, pyotp.HOTP(secret)
    found = None
    for step in range(present - _DRIFT, present + _DRIFT + 1):
        if hmac.compare_digest(codes.at(step).encode(), code.encode()):
            found = step
    return found


def seal_code_secret(key: bytes, person: str, secret: str, entropy: Entropy) -> bytes:
    """nonce || AES-256-GCM of the secret, bound to the person. key: the coordinator's 32 secret bytes."""
    nonce = entropy(_NONCE)
    return nonce + AESGCM(_derived(key)).encrypt(nonce, secret.encode(), person.encode())


def open_code_secret(key: bytes, person: str, sealed: bytes) -> str:
    """The secret. Raises KeystoreError where key or row are not those that it was sealed with."""
    try:
        return AESGCM(_derived(key)).decrypt(sealed[:_NONCE], sealed[_NONCE:], person.encode()).decode()
    except InvalidTag:
        raise KeystoreError(
            "A person's code secret does not open with this coordinator's keys.",
            "Restore keys and database of one backup, or have the person enrol their code again.",
        ) from None


def _derived(key: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=b"cloister one-time code secrets").derive(key)
