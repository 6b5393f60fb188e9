"""Problem documents: what they carry, and what they refuse."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from protocol.errors import Refused
from protocol.problem import Problem


def test_an_error_is_told_whole() -> None:
    problem = Problem.of(Refused("The study is closed.", "Ask for a new one."), status=409, title="Conflict")
    assert json.loads(problem.model_dump_json()) == {
        "type": "urn:cloister:problem:refused",
        "title": "Conflict",
        "status": 409,
        "detail": "The study is closed.",
        "code": "refused",
        "remedy": "Ask for a new one.",
    }
    assert Problem.model_validate_json(problem.model_dump_json()) == problem


def test_unknown_members_are_ignored_and_long_details_cut() -> None:
    read = Problem.model_validate_json(
        b'{"type":"about:blank","title":"t","status":404,"code":"gone","instance":"/x","trace":"no"}'
    )
    assert set(read.model_dump()) == {"type", "title", "status", "detail", "code", "remedy"}
    assert len(Problem.of(Refused("m" * 9000), status=400, title="t").detail) == 2000


@pytest.mark.parametrize(
    "member",
    [
        {"status": 200},
        {"status": 600},
        {"status": "404"},
        {"code": "No Such"},
        {"code": ""},
        {"type": "http://x"},
        {"title": "t" * 2001},
    ],
)
def test_documents_that_are_refused(member: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Problem.model_validate({"title": "t", "status": 404, "code": "gone", **member})
