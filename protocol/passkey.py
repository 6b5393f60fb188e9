"""Passkeys (W3C Web Authentication Level 2): a person's public key that an authenticator keeps, and a document that it
signed. What is signed is the document itself: its DSSE pre-authentication encoding is the assertion's challenge."""

from __future__ import annotations

import base64
import binascii
import hashlib
import ipaddress
from typing import Annotated, Any, Literal

from pydantic import StringConstraints, ValidationError

from protocol.canonical import canonical, parse, sha256_hex
from protocol.envelope import pae
from protocol.errors import Malformed, Refused
from protocol.identifiers import Frozen

MAX_ASSERTION = 1 << 16
Base64Url = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{2,8192}$")]
_DOMAIN = b"cloister passkey\0"


class Passkey(Frozen):
    """credential: the authenticator's name for it. key: the public key, as COSE (RFC 9052) bytes. Both base64url."""

    credential: Base64Url
    key: Base64Url

    @property
    def key_id(self) -> str:
        """SHA-256 over the key's COSE bytes: the fingerprint that people compare."""
        return sha256_hex(decode(self.key))


class PasskeySignature(Frozen):
    """A document with a passkey's assertion over it. payload: the document's canonical JSON; the rest as the browser
    gave it. All base64url."""

    kind: Literal["passkey"] = "passkey"
    credential: Base64Url
    payload_type: Annotated[str, StringConstraints(pattern=r"^[a-z0-9]+/[A-Za-z0-9.+-]{1,200}$")]
    payload: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{2,40000}$")]
    authenticator_data: Base64Url
    client_data: Base64Url
    signature: Base64Url

    @property
    def document(self) -> bytes:
        """The bytes that were signed for. Nothing is verified yet."""
        return decode(self.payload)

    def to_bytes(self) -> bytes:
        """Its canonical JSON."""
        return canonical(self.model_dump(mode="json"))

    @classmethod
    def from_bytes(cls, data: bytes) -> PasskeySignature:
        """Raises Malformed for anything but the bytes that `to_bytes` gives."""
        try:
            read = cls.model_validate(parse(data, limit=MAX_ASSERTION))
        except ValidationError:
            raise Malformed("The document is not a passkey's signature.", "Sign again in the browser.") from None
        if read.to_bytes() != data:
            raise Malformed("The passkey's signature is not in canonical JSON.", "Send what was signed, unchanged.")
        return read


def challenge_of(payload_type: str, document: bytes) -> bytes:
    """The 32 bytes that the authenticator is asked to sign for this document of this type."""
    return hashlib.sha256(_DOMAIN + pae(payload_type, document)).digest()


def origin_of(address: str) -> str:
    """The web origin of a coordinator at "host:port" (RFC 6454: the default port is left out)."""
    host, _, port = address.rpartition(":")
    return f"https://{host.lower()}" if port == "443" else f"https://{host.lower()}:{port}"


def relying_party(address: str) -> str:
    """The relying party's id: the host. Raises Refused for an IP address, with which no browser makes passkeys."""
    host = address.rpartition(":")[0].lower()
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return host
    raise Refused(
        "Passkeys need a coordinator with a host name.", "Use your Ed25519 key, or give the coordinator a name."
    )


def encode(data: bytes) -> str:
    """base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def decode(text: str) -> bytes:
    """The bytes of base64url without padding. Raises Malformed for any other form of them."""
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        data = b""
    if not data or encode(data) != text:
        raise Malformed("A field is not base64url without padding.", "Send what the browser gave, unchanged.")
    return data


def is_passkey_signature(document: Any) -> bool:
    """Whether a parsed document is of this kind, and not an envelope."""
    return isinstance(document, dict) and document.get("kind") == "passkey"
