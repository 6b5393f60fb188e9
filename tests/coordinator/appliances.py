"""Coordinators for tests: made by the product's own `initialise`, served by its own server, on loopback."""

from __future__ import annotations

import base64
import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fastapi import FastAPI

from coordinator.appliance import Appliance, open_appliance
from coordinator.audit.export import write_export
from coordinator.database import reading, transaction
from coordinator.initialise import initialise
from coordinator.parts import Part, sequencer
from coordinator.people import accounts
from coordinator.policy.active import active_policy
from coordinator.server import build_server, tls_context
from coordinator.sites import enrolment
from protocol.checkpoint import TreeHead, cosign, cosigner_key
from protocol.enrolment import (
    EnrolmentRequest,
    EnrolmentResponse,
    Token,
    registration_message,
    session_message,
    witness_name,
)
from protocol.identifiers import Role
from protocol.note import Note
from protocol.signing import MlDsa44SigningKey, SigningKey
from tests.papers import give_governance, statement_of


class MovingClock:
    """The system's clock, moved by what a test says."""

    def __init__(self) -> None:
        self.offset = timedelta()

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.offset

    def move(self, **span: float) -> None:
        self.offset += timedelta(**span)


@dataclass
class Made:
    """A coordinator, the clock that it goes by, and its first administrator's token."""

    appliance: Appliance
    clock: MovingClock
    token: Token


def make_coordinator(folder: Path, *, address: str = "127.0.0.1:8443", database: str | None = None) -> Made:
    clock = MovingClock()
    made = initialise(folder / "coordinator", address=address, database=database, clock=clock)
    appliance = open_appliance(folder / "coordinator", clock=clock)
    give_governance(appliance)
    return Made(appliance, clock, made.token)


@contextlib.contextmanager
def bound_socket() -> Iterator[socket.socket]:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", 0))
        yield listener


@dataclass
class Served(Made):
    """A coordinator that answers on `address`."""

    address: str = ""
    app: FastAPI | None = None

    @property
    def ca_path(self) -> Path:
        return self.appliance.keys.ca_path

    def client(self, *, context: ssl.SSLContext | None = None, token: str | None = None) -> httpx.Client:
        headers = {"authorization": f"Bearer {token}"} if token else {}
        return httpx.Client(
            base_url=f"https://{self.address}", verify=context or trusting(self.ca_path), trust_env=False,
            headers=headers, timeout=20,
        )  # fmt: skip


@contextlib.contextmanager
def served_coordinator(
    folder: Path, *, database: str | None = None, beside: Sequence[Part] = (sequencer,), host: str = "127.0.0.1"
) -> Iterator[Served]:
    with bound_socket() as listener:
        address = f"{host}:{listener.getsockname()[1]}"
        made = make_coordinator(folder, address=address, database=database)
        with serving(made.appliance, listener, beside) as app:
            yield Served(made.appliance, made.clock, made.token, address, app)


@contextlib.contextmanager
def serving(appliance: Appliance, listener: socket.socket, beside: Sequence[Part] = ()) -> Iterator[FastAPI]:
    """Its own server, answering on the socket."""
    ready = threading.Event()
    server = build_server(appliance, tls_context(appliance.keys), beside, ready=ready.set)
    thread = threading.Thread(target=server.serve_on, args=(listener,))
    thread.start()
    try:
        assert ready.wait(20), "the server did not start"
        yield server.config.app
    finally:
        server.should_exit = True
        thread.join(20)
        appliance.engine.dispose()


def trusting(ca: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(ca)
    return context


@dataclass
class TestSite:
    """A site that keeps its keys in memory and its certificate in a folder, as httpx needs it."""

    __test__ = False
    name: str
    folder: Path
    key: SigningKey = field(default_factory=SigningKey.generate)
    witness: SigningKey | MlDsa44SigningKey = field(default_factory=SigningKey.generate)
    response: EnrolmentResponse | None = None

    def csr(self, key: SigningKey | None = None, subject: str = "whoever") -> str:
        private = serialization.load_pem_private_key((key or self.key).to_pem(), None)
        assert isinstance(private, Ed25519PrivateKey)
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, subject)])
        request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(private, None)
        return request.public_bytes(serialization.Encoding.PEM).decode()

    def request(self, token: Token, **changes: str) -> EnrolmentRequest:
        fields = {
            "secret": token.secret,
            "site": token.name,
            "csr": self.csr(),
            "identity": self.key.public.text,
            "witness": cosigner_key(witness_name(token.name), self.witness).text,
            "statement": self.statement(token),
        }
        return EnrolmentRequest(**(fields | changes))

    def statement(self, token: Token, **changes: Any) -> str:
        """Its papers, all in order but for the changes."""
        now = datetime.now(UTC)
        return statement_of(token.name, self.key, token.ca, **{"now": now, **changes}).decode()

    def files(self, ca: Path) -> tuple[Path, Path, Path]:
        """CA, certificate and key, as files."""
        assert self.response
        certificate, key = self.folder / f"{self.name}.crt", self.folder / f"{self.name}.key"
        certificate.write_text(self.response.certificate)
        key.write_bytes(self.key.to_pem())
        return ca, certificate, key

    def enrol_in(self, appliance: Appliance) -> EnrolmentResponse:
        """Invite and enrol without HTTP."""
        with transaction(appliance.engine) as session:
            token = enrolment.invite(session, appliance, self.name)
        with transaction(appliance.engine) as session:
            enrolled = enrolment.enrol(session, appliance, active_policy(session, appliance), self.request(token))
        self.response = enrolled.response
        assert self.response is not None, enrolled.decision.to_dict()["findings"]
        return self.response

    def context(self, ca: Path, certificate: str | None = None, key: SigningKey | None = None) -> ssl.SSLContext:
        assert certificate or self.response
        self.folder.mkdir(exist_ok=True, parents=True)
        pair = self.folder / f"{self.name}.pem"
        pem = certificate or (self.response.certificate if self.response else "")
        pair.write_bytes(pem.encode() + (key or self.key).to_pem())
        context = trusting(ca)
        context.load_cert_chain(pair)
        return context

    def cosign(self, note: bytes, now: datetime) -> bytes:
        head = TreeHead.parse(Note.parse(note).text)
        line = cosign(head, witness_name(self.name), self.witness, timestamp=int(now.timestamp()))
        return line.line.encode()


@dataclass
class TestPerson:
    """A person who does by hand what `cloister login` does."""

    __test__ = False
    name: str
    key: SigningKey = field(default_factory=SigningKey.generate)

    def registration(self, token: Token) -> dict[str, str]:
        proof = self.key.sign(registration_message(token.secret, self.name, self.key.public.text))
        return {"secret": token.secret, "name": self.name, "key": self.key.public.text, "proof": _text(proof)}

    def answer(self, ca: str, challenge: str) -> dict[str, str]:
        signature = self.key.sign(session_message(ca, self.name, challenge))
        return {"name": self.name, "challenge": challenge, "signature": _text(signature)}

    def join(self, served: Served, role: Role) -> None:
        """Be invited and register."""
        with transaction(served.appliance.engine) as session:
            token = accounts.invite(session, served.appliance, self.name, role)
        with served.client() as client:
            assert client.post("/v1/people/register", json=self.registration(token)).status_code == 201

    def sign_in(self, served: Served) -> str:
        with served.client() as client:
            challenge = client.post("/v1/people/challenge", json={"name": self.name}).json()["challenge"]
            body = self.answer(served.appliance.keys.authority.fingerprint, challenge)
            answer = client.post("/v1/people/session", json=body)
            assert answer.status_code == 201, answer.text
            return str(answer.json()["token"])


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def exported(made: Made, *, minimum_size: int = 1) -> bytes:
    """The audit bundle's archive."""
    with reading(made.appliance.engine) as session:
        return b"".join(write_export(session, made.appliance, minimum_size=minimum_size).chunks())
