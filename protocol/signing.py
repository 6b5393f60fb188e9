"""Ed25519 keys (RFC 8032), and ML-DSA-44 keys (FIPS 204) for the log's cosignatures: what signs, what verifies.

Key identifiers are digests of the raw public key, so a key's name can't be chosen apart from the key.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey, MLDSA44PublicKey
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from protocol.canonical import sha256_hex
from protocol.errors import BadSignature, Malformed

KEY_BYTES = 32
SIGNATURE_BYTES = 64
ML_DSA_44_KEY_BYTES = 1312
ML_DSA_44_SIGNATURE_BYTES = 2420

_TEXT_PREFIX = "ed25519:"
_P = 2**255 - 19
# The y coordinates of the eight points of small order (Curve25519's cofactor is 8): a signature that verifies
# under such a "key" can be made by anyone. The two long ones are the points of order 8.
_SMALL_ORDER_Y = frozenset(
    {
        0,
        1,
        _P - 1,
        0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826,
        0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7,
    }
)


@dataclass(frozen=True, slots=True)
class VerifyingKey:
    """A public Ed25519 key; `raw` is its 32 bytes."""

    raw: bytes

    def __post_init__(self) -> None:
        if len(self.raw) != KEY_BYTES:
            raise Malformed(f"An Ed25519 public key has 32 bytes, not {len(self.raw)}.", "Send the whole key.")
        y = int.from_bytes(self.raw, "little") & (2**255 - 1)
        if y >= _P or y in _SMALL_ORDER_Y:
            raise Malformed("The Ed25519 public key is a weak or non-canonical point.", "Make a new key.")

    @classmethod
    def from_bytes(cls, raw: bytes) -> VerifyingKey:
        """The key with these 32 bytes. Raises Malformed for another length or a weak point."""
        return cls(bytes(raw))

    @classmethod
    def from_text(cls, text: str) -> VerifyingKey:
        """The key written as "ed25519:" + base64url without padding. Raises Malformed for any other form."""
        body = text.removeprefix(_TEXT_PREFIX)
        try:
            raw = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            raw = b""
        if len(raw) != KEY_BYTES or _text(raw) != text:
            raise Malformed(
                "The text is not an Ed25519 public key.",
                'Write it as "ed25519:" and 43 base64url characters.',
            )
        return cls(raw)

    @property
    def text(self) -> str:
        """The key in one line: "ed25519:" + base64url of the raw key, without padding."""
        return _text(self.raw)

    @property
    def key_id(self) -> str:
        """The key's name: "sha256:" + hex of the SHA-256 of the raw key."""
        return sha256_hex(self.raw)

    def verify(self, signature: bytes, data: bytes) -> None:
        """Return if `signature` (64 bytes) is this key's over `data`; raise BadSignature otherwise."""
        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, data)
        except InvalidSignature:
            raise BadSignature(
                f"The signature by key {self.key_id} does not verify.",
                "Get the document again from its signer.",
            ) from None


@dataclass(frozen=True, slots=True, eq=False)
class SigningKey:
    """A private Ed25519 key. It shows no secret in its repr and compares by identity."""

    _key: Ed25519PrivateKey = field(repr=False)

    @classmethod
    def generate(cls) -> SigningKey:
        """A new key from the operating system's generator."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_seed(cls, seed: bytes) -> SigningKey:
        """The key with this 32-byte seed (RFC 8032 5.1.5). Raises Malformed for another length."""
        if len(seed) != KEY_BYTES:
            raise Malformed(f"An Ed25519 seed has 32 bytes, not {len(seed)}.", "Use the whole seed.")
        return cls(Ed25519PrivateKey.from_private_bytes(seed))

    @classmethod
    def from_pem(cls, pem: bytes, passphrase: bytes | None = None) -> SigningKey:
        """The key in a PKCS #8 PEM.

        Raises Malformed for another kind of key and for a wrong, missing or needless passphrase.
        """
        key = _load(pem, passphrase)
        if not isinstance(key, Ed25519PrivateKey):
            raise Malformed("The PEM holds a key that is not Ed25519.", "Use an Ed25519 key.")
        return cls(key)

    def to_pem(self, passphrase: bytes | None = None) -> bytes:
        """PKCS #8 PEM, encrypted when a passphrase is given."""
        return _dump(self._key, passphrase)

    def sign(self, data: bytes) -> bytes:
        """The 64-byte signature over `data`."""
        return self._key.sign(data)

    @property
    def public(self) -> VerifyingKey:
        """The key that verifies what this one signs."""
        return VerifyingKey(self._key.public_key().public_bytes_raw())


@dataclass(frozen=True, slots=True)
class MlDsa44VerifyingKey:
    """A public ML-DSA-44 key; `raw` is its 1312 bytes."""

    raw: bytes

    def __post_init__(self) -> None:
        if len(self.raw) != ML_DSA_44_KEY_BYTES:
            raise Malformed(f"An ML-DSA-44 public key has 1312 bytes, not {len(self.raw)}.", "Send the whole key.")

    def verify(self, signature: bytes, data: bytes) -> None:
        """Return if `signature` (2420 bytes, empty context) is this key's over `data`, else BadSignature."""
        try:
            MLDSA44PublicKey.from_public_bytes(self.raw).verify(signature, data)
        except InvalidSignature:
            raise BadSignature(
                f"The signature by key {sha256_hex(self.raw)} does not verify.",
                "Get the document again from its signer.",
            ) from None


@dataclass(frozen=True, slots=True, eq=False)
class MlDsa44SigningKey:
    """A private ML-DSA-44 key (hedged signing). It shows no secret in its repr and compares by identity."""

    _key: MLDSA44PrivateKey = field(repr=False)

    @classmethod
    def generate(cls) -> MlDsa44SigningKey:
        """A new key from the operating system's generator."""
        return cls(MLDSA44PrivateKey.generate())

    @classmethod
    def from_seed(cls, seed: bytes) -> MlDsa44SigningKey:
        """The key with this 32-byte seed (FIPS 204 xi). Raises Malformed for another length."""
        if len(seed) != KEY_BYTES:
            raise Malformed(f"An ML-DSA-44 seed has 32 bytes, not {len(seed)}.", "Use the whole seed.")
        return cls(MLDSA44PrivateKey.from_seed_bytes(seed))

    @classmethod
    def from_pem(cls, pem: bytes, passphrase: bytes | None = None) -> MlDsa44SigningKey:
        """The key in a PKCS #8 PEM. Raises Malformed as `SigningKey.from_pem` does."""
        key = _load(pem, passphrase)
        if not isinstance(key, MLDSA44PrivateKey):
            raise Malformed("The PEM holds a key that is not ML-DSA-44.", "Use an ML-DSA-44 key.")
        return cls(key)

    def to_pem(self, passphrase: bytes | None = None) -> bytes:
        """PKCS #8 PEM, encrypted when a passphrase is given."""
        return _dump(self._key, passphrase)

    def sign(self, data: bytes) -> bytes:
        """A 2420-byte signature over `data` with an empty context."""
        return self._key.sign(data)

    @property
    def public(self) -> MlDsa44VerifyingKey:
        """The key that verifies what this one signs."""
        return MlDsa44VerifyingKey(self._key.public_key().public_bytes_raw())


def _load(pem: bytes, passphrase: bytes | None) -> PrivateKeyTypes:
    try:
        return serialization.load_pem_private_key(pem, passphrase)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise Malformed(
            "The PEM holds no private key that opens with this passphrase.", "Check the file and the passphrase."
        ) from None


def _dump(key: Ed25519PrivateKey | MLDSA44PrivateKey, passphrase: bytes | None) -> bytes:
    protection: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase is not None:
        protection = serialization.BestAvailableEncryption(passphrase)
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection)


def _text(raw: bytes) -> str:
    return _TEXT_PREFIX + base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")
