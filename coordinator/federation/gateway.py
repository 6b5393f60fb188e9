"""The only way from a site to the SuperLink: a reverse proxy for Flower's fleet path that pins each site to its node.

The caller has authenticated the site (mutual TLS) and checked that it is not revoked. This module lets through nine
paths and nothing else (not the unauthenticated Control API, not the app bundles), reads the node id out of every
request, and passes on only what it has itself parsed, so that the SuperLink cannot read a request differently.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import httpx
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    ActivateNodeResponse,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
    RegisterNodeFleetRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, PullObjectRequest, PushObjectRequest
from flwr.supercore.constant import (
    FLEET_HTTP_PUBLIC_KEY_HEADER,
    FLEET_HTTP_SIGNATURE_HEADER,
    FLWR_COMPONENT_NAME_METADATA_KEY,
    FLWR_PACKAGE_NAME_METADATA_KEY,
    FLWR_PACKAGE_VERSION_METADATA_KEY,
)
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from google.protobuf.message import DecodeError
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

PREFIX = "/v1/fleet/"
NODE_HEADER = "cloister-node-id"
MAX_BODY_BYTES = 8 * 1024 * 1024  # an object holds at most one 4 MiB part of a packet

_ACTIVATE = PREFIX + "activate-node"
_REGISTER = PREFIX + "register-node"
_PUSH = PREFIX + "push-messages"


def _from_node(message: Any) -> int:
    return int(message.node.node_id)


def _from_field(message: Any) -> int:
    return int(message.node_id)


# path -> (type of the request, how to read the node id it speaks for; None where it has none yet)
_ROUTES: dict[str, tuple[Any, Callable[[Any], int] | None]] = {
    _REGISTER: (RegisterNodeFleetRequest, None),
    _ACTIVATE: (ActivateNodeRequest, None),
    PREFIX + "deactivate-node": (DeactivateNodeRequest, _from_field),
    PREFIX + "send-node-heartbeat": (SendNodeHeartbeatRequest, _from_node),
    PREFIX + "pull-messages": (PullMessagesRequest, _from_node),
    _PUSH: (PushMessagesRequest, _from_node),
    PREFIX + "push-object": (PushObjectRequest, _from_node),
    PREFIX + "pull-object": (PullObjectRequest, _from_node),
    PREFIX + "confirm-message-received": (ConfirmMessageReceivedRequest, _from_node),
}

# What Flower's node authentication and version check read. Everything else a client sends stays outside.
_HEADERS = (
    FLEET_HTTP_PUBLIC_KEY_HEADER,
    FLEET_HTTP_SIGNATURE_HEADER,
    TIMESTAMP_HEADER,
    FLWR_PACKAGE_NAME_METADATA_KEY,
    FLWR_PACKAGE_VERSION_METADATA_KEY,
    FLWR_COMPONENT_NAME_METADATA_KEY,
)


class NodeTaken(Exception):
    """Raised by a registry: the node belongs to another site."""


class NodeRegistry(Protocol):
    """Which Flower node is which site's, as learnt here. Shared with the round drivers, so keep it in the database."""

    def node_of(self, site: str) -> int | None:
        """The site's node id. Called on the event loop for every request: answer from memory."""

    def record(self, site: str, node_id: int) -> None:
        """Remember the node that the site has just activated, in place of any earlier one.

        Called in a worker thread. Raises NodeTaken when another site holds that node.
        """


def gateway_client() -> httpx.AsyncClient:
    """The client for `forward`: loopback, no proxies from the environment; close it with the application."""
    return httpx.AsyncClient(
        trust_env=False,
        follow_redirects=False,
        timeout=httpx.Timeout(60.0, connect=5.0),
        limits=httpx.Limits(max_connections=200, max_keepalive_connections=50, keepalive_expiry=60.0),
    )


async def forward(
    request: Request,
    superlink_address: str,
    *,
    site: str,
    nodes: NodeRegistry,
    client: httpx.AsyncClient,
    max_body_bytes: int = MAX_BODY_BYTES,
) -> Response:
    """Answer one request of an authenticated site from the SuperLink at host:port.

    404 for any other path, 405 for any other method, 413 above max_body_bytes, 400 for a body that does not parse,
    409 when the site has not activated a node yet, 403 when the request speaks for a node that is not the site's,
    503 when the SuperLink does not answer.
    """
    path = request.url.path
    route = _ROUTES.get(path)
    if route is None:
        return _problem(404, "There is nothing here.")
    if request.method != "POST":
        return _problem(405, "Only POST is understood here.")
    body = await _body(request, max_body_bytes)
    if body is None:
        return _problem(413, f"The body is larger than {max_body_bytes} bytes or was cut off.")
    message_type, node_in = route
    message = message_type()
    try:
        message.ParseFromString(body)
    except DecodeError:
        return _problem(400, "The body is not the expected protobuf message.")
    message.DiscardUnknownFields()
    own = nodes.node_of(site)
    if node_in is not None:
        if own is None:
            return _problem(409, "This site has no active node. Activate one first.")
        if node_in(message) != own or (path == _PUSH and not _speaks_for(message, own)):
            return _problem(403, "The request speaks for a node that is not this site's.")
    answer = await _ask(client, f"http://{superlink_address}{path}", message, request, max_body_bytes)
    if answer is None:
        return _problem(503, "The SuperLink does not answer. Try again.", {"retry-after": "1"})
    if path != _ACTIVATE:
        return answer
    if answer.status_code == 200:
        return await _learn(answer, site, nodes)
    if own is not None:
        # The node may still count as online from before a restart of the agent; with its id, and its key, the agent
        # goes on by a heartbeat. The SuperLink checks that the key is that node's.
        answer.headers[NODE_HEADER] = str(own)
    return answer


def _speaks_for(message: Any, node: int) -> bool:
    return len(message.messages_list) == 1 and message.messages_list[0].metadata.src_node_id == node


async def _learn(answer: Response, site: str, nodes: NodeRegistry) -> Response:
    """Record the node that the SuperLink says it has activated. The id is never taken from the site."""
    try:
        node_id = int(ActivateNodeResponse.FromString(bytes(answer.body)).node_id)
        await run_in_threadpool(nodes.record, site, node_id)
    except DecodeError:
        return _problem(502, "The SuperLink's answer cannot be read.")
    except NodeTaken:
        return _problem(403, "This node belongs to another site.")
    return answer


async def _body(request: Request, most: int) -> bytes | None:
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > most:
        return None
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > most:
                return None
    except ClientDisconnect:
        return None
    return bytes(body)


async def _ask(client: httpx.AsyncClient, url: str, message: Any, request: Request, most: int) -> Response | None:
    headers = {name: request.headers[name] for name in _HEADERS if name in request.headers}
    headers |= {"content-type": PROTOBUF_MEDIA_TYPE, "accept": PROTOBUF_MEDIA_TYPE, "accept-encoding": "identity"}
    try:
        async with client.stream("POST", url, content=message.SerializeToString(), headers=headers) as answer:
            body = bytearray()
            async for chunk in answer.aiter_raw():
                body += chunk
                if len(body) > most:
                    return _problem(502, "The SuperLink's answer is too large.")
            media_type = answer.headers.get("content-type", PROTOBUF_MEDIA_TYPE)
            return Response(bytes(body), status_code=answer.status_code, media_type=media_type)
    except httpx.HTTPError:
        return None


def _problem(status: int, detail: str, headers: dict[str, str] | None = None) -> Response:
    """An RFC 9457 problem document."""
    return JSONResponse(
        {"type": "about:blank", "status": status, "detail": detail},
        status_code=status,
        headers=headers,
        media_type="application/problem+json",
    )
