"""A log as static files: hash tiles and entry bundles, their paths, and what growing touches.

Source: https://c2sp.org/tlog-tiles. A tile at level L holds up to 256 hashes of complete subtrees of 256^L leaves; a
bundle holds the entries under a level-0 tile. Immutable but for the partial ones at the right edge, which are
superseded by wider ones at other paths.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from protocol.errors import Malformed
from protocol.merkle import HASH_BYTES, MAX_SIZE, HashReader, level_above

TILE_HEIGHT = 8
TILE_WIDTH = 256
MAX_ENTRY_BYTES = 2**16 - 1

_MAX_LEVEL = 63
_PATH = re.compile(
    r"tile/(?P<level>entries|0|[1-9][0-9]?)/(?P<index>(?:x[0-9]{3}/)*[0-9]{3})(?:\.p/(?P<width>[1-9][0-9]{0,2}))?"
)


@dataclass(frozen=True, slots=True)
class Tile:
    """A hash tile (`level` 0 to 63) or an entry bundle (`level` None), with `width` 1 to 256 (256: full).

    Raises Malformed when made otherwise.
    """

    level: int | None
    index: int
    width: int = TILE_WIDTH

    def __post_init__(self) -> None:
        level = 0 if self.level is None else self.level
        if not (0 <= level <= _MAX_LEVEL and 0 <= self.index <= MAX_SIZE and 1 <= self.width <= TILE_WIDTH):
            raise Malformed("The tile's level, index or width is out of range.", "Ask for a tile of the log.")

    @property
    def path(self) -> str:
        """The path under the log's prefix, such as "tile/0/x001/234.p/7" or "tile/entries/000"."""
        level = "entries" if self.level is None else str(self.level)
        partial = "" if self.width == TILE_WIDTH else f".p/{self.width}"
        return f"tile/{level}/{_index_path(self.index)}{partial}"

    @classmethod
    def parse(cls, path: str) -> Tile:
        """The tile at a path. Raises Malformed for any string that isn't some tile's `path`."""
        match = _PATH.fullmatch(path)
        if not match or len(path) > 60:
            raise Malformed("The path is not a tile's.", "Ask for tile/<level>/<index>[.p/<width>].")
        level = None if match["level"] == "entries" else int(match["level"])
        index = int(match["index"].replace("x", "").replace("/", ""))
        tile = cls(level, index, int(match["width"] or TILE_WIDTH))
        if tile.path != path:
            raise Malformed("The path is not a tile's own path.", "Leave out needless zeros and .p/256.")
        return tile


def touched_tiles(old_size: int, new_size: int) -> tuple[Tile, ...]:
    """The hash tiles, level by level, that differ once a log of `old_size` leaves has `new_size`.

    From an old size of 0: every tile of the log, each as wide as the new size makes it.
    Raises ValueError unless 0 <= old_size <= new_size.
    """
    _require_growth(old_size, new_size)
    tiles: list[Tile] = []
    level = 0
    while new_size >> TILE_HEIGHT * level:
        tiles += _touched(level, old_size >> TILE_HEIGHT * level, new_size >> TILE_HEIGHT * level)
        level += 1
    return tuple(tiles)


def touched_bundles(old_size: int, new_size: int) -> tuple[Tile, ...]:
    """The entry bundles that differ once a log of `old_size` entries has `new_size`; raises as `touched_tiles`."""
    _require_growth(old_size, new_size)
    return tuple(_touched(None, old_size, new_size))


def encode_tile(tile: Tile, reader: HashReader) -> bytes:
    """A hash tile's bytes (32 x width), from stored hashes."""
    if tile.level is None:
        raise ValueError("an entry bundle holds entries, not hashes")
    level, first = tile.level * TILE_HEIGHT, tile.index * TILE_WIDTH
    return b"".join(reader(level, first + offset) for offset in range(tile.width))


def decode_tile(tile: Tile, data: bytes) -> tuple[bytes, ...]:
    """The `tile.width` hashes in a hash tile's bytes. Raises Malformed for another length."""
    _require_length(tile, data)
    return tuple(data[at : at + HASH_BYTES] for at in range(0, len(data), HASH_BYTES))


def encode_bundle(entries: Sequence[bytes]) -> bytes:
    """An entry bundle: each entry (at most 65535 bytes) after its big-endian uint16 length.

    Raises Malformed for a longer entry, and for none or more than 256.
    """
    if not 1 <= len(entries) <= TILE_WIDTH:
        raise Malformed(f"A bundle can't hold {len(entries)} entries.", "Give 1 to 256.")
    if any(len(entry) > MAX_ENTRY_BYTES for entry in entries):
        raise Malformed("A log entry is longer than 65535 bytes.", "Log its digest.")
    return b"".join(struct.pack(">H", len(entry)) + entry for entry in entries)


def decode_bundle(tile: Tile, data: bytes) -> tuple[bytes, ...]:
    """The `tile.width` entries in a bundle's bytes. Raises Malformed for too few, too many or cut-off bytes."""
    entries: list[bytes] = []
    at = 0
    while at < len(data) and len(entries) <= tile.width:
        end = at + 2 + int.from_bytes(data[at : at + 2], "big")
        if at + 2 > len(data) or end > len(data):
            raise Malformed(f"{tile.path} ends within an entry.", "Fetch it again.")
        entries.append(data[at + 2 : end])
        at = end
    if len(entries) != tile.width:
        raise Malformed(f"{tile.path} does not hold {tile.width} entries.", "Fetch it again.")
    return tuple(entries)


def tile_reader(size: int, fetch: Callable[[Tile], bytes]) -> HashReader:
    """A HashReader for a log of `size` leaves that reads tiles.

    `fetch` gives a hash tile's bytes (and may cache); it is asked only for tiles that the size requires, with the
    width that the size gives them. The reader raises Malformed for bytes of the wrong length and ValueError
    for a hash beyond the size. What it reads is trusted only once a proof or root made from it has been verified.
    """

    def read(level: int, index: int) -> bytes:
        if (index + 1) << level > size:
            raise ValueError(f"hash {index} of level {level} is beyond a log of {size}")
        tile_level, height = divmod(level, TILE_HEIGHT)
        number, first = divmod(index << height, TILE_WIDTH)
        width = min(TILE_WIDTH, (size >> TILE_HEIGHT * tile_level) - number * TILE_WIDTH)
        tile = Tile(tile_level, number, width)
        data = fetch(tile)
        _require_length(tile, data)
        row = data[first * HASH_BYTES : (first + (1 << height)) * HASH_BYTES]
        for _ in range(height):
            row = level_above(row)
        return row

    return read


def _require_length(tile: Tile, data: bytes) -> None:
    if len(data) != tile.width * HASH_BYTES:
        raise Malformed(f"{tile.path} has {len(data)} bytes, not {tile.width * HASH_BYTES}.", "Fetch it again.")


def _touched(level: int | None, old: int, new: int) -> list[Tile]:
    """Of one row of `new` hashes or entries, `old` of them there before: the tiles that hold new ones."""
    if old == new:
        return []
    return [
        Tile(level, index, min(TILE_WIDTH, new - index * TILE_WIDTH))
        for index in range(old // TILE_WIDTH, (new - 1) // TILE_WIDTH + 1)
    ]


def _index_path(index: int) -> str:
    groups = [f"{index % 1000:03d}"]
    while index := index // 1000:
        groups.append(f"x{index % 1000:03d}")
    return "/".join(reversed(groups))


def _require_growth(old_size: int, new_size: int) -> None:
    if not 0 <= old_size <= new_size <= MAX_SIZE:
        raise ValueError(f"a log does not grow from {old_size} to {new_size}")
