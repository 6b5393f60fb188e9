"""`serve`: one port, TLS 1.3 only, client certificates optional; the parts that run beside the application.

Each route enforces what it needs of the caller; TLS only guarantees that a client certificate, when there is one, was
issued by our CA and is in date.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any, cast

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from coordinator.app import create_app
from coordinator.appliance import Appliance
from coordinator.audit.sequencer import verify_log
from coordinator.identity import PEER_CERTIFICATE
from coordinator.keystore import Keys, renew_server_certificate
from coordinator.parts import Part, parts
from coordinator.serving_lock import CannotServe, serving_lock
from coordinator.settings import split_address
from protocol.errors import CloisterError

SHUTDOWN_SECONDS = 10


class PeerCertificateProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol, with the peer's certificate (DER, verified by TLS) put into each request's scope."""

    _peer_certificate: bytes | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        connection = transport.get_extra_info("ssl_object")
        self._peer_certificate = connection.getpeercert(binary_form=True) if connection else None

    def on_message_begin(self) -> None:
        super().on_message_begin()
        cast(dict[str, Any], self.scope)[PEER_CERTIFICATE] = self._peer_certificate


def tls_context(keys: Keys) -> ssl.SSLContext:
    """TLS 1.3 only; a client certificate is asked for and, if sent, must chain to our CA."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.maximum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(keys.server_certificate_path, keys.server_key_path)
    context.verify_mode = ssl.CERT_OPTIONAL
    context.load_verify_locations(keys.ca_path)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.num_tickets = 0  # no resumption: every connection shows its certificate anew
    context.set_alpn_protocols(["http/1.1"])
    return context


def serve(appliance: Appliance, *, ready: Callable[[], None] = lambda: None) -> None:
    """Serve until SIGTERM or SIGINT. `ready` is called once requests are answered.

    Raises CannotServe when the home is already served or the port is in use, LogTampered when the log contradicts
    itself, and what a part that can't start raises.
    """
    with serving_lock(appliance.home):
        keys = appliance.keys
        renew_server_certificate(keys, appliance.settings.address, now=appliance.clock(), entropy=appliance.entropy)
        verify_log(appliance)
        context = tls_context(keys)
        with listening(appliance.settings.listen) as listener:
            build_server(appliance, context, parts(context), ready=ready).serve_on(listener)


def build_server(
    appliance: Appliance,
    context: ssl.SSLContext,
    wanted: Sequence[Part],
    *,
    ready: Callable[[], None] = lambda: None,
) -> CoordinatorServer:
    """The server of an application with these parts beside it; run it with a bound socket."""
    failures: list[CloisterError] = []

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            try:
                for part in wanted:
                    await stack.enter_async_context(part(app, appliance))
            except CloisterError as error:
                failures.append(error)
                raise
            yield

    return CoordinatorServer(server_config(create_app(appliance, lifespan=lifespan), context), ready, failures)


def server_config(app: FastAPI, context: ssl.SSLContext) -> uvicorn.Config:
    """How uvicorn runs an application of ours."""
    return uvicorn.Config(
        app, http=PeerCertificateProtocol, ssl_context_factory=lambda *_: context, lifespan="on", ws="none",
        log_config=None, access_log=False, server_header=False, proxy_headers=False, timeout_keep_alive=75,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS, h11_max_incomplete_event_size=1 << 16,
    )  # fmt: skip


class CoordinatorServer(uvicorn.Server):
    """uvicorn's server, which tells when it answers and why it could not start."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None], failures: list[CloisterError]) -> None:
        super().__init__(config)
        self._ready = ready
        self._failures = failures

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()

    def serve_on(self, listener: socket.socket) -> None:
        """Serve until told to stop. Raises what a part that could not start raised, CannotServe for anything else."""
        self.run(sockets=[listener])
        if self._failures:
            raise self._failures[0]
        if not self.started:
            raise CannotServe("The coordinator did not start.", "Read its log above for the reason.")


@contextmanager
def listening(address: str) -> Iterator[socket.socket]:
    """A bound socket. Raises CannotServe when the address is in use or not ours."""
    host, port = split_address(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise CannotServe(
                    f"Port {port} on {host} is in use.",
                    "Stop the program that holds it, or change listen in coordinator.toml.",
                ) from None
            raise CannotServe(
                f"The address {address} can't be listened on: {error.strerror}.", "Correct listen in coordinator.toml."
            ) from None
        yield listener
