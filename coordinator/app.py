"""The web application: every room's routes over one appliance, and the limits that hold for all of them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import PlainTextResponse
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from coordinator import problems
from coordinator.appliance import Appliance
from coordinator.audit.routes import router as audit_router
from coordinator.console.routes import router as console_router
from coordinator.database import reading
from coordinator.errors import TooLarge
from coordinator.evidence.routes import router as evidence_router
from coordinator.incidents.routes import router as incidents_router
from coordinator.passkeys.routes import router as passkeys_router
from coordinator.people.routes import router as people_router
from coordinator.policy.active import active_policy
from coordinator.policy.routes import router as policy_router
from coordinator.releases.routes import router as releases_router
from coordinator.releases.routes import site_router as site_releases_router
from coordinator.retention.routes import dossiers as dossiers_router
from coordinator.retention.routes import router as retention_router
from coordinator.reviews.routes import router as reviews_router
from coordinator.rounds.routes import PREFIX as CONTRIBUTIONS
from coordinator.rounds.routes import router as rounds_router
from coordinator.sites.routes import router as sites_router
from coordinator.studies.routes import router as studies_router
from protocol.round import MAX_CHUNK

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[Any]]

open_router = APIRouter(prefix="/v1", tags=["open"])
FLEET = "/v1/fleet/"
CONTRIBUTION_LIMIT = MAX_CHUNK + (1 << 16)


@open_router.get("/ca")
def ca(request: Request) -> Response:
    """The CA's certificate (PEM): whoever asks compares it with the fingerprint in a token."""
    return PlainTextResponse(request.app.state.appliance.keys.authority.pem, media_type="application/x-pem-file")


@open_router.get("/health")
def health(request: Request) -> dict[str, Any]:
    """Whether the parts run; no counts, no names."""
    parts: dict[str, Callable[[], str]] = request.app.state.parts
    states = {name: state() for name, state in parts.items()}
    return {"status": "ok" if set(states.values()) <= {"ok"} else "degraded", "parts": states}


def create_app(appliance: Appliance, *, lifespan: Lifespan | None = None) -> FastAPI:
    """The application. `app.state.parts` names what runs beside it, each with a function that tells its state."""
    app = FastAPI(
        title="Cloister coordinator", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan,
        redirect_slashes=False,
    )  # fmt: skip
    app.state.appliance = appliance
    app.state.parts = {}
    with reading(appliance.engine) as session:
        active_policy(session, appliance)  # a set that does not verify or compile stops the start
    app.add_middleware(BodyLimit, limit=appliance.settings.body_limit)
    problems.install(app)
    for router in (
        open_router, people_router, sites_router, audit_router, evidence_router, studies_router, rounds_router,
        releases_router, incidents_router, reviews_router, retention_router, site_releases_router, passkeys_router,
        dossiers_router,
        policy_router, console_router,
    ):  # fmt: skip
        app.include_router(router)
    return app


class BodyLimit:
    """Refuses a request body over the limit before anything reads it whole. The fleet's gateway has its own."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(FLEET):
            await self._app(scope, receive, send)
            return
        # A chunk has the size that both ends agreed on, whatever this coordinator's limit on documents.
        limit = CONTRIBUTION_LIMIT if scope["path"].startswith(CONTRIBUTIONS) else self._limit
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        refusal = problems.problem(413, *_too_large(limit))
        if declared.isdigit() and int(declared) > limit:
            await refusal(scope, receive, send)
            return
        received, answering = 0, False

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            return message if received <= limit else {"type": "http.disconnect"}

        async def answered(message: Message) -> None:
            # Whatever the application made of a body that was cut off, the caller hears why.
            nonlocal answering
            if received <= limit:
                answering = True
                await send(message)
            elif not answering:
                answering = True
                await refusal(scope, receive, send)

        try:
            await self._app(scope, counted, answered)
        except ClientDisconnect:
            if received <= limit:
                raise
            if not answering:
                await refusal(scope, receive, send)


def _too_large(limit: int) -> tuple[str, str, str]:
    error = TooLarge(f"The request body is larger than {limit} bytes.", "Send a smaller document.")
    return error.code, error.message, error.remedy
