"""Messages between the agent and its worker: a length, a JSON header, then raw bytes. Nothing is ever unpickled.

Both ends bound what they read: a worker that went wrong can't make the agent allocate at will.
"""

from __future__ import annotations

import json
import os
import struct
from typing import Any

MAX_HEADER = 512 * 1024
"""A model that a researcher brings as a graph stands in the header."""
_PIECE = 1 << 20
_LENGTHS = struct.Struct(">IQ")


class FrameError(Exception):
    """The other end is gone, too slow, or does not keep to the form. Says nothing of any content."""


def write_frame(descriptor: int, header: dict[str, Any], body: bytes | memoryview = b"") -> None:
    """Write all of one message. Raises FrameError when the other end is gone."""
    head = json.dumps(header, allow_nan=False).encode()
    if len(head) > MAX_HEADER:
        raise FrameError("header too long")
    try:
        _write_all(descriptor, _LENGTHS.pack(len(head), len(body)) + head)
        _write_all(descriptor, body)
    except OSError:
        raise FrameError("the other end is gone") from None


def read_frame(descriptor: int, *, most: int) -> tuple[dict[str, Any], bytearray]:
    """One message whose body has at most `most` bytes. Raises FrameError, also when the other end closes."""
    head_length, body_length = _LENGTHS.unpack(_read_exactly(descriptor, _LENGTHS.size))
    if head_length > MAX_HEADER or body_length > most:
        raise FrameError("message too long")
    try:
        header = json.loads(_read_exactly(descriptor, head_length))
    except ValueError:
        raise FrameError("header is not JSON") from None
    if not isinstance(header, dict):
        raise FrameError("header is not an object")
    return header, _read_exactly(descriptor, body_length)


def _write_all(descriptor: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view[:_PIECE]) :]


def _read_exactly(descriptor: int, length: int) -> bytearray:
    data = bytearray(length)
    view = memoryview(data)
    while view:
        try:
            got = os.readv(descriptor, [view[:_PIECE]])
        except OSError:
            raise FrameError("the other end is gone") from None
        if got == 0:
            raise FrameError("the other end is gone")
        view = view[got:]
    return data
