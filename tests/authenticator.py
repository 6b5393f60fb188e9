"""An authenticator in software, honest or not: what a security key does, byte by byte (W3C Web Authentication Level 2,
6.1 and 6.5), so that each byte of it can be attacked."""

from __future__ import annotations

import hashlib
import json
import secrets
import struct
from dataclasses import dataclass, field
from typing import Any

import cbor2
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from protocol.passkey import Passkey, PasskeySignature, challenge_of, encode, origin_of

PRESENT, VERIFIED, ATTESTED = 0x01, 0x04, 0x40


@dataclass
class Authenticator:
    """One passkey of P-256. count: the signature counter; it grows with each use unless `counts` is False."""

    address: str
    count: int = 0
    counts: bool = True
    private: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    credential: bytes = field(default_factory=lambda: secrets.token_bytes(32))

    @property
    def cose(self) -> bytes:
        """The public key as an authenticator gives it (RFC 9053 7.1.1)."""
        numbers = self.private.public_key().public_numbers()
        x, y = (value.to_bytes(32, "big") for value in (numbers.x, numbers.y))
        return cbor2.dumps({1: 2, 3: -7, -1: 1, -2: x, -3: y})

    @property
    def passkey(self) -> Passkey:
        return Passkey(credential=encode(self.credential), key=encode(self.cose))

    def sign(self, payload_type: str, document: bytes, **changes: Any) -> PasskeySignature:
        """An assertion over the document. changes: origin, host, flags, kind, challenge, count, extra (of client data),
        signed_by: what a dishonest one says instead."""
        if self.counts:
            self.count += 1
        client_data = self._client_data("webauthn.get", challenge_of(payload_type, document), changes)
        data = self._data(changes.get("flags", PRESENT | VERIFIED), changes)
        key = changes.get("signed_by", self).private
        signature = key.sign(data + hashlib.sha256(client_data).digest(), ec.ECDSA(hashes.SHA256()))
        return PasskeySignature(
            credential=encode(self.credential),
            payload_type=payload_type,
            payload=encode(document),
            authenticator_data=encode(data),
            client_data=encode(client_data),
            signature=encode(signature),
        )

    def register(self, challenge: bytes, /, **changes: Any) -> dict[str, Any]:
        """The browser's RegistrationResponseJSON, without an attestation."""
        client_data = self._client_data("webauthn.create", challenge, changes)
        data = self._data(changes.get("flags", PRESENT | VERIFIED | ATTESTED), changes)
        data += bytes(16) + struct.pack(">H", len(self.credential)) + self.credential + self.cose
        attestation = cbor2.dumps({"fmt": "none", "attStmt": {}, "authData": data})
        response = {"clientDataJSON": encode(client_data), "attestationObject": encode(attestation)}
        name = encode(self.credential)
        return {"id": name, "rawId": name, "type": "public-key", "response": response, "clientExtensionResults": {}}

    def _client_data(self, kind: str, challenge: bytes, changes: dict[str, Any]) -> bytes:
        fields = {
            "type": changes.get("kind", kind),
            "challenge": encode(changes.get("challenge", challenge)),
            "origin": changes.get("origin", origin_of(self.address)),
            "crossOrigin": False,
        }
        return json.dumps(fields | changes.get("extra", {})).encode()

    def _data(self, flags: int, changes: dict[str, Any]) -> bytes:
        host = changes.get("host", self.address.rpartition(":")[0])
        return (
            hashlib.sha256(host.encode()).digest()
            + bytes([flags])
            + struct.pack(">I", changes.get("count", self.count))
        )
