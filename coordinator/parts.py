"""What runs beside the application while the coordinator is served: each a context manager, entered in this order.

A part puts a function under its name into `app.state.parts`, which tells its state for /v1/health: "ok", or a code.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from fastapi import FastAPI, Request, Response
from starlette.concurrency import run_in_threadpool

from coordinator.app import FLEET
from coordinator.appliance import Appliance
from coordinator.audit.sequencer import SequencerThread
from coordinator.errors import Unavailable, place_of
from coordinator.federation.superlink import SuperLinkProcess
from coordinator.identity import current_site
from coordinator.keystore import renew_server_certificate
from coordinator.rounds.supervisor import DriverSupervisor
from coordinator.rounds.uploads import Uploads
from coordinator.sites.node_registry import NodeRegistry
from protocol.errors import CloisterError

Part = Callable[[FastAPI, Appliance], AbstractAsyncContextManager[None]]

RENEWAL_CHECK_SECONDS = 3600.0
SUPERLINK_CHECK_SECONDS = 0.5
SUPERLINK_START_SECONDS = 60.0
_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
_log = logging.getLogger("cloister.parts")


def parts(context: ssl.SSLContext) -> list[Part]:
    """In order of start; they end in the reverse order. context: the server's, whose certificate is renewed."""

    @asynccontextmanager
    async def certificate(app: FastAPI, appliance: Appliance) -> AsyncIterator[None]:
        task = asyncio.create_task(_renew_for_ever(appliance, context))
        try:
            yield
        finally:
            task.cancel()

    return [sequencer, certificate, federation]


@asynccontextmanager
async def sequencer(app: FastAPI, appliance: Appliance) -> AsyncIterator[None]:
    """The log's sequencer."""
    thread = SequencerThread(appliance)
    app.state.parts["log"] = lambda: thread.failure or "ok"
    thread.start()
    try:
        yield
    finally:
        await asyncio.to_thread(thread.stop)


@asynccontextmanager
async def federation(app: FastAPI, appliance: Appliance) -> AsyncIterator[None]:
    """Flower's SuperLink on loopback, kept alive; the gateway in front of it; the drivers of running studies."""
    from coordinator.federation.gateway import forward, gateway_client

    superlink = SuperLinkProcess(appliance.home / "superlink")
    watch = _SuperLinkWatch(superlink)
    supervisor = DriverSupervisor(appliance, lambda: watch.address, superlink.superexec_secret_path)
    nodes = await asyncio.to_thread(NodeRegistry, appliance.engine)
    client = gateway_client()

    async def fleet(request: Request) -> Response:
        site = await run_in_threadpool(current_site, request)
        address = watch.address
        if address is None:
            raise Unavailable("The federation is starting or restarting.", "Try again in some seconds.")
        return await forward(request, address, site=site.name, nodes=nodes, client=client)

    app.router.add_route(FLEET + "{path:path}", fleet, methods=_METHODS, include_in_schema=False)
    app.state.superlink = superlink
    app.state.parts["federation"] = lambda: watch.state
    app.state.parts["rounds"] = lambda: supervisor.state
    task = asyncio.create_task(watch.keep_alive())
    await asyncio.to_thread(Uploads(appliance).keep_open_only)
    supervisor.start()
    try:
        yield
    finally:
        await asyncio.to_thread(supervisor.stop)
        watch.ending = True
        await task
        await asyncio.to_thread(superlink.stop)
        await client.aclose()


class _SuperLinkWatch:
    """Starts the SuperLink and starts it again when it has died; `address` is None while it does not answer."""

    def __init__(self, superlink: SuperLinkProcess) -> None:
        self._superlink = superlink
        self.address: str | None = None
        self.state = "starting"
        self.ending = False

    async def keep_alive(self) -> None:
        while not self.ending:
            if self.address is None or not self._superlink.alive:
                self.address = None
                await asyncio.to_thread(self._start)
            await asyncio.sleep(SUPERLINK_CHECK_SECONDS)

    def _start(self) -> None:
        try:
            self._superlink.stop()
            self._superlink.start()
            self._superlink.wait_ready(SUPERLINK_START_SECONDS)
        except (CloisterError, OSError) as error:
            self.state = error.code if isinstance(error, CloisterError) else type(error).__name__
            _log.error("the SuperLink did not start: %s", error)
        else:
            self.address, self.state = self._superlink.address, "ok"


async def _renew_for_ever(appliance: Appliance, context: ssl.SSLContext) -> None:
    keys = appliance.keys
    while True:
        await asyncio.sleep(RENEWAL_CHECK_SECONDS)
        try:
            renewed = renew_server_certificate(
                keys, appliance.settings.address, now=appliance.clock(), entropy=appliance.entropy
            )
            if renewed:
                context.load_cert_chain(keys.server_certificate_path, keys.server_key_path)
        except (CloisterError, OSError) as error:
            _log.error("the server's certificate can't be renewed: %s at %s", type(error).__name__, place_of(error))
