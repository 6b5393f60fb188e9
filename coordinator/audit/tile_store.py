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
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from protocol.errors import VerificationFailed
from protocol.merkle import HASH_BYTES, Frontier, HashReader, leaf_hash, level_above
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


def _rows(width: int) -> tuple[int, ...]:
    """Where each level's hashes begin in a file of `width` hashes, counted in hashes; last, where the file ends."""
    starts = [0]
    for height in range(TILE_HEIGHT):
        starts.append(starts[-1] + (width >> height))
    return tuple(starts)


_ROWS = [_rows(width) for width in range(TILE_WIDTH + 1)]
_WIDTHS = {rows[-1] * HASH_BYTES: width for width, rows in enumerate(_ROWS)}


class TileStore:
    """The tiles under `folder`. Who writes holds `writing`; readers come at any time, in any thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._kept: OrderedDict[tuple[int, int], bytes] = OrderedDict()
        self._lock = threading.Lock()

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
            if _WIDTHS.get(len(data), 0) < tile.width:
                raise _damaged(tile)
            return data[: tile.width * HASH_BYTES]
        return data[: _bundle_end(tile, data)]

    def reader(self, size: int, *, from_disk: bool = False) -> HashReader:
        """Hashes of the first `size` leaves, with the files that were read kept for this reader's life.

        from_disk: none that was kept by the store before. Reading raises LogDamaged when the disk does not hold the
        tile, ValueError for a hash beyond the size.
        """
        files: dict[tuple[int, int], tuple[bytes, tuple[int, ...]]] = {}

        def read(level: int, index: int) -> bytes:
            if (index + 1) << level > size:
                raise ValueError(f"hash {index} of level {level} is beyond a log of {size}")
            tile_level, height = divmod(level, TILE_HEIGHT)
            number = index >> TILE_HEIGHT - height
            found = files.get((tile_level, number))
            if found is None:
                needed = min(TILE_WIDTH, (size >> TILE_HEIGHT * tile_level) - number * TILE_WIDTH)
                data = self._file(tile_level, number, needed, from_disk=from_disk)
                found = files[tile_level, number] = data, _ROWS[_WIDTHS[len(data)]]
            data, rows = found
            at = (rows[height] + index - (number << TILE_HEIGHT - height)) * HASH_BYTES
            return data[at : at + HASH_BYTES]

        return read

    def _file(self, level: int, index: int, width: int, *, from_disk: bool) -> bytes:
        """A hash tile's whole file, at least `width` wide."""
        key = level, index
        with self._lock:
            data = self._kept.get(key, b"")
            if _WIDTHS[len(data)] >= width and not from_disk:
                self._kept.move_to_end(key)
                return data
        try:
            data = self._path(Tile(level, index)).read_bytes()
        except FileNotFoundError:
            raise _damaged(Tile(level, index, width)) from None
        found = _WIDTHS.get(len(data), 0)
        if found < width:
            raise _damaged(Tile(level, index, width))
        if level or found < TILE_WIDTH:  # a full tile of leaves is one among many: not kept
            with self._lock:
                self._kept[key] = data
                while len(self._kept) > KEPT_TILES:
                    self._kept.popitem(last=False)
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
            self._kept.pop((-1 if tile.level is None else tile.level, tile.index), None)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _with_subtrees(row: bytes) -> bytes:
    """A tile's hashes, and after them those of the complete subtrees above them within the tile."""
    rows = [row]
    for _ in range(TILE_HEIGHT - 1):
        row = level_above(row[: len(row) - len(row) % (2 * HASH_BYTES)])
        rows.append(row)
    return b"".join(rows)


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
