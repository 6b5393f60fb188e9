"""The agent as a loop: against a coordinator over real TLS, and as a process that is told to end."""

from __future__ import annotations

import base64
import json
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from protocol.consent import CONSENT_TYPE
from protocol.envelope import Envelope
from protocol.errors import CloisterError
from protocol.round import CONTRIBUTION_TYPE, KEY_ADVERT_TYPE, KEY_ENCAPSULATION_TYPE, Packet
from site_agent.agent import Agent
from site_agent.backoff import LONGEST_BACKOFF, Backoff
from site_agent.certificates import request_certificate
from site_agent.consent.plans import SignedPlan
from site_agent.coordinator_client import CoordinatorClient
from site_agent.database import transaction
from site_agent.durable_files import make_private_folder, write_durably
from site_agent.witness import repository
from site_agent.witness.names import own_witness
from tests.site_agent.federation_of_sites import Federation, Hospital, federation
from tests.site_agent.made_up_coordinator import MadeUpCoordinator, made_up_coordinator, problem

pytestmark = pytest.mark.processes
PATIENCE = 20.0


class LinkDown(CloisterError):
    """As FleetUnavailable."""

    code = "fleet-unavailable"


@dataclass
class Asked:
    kind: str
    packet: bytes
    expires_at: float = field(default_factory=lambda: time.time() + 60)


@dataclass
class QueueLink:
    """The fleet connection's contract in memory, with the faults a test asks for."""

    questions: queue.Queue[Asked] = field(default_factory=queue.Queue)
    answers: queue.Queue[bytes] = field(default_factory=queue.Queue)
    lose_replies: int = 0
    failing: int = 0
    opened: int = 0
    reconnects: int = 0
    closed: int = 0

    def open(self) -> QueueLink:
        self.opened += 1
        return self

    def receive(self) -> Asked | None:
        if self.failing:
            self.failing -= 1
            raise LinkDown("down")
        try:
            return self.questions.get_nowait()
        except queue.Empty:
            return None

    def reply(self, incoming: Asked, packet: bytes) -> None:
        if self.lose_replies:
            self.lose_replies -= 1
            raise LinkDown("down")
        self.answers.put(packet)

    def reconnect(self) -> None:
        self.reconnects += 1

    def close(self) -> None:
        self.closed += 1

    def ask(self, kind: str, packet: bytes) -> bytes:
        self.questions.put(Asked(kind, packet))
        return self.answers.get(timeout=PATIENCE)


@dataclass
class Scene:
    coordinator: MadeUpCoordinator
    world: Federation
    signed: SignedPlan
    link: QueueLink = field(default_factory=QueueLink)
    active: list[str] = field(default_factory=list)
    state: str = "consenting"

    @property
    def site(self) -> Hospital:
        return self.world.hospitals["cork"]

    def asked(self, method: str, path: str) -> list[bytes]:
        return [body for m, p, body in self.coordinator.requests if (m, p) == (method, path)]

    def routes(self) -> None:
        envelope = base64.b64encode(self.signed.envelope).decode()
        self.coordinator.routes |= {
            ("GET", "/v1/sites/me/work"): lambda _: ok({"active": self.active, "installable": []}),
            ("GET", "/v1/sites/me/studies"): lambda _: ok(
                [
                    {
                        "study": "hearts-one",
                        "state": self.state,
                        "plan_envelope": envelope,
                        "plan_digest": self.signed.digest,
                    }
                ]
            ),
            ("POST", "/v1/studies/hearts-one/consents"): lambda _: (201, b"{}"),
        }


def ok(document: Any) -> tuple[int, bytes]:
    return 200, json.dumps(document).encode()


def until(condition: Callable[[], bool]) -> None:
    """Return once the condition holds; fail when it does not in time."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it never came about"
        threading.Event().wait(0.01)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    served = tmp_path / "coordinator"
    served.mkdir()
    with made_up_coordinator(served) as coordinator:
        world = federation(tmp_path, coordinator=coordinator.key, log=coordinator.log.vkey, address=coordinator.address)
        for name, site in world.hospitals.items():
            make_private_folder(site.settings.home.mirror)
            certificate = coordinator.certify(request_certificate(name, site.keys.identity), name)
            write_durably(site.keys.certificate_path, certificate)
            write_durably(site.keys.ca_path, coordinator.ca_pem)
            coordinator.policy = coordinator.log.policy(own_witness(name, site.keys))
            with transaction(site.engine) as session:
                repository.accept_policy(session, coordinator.policy, at="2026-03-01T12:00:00Z")
        coordinator.log.event("log.started")
        scene = Scene(coordinator, world, world.sign(world.plan()))
        scene.routes()
        yield scene


@pytest.fixture
def agent(scene: Scene) -> Iterator[Agent]:
    """Cork's agent, running in a thread."""
    site = scene.site
    stop = threading.Event()
    settings = site.settings
    running = Agent(
        settings,
        site.keys,
        site.engine,
        stop=stop,
        client=lambda: CoordinatorClient(settings, site.keys),
        link=scene.link.open,  # type: ignore[arg-type, return-value]
        worker=site.worker,
        clock=lambda: site.now,
    )
    thread = threading.Thread(target=running.run)
    thread.start()
    try:
        yield running
    finally:
        stop.set()
        thread.join(PATIENCE)
        assert not thread.is_alive()


def test_a_study_runs_from_grant_to_its_end(scene: Scene, agent: Agent) -> None:
    """The grant is delivered, the log followed, the keys made, a round answered, and the keys erased at the end."""
    for site in scene.world.hospitals.values():
        site.grant(scene.signed)
    until(lambda: scene.asked("POST", "/v1/studies/hearts-one/consents") != [])
    (consent,) = scene.asked("POST", "/v1/studies/hearts-one/consents")
    assert Envelope.from_bytes(consent).payload_type == CONSENT_TYPE
    until(lambda: scene.coordinator.cosignatures != [])
    assert scene.link.opened == 0
    scene.active, scene.state = ["hearts-one"], "keys"
    until(lambda: scene.link.opened == 1)
    others = {name: site.participant() for name, site in scene.world.hospitals.items() if name != "cork"}
    envelopes: list[Envelope] = []
    for kind, step, answer_type in (
        ("query.keys", "advertise", KEY_ADVERT_TYPE),
        ("query.encapsulate", "encapsulate", KEY_ENCAPSULATION_TYPE),
        ("query.establish", "establish", None),
    ):
        request = scene.world.key_request(scene.signed, step, envelopes)
        answers = {name: participant.answer(kind, request) for name, participant in others.items()}
        answers["cork"] = scene.link.ask(kind, request)
        envelopes = [Packet.from_bytes(answers[name]).envelope for name in sorted(answers)]
        assert answer_type in (None, envelopes[2].payload_type)
    request = scene.world.round_request(scene.signed)
    scene.link.lose_replies = 1
    first = scene.link.ask("train.contribute", request)
    assert Packet.from_bytes(first).envelope.payload_type == CONTRIBUTION_TYPE
    assert scene.link.reconnects == 1
    assert scene.link.ask("train.contribute", request) == first
    assert scene.site.store.studies_with_keys() == ["hearts-one"]
    scene.active, scene.state = [], "candidate"
    until(lambda: scene.site.store.studies_with_keys() == [])
    until(lambda: scene.link.closed >= 1)


def test_keys_outlive_a_pause(scene: Scene, agent: Agent) -> None:
    """A study that is only waiting must not lose its keys because it is not active at the moment."""
    for site in scene.world.hospitals.values():
        site.grant(scene.signed)
    scene.world.establish(scene.signed)
    scene.state = "running"
    before = len(scene.asked("GET", "/v1/sites/me/studies"))
    until(lambda: len(scene.asked("GET", "/v1/sites/me/studies")) > before + 1)
    assert scene.site.store.studies_with_keys() == ["hearts-one"]


def test_trouble_is_waited_out(scene: Scene, agent: Agent) -> None:
    working = scene.coordinator.routes["GET", "/v1/sites/me/work"]
    scene.coordinator.routes["GET", "/v1/sites/me/work"] = lambda _: problem(503, "busy", "Later.")
    failed = len(scene.asked("GET", "/v1/sites/me/work"))
    until(lambda: len(scene.asked("GET", "/v1/sites/me/work")) > failed)
    scene.active, scene.link.failing = ["hearts-one"], 2
    scene.coordinator.routes["GET", "/v1/sites/me/work"] = working
    until(lambda: scene.link.reconnects == 2)
    answer = scene.link.ask("train.contribute", b"nonsense")
    assert Packet.from_bytes(answer).envelope.payload_type.endswith("round-refusal+json")


def test_backoff_grows_with_jitter_to_a_bound_and_starts_anew() -> None:
    backoff = Backoff(1.0)
    waits = [backoff.wait() for _ in range(12)]
    for number, wait in enumerate(waits):
        upper = min(LONGEST_BACKOFF, 2.0 ** (number + 1))
        assert upper / 2 <= wait <= upper
    backoff.reset()
    assert backoff.wait() <= 2.0


def test_the_process_logs_json_refuses_a_second_and_ends_on_sigterm(scene: Scene) -> None:
    command = [sys.executable, "-c", "from site_agent.cli import main; main()", "agent", "--home"]
    command.append(str(scene.site.settings.home.path))
    first = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert first.stderr is not None
        assert json.loads(first.stderr.readline())["event"] == "agent-started"
        second = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert second.returncode == 1
        assert "already runs" in second.stderr
        until(lambda: scene.coordinator.cosignatures != [])
        assert scene.coordinator.verified_cosignatures(scene.site.keys.witness, "cork") == [1]
        first.send_signal(signal.SIGTERM)
        _, rest = first.communicate(timeout=60)
        assert first.returncode == 0
        events = [json.loads(line) for line in rest.splitlines()]
        assert events[-1]["event"] == "agent-stopped"
        assert {"level", "timestamp"} <= events[-1].keys()
    finally:
        first.kill()
        first.wait()
