"""The site's end of the exchange: it asks for a packet, answers it, and keeps its node online in between.

Flower's own loop sleeps, logs and ends the process on some answers; here every trouble is FleetUnavailable, and the
agent decides when to try again.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
from flwr.app import Error, Message
from flwr.common.constant import HEARTBEAT_MIN_INTERVAL
from flwr.common.serde import message_from_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
    RegisterNodeFleetRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree, PullObjectRequest, PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import UnexpectedObjectContentError, iterate_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from protocol.errors import CloisterError, Malformed
from site_agent.federation.packet import PART_BYTES, Outgoing, from_content, make_ready, to_content
from site_agent.federation.transport import NodeIdentity, fleet_client, tls_context

NODE_HEADER = "cloister-node-id"
UNREADABLE = 100  # the code of the answer to a message that is too large or not a packet
MAX_PACKET_BYTES = 256 * 1024 * 1024
OBJECT_WAIT_SECONDS = 20.0  # a message is announced before its objects are up
_BACKOFF_SECONDS = 0.05
_BACKOFF_MOST = 1.0
_NODE_KEY_IN_USE = 23  # Flower's ApiErrorCode.PUBLIC_KEY_ALREADY_IN_USE
_RUN_ENDED = 2007  # ... FLEET_RUN_STATUS_NOT_ALLOWED
_REASON_LENGTH = 200

_log = logging.getLogger(__name__)
_Answer = TypeVar("_Answer")


class FleetUnavailable(CloisterError):
    """The coordinator cannot be reached, or cannot serve this node now: try again later, with back-off."""

    code = "fleet-unavailable"


class FleetRefused(FleetUnavailable):
    """The coordinator answered and refused: the certificate is revoked or expired, or the node is not this site's."""

    code = "fleet-refused"


class _RunEnded(Exception):
    """The coordinator has given up the run that a message belongs to: nobody waits for an answer."""


@dataclass
class Incoming:
    """A packet from the coordinator that waits for an answer.

    kind: what is asked, e.g. "train.contribute"; the caller refuses kinds it does not know. packet: opaque.
    group: the coordinator's label. expires_at: seconds since 1970 after which an answer is dropped.
    """

    kind: str
    packet: bytes
    group: str
    expires_at: float
    _message: Message = field(repr=False)
    _received: float = field(default_factory=time.monotonic, repr=False)
    _answer: Outgoing | None = field(default=None, repr=False)


class FleetConnection:
    """A context manager; use it from one thread. Raises FleetUnavailable when the node cannot be brought online.

    After FleetUnavailable from any method, wait and go on with the same object: call `reconnect` (which also picks
    up a renewed certificate), then repeat what failed. An `Incoming` stays good, and repeating its answer is safe.
    """

    def __init__(
        self,
        address: str,
        *,
        ca_file: Path,
        certificate_file: Path,
        key_file: Path,
        node_key_pem: bytes,
        timeout: float = 30.0,
    ) -> None:
        """address: host:port of the coordinator. The three files are PEM. timeout: seconds for each call.

        node_key_pem: from generate_node_key, kept by the caller; the same key is the same node.
        """
        self._address = address
        self._files = (ca_file, certificate_file, key_file)
        self._identity = NodeIdentity(node_key_pem)
        self._timeout = timeout
        self._client: Any = None
        self._node_id: int | None = None
        self._claimed: tuple[Message, ObjectTree] | None = None
        self._parts: dict[str, bytes] = {}
        self._offline = False
        self._closing = threading.Event()
        self._beat: threading.Thread | None = None

    @property
    def node_id(self) -> int:
        """Flower's id of this node, 1..2^64-1."""
        if self._node_id is None:
            raise FleetUnavailable("This site has no active node.", "Connect first.")
        return self._node_id

    def __enter__(self) -> FleetConnection:
        try:
            self.reconnect()
        except BaseException:
            self._drop_client()
            raise
        self._beat = threading.Thread(target=self._keep_online, name="fleet-heartbeat", daemon=True)
        self._beat.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def reconnect(self) -> None:
        """Read the certificate anew, open a new connection, bring the node online. Raises FleetUnavailable."""
        try:
            context = tls_context(*self._files)
        except OSError as error:
            raise FleetUnavailable(
                f"The certificate files of this site cannot be read ({type(error).__name__}).",
                "Check the agent's folder, or enrol again.",
            ) from error
        stale, self._client = self._client, fleet_client(self._address, context, self._identity, self._timeout)
        if stale is not None:
            stale.close()
        node_id = self._bring_online()
        if node_id != self._node_id:
            self._claimed = None  # the coordinator began anew: it knows nothing of that message
            self._parts.clear()
        self._node_id = node_id
        self._offline = False

    def close(self) -> None:
        """Take the node offline and disconnect. A coordinator that cannot be told will notice by itself."""
        self._closing.set()
        if self._beat is not None:
            self._beat.join()
            self._beat = None
        if self._client is not None and self._node_id is not None:
            try:
                self._call(self._client.DeactivateNode, DeactivateNodeRequest(node_id=self._node_id))
            except FleetUnavailable as error:
                _log.info("the node was not signed off: %s", error.message)
        self._drop_client()

    def receive(self) -> Incoming | None:
        """Ask once for a packet; None when there is none. Raises FleetUnavailable.

        A packet that was announced stays claimed until its bytes are here: after FleetUnavailable, call again; the
        parts that have come are kept, and only the others are asked for.
        """
        if self._offline:
            raise FleetUnavailable("The coordinator no longer knows this node.", "Reconnect.")
        if self._claimed is not None and _expiry(self._claimed[0]) <= time.time():
            self._claimed = None
        if self._claimed is None:
            self._parts.clear()
            answer = self._call(self._client.PullMessages, PullMessagesRequest(node=self._node()))
            if not answer.messages_list or not answer.message_object_trees:
                return None
            self._claimed = message_from_proto(answer.messages_list[0]), answer.message_object_trees[0]
        head, tree = self._claimed
        incoming = Incoming(
            kind=str(head.metadata.message_type),
            packet=b"",
            group=str(head.metadata.group_id),
            expires_at=_expiry(head),
            _message=head,
        )
        head.metadata.__dict__["_message_id"] = tree.object_id
        try:
            incoming.packet = self._download(head, tree)
        except _RunEnded:
            self._claimed = None
            return None
        except Malformed as error:
            self._claimed = None
            self.fail(incoming, UNREADABLE, error.message)
            return None
        self._claimed = None
        return incoming

    def reply(self, incoming: Incoming, packet: bytes) -> None:
        """Answer with a packet. Raises FleetUnavailable; then the same call may be repeated, and is sent once."""
        self._answer(incoming, lambda: Message(to_content(packet), reply_to=incoming._message))

    def fail(self, incoming: Incoming, code: int, reason: str) -> None:
        """Answer that there is no packet. reason: a short fact without data, cut at 200 characters."""
        error = Error(code=code, reason=reason[:_REASON_LENGTH])
        self._answer(incoming, lambda: Message(error, reply_to=incoming._message))

    def _answer(self, incoming: Incoming, build: Callable[[], Message]) -> None:
        if incoming.expires_at <= time.time():
            _log.info("an answer to %s is too late and is dropped", incoming.kind)
            return
        if incoming._answer is None:
            incoming._answer = make_ready(build())  # kept: a repeated answer must have the same id
        try:
            self._upload(incoming, incoming._answer)
        except _RunEnded:
            _log.info("nobody waits for an answer to %s any more", incoming.kind)

    def _upload(self, incoming: Incoming, ready: Outgoing) -> None:
        answer = self._call(
            self._client.PushMessages,
            PushMessagesRequest(
                node=self._node(),
                messages_list=[ready.head],
                message_object_trees=[ready.tree],
                clientapp_runtime_list=[time.monotonic() - incoming._received],
            ),
        )
        wanted = set(answer.objects_to_push)
        for object_id, content in ready.objects.items():
            if object_id in wanted:
                self._call(
                    self._client.PushObject,
                    PushObjectRequest(
                        node=self._node(),
                        run_id=incoming._message.metadata.run_id,
                        object_id=object_id,
                        object_content=content,
                        session_id=answer.session_id,
                    ),
                )

    def _download(self, head: Message, tree: ObjectTree) -> bytes:
        wanted = [item.object_id for item in iterate_object_tree(tree)]
        if len(wanted) > 3 + MAX_PACKET_BYTES // PART_BYTES:
            raise Malformed(f"The message is larger than {MAX_PACKET_BYTES} bytes.")
        run_id = head.metadata.run_id
        patience = time.monotonic() + OBJECT_WAIT_SECONDS
        for object_id in wanted:
            if object_id not in self._parts:
                self._parts[object_id] = self._object(run_id, object_id, patience)
        request = ConfirmMessageReceivedRequest(node=self._node(), run_id=run_id, message_object_id=tree.object_id)
        self._call(self._client.ConfirmMessageReceived, request)
        try:
            message = inflate_object_from_contents(tree.object_id, self._parts)
            if not isinstance(message, Message) or not message.has_content():
                raise Malformed("The message has no content.")
            return from_content(message.content, most=MAX_PACKET_BYTES)
        except (ValueError, KeyError, TypeError, RecursionError, UnexpectedObjectContentError) as error:
            raise Malformed(f"The message cannot be read ({type(error).__name__}).") from error

    def _object(self, run_id: int, object_id: str, patience: float) -> bytes:
        delay = _BACKOFF_SECONDS
        while True:
            request = PullObjectRequest(node=self._node(), run_id=run_id, object_id=object_id)
            answer = self._call(self._client.PullObject, request)
            if answer.object_available:
                return bytes(answer.object_content)
            if not answer.object_found or time.monotonic() >= patience:
                raise Malformed("A part of the message never arrived.")
            self._closing.wait(delay)
            delay = min(2 * delay, _BACKOFF_MOST)

    def _node(self) -> Node:
        return Node(node_id=self.node_id)

    def _bring_online(self) -> int:
        """Activate this key's node, registering the key the first time -> the node's id."""
        public_key = self._identity.public_key
        activate = ActivateNodeRequest(public_key=public_key, heartbeat_interval=HEARTBEAT_MIN_INTERVAL)
        known, node_id = self._try_activate(activate)
        if node_id is not None:
            return node_id
        if self._register(public_key):
            _, node_id = self._try_activate(activate)
        elif (known := known or self._node_id) is not None and self._heartbeat(known):
            # The node still counts as online from before: it only has to go on living.
            node_id = known
        if node_id is None:
            raise FleetUnavailable("The coordinator did not activate this site's node.", "Try again in 20 s.")
        return node_id

    def _try_activate(self, request: ActivateNodeRequest) -> tuple[int | None, int | None]:
        """(the id that the coordinator has for this site, the activated id): at most one of them is given."""
        try:
            return None, int(self._guard(self._client.ActivateNode, request).node_id)
        except httpx.HTTPStatusError as error:
            hint = error.response.headers.get(NODE_HEADER, "")
            return (int(hint) if hint.isdecimal() and len(hint) <= 20 else None), None

    def _register(self, public_key: bytes) -> bool:
        """True when the key is new to the coordinator, False when it knows it."""
        try:
            self._guard(self._client.RegisterNode, RegisterNodeFleetRequest(public_key=public_key))
        except httpx.HTTPStatusError as error:
            if _flower_code(error.response) == _NODE_KEY_IN_USE:
                return False
            raise _unavailable(error) from error
        return True

    def _heartbeat(self, node_id: int) -> bool:
        request = SendNodeHeartbeatRequest(node=Node(node_id=node_id), heartbeat_interval=HEARTBEAT_MIN_INTERVAL)
        return bool(self._call(self._client.SendNodeHeartbeat, request).success)

    def _keep_online(self) -> None:
        """The heartbeat's thread: the node stays online while the agent trains. It misses one in two at most."""
        while not self._closing.wait(HEARTBEAT_MIN_INTERVAL * 0.7):
            try:
                if not self._offline and not self._heartbeat(self.node_id):
                    self._offline = True
            except FleetRefused:
                self._offline = True
            except FleetUnavailable as error:
                _log.info("a heartbeat failed: %s", error.message)

    def _call(self, method: Callable[[Any], _Answer], request: object) -> _Answer:
        """One call; every trouble is FleetUnavailable, but for _RunEnded."""
        try:
            return self._guard(method, request)
        except httpx.HTTPStatusError as error:
            if _flower_code(error.response) == _RUN_ENDED:
                raise _RunEnded from error
            raise _unavailable(error) from error

    def _guard(self, method: Callable[[Any], _Answer], request: object) -> _Answer:
        """One call; a refusal, a server error and a broken connection are FleetUnavailable."""
        try:
            return method(request)
        except httpx.HTTPStatusError as error:
            status = error.response.status_code
            if status >= 500 or (status in (401, 403) and _flower_code(error.response) is None):
                raise _unavailable(error) from error
            raise
        except (httpx.HTTPError, RuntimeError, ValueError) as error:
            # RuntimeError: the HTTP client was closed by a reconnect; ValueError: an answer that is not protobuf
            raise FleetUnavailable(
                f"The coordinator at {self._address} cannot be reached ({type(error).__name__}).",
                "Check the network and the coordinator; the agent tries again by itself.",
            ) from error

    def _drop_client(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()


def _expiry(head: Message) -> float:
    return float(head.metadata.created_at + head.metadata.ttl)


def _unavailable(error: httpx.HTTPStatusError) -> FleetUnavailable:
    status = error.response.status_code
    if status == 403:
        return FleetRefused(
            f"The coordinator refused this site (HTTP {status}).",
            "Check that the site is enrolled and not revoked.",
        )
    # 401: Flower does not know the node (it was restarted), or this site's clock is minutes off
    return FleetUnavailable(
        f"The coordinator could not serve this node (HTTP {status}).", "Reconnect; check this site's clock."
    )


def _flower_code(response: httpx.Response) -> int | None:
    try:
        code = json.loads(response.text).get("code")
    except (ValueError, AttributeError):
        return None
    return code if isinstance(code, int) else None
