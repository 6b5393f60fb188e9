"""A coordinator that does what a test says, over real TLS on loopback: honest, broken or hostile.

It holds its own CA and log. A route is a function of the request's body that gives (status, body).
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID

from protocol.canonical import canonical, sha256_hex
from protocol.checkpoint import TreeHead, cosigner_key, sign_checkpoint, verify_cosignature
from protocol.enrolment import EnrolmentRequest, Token, site_uri, witness_name
from protocol.merkle import Tree, leaf_hash
from protocol.note import KeyType, VerifierKey, parse_signatures
from protocol.signing import SigningKey
from protocol.tiles import TILE_WIDTH, Tile, encode_bundle
from protocol.timestamp import timestamp
from protocol.witness_policy import WitnessPolicy, required_quorum

Route = Callable[[bytes], tuple[int, bytes]]
SECRET = "s" * 43


class MadeUpLog:
    """A log in memory that signs whatever head it is told to."""

    def __init__(self, name: str = "cloister/test") -> None:
        self.key = SigningKey.generate()
        self.vkey = VerifierKey(name, KeyType.ED25519, self.key.public.raw)
        self.entries: list[bytes] = []

    def add(self, *entries: bytes) -> None:
        self.entries += entries

    def event(self, event: str, *, subject: str = "x", digests: dict[str, str] | None = None) -> None:
        self.add(canonical({"event": event, "subject": subject, "digests": digests or {}}))

    def head(self, size: int | None = None) -> TreeHead:
        count = len(self.entries) if size is None else size
        tree = Tree(leaf_hash(entry) for entry in self.entries[:count])
        return TreeHead(self.vkey.name, count, tree.root())

    def note(self, size: int | None = None) -> bytes:
        return sign_checkpoint(self.head(size), self.key).to_bytes()

    def bundle(self, path: str) -> bytes | None:
        tile = Tile.parse(path)
        first = tile.index * TILE_WIDTH
        entries = self.entries[first : first + tile.width]
        return encode_bundle(entries) if len(entries) == tile.width else None

    def policy(self, *witnesses: VerifierKey) -> WitnessPolicy:
        return WitnessPolicy(self.vkey, witnesses, required_quorum(len(witnesses)))


@dataclass
class MadeUpCoordinator:
    """`requests`: every (method, path, body) that came in. `routes`: what a test has replaced."""

    folder: Path
    log: MadeUpLog = field(default_factory=MadeUpLog)
    routes: dict[tuple[str, str], Route] = field(default_factory=dict)
    requests: list[tuple[str, str, bytes]] = field(default_factory=list)
    cosignatures: list[str] = field(default_factory=list)
    policy: WitnessPolicy | None = None
    port: int = 0
    days: float = 7

    def __post_init__(self) -> None:
        self.key = SigningKey.generate()
        self.ca_key, self.ca = _authority()
        self.server_key = Ed25519PrivateKey.generate()
        certificate = self._issue(
            self.server_key.public_key(), "127.0.0.1", [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        )
        (self.folder / "server.pem").write_bytes(certificate + _private(self.server_key))
        (self.folder / "ca.pem").write_bytes(self.ca_pem)

    @property
    def ca_pem(self) -> bytes:
        return self.ca.public_bytes(serialization.Encoding.PEM)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def token(self, site: str = "clinic-a", **changes: Any) -> str:
        fingerprint = sha256_hex(self.ca.public_bytes(serialization.Encoding.DER))
        fields = {"kind": "site", "name": site, "address": self.address, "ca": fingerprint, "secret": SECRET}
        return Token.model_validate(fields | changes).to_text()

    def certify(self, csr: str, site: str, **changes: Any) -> bytes:
        request = x509.load_pem_x509_csr(csr.encode())
        return self._issue(request.public_key(), site, [x509.UniformResourceIdentifier(site_uri(site))], **changes)

    def enrolment(self, body: bytes, **changes: Any) -> dict[str, Any]:
        """The honest answer to an enrolment request, with `changes`."""
        request = EnrolmentRequest.model_validate_json(body)
        witness = VerifierKey.parse(request.witness)
        self.policy = self.policy or self.log.policy(witness)
        answer = {
            "certificate": self.certify(request.csr, request.site).decode(),
            "ca": self.ca_pem.decode(),
            "log": self.log.vkey.text,
            "coordinator": self.key.public.text,
            "witness_policy": self.policy.to_document(),
            "not_after": timestamp(datetime.now(UTC) + timedelta(days=7)),
            "poll_seconds": 0.5,
            "receipt": {"made_at": timestamp(datetime.now(UTC)), "clock_skew": 0.25},
        }
        return answer | changes

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        self.requests.append((method, path, body))
        if route := self.routes.get((method, path)):
            return route(body)
        match method, path:
            case "GET", "/v1/ca":
                return 200, self.ca_pem
            case "POST", "/v1/enrol":
                return 201, json.dumps(self.enrolment(body)).encode()
            case "GET", "/v1/log/checkpoint":
                return 200, self.log.note()
            case "GET", "/v1/log/policy" if self.policy:
                return 200, self.policy.to_bytes()
            case "POST", "/v1/log/cosignatures":
                self.cosignatures.append(body.decode())
                return 204, b""
            case "POST", "/v1/sites/me/renew":
                pem = self.certify(json.loads(body)["csr"], "clinic-a").decode()
                return 200, json.dumps({"certificate": pem, "not_after": "2026-01-01T00:00:00Z"}).encode()
            case "GET", _ if path.startswith("/v1/log/tile/entries/"):
                bundle = self.log.bundle(path.removeprefix("/v1/log/"))
                return (200, bundle) if bundle is not None else problem(404, "not-found", "No such tile.")
            case "PUT", _ if path.startswith("/v1/sites/me/datasets/"):
                return 204, b""
        return problem(404, "not-found", "No such thing.")

    def verified_cosignatures(self, witness: SigningKey, site: str = "clinic-a") -> list[int]:
        """The sizes of this log's heads that the lines handed in cosign. Fails on a line that is of none of them."""
        key = cosigner_key(witness_name(site), witness)
        sizes = []
        for text in self.cosignatures:
            for line in parse_signatures(text.encode()):
                sizes.append(next(size for size in range(len(self.log.entries) + 1) if self._is_over(line, size, key)))
        return sizes

    def _is_over(self, line: Any, size: int, key: VerifierKey) -> bool:
        from protocol.errors import BadSignature

        try:
            verify_cosignature(self.log.head(size), line, key)
        except BadSignature:
            return False
        return True

    def _issue(
        self, key: Any, name: str, names: list[Any], *, signer: Any = None, days: float | None = None, age: float = 0
    ) -> bytes:
        begin = datetime.now(UTC) - timedelta(minutes=1, days=age)
        builder = (
            x509.CertificateBuilder()
            .subject_name(_name(name))
            .issuer_name(self.ca.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(begin + timedelta(days=self.days if days is None else days))
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
        )
        return builder.sign(signer or self.ca_key, None).public_bytes(serialization.Encoding.PEM)


def problem(status: int, code: str, detail: str, remedy: str = "Do something.") -> tuple[int, bytes]:
    """An RFC 9457 answer."""
    return status, json.dumps({"status": status, "code": code, "detail": detail, "remedy": remedy}).encode()


@contextlib.contextmanager
def made_up_coordinator(folder: Path) -> Iterator[MadeUpCoordinator]:
    """Serve one on a free loopback port, TLS 1.3, client certificates optional."""
    coordinator = MadeUpCoordinator(folder)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _any(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            status, answer = coordinator.answer(self.command, self.path, body)
            self.send_response(status)
            self.send_header("content-length", str(len(answer)))
            if status == 302:
                self.send_header("location", "/elsewhere")
            self.end_headers()
            with contextlib.suppress(OSError):  # a client that has read enough hangs up
                self.wfile.write(answer)

        do_GET = do_POST = do_PUT = _any

        def log_message(self, *_: object) -> None:
            pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(folder / "server.pem")
    context.verify_mode = ssl.CERT_OPTIONAL
    context.load_verify_locations(folder / "ca.pem")

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def get_request(self) -> Any:
            raw, address = super().get_request()
            raw.settimeout(10)
            return context.wrap_socket(raw, server_side=True, do_handshake_on_connect=False), address

        def handle_error(self, *_: object) -> None:
            pass  # a site that refuses our certificate is what some tests are about

    server = Server(("127.0.0.1", 0), Handler)
    coordinator.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield coordinator
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _authority() -> tuple[Ed25519PrivateKey, x509.Certificate]:
    key = Ed25519PrivateKey.generate()
    now = datetime.now(UTC) - timedelta(days=30)
    name = _name("Test CA " + hashlib.sha256(key.public_key().public_bytes_raw()).hexdigest()[:8])
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=3650))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(identifier, critical=False)
        .sign(key, None)
    )
    return key, certificate


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _private(key: Ed25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
