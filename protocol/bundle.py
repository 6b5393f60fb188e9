"""A bundle's container: an uncompressed tar (USTAR) with an exact list of regular files, byte for byte reproducible.
Reading accepts nothing else: no folders, links, devices, other names or metadata. `layout` reads no content, so that a
bundle of any size can be checked in little memory.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Mapping, Sequence

from protocol.errors import Malformed

MAX_BUNDLE = 2 << 30
MAX_FILE = 8**11 - 1  # bytes: what the header's eleven octal digits can say

_BLOCK = tarfile.BLOCKSIZE
_REMEDY = "Fetch it again; if it fails again, tell the coordinator's operator: the bundle was altered."

ReadAt = Callable[[int, int], bytes]
"""(offset, length) -> that many bytes of the bundle, fewer only where it ends."""


def header(name: str, size: int) -> bytes:
    """The 512 bytes before a file of `size` bytes. Raises Malformed for a size over 8 GiB."""
    if not 0 <= size <= MAX_FILE:
        raise Malformed(f"{name} is larger than 8 GiB.", "Bundle less at once.")
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = size, 0o644, 0
    return member.tobuf(tarfile.USTAR_FORMAT)


def padding(size: int) -> bytes:
    """The zeros after a file of `size` bytes."""
    return bytes(-size % _BLOCK)


def trailer(length: int) -> bytes:
    """The zeros that end a bundle whose files, with headers and padding, take `length` bytes."""
    return bytes(2 * _BLOCK + -(length + 2 * _BLOCK) % tarfile.RECORDSIZE)


def pack(files: Mapping[str, bytes], names: Sequence[str]) -> bytes:
    """`files` must hold exactly `names`; the tar holds them in that order with fixed metadata. Raises Malformed."""
    if set(files) != set(names):
        raise Malformed("The bundle does not hold exactly the agreed files.", _REMEDY)
    parts = []
    for name in names:
        parts += [header(name, len(files[name])), files[name], padding(len(files[name]))]
    return b"".join([*parts, trailer(sum(map(len, parts)))])


def layout(read_at: ReadAt, length: int, names: Sequence[str]) -> dict[str, tuple[int, int]]:
    """{name: (offset, size)} of the files in a bundle of `length` bytes, of which all but their content is checked.

    Raises Malformed for anything but what `pack` writes of these names.
    """
    found: dict[str, tuple[int, int]] = {}
    at = 0
    for name in names:
        head = read_at(at, _BLOCK)
        digits = head[124:135]  # where USTAR keeps the size; the header made of it must be this one
        if len(head) != _BLOCK or not all(0x30 <= digit <= 0x37 for digit in digits):
            raise Malformed("The bundle is not a readable archive.", _REMEDY)
        size = int(digits, 8)
        if header(name, size) != head:
            raise Malformed("The bundle holds something else than the agreed files.", _REMEDY)
        found[name] = (at + _BLOCK, size)
        at += _BLOCK + size
        zeros = padding(size)
        if at + len(zeros) > length or read_at(at, len(zeros)) != zeros:
            raise _altered()
        at += len(zeros)
    if at + len(trailer(at)) != length or read_at(at, length - at) != trailer(at):
        raise _altered()
    return found


def unpack(data: bytes, names: Sequence[str]) -> dict[str, bytes]:
    """The files of a bundle made by `pack` with the same names, in the same bytes. Raises Malformed otherwise."""
    if len(data) > MAX_BUNDLE:
        raise Malformed("The bundle is larger than 2 GiB.", _REMEDY)
    found = layout(lambda at, length: data[at : at + length], len(data), names)
    return {name: data[at : at + size] for name, (at, size) in found.items()}


def _altered() -> Malformed:
    return Malformed("The bundle is not in its one agreed form.", _REMEDY)
