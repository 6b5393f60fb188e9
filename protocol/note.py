"""Signed notes and the keys that verify them.

Source: https://c2sp.org/signed-note (v1.0.0). A note is text, a blank line, and signature lines; a key is known by
its name and a 4-byte id. What a cosignature signs is in `protocol.checkpoint`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import IntEnum

from protocol.errors import BadSignature, Malformed
from protocol.signing import MlDsa44VerifyingKey, SigningKey, VerifyingKey

MAX_NOTE_BYTES = 1_000_000
MAX_SIGNATURES = 100
MAX_NAME_BYTES = 255

_KEY_ID_BYTES = 4
_UNFIT = re.compile(r"[\x00-\x09\x0b-\x1f\ud800-\udfff]")
_LINE_START = "— "


class KeyType(IntEnum):
    """The signature types that Cloister knows, by their identifier byte."""

    ED25519 = 1
    COSIGNATURE_V1 = 4
    """Timestamped Ed25519 cosignature."""
    ML_DSA_44 = 6
    """Timestamped ML-DSA-44 subtree cosignature."""


@dataclass(frozen=True, slots=True)
class VerifierKey:
    """A named public key: raw Ed25519 (32 bytes) or ML-DSA-44 (1312 bytes). Raises Malformed when made otherwise."""

    name: str
    type: KeyType
    public: bytes

    def __post_init__(self) -> None:
        require_key_name(self.name)
        self._key()

    @classmethod
    def parse(cls, text: str) -> VerifierKey:
        """The key in a vkey, "<name>+<hex key id>+<base64 of type and key>". Raises Malformed for any other form."""
        name, _, rest = text.partition("+")
        _, _, encoded = rest.partition("+")
        material = strict_base64(encoded, "verifier key")
        if not material or material[0] not in {int(kind) for kind in KeyType}:
            raise Malformed("The verifier key is of an unknown type.", "Use Ed25519 (1, 4) or ML-DSA-44 (6).")
        key = cls(name, KeyType(material[0]), material[1:])
        if key.text != text:
            raise Malformed("The verifier key's id is not its key's.", "Copy the whole key from its owner.")
        return key

    @property
    def key_id(self) -> bytes:
        """The first 4 bytes of SHA-256(name || 0x0A || type || public)."""
        named = self.name.encode("utf-8") + b"\n" + bytes([self.type]) + self.public
        return hashlib.sha256(named).digest()[:_KEY_ID_BYTES]

    @property
    def text(self) -> str:
        """The vkey form that `parse` reads."""
        material = base64.b64encode(bytes([self.type]) + self.public).decode("ascii")
        return f"{self.name}+{self.key_id.hex()}+{material}"

    def verify(self, signature: bytes, message: bytes) -> None:
        """Return if `signature` (no timestamp) is this key's over `message`; raise BadSignature otherwise."""
        self._key().verify(signature, message)

    def _key(self) -> VerifyingKey | MlDsa44VerifyingKey:
        if self.type is KeyType.ML_DSA_44:
            return MlDsa44VerifyingKey(self.public)
        return VerifyingKey(self.public)


@dataclass(frozen=True, slots=True)
class NoteSignature:
    """One signature line: the key's name, its 4-byte id and the signature (for a cosignature, timestamp first)."""

    name: str
    key_id: bytes
    signature: bytes

    def __post_init__(self) -> None:
        require_key_name(self.name, limit=MAX_NOTE_BYTES)  # a stranger's name may be long
        if len(self.key_id) != _KEY_ID_BYTES or not self.signature:
            raise Malformed("A note signature lacks its key id or its bytes.", "Get the note again.")

    @property
    def line(self) -> str:
        """The line with its newline."""
        return f"{_LINE_START}{self.name} {base64.b64encode(self.key_id + self.signature).decode('ascii')}\n"


@dataclass(frozen=True, slots=True)
class Note:
    """Text (ending in a newline) with 1-100 signature lines, nothing verified. Raises Malformed when made otherwise."""

    text: str
    signatures: tuple[NoteSignature, ...]

    def __post_init__(self) -> None:
        _require_text(self.text)
        if not self.text.endswith("\n"):
            raise Malformed("The note's text does not end in a newline.", "End each line with a newline.")
        if not 1 <= len(self.signatures) <= MAX_SIGNATURES:
            raise Malformed(f"The note has {len(self.signatures)} signatures.", f"Give 1 to {MAX_SIGNATURES}.")

    @classmethod
    def parse(cls, data: bytes) -> Note:
        """The note in these bytes, at most 1 MB. Raises Malformed for any other form."""
        content = _decode(data)
        text, blank, lines = content.rpartition("\n\n")
        if not blank:
            raise Malformed("The note has no blank line before its signatures.", "Send the whole note.")
        return cls(text + "\n", _signatures(lines))

    def to_bytes(self) -> bytes:
        """The note as `parse` reads it."""
        return "".join([self.text, "\n", *(signature.line for signature in self.signatures)]).encode("utf-8")

    def with_signatures(self, *signatures: NoteSignature) -> Note:
        """The note with more signature lines at its end."""
        return replace(self, signatures=self.signatures + signatures)


Verify = Callable[[VerifierKey, str, bytes], None]
"""(key, note text, signature bytes) -> None, or BadSignature."""


def parse_signatures(data: bytes) -> tuple[NoteSignature, ...]:
    """1-100 signature lines that travel without their note. Raises Malformed for any other form."""
    return _signatures(_decode(data))


def sign_text(text: str, name: str, key: SigningKey) -> NoteSignature:
    """An Ed25519 signature (type 1) over a note's text."""
    verifier = VerifierKey(name, KeyType.ED25519, key.public.raw)
    return NoteSignature(name, verifier.key_id, key.sign(text.encode("utf-8")))


def verify_text(key: VerifierKey, text: str, signature: bytes) -> None:
    """Return if `signature` is an Ed25519 (type 1) key's over the text; raise BadSignature otherwise."""
    if key.type is not KeyType.ED25519:
        raise BadSignature(f"{key.name} has a cosigner's key.", "Name the key that signs notes.")
    key.verify(signature, text.encode("utf-8"))


def open_note(
    data: bytes, trusted: Iterable[VerifierKey], verify: Verify = verify_text
) -> tuple[str, dict[VerifierKey, bytes]]:
    """The text, and the verified signature of each trusted key that signed, in the note's order.

    Signatures by unknown keys are ignored. Raises Malformed for bytes that are no note, for two trusted keys of one
    name and id, and when a trusted key signs twice; BadSignature when a trusted key's signature does not verify and
    when none signed.
    """
    known: dict[tuple[str, bytes], VerifierKey] = {}
    for key in trusted:
        if known.setdefault((key.name, key.key_id), key) != key:
            raise Malformed(f"Two trusted keys are named {key.name} with one id.", "Give one of them another name.")
    note = Note.parse(data)
    verified: dict[VerifierKey, bytes] = {}
    for line in note.signatures:
        signer = known.get((line.name, line.key_id))
        if signer is None:
            continue
        if signer in verified:
            raise Malformed(f"{signer.name} signed the note twice.", "Keep one signature line for each key.")
        verify(signer, note.text, line.signature)
        verified[signer] = line.signature
    if not verified:
        raise BadSignature("No trusted key signed the note.", "Get a note that a trusted key signed.")
    return note.text, verified


def require_key_name(name: str, *, limit: int = MAX_NAME_BYTES) -> str:
    """`name` if it can name a key: 1 to `limit` UTF-8 bytes, no Unicode space, no control character, no plus."""
    _require_text(name)
    unfit = not name or "+" in name or any(character.isspace() for character in name)
    if unfit or len(name.encode("utf-8")) > limit:
        raise Malformed("A key name is empty, too long or has a space or a plus.", "Use a name like example.org/log.")
    return name


def strict_base64(text: str, what: str) -> bytes:
    """The bytes in padded standard base64 whose unused bits are zero. Raises Malformed naming `what` otherwise."""
    try:
        data = base64.b64decode(text.encode("ascii"), validate=True)
    except (UnicodeEncodeError, binascii.Error):
        data = None
    if data is None or base64.b64encode(data).decode("ascii") != text:
        raise Malformed(f"The {what} is not base64.", "Use padded standard base64.")
    return data


def _signatures(lines: str) -> tuple[NoteSignature, ...]:
    if not lines.endswith("\n"):
        raise Malformed("The signature lines do not end in a newline.", "Send them whole.")
    split = lines[:-1].split("\n")
    if len(split) > MAX_SIGNATURES:
        raise Malformed(f"There are {len(split)} signature lines.", f"Give at most {MAX_SIGNATURES}.")
    return tuple(_signature(line) for line in split)


def _signature(line: str) -> NoteSignature:
    name, _, encoded = line.removeprefix(_LINE_START).partition(" ")
    material = strict_base64(encoded, "note signature")
    signature = NoteSignature(name, material[:_KEY_ID_BYTES], material[_KEY_ID_BYTES:])
    if signature.line != line + "\n":
        raise Malformed("A signature line is not an em dash, a name and base64.", "Send the note unchanged.")
    return signature


def _decode(data: bytes) -> str:
    if len(data) > MAX_NOTE_BYTES:
        raise Malformed(f"The note has {len(data)} bytes; the limit is {MAX_NOTE_BYTES}.", "Send a smaller note.")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise Malformed("The note is not UTF-8.", "Encode it as UTF-8.") from None


def _require_text(text: str) -> None:
    if _UNFIT.search(text):
        raise Malformed("The note holds a control character.", "Use plain text and newlines.")
