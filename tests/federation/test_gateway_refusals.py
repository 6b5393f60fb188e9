"""The gateway lets nothing through but the fleet path, and no site speaks for another."""

from __future__ import annotations

from typing import Any

import pytest
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.proto.fleet_pb2 import DeactivateNodeRequest, PullMessagesRequest, PushMessagesRequest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    Message,
    Metadata,
    ObjectTree,
    PullObjectRequest,
    PushObjectRequest,
)
from flwr.proto.node_pb2 import Node
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE

from coordinator.federation.gateway import MAX_BODY_BYTES

pytestmark = pytest.mark.processes

CONTENT = {"content-type": PROTOBUF_MEDIA_TYPE}


@pytest.mark.parametrize(
    "path",
    [
        "/docs",
        "/openapi.json",
        "/health",
        "/v1/control/list-nodes",
        "/v1/control/start-run",
        "/v1/runtime/acquire-task",
        "/v1/runtime/pull-messages",
        "/v1/fleet/get-fab",
        "/v1/fleet/get-run",
        "/v1/fleet/unregister-node",
        "/v1/fleet/../control/list-nodes",
        "/v1/fleet/%2e%2e/control/list-nodes",
        "/v1/fleet/pull-messages/",
        "/v1/fleet//pull-messages",
        "/v1/fleet/",
    ],
)
def test_no_other_path_is_forwarded(front: Any, path: str) -> None:
    with front.client("curious") as client:
        for method in ("GET", "POST"):
            answer = client.request(method, path, content=b"" if method == "POST" else None, headers=CONTENT)
            assert answer.status_code == 404, (method, path)


def test_the_control_api_is_there_behind_the_gateway(front: Any) -> None:
    """Shows that the refusals above refuse something: on loopback the same path answers."""
    import httpx

    url = f"http://{front.superlink.address}/v1/control/list-nodes"
    assert httpx.post(url, content=b"", headers=CONTENT, trust_env=False).status_code == 200


def test_only_post(front: Any) -> None:
    with front.client("curious") as client:
        assert client.get("/v1/fleet/pull-messages").status_code == 405


def test_a_site_without_a_node_is_told_to_activate_one(front: Any) -> None:
    with front.client("nodeless") as client:
        body = PullMessagesRequest(node=Node(node_id=1)).SerializeToString()
        assert client.post("/v1/fleet/pull-messages", content=body, headers=CONTENT).status_code == 409


def test_bytes_that_are_no_message_are_refused(front: Any) -> None:
    with front.client("garbling") as client:
        assert client.post("/v1/fleet/pull-messages", content=b"\xff\xff\xff", headers=CONTENT).status_code == 400


def test_a_body_that_is_too_large_is_refused(front: Any) -> None:
    with front.client("flooding") as client:
        declared = client.post("/v1/fleet/push-object", content=bytes(MAX_BODY_BYTES + 1), headers=CONTENT)
        assert declared.status_code == 413
        pieces = (bytes(1024 * 1024) for _ in range(9))  # chunked: no length is declared
        assert client.post("/v1/fleet/push-object", content=pieces, headers=CONTENT).status_code == 413


def test_no_request_may_speak_for_another_sites_node(front: Any) -> None:
    with front.connection("victim") as victim, front.connection("spoofer") as spoofer:
        other, own = Node(node_id=victim.node_id), Node(node_id=spoofer.node_id)
        stolen = Message(metadata=Metadata(src_node_id=victim.node_id, dst_node_id=SUPERLINK_NODE_ID))
        client = spoofer._client  # signs with the spoofer's own node key, over its own certificate
        attempts = [
            (client.PullMessages, PullMessagesRequest(node=other)),
            (client.PushMessages, PushMessagesRequest(node=other, messages_list=[stolen])),
            (client.PushMessages, PushMessagesRequest(node=own, messages_list=[stolen])),
            (
                client.PushMessages,
                PushMessagesRequest(
                    node=own,
                    messages_list=[Message(metadata=Metadata(src_node_id=spoofer.node_id)), stolen],
                    message_object_trees=[ObjectTree(), ObjectTree()],
                ),
            ),
            (client.PushObject, PushObjectRequest(node=other)),
            (client.PullObject, PullObjectRequest(node=other)),
            (client.ConfirmMessageReceived, ConfirmMessageReceivedRequest(node=other)),
            (client.SendNodeHeartbeat, SendNodeHeartbeatRequest(node=other, heartbeat_interval=30)),
            (client.DeactivateNode, DeactivateNodeRequest(node_id=victim.node_id)),
        ]
        for call, request in attempts:
            assert status_of(call, request) == 403, type(request).__name__
        assert victim.receive() is None


def test_a_field_given_twice_is_read_once_and_for_all(front: Any) -> None:
    """protobuf lets a field come twice; what was judged here is what the SuperLink gets."""
    with front.connection("victim-2") as victim, front.connection("spoofer-2") as spoofer:
        first = PullMessagesRequest(node=Node(node_id=spoofer.node_id)).SerializeToString()
        second = PullMessagesRequest(node=Node(node_id=victim.node_id)).SerializeToString()
        client = spoofer._client._client
        for body, status in ((first + second, 403), (second + first, 401)):
            answer = client.post(f"https://{front.address}/v1/fleet/pull-messages", content=body, headers=CONTENT)
            assert answer.status_code == status  # 401: the right node, but nothing was signed


def test_a_certificate_without_the_node_key_is_not_enough(front: Any) -> None:
    with front.connection("keyless") as connection, front.client("keyless") as client:
        body = PullMessagesRequest(node=Node(node_id=connection.node_id)).SerializeToString()
        assert client.post("/v1/fleet/pull-messages", content=body, headers=CONTENT).status_code == 401


def status_of(call: Any, request: Any) -> int:
    import httpx

    with pytest.raises(httpx.HTTPStatusError) as caught:
        call(request)
    return caught.value.response.status_code
