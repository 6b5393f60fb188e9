"""What a site tells of the models that it serves: queued without a network, sent in order, ended even when killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from protocol.envelope import Envelope, open_json
from protocol.errors import CloisterError, Malformed
from protocol.serving import SERVING_REPORT_TYPE, ServingReport
from protocol.signing import SigningKey
from site_agent.coordinator_client import CoordinatorRefused, CoordinatorUnreachable
from site_agent.database import create_database, transaction
from site_agent.keystore import SiteKeys
from site_agent.serving.gate import ServingRefused
from site_agent.serving.log import days
from site_agent.serving.reports import Served, Server, counted, deliver_serving, end_killed, refusals_told, tell, told
from site_agent.settings import SiteHome, SiteSettings
from tests.site_agent.test_serving_gate import Clinic, clinic

__all__ = ["clinic"]
DIGEST = "sha256:" + "a" * 64
SERVED = Served("clinic-a", "heart-study-r1", DIGEST)
KEY = SigningKey.from_seed(b"\x07" * 32)


def clock() -> datetime:
    return datetime(2026, 11, 24, 12, tzinfo=UTC)


class Line:
    """Where reports go: down, or up and refusing some of them."""

    def __init__(self, down: bool = False, refuse: dict[str, int] | None = None) -> None:
        self.down, self.refuse, self.taken = down, refuse or {}, []

    def post_serving(self, data: bytes) -> None:
        signed = Envelope.from_bytes(data)
        open_json(signed, SERVING_REPORT_TYPE, {KEY.public.key_id: KEY.public})
        report = ServingReport.model_validate_json(signed.payload)
        if self.down:
            raise CoordinatorUnreachable("no", "wait")
        if report.change in self.refuse:
            raise CoordinatorRefused("absent", "no", "ask", status=self.refuse[report.change])
        self.taken.append(report)


@pytest.fixture
def site(tmp_path: Path):
    home = SiteHome(tmp_path)
    engine = create_database(home.database)
    yield home, engine
    engine.dispose()


def deliver(site: Any, line: Line) -> list[str]:
    settings = SiteSettings(site[0], "clinic-a", "127.0.0.1:1", "log", "key", 1.0)
    keys = SiteKeys(KEY, KEY, b"", b"", site[0].path)
    return list(deliver_serving(settings, site[1], line, keys, clock))  # type: ignore[arg-type]


def test_what_happened_offline_is_told_later_in_its_order(site: Any) -> None:
    home, engine = site
    server = Server(home, engine, SERVED, clock)
    server.start(DIGEST)
    with pytest.raises(CoordinatorUnreachable):
        deliver(site, Line(down=True))
    assert server.judged(Malformed("x", "y")) is not None
    server.judged(Malformed("x", "y"))  # the same again is not told again
    assert server.judged(None) is None
    server.answered(9)
    server.answered(2)
    server.stop()
    with transaction(engine) as session:
        tell(session, SERVED, "rolled-back", clock)
    line = Line()
    assert [what.split()[1] for what in deliver(site, line)] == [
        "started", "refused", "resumed", "stopped", "rolled-back"
    ]  # fmt: skip
    assert [report.number for report in line.taken] == [1, 2, 3, 4, 5]
    assert [report.answered for report in line.taken] == [None, None, None, 11, None]
    assert (line.taken[1].moment, line.taken[1].code) == ("running", "malformed")
    assert deliver(site, line) == []


def test_few_records_are_not_counted(site: Any) -> None:
    home, engine = site
    server = Server(home, engine, SERVED, clock)
    server.start(DIGEST)
    server.answered(10)
    server.stop()
    with transaction(engine) as session:
        assert [report.answered for report, _ in told(session)] == [None, None]
    fields = told_fields(change="stopped", server="server-" + "0" * 16, answered=10)
    with pytest.raises(ValidationError):
        ServingReport.model_validate(fields)


@pytest.mark.parametrize(
    "wrong",
    [
        {"change": "refused"}, {"change": "started"}, {"change": "rolled-back", "moment": "switch"},
        {"change": "started", "server": "server-" + "0" * 16, "answered": 50}, {"change": "predicted"},
        {"change": "rolled-back", "code": "a patient said so"}, {"change": "rolled-back", "words": "free"},
    ],
)  # fmt: skip
def test_a_report_says_nothing_but_what_it_may(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ServingReport.model_validate(told_fields(**wrong))


def told_fields(**changes: Any) -> dict[str, Any]:
    fields = {
        "report": "serving-" + "0" * 16, "number": 1, "site": "clinic-a", "release": "heart-study-r1",
        "subject_digest": DIGEST, "at": "2026-11-24T12:00:00Z",
    }  # fmt: skip
    return {**fields, **changes}


def test_one_that_is_refused_for_good_keeps_back_none_and_one_that_may_be_taken_later_does(site: Any) -> None:
    home, engine = site
    server = Server(home, engine, SERVED, clock)
    server.start(DIGEST)
    with transaction(engine) as session:
        tell(session, SERVED, "rolled-back", clock)
    server.stop()
    with pytest.raises(CoordinatorRefused):
        deliver(site, Line(refuse={"rolled-back": 403}))
    with transaction(engine) as session:
        assert [answer for _, answer in told(session)] == ["accepted", None, None]
    line = Line(refuse={"rolled-back": 404})
    assert deliver(site, line) == ["heart-study-r1 rolled-back, set aside: absent", "heart-study-r1 stopped"]
    with transaction(engine) as session:
        assert [answer for _, answer in told(session)] == ["accepted", "absent", "accepted"]
        assert counted(session) == {"accepted": 2, "waiting": 0, "set_aside": 1}


def test_a_server_that_was_killed_is_told_to_have_ended(site: Any) -> None:
    home, engine = site
    program = (
        "import os, sys\nfrom pathlib import Path\nfrom site_agent.clock import system_clock\n"
        "from site_agent.database import open_database\nfrom site_agent.serving.reports import Served, Server\n"
        "from site_agent.settings import SiteHome\nhome = SiteHome(Path(sys.argv[1]))\n"
        f"server = Server(home, open_database(home), Served('clinic-a', 'heart-study-r1', '{DIGEST}'), system_clock)\n"
        f"server.start('{DIGEST}')\nos.kill(os.getpid(), 9)\n"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(home.path)], check=False, capture_output=True)
    assert killed.returncode == -9, killed.stderr
    alive = Server(home, engine, SERVED, clock)
    alive.start(DIGEST)
    assert len(end_killed(home, engine, clock)) == 1
    assert end_killed(home, engine, clock) == []
    alive.stop()
    with transaction(engine) as session:
        assert [(report.change, report.code) for report, _ in told(session)] == [
            ("started", None), ("started", None), ("stopped", "killed"), ("stopped", None),
        ]  # fmt: skip


@pytest.mark.processes
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_that_is_stopped_tells_its_own_end(site: Any, number: int) -> None:
    home, engine = site
    program = (
        "import socket, sys\nfrom pathlib import Path\nfrom fastapi import FastAPI\n"
        "from site_agent.clock import system_clock\nfrom site_agent.database import open_database\n"
        "from site_agent.serving.commands import answer\nfrom site_agent.serving.log import ServingLog\n"
        "from site_agent.serving.reports import Served, Server\nfrom site_agent.settings import SiteHome\n"
        "home = SiteHome(Path(sys.argv[1]))\nlistener = socket.create_server(('127.0.0.1', 0))\n"
        f"server = Server(home, open_database(home), Served('clinic-a', 'heart-study-r1', '{DIGEST}'), system_clock)\n"
        f"log = ServingLog(home, 'heart-study-r1', '{DIGEST}', system_clock)\napp = FastAPI()\n"
        "app.router.on_startup.append(lambda: print('up', flush=True))\n"
        f"answer(app, listener, server, log, '{DIGEST}')\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(home.path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"up\n"
        child.send_signal(number)
        child.wait(timeout=60)
    with transaction(engine) as session:
        assert [(report.change, report.code) for report, _ in told(session)] == [("started", None), ("stopped", None)]
    lines = [json.loads(line) for day in days(home) for line in day.path.read_text().splitlines()]
    assert [line["event"] for line in lines] == ["started", "stopped"]


def test_the_gate_s_refusals_are_queued_with_their_rules_and_no_words(clinic: Clinic) -> None:
    with pytest.raises(ServingRefused) as caught:
        clinic.gate.require("install")
    with transaction(clinic.engine) as session:
        ((report, answer),) = told(session)
    assert (report.change, report.moment, report.code, answer) == ("refused", "install", "serving-refused", None)
    assert set(caught.value.rules) == set(report.rules)
    assert "eu_ai_act:A02" in report.rules
    assert caught.value.message not in report.model_dump_json()


def test_a_refusal_beside_the_gate_is_queued_by_its_code(site: Any) -> None:
    _, engine = site

    class Suspended(CloisterError):
        code = "release-suspended"

    with pytest.raises(Suspended), refusals_told(engine, SERVED, "switch", clock):
        raise Suspended("The release is suspended.", "Wait.")
    with transaction(engine) as session:
        ((report, _),) = told(session)
    assert (report.change, report.moment, report.code) == ("refused", "switch", "release-suspended")


def test_what_cannot_be_queued_is_not_answered(site: Any) -> None:
    home, engine = site
    server = Server(home, engine, SERVED, clock)
    server.start(DIGEST)
    with transaction(engine) as session:
        session.connection().exec_driver_sql("DROP TABLE serving_report")
    refused = server.judged(Malformed("x", "y"))
    assert refused is not None
    assert refused.code != "malformed"
