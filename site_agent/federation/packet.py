"""An opaque packet as the content of a Flower message, and back.

One ConfigRecord named "0" holds the packet; a packet longer than PART_BYTES goes over several, "0", "1", ... Each
record is one object on the wire, and every object costs an HTTP call at each end, so small packets stay in one.
The coordinator's half is `coordinator/federation/packet.py`; a contract test holds the two together.
"""

from __future__ import annotations

from dataclasses import dataclass

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import Message as MessageProto
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)

from protocol.errors import Malformed

PART_BYTES = 4 * 1024 * 1024
KEY = "packet"


def to_content(packet: bytes) -> RecordDict:
    """packet: any bytes, also none -> the content of a message."""
    starts = range(0, max(len(packet), 1), PART_BYTES)
    parts = (packet[start : start + PART_BYTES] for start in starts)
    return RecordDict({str(index): ConfigRecord({KEY: part}) for index, part in enumerate(parts)})


def from_content(content: RecordDict, *, most: int) -> bytes:
    """The packet of a message's content, at most `most` bytes. Raises Malformed when it is longer, or anything but
    records "0", "1", ... of bytes. A few objects may be named many times over: what counts is what they add up to."""
    parts: list[bytes] = []
    size = 0
    for index in range(len(content)):
        record = content.get(str(index))
        part = record.get(KEY) if isinstance(record, ConfigRecord) and len(record) == 1 else None
        if not isinstance(part, bytes):
            raise Malformed("A message over Flower does not hold one packet.")
        parts.append(part)
        size += len(part)
        if size > most:
            raise Malformed(f"A message over Flower holds more than {most} bytes.")
    if not parts:
        raise Malformed("A message over Flower holds no packet.")
    return b"".join(parts)


@dataclass(frozen=True)
class Outgoing:
    """A message made ready: its head (no content), the tree of its objects, and their bytes by object id."""

    message_id: str
    head: MessageProto
    tree: ObjectTree
    objects: dict[str, bytes]


def make_ready(message: Message) -> Outgoing:
    """Settle the message's id, which is the digest of its bytes, and deflate its objects once."""
    with no_object_id_recompute():
        message.metadata.__dict__["_message_id"] = message.object_id
        nested = get_all_nested_objects(message)
        return Outgoing(
            message_id=message.object_id,
            head=message_to_proto(remove_content_from_message(message)),
            tree=get_object_tree(message),
            objects={object_id: part.deflate() for object_id, part in nested.items()},
        )
