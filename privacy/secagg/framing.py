"""A masked vector in chunks, so that an upload over a slow link resumes where it stopped.

A `Manifest` says how long the vector is and what each chunk's SHA-256 is. The sender signs its digest with the
rest of its contribution and stores manifest and vector; the transport then moves chunks in any order, asks the
receiver which it lacks and sends those. `SecureSum` takes a chunk once it agrees with the manifest, so that a
damaged one changes nothing and may be sent again. What was stored is what is sent: a vector is never masked
anew for a resend.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from privacy.secagg.field import WORD_BYTES
from privacy.secagg.masking import encode_fields
from privacy.secagg.messages import DIGEST_BYTES, check_bytes, check_keys, from_text, to_text
from privacy.secagg.refusals import Refusal, Refused

Buffer = bytes | bytearray | memoryview

CHUNK_BYTES = 1 << 20
SMALLEST_CHUNK, LARGEST_CHUNK = 1 << 12, 1 << 24
MOST_CHUNKS = 1 << 16
_LABEL = b"cloister/secagg/manifest/v1"
_TYPE = "cloister/secagg/manifest/v1"


@dataclass(frozen=True)
class Manifest:
    """length: bytes of the vector, a multiple of 4. chunk_bytes: of each chunk but the last, 4 KiB to 16 MiB and a
    multiple of 4. digests: SHA-256 of each chunk in order, at most 65,536 of them. Raises Refused.
    """

    length: int
    chunk_bytes: int
    digests: tuple[bytes, ...]

    def __post_init__(self) -> None:
        for number in (self.length, self.chunk_bytes):
            if isinstance(number, bool) or not isinstance(number, int) or number < WORD_BYTES or number % WORD_BYTES:
                raise _unfit()
        chunks = -(-self.length // self.chunk_bytes)
        if not SMALLEST_CHUNK <= self.chunk_bytes <= LARGEST_CHUNK or not chunks == len(self.digests) <= MOST_CHUNKS:
            raise _unfit()
        for digest in self.digests:
            check_bytes("A chunk's digest", digest, DIGEST_BYTES)

    @classmethod
    def of(cls, data: Buffer, chunk_bytes: int = CHUNK_BYTES) -> Manifest:
        """The manifest of a whole vector. Raises Refused for a length or chunk that no manifest may have."""
        if not SMALLEST_CHUNK <= chunk_bytes <= LARGEST_CHUNK:
            raise _unfit()
        view = memoryview(data).cast("B")
        starts = range(0, len(view), chunk_bytes)
        digests = tuple(hashlib.sha256(view[start : start + chunk_bytes]).digest() for start in starts)
        return cls(len(view), chunk_bytes, digests)

    def digest(self) -> bytes:
        """SHA-256 over all of it: what a contribution's signature covers in place of the vector."""
        return hashlib.sha256(encode_fields(_LABEL, self.length, self.chunk_bytes, *self.digests)).digest()

    def span(self, index: int) -> tuple[int, int]:
        """(start, stop) of a chunk in bytes. Raises Refused for a chunk that there is not."""
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(self.digests):
            raise Refused(
                Refusal.DAMAGED_CHUNK,
                "There is no chunk of that number.",
                "Ask which chunks are missing, and send those.",
            )
        start = index * self.chunk_bytes
        return start, min(start + self.chunk_bytes, self.length)

    def check(self, index: int, chunk: Buffer) -> tuple[int, int]:
        """Its span, if `chunk` is what the manifest says. Raises Refused."""
        start, stop = self.span(index)
        if len(chunk) != stop - start or hashlib.sha256(chunk).digest() != self.digests[index]:
            raise Refused(
                Refusal.DAMAGED_CHUNK, f"Chunk {index} is not the one that its manifest names.", "Send the chunk again."
            )
        return start, stop

    def to_dict(self) -> dict[str, object]:
        """JSON-safe."""
        return {
            "type": _TYPE,
            "length": self.length,
            "chunk_bytes": self.chunk_bytes,
            "digests": [to_text(digest) for digest in self.digests],
        }

    @classmethod
    def from_dict(cls, document: object) -> Manifest:
        """Raises Refused for anything that `to_dict` would not write."""
        fields = check_keys("A manifest", document, frozenset({"type", "length", "chunk_bytes", "digests"}))
        length, chunk_bytes, digests = fields["length"], fields["chunk_bytes"], fields["digests"]
        if (
            fields["type"] != _TYPE
            or not isinstance(length, int)
            or not isinstance(chunk_bytes, int)
            or not isinstance(digests, list)
            or len(digests) > MOST_CHUNKS
        ):
            raise _unfit()
        return cls(length, chunk_bytes, tuple(from_text("A chunk's digest", text, DIGEST_BYTES) for text in digests))


def chunked(data: Buffer, manifest: Manifest, wanted: Iterable[int] | None = None) -> Iterator[tuple[int, memoryview]]:
    """(index, chunk) for each chunk of a stored vector, or for those `wanted`, without a copy.

    Raises Refused for a number that there is not and, before anything is sent, where a stored chunk is no longer
    what the manifest says.
    """
    view = memoryview(data).cast("B")
    for index in range(len(manifest.digests)) if wanted is None else wanted:
        start, stop = manifest.span(index)
        manifest.check(index, view[start:stop])
        yield index, view[start:stop]


def _unfit() -> Refused:
    return Refused(Refusal.MALFORMED, "A manifest's lengths do not fit each other.", "Send the message again, whole.")
