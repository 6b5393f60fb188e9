"""RFC 6962 Merkle trees: hashes, the growing frontier, proofs read from stored hashes, and their verification.

A stored hash is named (level, index): the Merkle tree hash of the complete subtree over the leaves
[index * 2^level, (index + 1) * 2^level). Whoever keeps them, in memory or in tiles on disk, hands in a
`HashReader`; no function here holds a whole tree but `Tree`.
"""

from __future__ import annotations

import hashlib
import hmac
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from protocol.errors import VerificationFailed

HASH_BYTES = 32
_PAIR = 2 * HASH_BYTES
MAX_SIZE = 2**63 - 1
_SUBTREE = 256  # leaves that RootHasher folds at once
EMPTY_ROOT = hashlib.sha256(b"").digest()

HashReader = Callable[[int, int], bytes]
"""(level, index) -> the 32-byte hash of that complete subtree."""


class PathReader(ABC):
    """A HashReader of a log of one size that is quicker when it is asked for more at once."""

    @abstractmethod
    def __call__(self, level: int, index: int) -> bytes:
        """As any HashReader."""

    @abstractmethod
    def siblings(self, level: int, leaf: int, top: int) -> list[bytes]:
        """The hashes beside the subtrees over `leaf`, from `level` up to below `top`, all of them complete."""

    @abstractmethod
    def edge(self, start: int) -> bytes:
        """The hash of the leaves from `start` to the end, where `start` is as RFC 6962's splits give it."""


Node = tuple[int, int, bytes]
"""(level, index, hash) of a complete subtree."""


def leaf_hash(entry: bytes) -> bytes:
    """SHA-256(0x00 || entry), RFC 6962 2.1."""
    return hashlib.sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """SHA-256(0x01 || left || right), RFC 6962 2.1."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def level_above(row: bytes) -> bytes:
    """The node hashes over neighbours in `row`, an even number of hashes end to end: half as many, end to end."""
    sha256 = hashlib.sha256  # left || right lie side by side: one slice is what a node hashes
    return b"".join([sha256(b"\x01" + row[at : at + _PAIR]).digest() for at in range(0, len(row), _PAIR)])


@dataclass(frozen=True, slots=True)
class Frontier:
    """All that a log must remember to grow: its size and the roots of its complete subtrees, largest first.

    There is one root for each 1 bit of `size`, at most 63.
    """

    size: int = 0
    peaks: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.size <= MAX_SIZE or len(self.peaks) != self.size.bit_count():
            raise ValueError("the number of peaks must be the number of 1 bits of the size")

    @classmethod
    def read(cls, size: int, reader: HashReader) -> Frontier:
        """The frontier of the first `size` leaves, from stored hashes."""
        return cls(size, tuple(reader(level, index) for level, index in _complete_subtrees(0, size)))

    def extend(self, leaf_hashes: Iterable[bytes]) -> tuple[Frontier, list[Node]]:
        """The frontier after these leaves, and every complete subtree that they finished, leaves included."""
        size, peaks, finished = self.size, list(self.peaks), []
        for digest in leaf_hashes:
            level, index = 0, size
            finished.append((level, index, digest))
            while index & 1:
                digest = node_hash(peaks.pop(), digest)
                level, index = level + 1, index >> 1
                finished.append((level, index, digest))
            peaks.append(digest)
            size += 1
        return Frontier(size, tuple(peaks)), finished

    @property
    def root(self) -> bytes:
        """The Merkle tree hash; SHA-256 of nothing for an empty tree."""
        return _fold(self.peaks)


class RootHasher:
    """The root of leaves that come one after the other, in memory that grows with the tree's height alone."""

    def __init__(self) -> None:
        self._row: list[bytes] = []  # of the subtree that is being filled
        self._subtrees = Frontier()  # its leaves are the roots of those that are full

    @property
    def size(self) -> int:
        """The number of leaves."""
        return self._subtrees.size * _SUBTREE + len(self._row)

    def add(self, leaf_hash: bytes) -> bytes | None:
        """Append a leaf hash; the root of the subtree of 256 leaves that it completes, if it completes one."""
        self._row.append(leaf_hash)
        if len(self._row) < _SUBTREE:
            return None
        row = b"".join(self._row)
        while len(row) > HASH_BYTES:
            row = level_above(row)
        self._row.clear()
        self._subtrees, _ = self._subtrees.extend((row,))
        return row

    @property
    def root(self) -> bytes:
        """The Merkle tree hash of the leaves so far; SHA-256 of nothing for none."""
        last, _ = Frontier().extend(self._row)
        return _fold((*self._subtrees.peaks, *last.peaks))


class Tree:
    """A whole tree in memory, for mirrors and small logs; `read` is its HashReader."""

    def __init__(self, leaf_hashes: Iterable[bytes] = ()) -> None:
        self._levels: list[list[bytes]] = []
        self._frontier = Frontier()
        self.extend(leaf_hashes)

    @property
    def size(self) -> int:
        """The number of leaves."""
        return self._frontier.size

    def extend(self, leaf_hashes: Iterable[bytes]) -> None:
        """Append leaf hashes."""
        self._frontier, finished = self._frontier.extend(leaf_hashes)
        for level, _, digest in finished:
            if level == len(self._levels):
                self._levels.append([])
            self._levels[level].append(digest)

    def read(self, level: int, index: int) -> bytes:
        """The hash of the complete subtree (level, index); IndexError if the tree doesn't reach so far."""
        return self._levels[level][index]

    def root(self, size: int | None = None) -> bytes:
        """The root of the first `size` leaves, all when None."""
        return self._frontier.root if size is None else root(size, self.read)


def root(size: int, reader: HashReader) -> bytes:
    """The root of the first `size` leaves."""
    return range_hash(0, size, reader)


def inclusion_proof(index: int, size: int, reader: HashReader) -> tuple[bytes, ...]:
    """The audit path of leaf `index` in the tree of `size` leaves, the leaf's sibling first (RFC 6962 2.1.1).

    Raises ValueError unless 0 <= index < size.
    """
    if not 0 <= index < size:
        raise ValueError(f"index {index} is not in a tree of {size}")
    return tuple(_path(0, index, size, reader))


def consistency_proof(old_size: int, new_size: int, reader: HashReader) -> tuple[bytes, ...]:
    """The proof that the tree of `old_size` is a prefix of the one of `new_size` (RFC 6962 2.1.2).

    Empty for equal sizes. Raises ValueError unless 0 < old_size <= new_size: there is nothing to prove of an
    empty tree.
    """
    if not 0 < old_size <= new_size:
        raise ValueError(f"no consistency proof leads from size {old_size} to {new_size}")
    if old_size == new_size:
        return ()
    level = (old_size & -old_size).bit_length() - 1  # of the old tree's last complete subtree: its path is the proof
    path = _path(level, old_size - 1, new_size, reader)
    if old_size >> level == 1:  # it is the whole old tree, whose root the verifier holds
        return tuple(path)
    return (reader(level, (old_size >> level) - 1), *path)


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """Return if the leaf hash `leaf` is at `index` of the tree of `size` with `root` (RFC 9162 2.1.3.2).

    Raises VerificationFailed otherwise, whatever the integers and the lengths of the hashes.
    """
    if not 0 <= index < size <= MAX_SIZE:
        raise _failed("inclusion", f"index {index} is not in a tree of size {size}")
    _require_hashes("inclusion", leaf, root, *proof)
    at, last, computed = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            raise _failed("inclusion", "the proof is too long")
        if at & 1 or at == last:
            computed = node_hash(sibling, computed)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            computed = node_hash(computed, sibling)
        at, last = at >> 1, last >> 1
    if last:
        raise _failed("inclusion", "the proof is too short")
    if not hmac.compare_digest(computed, root):
        raise _failed("inclusion", "the computed root is another one")


def verify_consistency(old_size: int, new_size: int, proof: Sequence[bytes], old_root: bytes, new_root: bytes) -> None:
    """Return if the tree of `old_size` with `old_root` is a prefix of the new one (RFC 9162 2.1.4.2).

    Raises VerificationFailed otherwise, and always for an old size of 0, which proves nothing.
    """
    if not 0 < old_size <= new_size <= MAX_SIZE:
        raise _failed("consistency", f"nothing leads from size {old_size} to {new_size}")
    if old_size == new_size:
        if proof:
            raise _failed("consistency", "the proof is too long")
        if not hmac.compare_digest(old_root, new_root):
            raise _failed("consistency", "one size has two roots")
        return
    _require_hashes("consistency", old_root, new_root, *proof)
    path = list(proof)
    if old_size.bit_count() == 1:  # the old tree is a complete subtree of the new one: its root begins the path
        path.insert(0, old_root)
    if not path:
        raise _failed("consistency", "the proof is too short")
    at, last = old_size - 1, new_size - 1
    while at & 1:
        at, last = at >> 1, last >> 1
    old = new = path[0]
    for sibling in path[1:]:
        if last == 0:
            raise _failed("consistency", "the proof is too long")
        if at & 1 or at == last:
            old, new = node_hash(sibling, old), node_hash(sibling, new)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            new = node_hash(new, sibling)
        at, last = at >> 1, last >> 1
    if last:
        raise _failed("consistency", "the proof is too short")
    if not hmac.compare_digest(old, old_root):
        raise _failed("consistency", "the computed old root is another one")
    if not hmac.compare_digest(new, new_root):
        raise _failed("consistency", "the computed new root is another one")


def _path(level: int, leaf: int, size: int, reader: HashReader) -> list[bytes]:
    """The siblings, lowest first, from the subtree of this level over `leaf` up to the root of `size` leaves."""
    top = (leaf ^ size).bit_length() - 1  # the complete subtree over `leaf` that the tree of `size` has as a peak
    whole = reader if isinstance(reader, PathReader) else None
    path = whole.siblings(level, leaf, top) if whole else [reader(at, (leaf >> at) ^ 1) for at in range(level, top)]
    right = size & ((1 << top) - 1)  # the leaves in the peaks to its right, which hash to one
    if right:
        path.append(whole.edge(size - right) if whole else range_hash(size - right, size, reader))
    higher = size >> top + 1
    while higher:  # the peaks to its left
        top += 1
        if higher & 1:
            path.append(reader(top, (size >> top) - 1))
        higher >>= 1
    return path


def _complete_subtrees(start: int, end: int) -> list[tuple[int, int]]:
    """The complete subtrees (level, index), largest first, of a range that RFC 6962's splits can produce."""
    subtrees = []
    while start < end:
        level = (end - start).bit_length() - 1
        subtrees.append((level, start >> level))
        start += 1 << level
    return subtrees


def range_hash(start: int, end: int, reader: HashReader) -> bytes:
    """The hash over the leaves start to end - 1, a range that RFC 6962's splits can produce."""
    peaks = [reader(level, index) for level, index in _complete_subtrees(start, end)]
    return peaks[0] if len(peaks) == 1 else _fold(peaks)


def _fold(peaks: Sequence[bytes]) -> bytes:
    if not peaks:
        return EMPTY_ROOT
    computed = peaks[-1]
    for peak in reversed(peaks[:-1]):
        computed = node_hash(peak, computed)
    return computed


def _require_hashes(what: str, *hashes: bytes) -> None:
    if any(len(digest) != HASH_BYTES for digest in hashes):
        raise _failed(what, "a hash does not have 32 bytes")


def _failed(what: str, why: str) -> VerificationFailed:
    return VerificationFailed(
        f"The {what} proof does not hold: {why}.",
        "Fetch the proof and the checkpoint again; if it fails again, treat the log as tampered with.",
    )
