"""The two set-up messages of a study. They travel inside envelopes that the sites' own keys sign.

`to_dict` gives JSON-safe values, `from_dict` accepts exactly what `to_dict` writes and refuses anything else.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from privacy.secagg.masking import KEY_BYTES, encode_fields
from privacy.secagg.refusals import Refusal, Refused

X25519_BYTES = 32
MLKEM_KEY_BYTES = 1184
MLKEM_CIPHERTEXT_BYTES = 1088
DIGEST_BYTES = 32
MAX_NAME_BYTES = 200
MAX_SITES = 50
_ADVERT_LABEL = b"cloister/secagg/advert/v1"
_ADVERTS_LABEL = b"cloister/secagg/adverts/v1"
_TRANSCRIPT_LABEL = b"cloister/secagg/transcript/v1"
_ADVERT_TYPE = "cloister/secagg/advert/v1"
_ENCAPSULATIONS_TYPE = "cloister/secagg/encapsulations/v2"


def check_name(what: str, name: object) -> str:
    """`name` if it is printable text of 1 to 200 UTF-8 bytes. Raises Refused."""
    if not isinstance(name, str) or not name.isprintable() or not 1 <= len(name.encode()) <= MAX_NAME_BYTES:
        raise Refused(
            Refusal.MALFORMED,
            f"{what} is not a printable name of 1 to {MAX_NAME_BYTES} bytes.",
            "Use the enrolled identifier.",
        )
    return name


def check_bytes(what: str, value: object, length: int) -> bytes:
    """`value` if it is bytes of exactly `length`. Raises Refused."""
    if not isinstance(value, bytes) or len(value) != length:
        size = len(value) if isinstance(value, bytes) else type(value).__name__
        raise Refused(
            Refusal.MALFORMED, f"{what} must have {length} bytes, got {size}.", "Send the message again, whole."
        )
    return value


def to_text(value: bytes) -> str:
    """Standard base64 with padding."""
    return base64.b64encode(value).decode("ascii")


def from_text(what: str, value: object, length: int) -> bytes:
    """The inverse of `to_text`; only the one canonical text of exactly `length` bytes. Raises
    Refused.
    """
    decoded: object = value
    if isinstance(value, str) and len(value) <= 4 * (length // 3 + 1):
        try:
            decoded = base64.b64decode(value.encode("ascii"), validate=True)
        except (binascii.Error, UnicodeEncodeError):
            decoded = None
        if isinstance(decoded, bytes) and to_text(decoded) != value:
            decoded = None
    return check_bytes(what, decoded, length)


def check_keys(what: str, document: object, keys: frozenset[str]) -> Mapping[str, object]:
    """`document` if it is a mapping with exactly `keys`. Raises Refused."""
    if not isinstance(document, Mapping) or set(document) != keys:
        raise Refused(
            Refusal.MALFORMED,
            f"{what} must hold exactly {', '.join(sorted(keys))}.",
            "Send a message of the agreed version.",
        )
    return document


@dataclass(frozen=True)
class KeyAdvert:
    """A site's public keys for one study: X25519 (32 bytes) and an ML-KEM-768 encapsulation key (1184 bytes).

    Raises Refused for any field out of shape.
    """

    study: str
    plan_digest: bytes
    site: str
    x25519_public: bytes
    mlkem_public: bytes

    def __post_init__(self) -> None:
        check_name("The advert's study", self.study)
        check_name("The advert's site", self.site)
        check_bytes("The advert's plan digest", self.plan_digest, DIGEST_BYTES)
        check_bytes("The advert's X25519 key", self.x25519_public, X25519_BYTES)
        check_bytes("The advert's ML-KEM key", self.mlkem_public, MLKEM_KEY_BYTES)

    def digest(self) -> bytes:
        """SHA-256 over every field, length-prefixed."""
        fields = (self.study, self.plan_digest, self.site, self.x25519_public, self.mlkem_public)
        return hashlib.sha256(encode_fields(_ADVERT_LABEL, *fields)).digest()

    def to_dict(self) -> dict[str, str]:
        """JSON-safe."""
        return {
            "type": _ADVERT_TYPE,
            "study": self.study,
            "plan_digest": to_text(self.plan_digest),
            "site": self.site,
            "x25519_public": to_text(self.x25519_public),
            "mlkem_public": to_text(self.mlkem_public),
        }

    @classmethod
    def from_dict(cls, document: object) -> KeyAdvert:
        """Raises Refused for anything that `to_dict` would not write."""
        keys = frozenset({"type", "study", "plan_digest", "site", "x25519_public", "mlkem_public"})
        fields = check_keys("A key advert", document, keys)
        _check_type(fields, _ADVERT_TYPE)
        return cls(
            study=check_name("The advert's study", fields["study"]),
            plan_digest=from_text("The advert's plan digest", fields["plan_digest"], DIGEST_BYTES),
            site=check_name("The advert's site", fields["site"]),
            x25519_public=from_text("The advert's X25519 key", fields["x25519_public"], X25519_BYTES),
            mlkem_public=from_text("The advert's ML-KEM key", fields["mlkem_public"], MLKEM_KEY_BYTES),
        )


def adverts_digest(adverts: Iterable[KeyAdvert]) -> bytes:
    """SHA-256 over the digests of all adverts, by site name: what a site has seen of the study's keys."""
    ordered = sorted(adverts, key=lambda advert: advert.site)
    return hashlib.sha256(encode_fields(_ADVERTS_LABEL, *(a.digest() for a in ordered))).digest()


@dataclass(frozen=True)
class Encapsulations:
    """A site's ML-KEM-768 ciphertexts, one (1088 bytes) to each site whose name sorts after its own.

    `adverts` is the digest of the adverts it saw, so that a split view shows at once. `confirmations` holds,
    for the same sites, 32 bytes that only the pair's root gives: a ciphertext or key that was tampered with
    is an error at the receiver, not noise in every sum. Raises Refused.
    """

    study: str
    plan_digest: bytes
    site: str
    adverts: bytes
    ciphertexts: Mapping[str, bytes]
    confirmations: Mapping[str, bytes]

    def __post_init__(self) -> None:
        check_name("The encapsulations' study", self.study)
        check_name("The encapsulations' site", self.site)
        check_bytes("The encapsulations' plan digest", self.plan_digest, DIGEST_BYTES)
        check_bytes("The encapsulations' adverts digest", self.adverts, DIGEST_BYTES)
        _check_mapping(self.ciphertexts)
        if set(_check_mapping(self.confirmations)) != set(self.ciphertexts):
            raise Refused(
                Refusal.MALFORMED, "Ciphertexts and confirmations are for different sites.", "Send the message again."
            )
        for peer, ciphertext in self.ciphertexts.items():
            check_name("A ciphertext's site", peer)
            check_bytes(f"The ciphertext to {peer}", ciphertext, MLKEM_CIPHERTEXT_BYTES)
            check_bytes(f"The confirmation to {peer}", self.confirmations[peer], KEY_BYTES)
            if peer <= self.site:
                raise Refused(
                    Refusal.MALFORMED,
                    f"{self.site} has no ciphertext to send to {peer}.",
                    "The earlier name encapsulates.",
                )

    def to_dict(self) -> dict[str, object]:
        """JSON-safe."""
        return {
            "type": _ENCAPSULATIONS_TYPE,
            "study": self.study,
            "plan_digest": to_text(self.plan_digest),
            "site": self.site,
            "adverts": to_text(self.adverts),
            "ciphertexts": {peer: to_text(value) for peer, value in sorted(self.ciphertexts.items())},
            "confirmations": {peer: to_text(value) for peer, value in sorted(self.confirmations.items())},
        }

    @classmethod
    def from_dict(cls, document: object) -> Encapsulations:
        """Raises Refused for anything that `to_dict` would not write."""
        keys = frozenset({"type", "study", "plan_digest", "site", "adverts", "ciphertexts", "confirmations"})
        fields = check_keys("An encapsulations message", document, keys)
        _check_type(fields, _ENCAPSULATIONS_TYPE)
        return cls(
            study=check_name("The encapsulations' study", fields["study"]),
            plan_digest=from_text("The encapsulations' plan digest", fields["plan_digest"], DIGEST_BYTES),
            site=check_name("The encapsulations' site", fields["site"]),
            adverts=from_text("The encapsulations' adverts digest", fields["adverts"], DIGEST_BYTES),
            ciphertexts={
                check_name("A ciphertext's site", peer): from_text("A ciphertext", value, MLKEM_CIPHERTEXT_BYTES)
                for peer, value in _check_mapping(fields["ciphertexts"]).items()
            },
            confirmations={
                check_name("A confirmation's site", peer): from_text("A confirmation", value, KEY_BYTES)
                for peer, value in _check_mapping(fields["confirmations"]).items()
            },
        )


def transcript_digest(encapsulations: Iterable[Encapsulations]) -> bytes:
    """SHA-256 over every site's encapsulations, by site name: what a site has seen of the whole set-up."""
    fields: list[bytes | str] = [_TRANSCRIPT_LABEL]
    for message in sorted(encapsulations, key=lambda item: item.site):
        fields += [message.study, message.plan_digest, message.site, message.adverts]
        for peer, ciphertext in sorted(message.ciphertexts.items()):
            fields += [peer, ciphertext, message.confirmations[peer]]
    return hashlib.sha256(encode_fields(*fields)).digest()


def _check_mapping(value: object) -> Mapping[str, bytes]:
    if not isinstance(value, Mapping) or len(value) >= MAX_SITES:
        raise Refused(Refusal.MALFORMED, "The ciphertexts are not a mapping of sites.", "Send the message again.")
    return value


def _check_type(fields: Mapping[str, object], expected: str) -> None:
    if fields["type"] != expected:
        raise Refused(
            Refusal.MALFORMED, f"The message is not of type {expected}.", "Send a message of the agreed version."
        )
