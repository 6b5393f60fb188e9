"""No round without a self-test: missing or failed, it is refused before anything is charged."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from sqlmodel import delete, select

from protocol.round import CONTRIBUTION_TYPE, Contribution, Packet
from site_agent.agent import Agent
from site_agent.consent.plans import SignedPlan
from site_agent.database import transaction
from site_agent.training import self_test as gate
from site_agent.training.engine import EngineVersion, engine_version
from site_agent.training.tables import CohortCharge, SelfTestRecord
from site_agent.training.worker_client import WorkerClient, WorkerFailed
from tests.site_agent.federation_of_sites import Federation, Hospital, federation, refusal_in
from tests.tested_engine import mark_tested


@pytest.fixture
def world(tmp_path: Path) -> Federation:
    return federation(tmp_path)


def agreed(world: Federation) -> SignedPlan:
    """Everyone has granted, and keys are set up."""
    signed = world.sign(world.plan())
    for site in world.hospitals.values():
        site.grant(signed)
    world.establish(signed)
    return signed


def steps(site: Hospital) -> int:
    with transaction(site.engine) as session:
        return sum(row.steps_charged for row in session.exec(select(CohortCharge)))


def forget(site: Hospital) -> None:
    with transaction(site.engine) as session:
        session.exec(delete(SelfTestRecord))


def test_an_engine_that_was_never_tested_or_failed_computes_nothing(world: Federation) -> None:
    signed = agreed(world)
    site = world.hospitals["cork"]
    request = world.round_request(signed)
    forget(site)
    assert refusal_in(site.participant().answer("train.contribute", request), site) == "self-test-missing"
    mark_tested(site.engine, passed=False)
    assert refusal_in(site.participant().answer("train.contribute", request), site) == "self-test-failed"
    assert steps(site) == 0
    mark_tested(site.engine)
    envelope = Packet.from_bytes(site.participant().answer("train.contribute", request)).envelope
    assert envelope.payload_type == CONTRIBUTION_TYPE
    assert Contribution.model_validate_json(envelope.payload).engine == engine_version().digest
    assert steps(site) == 1


def test_another_engine_must_pass_anew(world: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    signed = agreed(world)
    site = world.hospitals["cork"]
    other = EngineVersion("99.0", "sha256:" + "9" * 64)
    monkeypatch.setattr(gate, "engine_version", lambda: other)
    answer = site.participant().answer("train.contribute", world.round_request(signed))
    assert refusal_in(answer, site) == "self-test-missing"
    assert steps(site) == 0


def test_the_engine_is_tested_in_the_worker_and_kept(world: Federation) -> None:
    site = world.hospitals["cork"]
    forget(site)
    found = gate.run(site.engine, site.worker, lambda: site.now)
    assert found.passed
    assert [check["name"] for check in found.checks][:2] == ["noise-and-clip", "sampling"]
    with transaction(site.engine) as session:
        assert gate.known(session) == found
        row = session.get(SelfTestRecord, engine_version().digest)
        assert row is not None
        assert all(isinstance(check["measured"], float) for check in json.loads(row.checks))


def test_a_worker_that_cannot_run_it_has_not_passed(world: Federation) -> None:
    site = world.hospitals["cork"]
    forget(site)
    site.worker.fail = True  # type: ignore[attr-defined]
    assert not gate.run(site.engine, site.worker, lambda: site.now).passed
    with transaction(site.engine) as session, pytest.raises(gate.AttemptRefused, match="self-test-missing"):
        gate.require_passed(session)


def test_the_agent_tests_an_unknown_engine_once(world: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    site = world.hospitals["cork"]
    forget(site)
    calls: list[WorkerClient] = []
    monkeypatch.setattr("site_agent.agent.run_self_test", lambda *given: calls.append(given[1]) or gate.run(*given))
    for _ in range(2):
        stop = threading.Event()
        stop.set()
        Agent(site.settings, site.keys, site.engine, stop=stop, client=_nobody, link=_nobody, worker=site.worker).run()
    assert calls == [site.worker]


def _nobody() -> object:
    raise WorkerFailed("nobody is there")
