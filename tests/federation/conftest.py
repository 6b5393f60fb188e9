"""A real SuperLink, a real TLS port with the gateway behind it, and sites that connect to it with certificates."""

from __future__ import annotations

import datetime
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from coordinator.federation.gateway import NodeTaken, forward, gateway_client
from coordinator.federation.superlink import SuperLinkProcess, free_port
from site_agent.federation.connection import FleetConnection, FleetUnavailable, Incoming
from site_agent.federation.transport import generate_node_key

READY_SECONDS = 30.0


def until(condition: Callable[[], Any], seconds: float = 20.0, what: str = "the condition") -> Any:
    """Poll until the condition holds; its value. Fails the test at the deadline."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what} did not come about within {seconds} s"
        time.sleep(0.02)
    return value


class Authority:
    """A certificate authority made for the test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test CA")])
        constraints = x509.BasicConstraints(ca=True, path_length=0)
        certificate = self._builder(self.name, self.key).add_extension(constraints, critical=True)
        self.certificate_file = folder / "ca.pem"
        self.certificate_file.write_bytes(_pem(certificate.sign(self.key, hashes.SHA256())))

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        hour = datetime.timedelta(hours=1)
        builder = x509.CertificateBuilder(self.name, subject, key.public_key(), x509.random_serial_number())
        return builder.not_valid_before(now - hour).not_valid_after(now + hour)

    def issue(self, name: str, *, server: bool = False) -> tuple[Path, Path]:
        """(certificate file, key file)"""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        usage = ExtendedKeyUsageOID.SERVER_AUTH if server else ExtendedKeyUsageOID.CLIENT_AUTH
        builder = self._builder(subject, key).add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        if server:
            import ipaddress

            address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
            builder = builder.add_extension(x509.SubjectAlternativeName([address]), critical=False)
        certificate_file, key_file = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        certificate_file.write_bytes(_pem(builder.sign(self.key, hashes.SHA256())))
        key_file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return certificate_file, key_file


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


class Nodes:
    """A registry in memory: each node has one site."""

    def __init__(self) -> None:
        self.by_site: dict[str, int] = {}

    def node_of(self, site: str) -> int | None:
        return self.by_site.get(site)

    def record(self, site: str, node_id: int) -> None:
        if any(node == node_id and holder != site for holder, node in self.by_site.items()):
            raise NodeTaken
        self.by_site[site] = node_id


class _NamesTheSite(H11Protocol):
    """Puts the common name of the connection's client certificate into the ASGI scope."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        certificate = transport.get_extra_info("ssl_object").getpeercert()
        subject = dict(pair for part in certificate["subject"] for pair in part)
        inner = self.app

        async def named(scope: Any, receive: Any, send: Any) -> None:
            scope["site"] = subject["commonName"]
            await inner(scope, receive, send)

        self.app = named


@dataclass
class Front:
    """The coordinator's TLS port, with every path going to the gateway."""

    authority: Authority
    superlink: SuperLinkProcess
    port: int
    nodes: Nodes = field(default_factory=Nodes)
    refused: set[str] = field(default_factory=set)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def client(self, site: str) -> httpx.Client:
        """A plain HTTPS client with the site's certificate, for what no well-behaved agent would send."""
        context = ssl.create_default_context(cafile=str(self.authority.certificate_file))
        context.load_cert_chain(*self.authority.issue(site))
        return httpx.Client(base_url=f"https://{self.address}", verify=context, trust_env=False)

    def connection(self, site: str, node_key: bytes | None = None) -> FleetConnection:
        certificate_file, key_file = self.authority.issue(site)
        return FleetConnection(
            self.address,
            ca_file=self.authority.certificate_file,
            certificate_file=certificate_file,
            key_file=key_file,
            node_key_pem=node_key if node_key is not None else generate_node_key(),
        )


class Site(threading.Thread):
    """An agent in a thread: connects, answers every packet with `answer`, reconnects when it must."""

    def __init__(self, connection: FleetConnection, answer: Callable[[FleetConnection, Incoming], None]) -> None:
        super().__init__(daemon=True)
        self.connection = connection
        self.answer = answer
        self.finished = threading.Event()
        self.troubles = 0
        self._may_go = threading.Event()
        self._may_go.set()

    @property
    def node_id(self) -> int:
        return self.connection.node_id

    def pause(self) -> None:
        self._may_go.clear()

    def go_on(self) -> None:
        self._may_go.set()

    def run(self) -> None:
        while not self.finished.wait(0.02):
            self._may_go.wait()
            try:
                incoming = self.connection.receive()
                if incoming is not None:
                    self.answer(self.connection, incoming)
            except FleetUnavailable:
                self.troubles += 1
                self.finished.wait(0.1)
                self._reconnect()

    def _reconnect(self) -> None:
        try:
            self.connection.reconnect()
        except FleetUnavailable:
            self.troubles += 1


def echo(connection: FleetConnection, incoming: Incoming) -> None:
    connection.reply(incoming, incoming.kind.encode() + b"|" + incoming.packet)


def start_site(front: Front, name: str, answer: Callable[[FleetConnection, Incoming], None] = echo) -> Site:
    site = Site(front.connection(name).__enter__(), answer)
    site.start()
    return site


def end_sites(*sites: Site) -> None:
    for site in sites:
        site.finished.set()
    for site in sites:
        site.join(20)
        site.connection.close()


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    folder = tmp_path_factory.mktemp("federation")
    authority = Authority(folder)
    certificate_file, key_file = authority.issue("coordinator", server=True)
    with SuperLinkProcess(folder / "superlink") as superlink:
        superlink.wait_ready(READY_SECONDS)
        front = Front(authority, superlink, free_port())
        client = gateway_client()

        async def everything(request: Request) -> Response:
            site = request.scope["site"]
            if site in front.refused:
                return Response(status_code=403)
            return await forward(request, superlink.address, site=site, nodes=front.nodes, client=client)

        @asynccontextmanager
        async def lifespan(_: Starlette) -> AsyncIterator[None]:
            async with client:
                yield

        routes = [Route("/{path:path}", everything, methods=["GET", "POST", "PUT"])]
        app = Starlette(routes=routes, lifespan=lifespan)
        config = uvicorn.Config(
            app,
            host="127.0.0.1",
            port=front.port,
            http=_NamesTheSite,
            ws="none",
            log_config=None,
            ssl_certfile=str(certificate_file),
            ssl_keyfile=str(key_file),
            ssl_ca_certs=str(authority.certificate_file),
            ssl_cert_reqs=ssl.CERT_REQUIRED,
        )
        config.load()
        assert config.ssl is not None
        config.ssl.minimum_version = ssl.TLSVersion.TLSv1_3
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        until(lambda: server.started, what="the TLS server")
        yield front
        server.should_exit = True
        thread.join(10)


class Fleet:
    """The sites of one test."""

    def __init__(self, front: Front) -> None:
        self._front = front
        self._sites: list[Site] = []

    def join(self, name: str, answer: Callable[[FleetConnection, Incoming], None] = echo) -> Site:
        site = start_site(self._front, name, answer)
        self._sites.append(site)
        return site


@pytest.fixture
def fleet(front: Front) -> Iterator[Fleet]:
    fleet = Fleet(front)
    yield fleet
    end_sites(*fleet._sites)


@pytest.fixture(name="until")
def _until() -> Callable[..., Any]:
    return until


@pytest.fixture(name="authority")
def _authority() -> type[Authority]:
    return Authority
