"""How HTTP says what is wrong (RFC 9457), in one place.

Errors name facts; only this table knows their status codes. Rooms add their own errors with `register`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import IntegrityError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from coordinator.database import DatabaseError
from coordinator.errors import (
    Conflict,
    Forbidden,
    NotFound,
    StorageFull,
    TooLarge,
    Unauthenticated,
    Unavailable,
    place_of,
    storage_problem,
)
from privacy.errors import PrivacyError
from protocol.errors import BadSignature, CloisterError, Malformed, Refused, VerificationFailed
from protocol.problem import MEDIA_TYPE

DETAIL_LIMIT = 2000
_log = logging.getLogger("cloister.problems")


STATUS: dict[type[CloisterError], int] = {
    CloisterError: 400,
    Malformed: 400,
    BadSignature: 400,
    VerificationFailed: 422,
    Refused: 403,
    Forbidden: 403,
    Unauthenticated: 401,
    NotFound: 404,
    Conflict: 409,
    TooLarge: 413,
    Unavailable: 503,
    StorageFull: 507,
    DatabaseError: 503,
}


def register(error: type[CloisterError], status: int) -> None:
    """Let `error` (and its subclasses) answer with `status`, 400 to 599."""
    STATUS[error] = status


def status_of(error: CloisterError) -> int:
    """The status of the nearest registered ancestor of the error's class."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def problem(status: int, code: str, detail: str, remedy: str = "", **more: Any) -> JSONResponse:
    """A problem+json answer. `more` must hold identifiers, codes and numbers only."""
    body = {
        "type": f"urn:cloister:problem:{code}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "code": code,
        "detail": detail[:DETAIL_LIMIT],
        "remedy": remedy[:DETAIL_LIMIT],
        **more,
    }
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
    return JSONResponse(body, status, headers=headers, media_type=MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Map every error to a problem: no traceback and no input value ever reaches the caller."""

    @app.exception_handler(CloisterError)
    async def ours(_: Request, error: CloisterError) -> JSONResponse:
        return problem(status_of(error), error.code, error.message, error.remedy, **dict(getattr(error, "facts", {})))

    @app.exception_handler(PrivacyError)
    async def privacy(_: Request, error: PrivacyError) -> JSONResponse:
        return problem(422, error.code, error.message, error.remedy)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        fields = sorted({_field(item) for item in error.errors()})
        return problem(
            422,
            "malformed",
            f"The request is not valid in: {', '.join(fields)[:400]}.",
            "Send what the interface asks for.",
        )

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> JSONResponse:
        code = {404: "not-found", 405: "method-not-allowed"}.get(error.status_code, "http-error")
        return problem(error.status_code, code, "There is nothing at this address for this method.")

    @app.exception_handler(IntegrityError)
    async def clash(_: Request, error: IntegrityError) -> JSONResponse:
        _log.error("a write broke a database constraint: %s", type(error.orig).__name__)
        return problem(409, "conflict", "Another request changed the same thing first.", "Read its state and retry.")

    app.add_middleware(InternalErrors)


class InternalErrors:
    """Turns what nobody foresaw into a plain answer and one line in the log: its class and place, no value of it.

    Outside this, the framework would write whole tracebacks, with whatever they hold, to the log.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except ClientDisconnect:
            return  # nobody is left to be told
        except Exception as error:
            if scope["type"] != "http":
                raise
            _log.error("internal error %s at %s", type(error).__name__, place_of(error))
            if started:
                return  # the answer is cut off, which the caller sees
            full = storage_problem(error)
            told = (
                problem(status_of(full), full.code, full.message, full.remedy)
                if full is not None
                else problem(
                    500, "internal", "The coordinator met an internal error.", "Ask its administrator to read its log."
                )
            )
            await told(scope, receive, send)


def _field(error: Mapping[str, Any]) -> str:
    # Names of our fields only: a name that the caller invented is not echoed.
    if error["type"] == "extra_forbidden":
        return "an unknown field"
    place = [part for part in error["loc"][:2] if isinstance(part, str) and part.isidentifier()]
    return ".".join(place)[:60] or "body"
