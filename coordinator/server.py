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
HEAD_LIMIT = 1 << 16
"""Bytes of a request beyond its body: request line, headers, chunk sizes and trailers. Anyone may connect."""
HEAD_SECONDS = 20.0
"""How long a caller may take from connecting, or from a request's first byte, to the end of its headers."""


class PeerCertificateProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol, with the peer's certificate (DER, verified by TLS) put into each request's scope, and
    with the limits on a request's head that uvicorn's does not have: a caller beyond them is cut off."""

    _peer_certificate: bytes | None = None
    _received = 0
    _body = 0
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        connection = transport.get_extra_info("ssl_object")
        self._peer_certificate = connection.getpeercert(binary_form=True) if connection else None
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_is_in()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._received += len(data)
        if self._received > 2 * self._body + HEAD_LIMIT:  # twice: a body may come in chunks of some bytes each
            self.transport.abort()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        cast(dict[str, Any], self.scope)[PEER_CERTIFICATE] = self._peer_certificate
        self._received = self._body = 0
        self._await_head()

    def on_headers_complete(self) -> None:
        self._head_is_in()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._body += len(body)
        super().on_body(body)

    def _await_head(self) -> None:
        self._head_is_in()
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def _head_is_in(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


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
