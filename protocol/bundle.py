"""The release bundle's container: an uncompressed tar with an exact list of regular files, byte for byte
reproducible. Reading accepts nothing else: no folders, links, devices, other names, sizes over the cap.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping, Sequence

from protocol.errors import Malformed

MAX_BUNDLE = 2 << 30
_REMEDY = "Fetch the release again; if it fails again, tell the coordinator's operator: the bundle was altered."


def pack(files: Mapping[str, bytes], names: Sequence[str]) -> bytes:
    """`files` must hold exactly `names`; the tar holds them in that order with fixed metadata. Raises Malformed."""
    if set(files) != set(names):
        raise Malformed("The bundle does not hold exactly the agreed files.", _REMEDY)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size, member.mode, member.mtime = len(files[name]), 0o644, 0
            tar.addfile(member, io.BytesIO(files[name]))
    return out.getvalue()


def unpack(data: bytes, names: Sequence[str]) -> dict[str, bytes]:
    """The files of a bundle made by `pack` with the same names, in the same bytes. Raises Malformed otherwise."""
    if len(data) > MAX_BUNDLE:
        raise Malformed("The bundle is larger than 2 GiB.", _REMEDY)
    files: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            for member in tar:
                if not member.isreg() or member.name not in names or member.name in files:
                    raise Malformed("The bundle holds something else than the agreed files.", _REMEDY)
                content = tar.extractfile(member)
                files[member.name] = content.read() if content is not None else b""
    except (tarfile.TarError, OSError, ValueError) as error:
        raise Malformed("The bundle is not a readable archive.", _REMEDY) from error
    if pack(files, names) != data:
        raise Malformed("The bundle is not in its one agreed form.", _REMEDY)
    return files
