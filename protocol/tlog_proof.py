"""Proof, verifiable offline, that an entry is in the log and that a quorum of witnesses saw it there.

Source: https://c2sp.org/tlog-proof (v1).
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass

from protocol.checkpoint import Checkpoint
from protocol.errors import Malformed
from protocol.merkle import HASH_BYTES, MAX_SIZE, verify_inclusion
from protocol.note import MAX_NOTE_BYTES, Note, strict_base64
from protocol.witness_policy import WitnessPolicy

MAX_HASHES = 63  # a tree of 2^63 - 1 leaves is no deeper

_HEADER = "c2sp.org/tlog-proof@v1"
_INDEX = re.compile(r"index (0|[1-9][0-9]{0,18})")


@dataclass(frozen=True, slots=True)
class TlogProof:
    """An entry's zero-based index, its audit path (leaf's sibling first) and a checkpoint note, verbatim.

    `extra` is opaque and authenticated by nothing; empty when there is none. Raises Malformed when made otherwise.
    """

    index: int
    hashes: tuple[bytes, ...]
    checkpoint: bytes
    extra: bytes = b""

    def __post_init__(self) -> None:
        if not 0 <= self.index < MAX_SIZE or len(self.hashes) > MAX_HASHES:
            raise Malformed("The proof's index or length is out of range.", "Export the proof again.")
        if any(len(digest) != HASH_BYTES for digest in self.hashes):
            raise Malformed("A hash of the proof does not have 32 bytes.", "Export the proof again.")
        Note.parse(self.checkpoint)

    def to_bytes(self) -> bytes:
        """The text form, which `from_bytes` reads."""
        lines = [_HEADER]
        if self.extra:
            lines.append(f"extra {_encode(self.extra)}")
        lines.append(f"index {self.index}")
        lines += [_encode(digest) for digest in self.hashes]
        return "\n".join([*lines, "", ""]).encode("ascii") + self.checkpoint

    @classmethod
    def from_bytes(cls, data: bytes) -> TlogProof:
        """The proof in its text form, at most 2 MB. Raises Malformed for any other form."""
        head, blank, checkpoint = data.partition(b"\n\n")
        if len(data) > 2 * MAX_NOTE_BYTES or not blank:
            raise _malformed()
        try:
            lines = head.decode("ascii").split("\n")
        except UnicodeDecodeError:
            raise _malformed() from None
        if lines.pop(0) != _HEADER:
            raise _malformed()
        extra = b""
        if lines and lines[0].startswith("extra "):
            extra = strict_base64(lines.pop(0).removeprefix("extra "), "proof's extra line")
        index = _INDEX.fullmatch(lines.pop(0)) if lines else None
        if not index:
            raise _malformed()
        proof = cls(int(index[1]), tuple(strict_base64(line, "proof hash") for line in lines), checkpoint, extra)
        if proof.to_bytes() != data:
            raise _malformed()
        return proof

    def verify(self, leaf_hash: bytes, policy: WitnessPolicy) -> Checkpoint:
        """The checkpoint under which the entry with this leaf hash is proved to be logged at `index`.

        Raises Malformed, BadSignature or VerificationFailed when the checkpoint is not one that the policy accepts,
        or the entry is not in its tree.
        """
        checkpoint = policy.accept(self.checkpoint)
        verify_inclusion(leaf_hash, self.index, checkpoint.size, self.hashes, checkpoint.root)
        return checkpoint


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _malformed() -> Malformed:
    return Malformed("The bytes are not a transparency log proof.", f"Send a {_HEADER} file unchanged.")
