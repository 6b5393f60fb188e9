"""The log's tiles and entry bundles on disk (C2SP tlog-tiles), each one file that only ever grows.

A file lies at its full tile's path. A partial tile is a prefix of it, so any width up to the file's is served from the
same bytes, and a crash between writing tiles and publishing the head leaves nothing but a longer file.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from protocol.errors import VerificationFailed
from protocol.merkle import HASH_BYTES, Frontier, HashReader, leaf_hash
from protocol.tiles import (
    TILE_HEIGHT,
    TILE_WIDTH,
    Tile,
    encode_bundle,
    tile_reader,
    touched_bundles,
    touched_tiles,
)


class LogDamaged(VerificationFailed):
    """The tiles on disk are not those of the published head."""

    code = "log-damaged"


class TileStore:
    """The tiles under `folder`. Who writes holds `writing`; readers come at any time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Wait for, then hold, the right to write: one thread of one process at a time."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def read(self, tile: Tile) -> bytes:
        """The tile's bytes. Raises LogDamaged when the disk does not hold so many."""
        try:
            data = self._path(tile).read_bytes()
        except FileNotFoundError:
            raise _damaged(tile) from None
        if tile.level is not None:
            if len(data) < tile.width * HASH_BYTES:
                raise _damaged(tile)
            return data[: tile.width * HASH_BYTES]
        return data[: _bundle_end(tile, data)]

    def reader(self, size: int) -> HashReader:
        """Hashes of the first `size` leaves, with the tiles that were read kept for this reader's life."""
        cache: dict[Tile, bytes] = {}

        def fetch(tile: Tile) -> bytes:
            if tile not in cache:
                cache[tile] = self.read(tile)
            return cache[tile]

        return tile_reader(size, fetch)

    def frontier(self, size: int, root: bytes) -> Frontier:
        """The frontier of the published log. Raises LogDamaged unless the tiles give that root."""
        frontier = Frontier.read(size, self.reader(size))
        if frontier.root != root:
            raise LogDamaged(
                "The log's tiles on disk do not give the published root.", "Rebuild them from the database."
            )
        return frontier

    def extend(self, frontier: Frontier, leaves: Sequence[bytes]) -> Frontier:
        """Write what the leaves add to the log at `frontier`, durably; the frontier after."""
        old = frontier.size
        after, finished = frontier.extend(leaf_hash(leaf) for leaf in leaves)
        fresh: dict[tuple[int, int], list[bytes]] = {}
        for level, index, digest in finished:
            if level % TILE_HEIGHT == 0:
                fresh.setdefault((level // TILE_HEIGHT, index // TILE_WIDTH), []).append(digest)
        for tile in touched_tiles(old, after.size):
            level = tile.level or 0
            before = min(TILE_WIDTH, max(0, (old >> TILE_HEIGHT * level) - tile.index * TILE_WIDTH))
            kept = self.read(Tile(level, tile.index, before)) if before else b""
            self._write(tile, kept + b"".join(fresh[level, tile.index]))
        for bundle in touched_bundles(old, after.size):
            first = bundle.index * TILE_WIDTH
            before = max(0, old - first)
            kept = self.read(Tile(None, bundle.index, before)) if before else b""
            added = leaves[max(first, old) - old : first + bundle.width - old]
            self._write(bundle, kept + encode_bundle(added))
        return after

    def _path(self, tile: Tile) -> Path:
        return self._folder / Tile(tile.level, tile.index).path

    def _write(self, tile: Tile, data: bytes) -> None:
        path = self._path(tile)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        fresh = path.with_name(f"{path.name}.new")
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _bundle_end(tile: Tile, data: bytes) -> int:
    end = 0
    for _ in range(tile.width):
        if end + 2 > len(data):
            raise _damaged(tile)
        end += 2 + int.from_bytes(data[end : end + 2], "big")
    if end > len(data):
        raise _damaged(tile)
    return end


def _damaged(tile: Tile) -> LogDamaged:
    return LogDamaged(f"The log's {tile.path} on disk is missing or too short.", "Rebuild the tiles from the database.")
