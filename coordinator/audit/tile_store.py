"""The log's tiles and entry bundles on disk (C2SP tlog-tiles), each one file that only ever grows.

A file lies at its full tile's path. A partial tile is a prefix of it, so any width up to the file's is served from the
same bytes, and a crash between writing tiles and publishing the head leaves nothing but a longer file. After a hash
tile's own hashes the file holds those of the complete subtrees above them, level by level up to its root's children:
a proof reads them there instead of hashing the tile again. The file's length tells its width.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from protocol.errors import VerificationFailed
from protocol.merkle import HASH_BYTES, Frontier, PathReader, leaf_hash, level_above, range_hash
from protocol.tiles import (
    TILE_HEIGHT,
    TILE_WIDTH,
    Tile,
    encode_bundle,
    touched_bundles,
    touched_tiles,
)


class LogDamaged(VerificationFailed):
    """The tiles on disk are not those of the published head."""

    code = "log-damaged"


KEPT_TILES = 128  # of the upper levels and the right edge, 16 KB each at most: nearly every proof reads them
KEPT_EDGES = 256


def _rows(width: int) -> tuple[int, ...]:
    """Where each level's hashes begin in a file of `width` hashes, counted in hashes; last, where the file ends."""
    starts = [0]
    for height in range(TILE_HEIGHT):
        starts.append(starts[-1] + (width >> height))
    return tuple(starts)


_ROWS = [_rows(width) for width in range(TILE_WIDTH + 1)]
_LONGEST = _ROWS[-1][-1] * HASH_BYTES
_WIDTHS = {rows[-1] * HASH_BYTES: width for width, rows in enumerate(_ROWS)}


class TileStore:
    """The tiles under `folder`. Who writes holds `writing`; readers come at any time, in any thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._kept: dict[tuple[int, int], bytes] = {}
        self._lock = threading.Lock()  # of who changes it
        self.edges: dict[tuple[int, int], bytes] = {}

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
            if tile.level is not None:
                data = _read_whole(f"{self._folder}/{Tile(tile.level, tile.index).path}")
                if _WIDTHS.get(len(data), 0) < tile.width:
                    raise _damaged(tile)
                return data[: tile.width * HASH_BYTES]
            data = self._path(tile).read_bytes()
        except FileNotFoundError:
            raise _damaged(tile) from None
        return data[: _bundle_end(tile, data)]

    def reader(self, size: int, *, from_disk: bool = False) -> StoredHashes:
        """Hashes of the first `size` leaves, with the files that were read kept for this reader's life.

        from_disk: none that was kept by the store before. Reading raises LogDamaged when the disk does not hold the
        tile, ValueError for a hash beyond the size.
        """
        return StoredHashes(self, size, from_disk=from_disk)

    def file(self, level: int, index: int, width: int, *, from_disk: bool) -> bytes:
        """A hash tile's whole file, at least `width` wide, with the hashes above; LogDamaged as `reader`."""
        key = level, index
        kept = self._kept.get(key)
        if kept is not None and not from_disk and _WIDTHS[len(kept)] >= width:
            return kept
        try:
            data = _read_whole(f"{self._folder}/{Tile(level, index).path}")
        except FileNotFoundError:
            raise _damaged(Tile(level, index, width)) from None
        found = _WIDTHS.get(len(data), 0)
        if found < width:
            raise _damaged(Tile(level, index, width))
        if level or found < TILE_WIDTH:  # a full tile of leaves is one among many: not kept
            with self._lock:
                self._kept[key] = data
                while len(self._kept) > KEPT_TILES:
                    del self._kept[next(iter(self._kept))]  # the one that has been there longest
        return data

    def frontier(self, size: int, root: bytes) -> Frontier:
        """The frontier of the published log. Raises LogDamaged unless the tiles give that root."""
        frontier = Frontier.read(size, self.reader(size, from_disk=True))
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
            self._write(tile, _with_subtrees(kept + b"".join(fresh[level, tile.index])))
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
        with self._lock:
            self.edges.clear()
            self._kept.pop((-1 if tile.level is None else tile.level, tile.index), None)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


class StoredHashes(PathReader):
    """A HashReader over a store's files, each read once, that hands out the siblings along a path tile by tile."""

    def __init__(self, store: TileStore, size: int, *, from_disk: bool) -> None:
        self._store = store
        self._size = size
        self._from_disk = from_disk
        self._files: dict[tuple[int, int], tuple[bytes, tuple[int, ...]]] = {}

    def __call__(self, level: int, index: int) -> bytes:
        if (index + 1) << level > self._size:
            raise ValueError(f"hash {index} of level {level} is beyond a log of {self._size}")
        height = level % TILE_HEIGHT
        number = index >> TILE_HEIGHT - height
        data, rows = self._tile(level // TILE_HEIGHT, number)
        at = (rows[height] + index - (number << TILE_HEIGHT - height)) * HASH_BYTES
        return data[at : at + HASH_BYTES]

    def siblings(self, level: int, leaf: int, top: int) -> list[bytes]:
        """See `PathReader`."""
        found: list[bytes] = []
        while level < top:
            tile_level, height = divmod(level, TILE_HEIGHT)
            stop = min(TILE_HEIGHT, height + top - level)
            above = leaf >> TILE_HEIGHT * tile_level
            data, rows = self._tile(tile_level, above >> TILE_HEIGHT)
            local = above % TILE_WIDTH
            for at in range(height, stop):
                start = (rows[at] + (local >> at ^ 1)) * HASH_BYTES
                found.append(data[start : start + HASH_BYTES])
            level += stop - height
        return found

    def edge(self, start: int) -> bytes:
        """See `PathReader`. Of one size there are few, and nearly every proof has one of them."""
        key = self._size, start
        found = None if self._from_disk else self._store.edges.get(key)
        if found is None:
            found = range_hash(start, self._size, self)
            if len(self._store.edges) >= KEPT_EDGES:
                self._store.edges.clear()
            self._store.edges[key] = found
        return found

    def _tile(self, level: int, number: int) -> tuple[bytes, tuple[int, ...]]:
        found = self._files.get((level, number))
        if found is None:
            width = (self._size >> TILE_HEIGHT * level) - number * TILE_WIDTH
            width = TILE_WIDTH if width > TILE_WIDTH else width
            data = self._store.file(level, number, width, from_disk=self._from_disk)
            found = self._files[level, number] = data, _ROWS[_WIDTHS[len(data)]]
        return found


def _with_subtrees(row: bytes) -> bytes:
    """A tile's hashes, and after them those of the complete subtrees above them within the tile."""
    rows = [row]
    for _ in range(TILE_HEIGHT - 1):
        row = level_above(row[: len(row) - len(row) % (2 * HASH_BYTES)])
        rows.append(row)
    return b"".join(rows)


def _read_whole(path: str) -> bytes:
    """A hash tile's file in one system call; of another file, enough that its length is no tile's."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, _LONGEST + 1)
    finally:
        os.close(descriptor)


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
