"""The SuperLink's process: its folder, its port, its end; and Flower's own SuperNode against it."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from coordinator.federation.exchange import ExchangeLost, Failure, FlowerExchange
from coordinator.federation.superlink import HOST, SuperLinkFailed, SuperLinkProcess, running_address

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def superlink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SuperLinkProcess]:
    with SuperLinkProcess(tmp_path_factory.mktemp("superlink") / "state") as superlink:
        superlink.wait_ready(30)
        yield superlink


def test_its_folder_is_its_owners_alone_and_holds_no_packet_store(superlink: SuperLinkProcess) -> None:
    assert stat.S_IMODE(superlink.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(superlink.superexec_secret_path.stat().st_mode) == 0o600
    assert len(superlink.superexec_secret_path.read_bytes()) == 32
    assert stat.S_IMODE(superlink.log_path.stat().st_mode) == 0o600
    assert not list(superlink.folder.rglob("*.db"))
    assert running_address(superlink.folder) == superlink.address


def test_it_listens_on_loopback_only_with_its_calls_home_off(superlink: SuperLinkProcess) -> None:
    environment = Path(f"/proc/{superlink.pid}/environ").read_bytes().split(b"\0")
    assert b"FLWR_TELEMETRY_ENABLED=0" in environment
    assert b"FLWR_DISABLE_UPDATE_CHECK=1" in environment
    arguments = Path(f"/proc/{superlink.pid}/cmdline").read_bytes().split(b"\0")
    assert b"--disable-runtime-dependency-installation" in arguments
    port = int(superlink.address.rpartition(":")[2])
    for table in ("tcp", "tcp6"):
        rows = [line.split() for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]]
        listening = {row[1] for row in rows if row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == port}
        assert listening <= {f"0100007F:{port:04X}"}
        if table == "tcp":
            assert listening


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind((HOST, 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(SuperLinkFailed, match=f"Port {port} on {HOST} is in use"):
            SuperLinkProcess(tmp_path / "state", port).start()


def test_a_folder_without_superlink_is_named(tmp_path: Path) -> None:
    with pytest.raises(SuperLinkFailed, match="No SuperLink was started"):
        running_address(tmp_path)


def test_it_ends_with_a_killed_parent(tmp_path: Path, until: Any) -> None:
    script = (
        "import sys, time, pathlib\n"
        "from coordinator.federation.superlink import SuperLinkProcess\n"
        "superlink = SuperLinkProcess(pathlib.Path(sys.argv[1]))\n"
        "superlink.start(); superlink.wait_ready(30)\n"
        "print(superlink.pid, flush=True); time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "state")], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    with parent.stdout:
        child = int(parent.stdout.readline())
    os.kill(child, 0)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    until(lambda: not _lives(child), seconds=5, what="the end of the orphan")


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_flowers_own_supernode_joins_and_is_sent_a_message(
    superlink: SuperLinkProcess, tmp_path: Path, until: Any
) -> None:
    """The contract: the wire is Flower's. Its SuperNode finds no code in our bundle, and must say so."""
    environment = os.environ | {
        "FLWR_HOME": str(tmp_path / "flwr"),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    command = [
        str(Path(sys.executable).with_name("flower-supernode")), "--insecure", "--superlink", superlink.address,
        "--port", str(_free_port()),
    ]  # fmt: skip
    with (
        open(tmp_path / "supernode.log", "wb") as log,
        FlowerExchange(superlink.address, superlink.superexec_secret_path) as exchange,
    ):
        supernode = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        try:
            nodes = until(exchange.nodes, seconds=20, what="the SuperNode's registration")
            (node,) = nodes
            replies = exchange.request("query.probe", {node: b"hello"}, group="g", deadline_seconds=40)
        finally:
            os.killpg(supernode.pid, signal.SIGTERM)
            supernode.wait(20)
    failure = replies[node]
    assert isinstance(failure, Failure)
    assert failure.by_site


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def test_processes_that_open_an_exchange_at_once_each_get_their_own_run(superlink: SuperLinkProcess) -> None:
    script = (
        "import sys, pathlib\n"
        "from coordinator.federation.exchange import FlowerExchange\n"
        "with FlowerExchange(sys.argv[1], pathlib.Path(sys.argv[2])) as exchange:\n"
        "    assert exchange.nodes() is not None\n"
        "    print(exchange._link.run_id, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", script, superlink.address, str(superlink.superexec_secret_path)]
    drivers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(3)]
    runs = {driver.communicate(timeout=30)[0] for driver in drivers}
    assert [driver.returncode for driver in drivers] == [0, 0, 0]
    assert len(runs) == 3


def test_sites_come_back_after_the_superlink_was_killed(front: Any, fleet: Any, until: Any) -> None:
    superlink = front.superlink
    sites = [fleet.join(name) for name in ("east", "west")]

    def nodes() -> dict[str, int]:
        return {name: front.nodes.node_of(name) for name in ("east", "west")}

    before = nodes()
    lost: list[ExchangeLost] = []
    with FlowerExchange(superlink.address, superlink.superexec_secret_path) as exchange:
        packets = dict.fromkeys(before.values(), b"1")
        assert len(exchange.request("query.keys", packets, group="before", deadline_seconds=20)) == 2

        def ask_a_silent_fleet() -> None:
            try:
                exchange.request("query.keys", {before["east"]: b"2"}, group="during", deadline_seconds=30)
            except ExchangeLost as error:
                lost.append(error)

        for site in sites:
            site.pause()
        asking = threading.Thread(target=ask_a_silent_fleet)
        asking.start()
        os.kill(superlink.pid, signal.SIGKILL)
        asking.join(20)
        assert lost
        with pytest.raises(ExchangeLost):
            exchange.nodes()
    until(lambda: not superlink.alive, what="the end of the killed process")
    for site in sites:
        site.go_on()
    superlink.start()
    superlink.wait_ready(30)
    until(lambda: set(nodes().values()).isdisjoint(before.values()), what="the sites' return")
    with FlowerExchange(superlink.address, superlink.superexec_secret_path) as exchange:
        assert exchange.nodes() == set(nodes().values())
        replies = exchange.request("query.keys", dict.fromkeys(nodes().values(), b"3"), group="a", deadline_seconds=20)
        assert replies == dict.fromkeys(nodes().values(), b"query.keys|3")
    assert all(site.troubles > 0 for site in sites)
