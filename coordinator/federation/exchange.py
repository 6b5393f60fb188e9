"""The coordinator's exchange of opaque packets with the sites' nodes, over one Flower run.

What Flower says about the outcome of a run is worth nothing here: who answered is what `request` returned, and the
caller decides what that means. Packets arrive masked and signed; nothing in them is looked at.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from flwr.app import Message, Metadata
from flwr.app.message import make_message
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ObjectTree,
    PullObjectRequest,
    PushObjectRequest,
)
from flwr.proto.message_pb2 import Message as MessageProto
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import GetNodesRequest, PullAppMessagesRequest, PushAppMessagesRequest
from flwr.supercore.inflatable.inflatable_object import UnexpectedObjectContentError, iterate_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from coordinator.federation.link import ExchangeLost, RunLink
from coordinator.federation.packet import PART_BYTES, Outgoing, from_content, make_ready, to_content
from protocol.errors import Malformed

Kind = Literal[
    "query.keys",
    "query.encapsulate",
    "query.establish",
    "query.probe",
    "train.contribute",
    "evaluate.histogram",
    "evaluate.check",
    "evaluate.membership",
    "query.statistics",
    "query.cluster",
]

POLL_SECONDS = 0.05
ELSEWHERE_SECONDS = 0.5
MAX_REPLY_BYTES = 8 * 1024 * 1024  # a larger contribution comes in chunks, beside its message
UNREADABLE = 100  # Failure.code: the reply is too large or not a packet; Flower's own codes are below 10
_REASON_LENGTH = 200
_GONE = (ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE)


@dataclass(frozen=True)
class Failure:
    """Why a node has no packet for us.

    by_site: the site itself declined, `code` and `reason` are its own. Otherwise the transport says so: Flower's
    ErrorCode (5: the node is offline or unknown; 4: the reply was never uploaded) or UNREADABLE.
    """

    code: int
    reason: str
    by_site: bool


Reply = bytes | Failure


@dataclass
class _Arrival:
    """A reply that Flower has announced and whose objects are being fetched; they may not be up yet."""

    node: int
    message_id: str
    wanted: list[str]
    contents: dict[str, bytes] = field(default_factory=dict)
    size: int = 0


class FlowerExchange:
    """A context manager that holds one run; `request` may be called from several threads.

    Raises ExchangeLost from any method once the SuperLink is gone or has ended the run: then close this one, bring
    the SuperLink up and open another. The packets in flight are lost with it; the sites' nodes come back by themselves.
    """

    _open = threading.Lock()

    def __init__(self, superlink_address: str, superexec_secret_path: Path) -> None:
        """superlink_address: host:port on loopback. Raises ExchangeLost, RuntimeError if one is already open here."""
        if not FlowerExchange._open.acquire(blocking=False):
            raise RuntimeError("this process already holds an exchange: close it before another is opened")
        try:
            self._link = RunLink(superlink_address, superexec_secret_path)
        except BaseException:
            FlowerExchange._open.release()
            raise
        self._self = Node(node_id=SUPERLINK_NODE_ID)
        self._closed = False

    def nodes(self) -> set[int]:
        """The ids of the nodes that are online now."""
        answer = self._link.call(self._link.runtime.GetNodes, GetNodesRequest())
        return {int(node.node_id) for node in answer.nodes}

    def request(
        self,
        kind: Kind,
        packets: Mapping[int, bytes],
        *,
        group: str,
        deadline_seconds: float,
        on_reply: Callable[[int, Reply], None] | None = None,
        elsewhere: Callable[[], Collection[int]] = tuple,
    ) -> dict[int, Reply]:
        """Send each node its packet and collect the answers until all are in or the deadline has passed.

        packets: node id -> packet. group: a short label that travels with the message. on_reply is called in this
        thread as each answer arrives, and then none is kept: the result is empty. elsewhere: asked twice a second for
        nodes whose answer came another way; they are waited for no longer. Nodes that have not answered are absent
        from the result; a late, second or unknown answer is dropped. Raises ExchangeLost.
        """
        deadline = time.monotonic() + deadline_seconds
        replies: dict[int, Reply] = {}
        settle = on_reply or replies.__setitem__
        waiting = self._push(kind, packets, group, deadline_seconds, settle)
        arrivals: list[_Arrival] = []
        looked = time.monotonic()
        while (waiting or arrivals) and not self._link.lost:
            if time.monotonic() >= looked + ELSEWHERE_SECONDS:
                came = set(elsewhere())
                waiting = {message: node for message, node in waiting.items() if node not in came}
                looked = time.monotonic()
            if waiting:
                for head, tree in self._announced(list(waiting)):
                    node = waiting.pop(head.metadata.reply_to_message_id, None)
                    if node is None:
                        continue
                    failure = _failure(head)
                    if failure is not None and not failure.by_site and failure.code in _GONE:
                        continue  # past its time to live: the node is absent
                    if failure is None:
                        wanted = [item.object_id for item in iterate_object_tree(tree)]
                        arrivals.append(_Arrival(node, head.metadata.message_id, wanted))
                    else:
                        self._confirm(head.metadata.message_id)
                        settle(node, failure)
            for arrival in list(arrivals):
                reply = self._fetch(arrival)
                if reply is not None:
                    arrivals.remove(arrival)
                    settle(arrival.node, reply)
            if time.monotonic() >= deadline:
                break
            if waiting or arrivals:
                self._link.wait(POLL_SECONDS)
        if (waiting or arrivals) and self._link.lost:
            raise ExchangeLost("The exchange ended while sites were answering.", "Open a new exchange and ask again.")
        return replies

    def _push(
        self,
        kind: Kind,
        packets: Mapping[int, bytes],
        group: str,
        lifetime: float,
        settle: Callable[[int, Reply], None],
    ) -> dict[str, int]:
        """Push one message per node -> message id -> node, of those that Flower took."""
        if not packets:
            return {}
        contents = {packet: to_content(packet) for packet in packets.values()}  # equal packets travel once
        outgoing: dict[int, Outgoing] = {}
        for node, packet in packets.items():
            metadata = Metadata(
                run_id=self._link.run_id,
                message_id="",
                src_node_id=SUPERLINK_NODE_ID,
                dst_node_id=node,
                reply_to_message_id="",
                group_id=group,
                created_at=time.time(),
                ttl=lifetime,
                message_type=kind,
            )
            outgoing[node] = make_ready(make_message(metadata=metadata, content=contents[packet]))
        answer = self._link.call(
            self._link.runtime.PushMessages,
            PushAppMessagesRequest(
                messages_list=[message.head for message in outgoing.values()],
                message_object_trees=[message.tree for message in outgoing.values()],
            ),
        )
        objects = {key: value for message in outgoing.values() for key, value in message.objects.items()}
        for object_id in answer.objects_to_push:
            stored = self._link.call(
                self._link.runtime.PushObject,
                PushObjectRequest(
                    node=self._self,
                    run_id=self._link.run_id,
                    object_id=object_id,
                    object_content=objects[object_id],
                    session_id=answer.session_id,
                ),
            ).stored
            if not stored:
                raise ExchangeLost("The SuperLink did not keep a message.", "Open a new exchange and ask again.")
        waiting: dict[str, int] = {}
        for node, message_id in zip(outgoing, answer.message_ids, strict=True):
            if message_id:
                waiting[message_id] = node
            else:
                settle(node, Failure(ErrorCode.NODE_UNAVAILABLE, "no such node is registered", by_site=False))
        return waiting

    def _announced(self, message_ids: list[str]) -> list[tuple[MessageProto, ObjectTree]]:
        request = PullAppMessagesRequest(message_ids=message_ids)
        answer = self._link.call(self._link.runtime.PullMessages, request)
        return list(zip(answer.messages_list, answer.message_object_trees, strict=True))

    def _fetch(self, arrival: _Arrival) -> Reply | None:
        """Pull what is there of a reply; None while some of it is still on its way."""
        most_objects = 3 + MAX_REPLY_BYTES // PART_BYTES
        while arrival.wanted and len(arrival.wanted) <= most_objects and arrival.size <= MAX_REPLY_BYTES:
            object_id = arrival.wanted[0]
            request = PullObjectRequest(node=self._self, run_id=self._link.run_id, object_id=object_id)
            answer = self._link.call(self._link.runtime.PullObject, request)
            if not answer.object_found:
                return Failure(ErrorCode.REPLY_MESSAGE_UNAVAILABLE, "the reply was never uploaded", by_site=False)
            if not answer.object_available:
                return None
            arrival.contents[object_id] = answer.object_content
            arrival.size += len(answer.object_content)
            del arrival.wanted[0]
        self._confirm(arrival.message_id)
        if arrival.wanted:
            return Failure(UNREADABLE, f"the reply is larger than {MAX_REPLY_BYTES} bytes", by_site=False)
        return _read(arrival)

    def _confirm(self, message_id: str) -> None:
        """Let the SuperLink drop the message's objects."""
        self._link.call(
            self._link.runtime.ConfirmMessageReceived,
            ConfirmMessageReceivedRequest(node=self._self, run_id=self._link.run_id, message_object_id=message_id),
        )

    def close(self, *, completed: bool = True, details: str = "") -> None:
        """End the run as completed, or failed with a short reason; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        try:
            self._link.close(completed=completed, details=details)
        finally:
            FlowerExchange._open.release()

    def __enter__(self) -> FlowerExchange:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(completed=kind is None, details="" if kind is None else kind.__name__)


def _failure(head: MessageProto) -> Failure | None:
    """The error that a reply carries instead of content; a site's words are cut short and made printable."""
    if not head.HasField("error"):
        return None
    by_site = head.metadata.src_node_id != SUPERLINK_NODE_ID
    reason = "".join(c if c.isprintable() else " " for c in head.error.reason[:_REASON_LENGTH])
    return Failure(int(head.error.code), reason, by_site=by_site)


def _read(arrival: _Arrival) -> Reply:
    """Rebuild the message from its objects; whatever is wrong with a site's bytes is that site's failure alone."""
    try:
        message = inflate_object_from_contents(arrival.message_id, arrival.contents)
        if not isinstance(message, Message) or not message.has_content():
            raise Malformed("The reply is not a message with content.")
        return from_content(message.content, most=MAX_REPLY_BYTES)
    except Malformed as error:
        return Failure(UNREADABLE, error.message, by_site=False)
    except (ValueError, KeyError, TypeError, RecursionError, UnexpectedObjectContentError) as error:
        return Failure(UNREADABLE, f"the reply cannot be read ({type(error).__name__})", by_site=False)
