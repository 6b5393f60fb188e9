"""A server that already runs learns of a suspension from the site's own copy of the log, without a restart."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from protocol.audit_event import AuditEvent, EventType
from protocol.canonical import sha256_hex
from protocol.release import ReleaseSubject
from site_agent.clock import system_clock
from site_agent.coordinator_client import CoordinatorClient
from site_agent.database import open_database
from site_agent.enrol import enrol
from site_agent.keystore import load_keys
from site_agent.serving.app import create_app
from site_agent.serving.predictor import Predictor
from site_agent.serving.standing import RECHECK_SECONDS, Standing
from site_agent.settings import SiteHome, load_settings
from site_agent.witness.cycle import Witness
from tests.papers import papers_file
from tests.releases import Maker
from tests.site_agent.made_up_coordinator import MadeUpCoordinator, made_up_coordinator

pytestmark = pytest.mark.processes
RECORDS = {"records": [{"age": 70.0, "pain": 2}]}


def suspension(release: str) -> bytes:
    return AuditEvent(
        event=EventType.RELEASE_SUSPENDED,
        at="2026-11-23T02:00:00Z",
        actor="coordinator",
        subject=f"release:{release}",
        digests={"subject": sha256_hex(release.encode())},
    ).leaf()


@pytest.fixture
def coordinator(tmp_path: Path):
    (tmp_path / "coordinator").mkdir()
    with made_up_coordinator(tmp_path / "coordinator") as coordinator:
        coordinator.log.add(b"first", b"second")
        yield coordinator


@pytest.fixture
def site(tmp_path: Path, coordinator: MadeUpCoordinator):
    home = SiteHome(tmp_path / "site")
    enrol(coordinator.token(), home, system_clock, papers_file())
    settings, keys = load_settings(home), load_keys(home)
    engine = open_database(home)
    with CoordinatorClient(settings, keys) as client:
        witness = Witness(settings, keys, engine, client, system_clock)
        witness.turn()
        yield witness
    engine.dispose()


class Served:
    """The application in this process, and its clock."""

    def __init__(self, site: Witness) -> None:
        files = Maker().files()
        subject = ReleaseSubject.model_validate_json(files["subject.json"])
        self.seconds = 0.0
        standing = Standing(site.settings, site.engine, subject.release, now=lambda: self.seconds)
        self.app = create_app(Predictor(files["model.onnx"], subject), standing.trouble, lambda _: None)

    def ask(self, path: str, body: Any = None) -> httpx.Response:
        async def send() -> httpx.Response:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://here") as client:
                return await client.request("GET" if body is None else "POST", path, json=body)

        return asyncio.run(send())

    def predict(self) -> tuple[int, str]:
        answer = self.ask("/v1/predict", RECORDS)
        return answer.status_code, answer.json().get("code", "")


@pytest.fixture
def served(site: Witness) -> Served:
    return Served(site)


def test_a_suspension_stops_a_running_server(coordinator, site, served) -> None:
    assert served.predict() == (200, "")
    coordinator.log.add(suspension("another-r1"))
    site.turn()
    served.seconds += RECHECK_SECONDS
    assert served.predict() == (200, "")
    coordinator.log.add(suspension("heart-study-r1"))
    site.turn()
    served.seconds += RECHECK_SECONDS / 2
    assert served.predict() == (200, "")  # it looks now and then, not at every request
    served.seconds += RECHECK_SECONDS / 2
    assert served.predict() == (503, "release-suspended")
    for path in ("/v2/health/ready", "/v2/models/heart-study", "/v2/models/heart-study/ready"):
        assert served.ask(path).status_code == 503
    assert served.ask("/v2/models/heart-study/infer", {"inputs": []}).status_code == 503
    assert served.ask("/v2/health/live").status_code == 200
    served.seconds += 10 * RECHECK_SECONDS
    told = served.ask("/v1/predict", RECORDS).json()
    assert "is suspended" in told["error"]
    assert told["remedy"]


def test_a_copy_that_cannot_be_believed_stops_it_too(coordinator, site, served) -> None:
    assert served.predict() == (200, "")
    coordinator.log.add(b"third")
    site.turn()
    site.mirror.write(0, (b"first", b"changed", b"third"))
    served.seconds += RECHECK_SECONDS
    assert served.predict() == (503, "mirror-damaged")
    site.mirror.write(0, (b"first", b"second", b"third"))
    served.seconds += RECHECK_SECONDS
    assert served.predict() == (200, "")


def test_a_log_that_has_not_grown_is_not_read_again(site, served, monkeypatch) -> None:
    from site_agent.serving import standing

    read = []
    check = standing.check_own_log
    monkeypatch.setattr(standing, "check_own_log", lambda *asked: (read.append(asked), check(*asked)))
    for _ in range(5):
        assert served.predict() == (200, "")
        served.seconds += RECHECK_SECONDS
    assert len(read) == 1
