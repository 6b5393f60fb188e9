"""Packets go from the coordinator to the sites and back over real processes, mutual TLS and Flower's wire."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from flwr.app import ConfigRecord, RecordDict

from coordinator.federation import packet as coordinator_packet
from coordinator.federation.exchange import MAX_REPLY_BYTES, UNREADABLE, Failure, FlowerExchange, Reply
from protocol.errors import Malformed
from site_agent.federation import packet as site_packet
from site_agent.federation.connection import FleetConnection, FleetRefused, FleetUnavailable, Incoming
from site_agent.federation.transport import generate_node_key

pytestmark = pytest.mark.processes


@pytest.fixture
def exchange(front: Any) -> Iterator[FlowerExchange]:
    with FlowerExchange(front.superlink.address, front.superlink.superexec_secret_path) as exchange:
        yield exchange


def test_both_halves_of_the_packet_format_agree() -> None:
    for length in (0, 1, coordinator_packet.PART_BYTES, coordinator_packet.PART_BYTES + 1):
        packet = os.urandom(length)
        assert site_packet.from_content(coordinator_packet.to_content(packet), most=len(packet)) == packet
        assert coordinator_packet.from_content(site_packet.to_content(packet), most=len(packet)) == packet


@pytest.mark.parametrize("room", [coordinator_packet, site_packet])
def test_one_part_that_is_named_over_and_over_does_not_fill_the_memory(room: Any) -> None:
    part = ConfigRecord({"packet": bytes(1 << 20)})
    content = RecordDict({str(index): part for index in range(100_000)})  # 100 GB, of 1 MiB on the wire
    with pytest.raises(Malformed):
        room.from_content(content, most=8 << 20)


def test_three_sites_answer_five_rounds(front: Any, exchange: FlowerExchange, fleet: Any) -> None:
    sites = [fleet.join(name) for name in ("one", "two", "three")]
    nodes = {site.node_id for site in sites}
    assert exchange.nodes() == nodes
    assert {front.nodes.node_of(name) for name in ("one", "two", "three")} == nodes
    took = []
    for turn in range(5):
        packets = {node: os.urandom(1000) for node in nodes}
        replies: dict[int, Reply] = {}
        began = time.perf_counter()
        kept = exchange.request(
            "train.contribute",
            packets,
            group=f"round-{turn}",
            deadline_seconds=20,
            on_reply=replies.__setitem__,
        )
        took.append(time.perf_counter() - began)
        assert replies == {node: b"train.contribute|" + packet for node, packet in packets.items()}
        assert kept == {}, "answers that were handed on are not kept"
    print(f"\n3 sites, one exchange: median {median(took):.2f} s, most {max(took):.2f} s")


def test_a_40_mb_packet_goes_there_and_a_reply_of_7_mb_comes_back(exchange: FlowerExchange, fleet: Any) -> None:
    site = fleet.join("large", lambda connection, incoming: connection.reply(incoming, incoming.packet[: 7 << 20]))
    packet = os.urandom(40 << 20)
    began = time.perf_counter()
    replies = exchange.request("query.probe", {site.node_id: packet}, group="large", deadline_seconds=60)
    print(f"\n40 MiB there, 7 back: {time.perf_counter() - began:.2f} s")
    assert replies[site.node_id] == packet[: 7 << 20]


class CutLine(threading.Thread):
    """A TCP line to the front whose connections break after so many bytes downwards each, in turn; then none does."""

    def __init__(self, port: int, cuts: list[int]) -> None:
        super().__init__(daemon=True)
        self.port, self.cuts, self.down = port, cuts, 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"

    def run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self.listener.accept()
                threading.Thread(target=self.carry, args=(near,), daemon=True).start()

    def carry(self, near: socket.socket) -> None:
        with near, contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)) as far:
            threading.Thread(target=self.up, args=(near, far), daemon=True).start()
            passed = 0
            while data := far.recv(64 << 10):
                near.sendall(data)
                passed += len(data)
                self.down += len(data)
                if self.cuts and passed >= self.cuts[0]:
                    self.cuts.pop(0)
                    break
            for end in (near, far):
                end.shutdown(socket.SHUT_RDWR)

    def up(self, near: socket.socket, far: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := near.recv(64 << 10):
                far.sendall(data)
            far.shutdown(socket.SHUT_RDWR)


def test_a_packet_goes_down_a_line_that_is_cut_part_by_part(front: Any, exchange: FlowerExchange) -> None:
    part, packet = site_packet.PART_BYTES, os.urandom(6 * site_packet.PART_BYTES)
    line = CutLine(front.port, [part + part // 2, part // 3, 2 * part + part // 2])
    line.start()
    connection = front.connection("far-away")
    connection._address = line.address
    replies: dict[int, Reply] = {}
    with connection:

        def answer() -> None:
            while not replies:
                try:
                    incoming = connection.receive()
                    if incoming is not None:
                        connection.reply(incoming, hashlib.sha256(incoming.packet).digest())
                        return
                except FleetUnavailable:
                    connection.reconnect()

        site = threading.Thread(target=answer, daemon=True)
        site.start()
        packets = {connection.node_id: packet}
        replies |= exchange.request("query.probe", packets, group="slow", deadline_seconds=60)
        site.join(20)
    line.listener.close()
    assert replies == {connection.node_id: hashlib.sha256(packet).digest()}
    assert line.cuts == []
    assert line.down < len(packet) + 3 * (part + (128 << 10)), "each cut costs the part that was under way, no more"


def test_a_reply_over_the_limit_is_not_held(exchange: FlowerExchange, fleet: Any) -> None:
    site = fleet.join("larger", lambda connection, incoming: connection.reply(incoming, bytes(MAX_REPLY_BYTES + 1)))
    replies = exchange.request("query.probe", {site.node_id: b""}, group="larger", deadline_seconds=60)
    failure = replies[site.node_id]
    assert isinstance(failure, Failure)
    assert failure.code == UNREADABLE


def test_a_node_whose_answer_came_another_way_is_not_waited_for(exchange: FlowerExchange, fleet: Any) -> None:
    silent, quick = fleet.join("mute", lambda connection, incoming: None), fleet.join("swift")
    began = time.monotonic()
    replies = exchange.request(
        "query.keys",
        dict.fromkeys([silent.node_id, quick.node_id], b"1"),
        group="elsewhere",
        deadline_seconds=60,
        elsewhere=lambda: {silent.node_id},
    )
    assert set(replies) == {quick.node_id}
    assert time.monotonic() - began < 30


def test_a_site_that_declines_is_a_failure_and_the_others_still_answer(exchange: FlowerExchange, fleet: Any) -> None:
    def decline(connection: FleetConnection, incoming: Incoming) -> None:
        connection.fail(incoming, 42, "no consent\n" + "x" * 1000)

    declining, willing = fleet.join("declining", decline), fleet.join("willing")
    packets = {declining.node_id: b"a", willing.node_id: b"b", 12345: b"c"}
    replies = exchange.request("query.keys", packets, group="g", deadline_seconds=20)
    assert replies[willing.node_id] == b"query.keys|b"
    failure = replies[declining.node_id]
    assert isinstance(failure, Failure)
    assert (failure.code, failure.by_site) == (42, True)
    assert failure.reason.startswith("no consent x")
    assert len(failure.reason) == 200
    unknown = replies[12345]
    assert isinstance(unknown, Failure)
    assert not unknown.by_site


def test_a_silent_site_is_absent_at_the_deadline_and_its_late_answer_is_dropped(
    exchange: FlowerExchange, fleet: Any, until: Any
) -> None:
    held: list[Incoming] = []
    silent, quick = fleet.join("silent", lambda connection, incoming: held.append(incoming)), fleet.join("quick")
    nodes = [silent.node_id, quick.node_id]
    replies = exchange.request("query.keys", dict.fromkeys(nodes, b"1"), group="first", deadline_seconds=1.0)
    assert set(replies) == {quick.node_id}
    (late,) = until(lambda: held)
    silent.connection.reply(late, b"too late")  # past its time to live: nothing is sent
    replies = exchange.request("query.keys", {quick.node_id: b"2"}, group="second", deadline_seconds=20)
    assert replies == {quick.node_id: b"query.keys|2"}


def test_an_answer_to_a_run_that_has_ended_is_dropped(front: Any, fleet: Any, until: Any) -> None:
    held: list[Incoming] = []
    site = fleet.join("slow", lambda connection, incoming: held.append(incoming))
    with FlowerExchange(front.superlink.address, front.superlink.superexec_secret_path) as exchange:
        with pytest.raises(ZeroDivisionError):
            exchange.request(
                "query.keys", {site.node_id: b"1", 7: b"unknown"}, group="g", deadline_seconds=30,
                on_reply=lambda node, reply: 1 / 0,
            )  # fmt: skip
        (late,) = until(lambda: held)
    assert late.expires_at > time.time()
    site.connection.reply(late, b"nobody waits")
    site.connection.fail(late, 1, "nobody waits")
    assert site.troubles == 0


def test_an_answer_may_be_repeated_and_counts_once(exchange: FlowerExchange, fleet: Any) -> None:
    def stutter(connection: FleetConnection, incoming: Incoming) -> None:
        for _ in range(3):
            connection.reply(incoming, b"once")

    site = fleet.join("stuttering", stutter)
    replies = exchange.request("query.keys", {site.node_id: b""}, group="g", deadline_seconds=20)
    assert replies == {site.node_id: b"once"}


def test_an_answer_that_is_no_packet_is_that_sites_failure(
    exchange: FlowerExchange, fleet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "site_agent.federation.connection.to_content", lambda packet: RecordDict({"0": ConfigRecord({"x": 1})})
    )
    site = fleet.join("garbling")
    replies = exchange.request("query.keys", {site.node_id: b"1"}, group="g", deadline_seconds=20)
    assert replies[site.node_id] == Failure(UNREADABLE, "A message over Flower does not hold one packet.", False)


def test_a_restarted_agent_goes_on_as_the_same_node(front: Any, exchange: FlowerExchange, fleet: Any) -> None:
    key = generate_node_key()
    with front.connection("restarting", key) as first:
        node = first.node_id
        first._client.close()  # as a killed agent: no farewell, the node still counts as online
    with front.connection("restarting", key) as second:
        assert second.node_id == node
    with front.connection("restarting", key) as third:  # after a farewell
        assert third.node_id == node
        assert node in exchange.nodes()
    assert node not in exchange.nodes()


def test_an_agent_with_a_new_node_key_replaces_its_old_node(front: Any, exchange: FlowerExchange) -> None:
    with front.connection("rekeyed") as first, front.connection("rekeyed") as second:
        assert first.node_id != second.node_id
        assert front.nodes.node_of("rekeyed") == second.node_id
        with pytest.raises(FleetRefused):
            first.receive()
        assert second.receive() is None


def test_another_sites_node_key_is_refused(front: Any) -> None:
    key = generate_node_key()
    with front.connection("holder", key) as holder:
        with pytest.raises(FleetUnavailable):
            front.connection("thief", key).__enter__()
        node = holder.node_id
    with pytest.raises(FleetRefused):
        front.connection("thief", key).__enter__()
    assert front.nodes.node_of("holder") == node
    assert front.nodes.node_of("thief") is None


def test_a_revoked_site_is_refused_at_its_next_request(front: Any) -> None:
    with front.connection("revoked") as connection:
        assert connection.receive() is None
        front.refused.add("revoked")
        with pytest.raises(FleetRefused):
            connection.receive()
        with pytest.raises(FleetRefused):
            connection.reconnect()


def test_a_coordinator_of_another_ca_is_not_spoken_to(front: Any, authority: Any, tmp_path: Path) -> None:
    other = authority(tmp_path)
    certificate_file, key_file = front.authority.issue("misled")
    connection = FleetConnection(
        front.address,
        ca_file=other.certificate_file,
        certificate_file=certificate_file,
        key_file=key_file,
        node_key_pem=generate_node_key(),
    )
    with pytest.raises(FleetUnavailable, match="ConnectError"):
        connection.__enter__()


def test_a_certificate_of_another_ca_is_refused(front: Any, authority: Any, tmp_path: Path) -> None:
    certificate_file, key_file = authority(tmp_path).issue("stranger")
    connection = FleetConnection(
        front.address,
        ca_file=front.authority.certificate_file,
        certificate_file=certificate_file,
        key_file=key_file,
        node_key_pem=generate_node_key(),
    )
    with pytest.raises(FleetUnavailable):
        connection.__enter__()


def test_renewed_certificate_files_are_read_at_reconnect(front: Any) -> None:
    connection = front.connection("renewing")
    with connection:
        _, key_file = front.authority.issue("renewing")  # overwrites both files, with a new key
        connection.reconnect()
        assert connection.receive() is None
        key_file.write_text("not a key")
        with pytest.raises(FleetUnavailable, match="certificate files"):
            connection.reconnect()
        front.authority.issue("renewing")
        connection.reconnect()


def test_proxies_in_the_environment_are_ignored(front: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with front.connection("behind-a-proxy") as connection:
        assert connection.receive() is None
        with FlowerExchange(front.superlink.address, front.superlink.superexec_secret_path) as exchange:
            assert connection.node_id in exchange.nodes()


def test_a_second_exchange_in_one_process_is_refused(front: Any, exchange: FlowerExchange) -> None:
    with ExitStack() as stack, pytest.raises(RuntimeError, match="already holds an exchange"):
        stack.enter_context(FlowerExchange(front.superlink.address, front.superlink.superexec_secret_path))
