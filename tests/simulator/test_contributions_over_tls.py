"""Chunks of a contribution over the coordinator's real port and mutual TLS, through a line that is cut, with an agent
that is killed and a coordinator that is restarted. Bytes are counted on the line."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import httpx
import pytest

from coordinator.database import transaction
from coordinator.rounds.exchange import Answer
from coordinator.rounds.uploads import Uploads
from coordinator.sites import enrolment
from coordinator.studies.states import StudyState
from site_agent.certificates import request_certificate
from site_agent.coordinator_client import CoordinatorClient
from site_agent.federation.upload import Uploader, announced_in
from site_agent.settings import SiteDocument
from tests.simulator import invariants
from tests.simulator.federation import PASS, Delivery, Federation, SimulatedSite, build_federation, study_spec

pytestmark = pytest.mark.processes
CHUNK = 32 << 10
LARGE = {"architecture": "mlp", "hidden": [300, 300]}
HEAD = 12 << 10
"""Bytes of one connection beside chunks: the handshake with both certificates, the offer with its manifest, heads."""


class Line(threading.Thread):
    """A TCP line to the coordinator. `cuts`: after how many bytes upwards each connection breaks, in turn; then none
    does. `up`: bytes that sites sent, over all connections."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self.port = port
        self.cuts: list[int] = []
        self.up = 0
        self.delay = 0.0
        self.connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"

    def reset(self) -> None:
        self.cuts, self.up, self.delay, self.connections = [], 0, 0.0, 0

    def run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                self.connections += 1
                cut = self.cuts.pop(0) if self.cuts else 1 << 60
                threading.Thread(target=self._carry, args=(near, cut), daemon=True).start()

    def _carry(self, near: socket.socket, cut: int) -> None:
        with near, contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)) as far:
            threading.Thread(target=self._back, args=(far, near), daemon=True).start()
            passed = 0
            while data := near.recv(min(16 << 10, cut - passed)):
                far.sendall(data)
                passed += len(data)
                self.up += len(data)
                time.sleep(self.delay)
                if passed >= cut:
                    break
            for end in (near, far):
                end.shutdown(socket.SHUT_RDWR)

    def _back(self, far: socket.socket, near: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := far.recv(16 << 10):
                near.sendall(data)
        with contextlib.suppress(OSError):
            near.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.close()


SERVER = """
import sys
from pathlib import Path
from coordinator.appliance import open_appliance
from coordinator.server import build_server, listening, tls_context

appliance = open_appliance(Path(sys.argv[1]))
with listening(appliance.settings.listen) as listener:
    context = tls_context(appliance.keys)
    build_server(appliance, context, (), ready=lambda: print("ready", flush=True)).serve_on(listener)
"""


@dataclasses.dataclass
class Port:
    """The coordinator's real server over a federation's home, as a process that can be killed."""

    federation: Federation
    number: int
    _server: subprocess.Popen[str] | None = None

    def start(self) -> None:
        command = [sys.executable, "-P", "-c", SERVER, str(self.federation.appliance.home)]
        self._server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._server.stdout is not None
        assert self._server.stdout.readline() == "ready\n"

    def kill(self) -> None:
        assert self._server is not None
        self._server.kill()
        self._server.communicate()


@dataclasses.dataclass
class Scene:
    federation: Federation
    port: Port
    line: Line
    numbers: Iterator[int] = dataclasses.field(default_factory=lambda: itertools.count(1))
    study: str = ""

    @property
    def site(self) -> SimulatedSite:
        return self.federation.sites["berlin"]

    def client(self) -> CoordinatorClient:
        return CoordinatorClient(dataclasses.replace(self.site.settings, address=self.line.address), self.site.keys)

    def uploader(self) -> Uploader:
        return Uploader(self.site.store, self.client, stop=threading.Event())

    def run(self, deed: Callable[[Delivery], Answer | None]) -> None:
        """A whole new study, in which berlin contributes to round 1 as the deed says; everybody is in it."""
        self.study = study = f"hearts-{next(self.numbers)}"
        self.federation.reset()
        self.line.reset()
        training = {"rounds": 1, "sampling_rate": 0.25, "clip": 0.25, "learning_rate": 1.0}
        self.federation.ready(study_spec(study, model=LARGE, training=training))
        group = ("train-1-1", "berlin")
        self.federation.exchange.faults.append(
            lambda delivery: deed(delivery) if (delivery.group, delivery.site.name) == group else PASS
        )
        assert self.federation.driver(study).run() is StudyState.CANDIDATE
        invariants.check(self.federation, study)
        first = self.federation.records(study)[0]
        assert (first["attempts"], first["excluded"]) == (1, {})
        assert list((self.federation.appliance.home / "uploads").iterdir()) == []


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        number = free.getsockname()[1]
    federation = build_federation(
        tmp_path_factory.mktemp("line"), address=f"127.0.0.1:{number}", begins=datetime.now(UTC)
    )
    for site in federation.sites.values():
        with transaction(federation.appliance.engine) as session:
            pem, _ = enrolment.renew(
                session, federation.appliance, site.name, request_certificate(site.name, site.keys.identity)
            )
        site.keys.certificate_path.write_text(pem)
        site.keys.ca_path.write_text(federation.appliance.keys.authority.pem)
        site.chunk_bytes = CHUNK
        site.restart()
    port, line = Port(federation, number), Line(number)
    port.start()
    line.start()
    try:
        yield Scene(federation, port, line)
    finally:
        line.close()
        port.kill()


def vector_length(packet: bytes) -> int:
    announced = announced_in(packet)
    assert announced is not None
    return announced[1].length


def test_a_line_that_is_cut_many_times_carries_the_vector_once(scene: Scene) -> None:
    seen: list[tuple[int, int, int]] = []

    def deed(delivery: Delivery) -> Answer | None:
        packet = delivery.compute()
        scene.line.cuts = [1, 3000, *(HEAD + step * CHUNK // 2 for step in (1, 3, 4, 7, 2))]
        cuts = len(scene.line.cuts)
        assert scene.uploader().deliver(packet, until=time.time() + 60)
        seen.append((vector_length(packet), scene.line.up, cuts))
        return packet

    scene.run(deed)
    ((length, up, cuts),) = seen
    assert scene.line.connections == cuts + 1
    assert up >= length
    assert up <= length + cuts * CHUNK + (cuts + 1) * HEAD, "each cut costs the chunk that was under way, no more"
    assert up < 1.6 * length
    print(f"\n{length} bytes over {cuts} cuts: {up} bytes on the line, {up / length:.3f} of the vector")


AGENT = """
import sys, threading, time
from pathlib import Path
from site_agent.coordinator_client import CoordinatorClient
from site_agent.database import open_database
from site_agent.federation.upload import Uploader
from site_agent.keystore import load_keys
from site_agent.settings import SiteHome, load_settings
from site_agent.training.budget_store import BudgetStore

home = SiteHome(Path(sys.argv[1]))
settings, keys = load_settings(home), load_keys(home)
uploader = Uploader(
    BudgetStore(open_database(home)), lambda: CoordinatorClient(settings, keys), stop=threading.Event()
)
print("sent" if uploader.go_on(sys.argv[2], patience=30.0) else "nobody waits", flush=True)
"""


def test_an_agent_that_is_killed_goes_on_where_it_was(scene: Scene) -> None:
    settings, seen = scene.site.settings, []

    def agent() -> subprocess.Popen[str]:
        command = [sys.executable, "-P", "-c", AGENT, str(settings.home.path), scene.study]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    def deed(delivery: Delivery) -> Answer | None:
        packet = delivery.compute()
        document = SiteDocument(
            site=settings.site, address=scene.line.address, log=settings.log,
            coordinator=settings.coordinator, poll_seconds=1.0,
        )  # fmt: skip
        settings.home.settings.write_text(document.to_toml())
        length = vector_length(packet)
        scene.line.delay = 0.04  # a slow line, so that there is a middle
        for share in (0.3, 0.6):
            process = agent()
            deadline = time.monotonic() + 60
            while scene.line.up < share * length:
                assert process.poll() is None, "the agent ended before it was killed"
                assert time.monotonic() < deadline
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
            process.communicate()
        scene.line.delay = 0.0
        last = agent()
        assert last.communicate(timeout=60)[0].endswith("sent\n")
        seen.append((length, scene.line.up))
        return None  # the killed agent's message is gone: the driver finds the vector by itself

    scene.run(deed)
    ((length, up),) = seen
    print(f"\n{length} bytes: {up} bytes on the line, {up / length:.3f} of the vector")
    assert length <= up <= length + 2 * CHUNK + 3 * HEAD + (64 << 10)  # two kills, with what the kernel had taken


def test_a_coordinator_that_is_restarted_asks_for_what_it_lacks(scene: Scene) -> None:
    seen = []

    def deed(delivery: Delivery) -> Answer | None:
        packet = delivery.compute()
        length = vector_length(packet)
        scene.line.delay = 0.01
        done: list[bool] = []
        sending = threading.Thread(
            target=lambda: done.append(scene.uploader().deliver(packet, until=time.time() + 60)), daemon=True
        )
        sending.start()
        deadline = time.monotonic() + 60
        while scene.line.up < length // 2:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        scene.port.kill()
        scene.port.start()
        scene.line.delay = 0.0
        sending.join(60)
        assert done == [True]
        seen.append((length, scene.line.up))
        return packet

    scene.run(deed)
    ((length, up),) = seen
    print(f"\n{length} bytes: {up} bytes on the line, {up / length:.3f} of the vector")
    assert length <= up <= length + 2 * CHUNK + 3 * HEAD + (64 << 10)


def test_the_port_takes_chunks_from_sites_in_the_cohort_and_nothing_else(scene: Scene) -> None:
    def deed(delivery: Delivery) -> Answer | None:
        packet = delivery.compute()
        address, context = f"https://127.0.0.1:{scene.port.number}", scene.site.keys.client_tls()
        with httpx.Client(base_url=address, verify=context, trust_env=False, timeout=20) as berlin:
            offered = berlin.post("/v1/contributions", content=packet).json()
            attempt, path = offered["attempt"], f"/v1/contributions/{offered['attempt']}"
            assert len(offered["missing"]) > 10
            for bad in (f"{path}/-1", f"{path}/4096", f"{path}/x", f"/v1/contributions/{attempt[:-1]}/0"):
                assert berlin.put(bad, content=b"x").status_code == 422, bad
            for bad in ("/v1/contributions/../keys/0", f"/v1/contributions/%2e%2e%2f{attempt}/0", f"{path}/0/../1"):
                assert berlin.put(bad, content=b"x").status_code in (404, 405, 422), bad
            assert berlin.put(f"{path}/0", content=bytes(CHUNK)).json()["code"] == "secagg-damaged-chunk"
            assert berlin.put(f"/v1/contributions/{'0' * 32}/0", content=b"x").json()["code"] == "upload-closed"
            assert berlin.get(path).status_code in (404, 405)
            assert berlin.post("/v1/contributions", content=b"junk").status_code == 400
        with (
            httpx.Client(base_url=address, verify=context, trust_env=False, timeout=20) as berlin,
            contextlib.suppress(httpx.RemoteProtocolError, httpx.WriteError, httpx.ReadError),  # or it is cut off
        ):
            assert berlin.put(f"{path}/0", content=bytes((1 << 20) + (1 << 16) + 1)).status_code == 413
        with httpx.Client(base_url=address, verify=_no_certificate(scene), trust_env=False, timeout=20) as stranger:
            assert stranger.post("/v1/contributions", content=packet).status_code == 401
            assert stranger.put(f"{path}/0", content=b"x").status_code == 401
        other = scene.federation.sites["cologne"].keys.client_tls()
        with httpx.Client(base_url=address, verify=other, trust_env=False, timeout=20) as cologne:
            assert cologne.post("/v1/contributions", content=packet).json()["code"] == "bad-signature"
            assert cologne.put(f"{path}/0", content=bytes(CHUNK)).json()["code"] == "upload-closed"
        assert scene.uploader().deliver(packet, until=time.time() + 60)
        stored = Uploads(scene.federation.appliance).stored
        key, manifest = announced_in(packet) or pytest.fail("nothing announced")
        here = hashlib.sha256(scene.site.store.vector(key, 0, manifest.length)).digest()
        there = hashlib.sha256()
        for _, chunk in stored.chunks(_contribution(packet), manifest):
            there.update(chunk)
        assert there.digest() == here, "the bytes on the coordinator's disk are those on the site's"
        return packet

    scene.run(deed)


def _no_certificate(scene: Scene) -> object:
    from tests.coordinator.appliances import trusting

    return trusting(scene.federation.appliance.keys.ca_path)


def _contribution(packet: bytes) -> object:
    from protocol.canonical import parse
    from protocol.round import Contribution, Packet

    return Contribution.model_validate(parse(Packet.from_bytes(packet).envelope.payload))
