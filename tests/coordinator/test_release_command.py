"""`cloister release show` and `approve` against a coordinator that shows one thing and has another signed."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from coordinator.client import account, release
from protocol.canonical import parse
from protocol.errors import VerificationFailed
from protocol.release import ReleaseSubject
from tests.releases import HASH, Maker

FILES = Maker().files()
SUBJECT = ReleaseSubject.model_validate_json(FILES["subject.json"])


class Told:
    """A connection that gives this answer to everything, and keeps what was sent."""

    def __init__(self, answer: dict[str, Any]) -> None:
        self.answer, self.sent = answer, []

    def __enter__(self) -> Told:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def get(self, path: str) -> Any:
        return self.answer

    def post(self, path: str, document: object = None) -> Any:
        self.sent.append(path)
        return self.answer


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Any, Told]]:
    def run(answer: dict[str, Any], *arguments: str) -> tuple[Any, Told]:
        told = Told(answer)
        monkeypatch.setattr(account, "open_account", lambda _home: SimpleNamespace(connect=lambda: told))
        return CliRunner().invoke(release.app, list(arguments)), told

    return run


def shown(**changes: Any) -> dict[str, Any]:
    answer = {
        "release": SUBJECT.release,
        "state": "in_review",
        "subject": parse(FILES["subject.json"]),
        "subject_digest": SUBJECT.digest,
        "model_card": FILES["model_card.md"].decode(),
        "waivers": [],
        "serving": [{"site": "clinic-a", "answering": 1, "last": "started", "at": "2026-11-24T00:00:00Z"}],
        "vetoes": [],
        "gate": {"outcome": "allow", "findings": []},
        "approvals": [],
    }
    return {**answer, **changes}


def test_the_card_of_the_release_is_shown(run: Callable[..., tuple[Any, Told]]) -> None:
    result, _ = run(shown(), "show", SUBJECT.release)
    assert result.exit_code == 0
    assert "## Privacy" in result.output
    assert "Served at clinic-a by 1; last told: started" in result.output


def test_another_card_than_the_signed_one_is_not_shown(run: Callable[..., tuple[Any, Told]]) -> None:
    card = FILES["model_card.md"].decode().replace("epsilon 0.990", "epsilon 0.100")
    assert card != FILES["model_card.md"].decode()
    result, _ = run(shown(model_card=card), "show", SUBJECT.release)
    assert isinstance(result.exception, VerificationFailed)
    assert "epsilon 0.100" not in result.output


def test_a_signature_on_another_release_is_not_given(run: Callable[..., tuple[Any, Told]]) -> None:
    challenge = shown(packs=SUBJECT.packs, challenge=HASH)
    result, told = run(challenge, "approve", "heart-study-r2", "--reason", "Read it.", "--yes")
    assert isinstance(result.exception, VerificationFailed)
    assert SUBJECT.release in result.exception.message
    assert told.sent == ["/v1/releases/heart-study-r2/challenge"]
