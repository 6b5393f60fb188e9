"""What a caller and the log learn of an error: what is foreseen in full, what is not in one line without any value."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import httpx
import pytest
from fastapi import FastAPI, Request
from sqlalchemy.exc import OperationalError

from coordinator import problems
from coordinator.app import BodyLimit, create_app
from coordinator.errors import Conflict, StorageFull
from coordinator.logs import PlaceOnly
from privacy.errors import BudgetExceeded
from protocol.errors import CloisterError, Malformed, Refused
from protocol.problem import Problem
from tests.coordinator.appliances import Made

SECRET = "patient 4711"


class Particular(Conflict):
    code = "particular"


class WithFacts(Refused):
    code = "policy-denied"

    def __init__(self) -> None:
        super().__init__("Policy denies this.", "Change it.")
        self.facts = {"findings": [{"rule": "gdpr-1"}]}


RAISED: dict[str, Exception] = {
    "ours": Malformed("It is wrong.", "Right it."),
    "subclass": Particular("It is elsewhere.", "Go there."),
    "facts": WithFacts(),
    "privacy": BudgetExceeded("It is spent.", "Wait."),
    "unforeseen": KeyError(SECRET),
    "full": OperationalError("INSERT", {"x": SECRET}, Exception("database or disk is full")),
    "database": OperationalError("INSERT", {"x": SECRET}, Exception(SECRET)),
    "disk": OSError(28, "No space left on device", SECRET),
}


@pytest.fixture
def app() -> FastAPI:
    app = FastAPI()
    problems.install(app)

    @app.get("/raise/{name}")
    def fail(name: str) -> None:
        raise RAISED[name]

    return app


def get(app: FastAPI, path: str) -> httpx.Response:
    import asyncio

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as client:
            return await client.get(path)

    return asyncio.run(ask())


@pytest.mark.parametrize(
    ("name", "status", "code"),
    [
        ("ours", 400, "malformed"),
        ("subclass", 409, "particular"),
        ("facts", 403, "policy-denied"),
        ("privacy", 422, "budget-exceeded"),
        ("unforeseen", 500, "internal"),
        ("full", 507, "storage-full"),
        ("database", 500, "internal"),
        ("disk", 507, "storage-full"),
    ],
)
def test_every_error_is_a_problem(
    app: FastAPI, caplog: pytest.LogCaptureFixture, name: str, status: int, code: str
) -> None:
    answer = get(app, f"/raise/{name}")
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    document = answer.json()
    findings = document.pop("findings", None)
    assert Problem.model_validate(document).code == code
    assert (findings is not None) == (name == "facts")
    assert SECRET not in answer.text + caplog.text
    assert "Traceback" not in caplog.text


def test_no_such_address_is_a_problem_too(local: Made) -> None:
    app = create_app(local.appliance)
    answer = get(app, "/nothing")
    assert (answer.status_code, answer.json()["code"]) == (404, "not-found")
    assert get(app, "/docs").status_code == 404
    assert get(app, "/openapi.json").status_code == 404


def test_a_log_line_tells_class_and_place_not_content() -> None:
    try:
        raise CloisterError(SECRET)
    except CloisterError as error:
        record = logging.LogRecord(
            "x", logging.ERROR, "p", 1, "it failed", None, (type(error), error, error.__traceback__)
        )
    line = PlaceOnly("%(levelname)s %(message)s").format(record)
    assert line == "ERROR it failed (CloisterError at ?)"


def test_storage_full_is_found_behind_other_errors() -> None:
    outer = RuntimeError("outer")
    outer.__cause__ = OSError(28, "No space left on device")
    assert isinstance(problems.storage_problem(outer), StorageFull)
    assert problems.storage_problem(RuntimeError("outer")) is None


def test_a_body_that_grows_over_the_limit_is_cut_off() -> None:
    app = FastAPI()
    app.add_middleware(BodyLimit, limit=1000)

    @app.post("/count")
    async def count(request: Request) -> int:
        return len(await request.body())

    def pieces(number: int) -> Iterator[bytes]:
        yield from [b"x" * 100] * number

    async def ask() -> list[int]:
        async def stream(number: int):  # type: ignore[no-untyped-def]
            for piece in pieces(number):
                yield piece

        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as client:
            return [(await client.post("/count", content=stream(number))).status_code for number in (10, 11)]

    import asyncio

    assert asyncio.run(ask()) == [200, 413]
