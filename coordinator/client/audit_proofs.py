"""Inclusion proofs for some entries of a bundle, from two passes over all of them and one hash of 256 kept."""

from __future__ import annotations

from protocol.merkle import RootHasher, Tree, inclusion_proof
from protocol.tiles import TILE_HEIGHT, TILE_WIDTH


class BlockProofs:
    """What the first pass keeps: the root of every 256 leaves, and the leaf hashes after the last of them.

    In the second pass the 256 around an entry come by again, which is all that its path still needs.
    """

    def __init__(self) -> None:
        self._hasher = RootHasher()
        self._above = Tree()
        self._last: list[bytes] = []

    def add(self, _: int, leaf_hash: bytes) -> None:
        """The next entry's leaf hash; an entry callback of `verify_bundle`."""
        self._last.append(leaf_hash)
        subtree = self._hasher.add(leaf_hash)
        if subtree is not None:
            self._above.extend((subtree,))
            self._last.clear()

    def prove(self, block: int, leaf_hashes: list[bytes], index: int) -> tuple[bytes, ...]:
        """The audit path of entry `index`, which is among the 256 (or, at the end, fewer) of `block`."""
        trees = {self._above.size: Tree(self._last), block: Tree(leaf_hashes)}

        def read(level: int, number: int) -> bytes:
            if level >= TILE_HEIGHT:
                return self._above.read(level - TILE_HEIGHT, number)
            of, within = divmod(number, TILE_WIDTH >> level)
            return trees[of].read(level, within)

        return inclusion_proof(index, self._hasher.size, read)
