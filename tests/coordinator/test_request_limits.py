"""What a stranger who speaks TLS, and nothing else, can make the coordinator's port hold."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator

import pytest

from coordinator import server
from tests.coordinator.appliances import Served, served_coordinator, trusting

pytestmark = pytest.mark.processes
START = b"POST /v1/people/challenge HTTP/1.1\r\nhost: x\r\n"


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served_coordinator(tmp_path_factory.mktemp("limits"), beside=()) as served:
        yield served


def connect(coordinator: Served) -> ssl.SSLSocket:
    host, _, port = coordinator.address.rpartition(":")
    raw = socket.create_connection((host, int(port)), timeout=15)
    return trusting(coordinator.ca_path).wrap_socket(raw, server_hostname=host)


def sent_before_the_end(connection: ssl.SSLSocket, piece: bytes, *, most: int) -> int:
    sent = 0
    try:
        while sent < most:
            connection.sendall(piece)
            sent += len(piece)
        connection.settimeout(15)
        while connection.recv(4096):
            pass
    except OSError:
        return sent
    return sent


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (START, b"x-a: " + b"a" * 1000 + b"\r\n"),
        (START + b"x-a: ", b"a" * 1000),
        (b"GET /", b"a" * 1000),
        (START + b"transfer-encoding: chunked\r\n\r\n1\r\n{\r\n0\r\n", b"x-a: " + b"a" * 1000 + b"\r\n"),
    ],
    ids=["many headers", "one header without end", "an address without end", "trailers"],
)
def test_a_head_without_end_is_cut_off(coordinator: Served, head: bytes, piece: bytes) -> None:
    most = 64 << 20
    with connect(coordinator) as connection:
        connection.sendall(head)
        sent = sent_before_the_end(connection, piece, most=most)
    assert sent < most / 4  # what the kernel's buffers take in before the end is seen
    with coordinator.client() as client:
        assert client.get("/v1/health").status_code == 200


def test_a_body_in_small_chunks_is_read(coordinator: Served) -> None:
    body = b'{"name": "' + b"a" * 20 + b'"}'
    with coordinator.client() as client:
        pieces = (body[at : at + 8] for at in range(0, len(body), 8))
        assert (
            client.post(
                "/v1/people/challenge", content=pieces, headers={"content-type": "application/json"}
            ).status_code
            == 200
        )
        large = client.post("/v1/people/challenge", content=b"{" + b" " * (1 << 20) + b"}")
        assert large.status_code == 422


@pytest.mark.parametrize("said", [b"", START], ids=["nothing", "half a head"])
def test_who_never_ends_a_head_is_cut_off(coordinator: Served, said: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEAD_SECONDS", 0.2)
    with connect(coordinator) as connection:
        connection.sendall(said)
        try:
            assert connection.recv(1) == b""
        except ConnectionResetError:
            return
