"""Checkpoints: a log's signed tree head, and the witnesses' cosignatures over it.

Sources: https://c2sp.org/tlog-checkpoint (v1.0.0) and https://c2sp.org/tlog-cosignature (cosignature/v1 with
Ed25519, subtree/v1 with ML-DSA-44). Cloister's checkpoints have no extension lines, their origin is the log key's
name, and a cosignature always tells its time.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from protocol.errors import BadSignature, Malformed
from protocol.merkle import EMPTY_ROOT, HASH_BYTES, MAX_SIZE
from protocol.note import (
    KeyType,
    Note,
    NoteSignature,
    VerifierKey,
    open_note,
    require_key_name,
    sign_text,
    strict_base64,
    verify_text,
)
from protocol.signing import MlDsa44SigningKey, SigningKey

MAX_TIMESTAMP = 2**63 - 1
COSIGNER_TYPES = frozenset({KeyType.COSIGNATURE_V1, KeyType.ML_DSA_44})

_DECIMAL = re.compile(r"0|[1-9][0-9]{0,18}")
_TIMESTAMP_BYTES = 8


@dataclass(frozen=True, slots=True)
class TreeHead:
    """What a checkpoint states: the log's origin, the number of leaves, the 32-byte root.

    Raises Malformed unless the origin can name a key, 0 <= size < 2^63 and an empty tree has the empty root.
    """

    origin: str
    size: int
    root: bytes

    def __post_init__(self) -> None:
        require_key_name(self.origin)
        if not 0 <= self.size <= MAX_SIZE or len(self.root) != HASH_BYTES:
            raise Malformed("The tree head's size or root is out of range.", "Fetch the checkpoint again.")
        if self.size == 0 and self.root != EMPTY_ROOT:
            raise Malformed("An empty tree has another root.", "Fetch the checkpoint again.")

    @classmethod
    def parse(cls, text: str) -> TreeHead:
        """The tree head in a checkpoint's three lines. Raises Malformed for any other form."""
        lines = text.split("\n")
        if len(lines) != 4 or lines[3] or not _DECIMAL.fullmatch(lines[1]):
            raise Malformed("The text is not a checkpoint's three lines.", "Send origin, size and root.")
        return cls(lines[0], int(lines[1]), strict_base64(lines[2], "root hash"))

    @property
    def text(self) -> str:
        """The note text that the log signs."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode('ascii')}\n"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A tree head whose log signature held, with its verified cosigners: {witness name: POSIX seconds}.

    Only `open_checkpoint` makes one from bytes; whether the cosigners are enough is `WitnessPolicy`'s to say.
    """

    origin: str
    size: int
    root: bytes
    cosigners: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def head(self) -> TreeHead:
        """The tree head alone."""
        return TreeHead(self.origin, self.size, self.root)


def sign_checkpoint(head: TreeHead, key: SigningKey) -> Note:
    """The checkpoint note with the log's Ed25519 signature under its origin as the key's name."""
    return Note(head.text, (sign_text(head.text, head.origin, key),))


def cosigner_key(name: str, key: SigningKey | MlDsa44SigningKey) -> VerifierKey:
    """The verifier key (type 4 or 6) under which `cosign` signs."""
    kind = KeyType.ML_DSA_44 if isinstance(key, MlDsa44SigningKey) else KeyType.COSIGNATURE_V1
    return VerifierKey(name, kind, key.public.raw)


def cosign(head: TreeHead, name: str, key: SigningKey | MlDsa44SigningKey, *, timestamp: int) -> NoteSignature:
    """The witness's cosignature: of all trees of this log it saw, `head` is the largest at `timestamp`.

    The caller has checked consistency with, and durably replaced, the last head it cosigned. `timestamp` is in
    POSIX seconds, 1 to 2^63 - 1; raises Malformed beyond.
    """
    verifier = cosigner_key(name, key)
    signature = key.sign(_cosigned_message(verifier, head, timestamp))
    return NoteSignature(name, verifier.key_id, timestamp.to_bytes(_TIMESTAMP_BYTES, "big") + signature)


def verify_cosignature(head: TreeHead, line: NoteSignature, witness: VerifierKey) -> int:
    """The timestamp of a cosignature line by `witness` over `head`.

    Raises BadSignature when the line is by another key or does not verify, Malformed when it tells no time.
    """
    if (line.name, line.key_id) != (witness.name, witness.key_id):
        raise BadSignature(f"The cosignature is not by {witness.name}.", "Send the witness's own cosignature.")
    return _verify_timestamped(witness, head, line.signature)


def open_checkpoint(data: bytes, log: VerifierKey, witnesses: Iterable[VerifierKey] = ()) -> Checkpoint:
    """The checkpoint in a note, once the log's signature and every known witness's cosignature hold.

    Unknown signers are ignored. Raises Malformed for bytes that are no checkpoint, witnesses of one name, or keys of
    the wrong type; BadSignature when the log's signature is missing, any known signature is bad, or the origin isn't
    the log's.
    """
    known = tuple(witnesses)
    if log.type is not KeyType.ED25519 or any(witness.type not in COSIGNER_TYPES for witness in known):
        raise Malformed("A log or witness key is of the wrong type.", "Use type 1 for the log, 4 or 6 for witnesses.")
    if len({witness.name for witness in known}) != len(known):
        raise Malformed("Two witnesses have one name.", "Name each witness once.")
    text, verified = open_note(data, (log, *known), _verify_line)
    if log not in verified:
        raise BadSignature(f"The checkpoint is not signed by the log {log.name}.", "Fetch the log's own checkpoint.")
    head = TreeHead.parse(text)
    if head.origin != log.name:
        raise BadSignature(f"The checkpoint is of {head.origin}, not {log.name}.", "Fetch this log's checkpoint.")
    times = {
        key.name: int.from_bytes(signature[:_TIMESTAMP_BYTES], "big")
        for key, signature in verified.items()
        if key != log
    }
    return Checkpoint(head.origin, head.size, head.root, MappingProxyType(times))


def _verify_line(key: VerifierKey, text: str, signature: bytes) -> None:
    if key.type is KeyType.ED25519:
        verify_text(key, text, signature)
    else:
        _verify_timestamped(key, TreeHead.parse(text), signature)


def _verify_timestamped(key: VerifierKey, head: TreeHead, signature: bytes) -> int:
    timestamp = int.from_bytes(signature[:_TIMESTAMP_BYTES], "big")
    key.verify(signature[_TIMESTAMP_BYTES:], _cosigned_message(key, head, timestamp))
    return timestamp


def _cosigned_message(key: VerifierKey, head: TreeHead, timestamp: int) -> bytes:
    if not 1 <= timestamp <= MAX_TIMESTAMP:
        raise Malformed("A cosignature's time is out of range.", "Cosign with the time in POSIX seconds.")
    if key.type is KeyType.COSIGNATURE_V1:
        return f"cosignature/v1\ntime {timestamp}\n{head.text}".encode()
    if key.type is KeyType.ML_DSA_44:
        name, origin = key.name.encode("utf-8"), head.origin.encode("utf-8")
        return b"".join(
            (
                b"subtree/v1\n\x00",
                bytes([len(name)]) + name,
                timestamp.to_bytes(8, "big"),
                bytes([len(origin)]) + origin,
                (0).to_bytes(8, "big"),
                head.size.to_bytes(8, "big"),
                head.root,
            )
        )
    raise BadSignature(f"{key.name} is not a cosigner's key.", "Name the witness's cosigner key.")
