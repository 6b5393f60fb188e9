"""DSSE v1 envelopes: a payload, its type and the signatures over both.

Source: https://github.com/secure-systems-lab/dsse (protocol.md, envelope.md), narrowed: an envelope has
exactly one byte form (canonical JSON, padded standard base64), and each key signs at most once.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass

from protocol.canonical import JsonValue, canonical, parse
from protocol.errors import BadSignature, Malformed
from protocol.signing import SigningKey, VerifyingKey

MAX_SIGNATURES = 100
DEFAULT_LIMIT = 1 << 20

_TYPE = re.compile(r"[a-z0-9]+/[A-Za-z0-9.+-]{1,200}")
_KIND = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


def payload_type(kind: str) -> str:
    """The payload type of one of Cloister's documents: "application/vnd.cloister.<kind>+json".

    `kind` is lower-case words joined by hyphens, such as "study" or "consent-grant". Raises Malformed
    otherwise.
    """
    if not _KIND.fullmatch(kind):
        raise Malformed(
            "The document kind is not lower-case words joined by hyphens.",
            "Use a name such as consent-grant.",
        )
    return f"application/vnd.cloister.{kind}+json"


def pae(payload_type: str, payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding: the bytes that are signed."""
    kind = payload_type.encode("utf-8")
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


@dataclass(frozen=True, slots=True)
class Envelope:
    """A payload of a type with 1-100 signatures (key id, signature bytes), at most one per key id.

    Holding one says nothing of its signatures: `open_envelope` verifies. Raises Malformed when made
    otherwise.
    """

    payload_type: str
    payload: bytes
    signatures: tuple[tuple[str, bytes], ...]

    def __post_init__(self) -> None:
        if not _TYPE.fullmatch(self.payload_type):
            raise Malformed(
                "The envelope's payload type is not a media type.",
                "Use application/vnd.cloister.<kind>+json.",
            )
        if not 1 <= len(self.signatures) <= MAX_SIGNATURES:
            raise Malformed(f"The envelope has {len(self.signatures)} signatures.", f"Give 1 to {MAX_SIGNATURES}.")
        if len({key_id for key_id, _ in self.signatures}) != len(self.signatures):
            raise Malformed("The envelope has two signatures under one key id.", "Let each key sign once.")

    def to_bytes(self) -> bytes:
        """The envelope's JSON, canonical."""
        return canonical(
            {
                "payload": _encode(self.payload),
                "payloadType": self.payload_type,
                "signatures": [{"keyid": key_id, "sig": _encode(sig)} for key_id, sig in self.signatures],
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes, *, limit: int = DEFAULT_LIMIT) -> Envelope:
        """The envelope in `data` of at most `limit` bytes; nothing is verified yet.

        Raises Malformed for anything but the exact bytes that `to_bytes` gives.
        """
        match parse(data, limit=limit):
            case {
                "payload": str(payload),
                "payloadType": str(kind),
                "signatures": list(signatures),
                **rest,
            } if not rest:
                envelope = cls(kind, _decode(payload), tuple(_signature(item) for item in signatures))
            case _:
                raise Malformed("The document is not a DSSE envelope.", "Send payload, payloadType and signatures.")
        if envelope.to_bytes() != data:
            raise Malformed("The envelope is not in canonical JSON.", "Send the bytes that were sealed, unchanged.")
        return envelope


def seal(payload_type: str, payload: object, *keys: SigningKey) -> Envelope:
    """Sign `payload` (bytes as they are, any other JSON value as canonical JSON) with every key.

    Raises Malformed when a "+json" type is given bytes that are not canonical JSON, and without a key.
    """
    body = payload if isinstance(payload, bytes) else canonical(payload)
    if payload_type.endswith("+json"):
        _canonical_json(body, limit=len(body))
    signed = pae(payload_type, body)
    return Envelope(payload_type, body, tuple((key.public.key_id, key.sign(signed)) for key in keys))


def open_envelope(
    envelope: Envelope, payload_type: str, trusted: Mapping[str, VerifyingKey]
) -> tuple[bytes, tuple[str, ...]]:
    """The payload and the ids of the trusted keys (by key id) that signed it, in the envelope's order.

    Signatures by keys that are not trusted are ignored. Raises BadSignature when the type is another one,
    when no trusted key signed and when any trusted key's signature does not verify; Malformed when `trusted`
    files a key under another key's id.
    """
    if any(key.key_id != key_id for key_id, key in trusted.items()):
        raise Malformed("A trusted key is filed under another key's id.", "File each key under its own key_id.")
    if envelope.payload_type != payload_type:
        raise BadSignature(
            f"The envelope holds {envelope.payload_type}, not {payload_type}.",
            "Send the document that was asked for.",
        )
    signed = pae(envelope.payload_type, envelope.payload)
    verified = []
    for key_id, signature in envelope.signatures:
        if key_id in trusted:
            trusted[key_id].verify(signature, signed)
            verified.append(key_id)
    if not verified:
        raise BadSignature("No trusted key signed the envelope.", "Have it signed by a key that is enrolled here.")
    return envelope.payload, tuple(verified)


def open_json(
    envelope: Envelope, payload_type: str, trusted: Mapping[str, VerifyingKey], *, limit: int = DEFAULT_LIMIT
) -> tuple[dict[str, JsonValue], tuple[str, ...]]:
    """The payload as a JSON object, and the ids of the trusted keys that signed it.

    Raises what `open_envelope` raises, and Malformed for a payload over `limit` bytes, one that is not an
    object, or one that is not its own canonical form.
    """
    payload, verified = open_envelope(envelope, payload_type, trusted)
    document = _canonical_json(payload, limit=limit)
    if not isinstance(document, dict):
        raise Malformed("The envelope's payload is not a JSON object.", "Seal an object.")
    return document, verified


def _canonical_json(payload: bytes, *, limit: int) -> JsonValue:
    document = parse(payload, limit=limit)
    if canonical(document) != payload:
        raise Malformed("The payload is not in canonical JSON.", "Seal the value, or its RFC 8785 bytes.")
    return document


def _signature(item: JsonValue) -> tuple[str, bytes]:
    match item:
        case {"keyid": str(key_id), "sig": str(signature), **rest} if not rest:
            return key_id, _decode(signature)
    raise Malformed("An envelope signature is not a keyid and a sig.", "Send keyid and sig for each signature.")


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _decode(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Malformed("A field of the envelope is not base64.", "Use padded standard base64.") from None
