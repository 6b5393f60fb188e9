"""The site's own copy of the log's entries, in C2SP entry bundles: one file for 256 entries.

A file lies at its full bundle's path and may hold more entries than the head that the database holds: what is beyond
the head has not been verified yet and is never read.
"""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator, Sequence
from pathlib import Path

from protocol.errors import CloisterError, Malformed, VerificationFailed
from protocol.merkle import Frontier, leaf_hash
from protocol.tiles import TILE_WIDTH, Tile, decode_bundle, encode_bundle
from site_agent.durable_files import make_private_folder, write_durably


class MirrorDamaged(VerificationFailed):
    """The site's copy of the log is not what the site verified."""

    code = "mirror-damaged"


class MirrorUnwritable(CloisterError):
    """The site's disk does not take new entries of the log: it is full, failing or not this user's."""

    code = "mirror-unwritable"


class Mirror:
    """The bundles under `folder`. One writer at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextlib.contextmanager
    def exclusively(self) -> Iterator[None]:
        """Wait until no other process of this site writes the mirror, and keep them out meanwhile.

        Raises MirrorUnwritable, as `write` does.
        """
        with self._on_disk():
            make_private_folder(self._folder)
            lock = (self._folder / ".lock").open("wb")
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def first(self, bundle: int, count: int) -> tuple[bytes, ...]:
        """The first `count` (0 to 256) entries of a bundle. Raises MirrorDamaged when they are not all there."""
        if count == 0:
            return ()
        try:
            return split_bundle(bundle, self._path(bundle).read_bytes(), count)
        except (OSError, Malformed):
            raise MirrorDamaged(
                f"The site's copy of the log lacks entries that it verified (bundle {bundle}).",
                "Run cloister-site log repair: it fetches the entries again and checks them against what was verified.",
            ) from None

    def write(self, bundle: int, entries: Sequence[bytes]) -> None:
        """Put 1 to 256 entries in a bundle's place, durably."""
        path = self._path(bundle)
        with self._on_disk():
            make_private_folder(path.parent)
            write_durably(path, encode_bundle(entries))

    def entries(self, size: int, start: int = 0) -> Iterator[bytes]:
        """Of the first `size` entries of the log those from `start` on, in order. Raises MirrorDamaged."""
        for bundle in range(start // TILE_WIDTH, -(-size // TILE_WIDTH)):
            first = bundle * TILE_WIDTH
            yield from self.first(bundle, min(TILE_WIDTH, size - first))[max(0, start - first) :]

    def verify(self, size: int, root: bytes) -> None:
        """Return if the first `size` entries hash to `root`; raise MirrorDamaged otherwise."""
        frontier, _ = Frontier().extend(leaf_hash(entry) for entry in self.entries(size))
        if frontier.root != root:
            raise MirrorDamaged(
                f"The site's copy of the log's {size} entries does not hash to the root that the site verified.",
                "Somebody changed the copy. Run cloister-site log repair, and find out who can write to this folder.",
            )

    @contextlib.contextmanager
    def _on_disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise MirrorUnwritable(
                f"The copy of the log in {self._folder} can't be written ({error.strerror}).",
                "Free space on the disk, and check that the folder is this user's.",
            ) from None

    def _path(self, bundle: int) -> Path:
        return self._folder / Tile(None, bundle).path


def split_bundle(bundle: int, data: bytes, count: int) -> tuple[bytes, ...]:
    """The first `count` (1 to 256) entries in the bytes of a bundle that may hold more. Raises Malformed."""
    end = 0
    for _ in range(count):
        if end + 2 > len(data):
            break
        end += 2 + int.from_bytes(data[end : end + 2], "big")
    return decode_bundle(Tile(None, bundle, count), data[:end])
