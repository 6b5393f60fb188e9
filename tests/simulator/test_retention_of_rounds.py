"""Round artefacts past their day: checkpoints, chunks and models go, for good and told of; what is younger stays."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from coordinator.appliance import open_appliance
from coordinator.database import reading, transaction
from coordinator.incidents.tables import IncidentRecord
from coordinator.policy.active import active_policy, policy_in_force
from coordinator.releases import review
from coordinator.releases.repository import ModelPurged, ReleaseRepository
from coordinator.retention.gate import Judged, plan
from coordinator.retention.inventory import UNKNOWN, chunk_store
from coordinator.retention.purge import Run, run
from coordinator.retention.report import lines, planned, run_lines, would_run
from coordinator.rounds.chunk_store import Place
from coordinator.rounds.tables import Candidate, ModelState
from coordinator.studies.repository import StudyRepository
from coordinator.studies.states import StudyState
from protocol.timestamp import timestamp
from tests.simulator.federation import Federation, SimulatedClock, build_federation


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """A study whose candidate is there, its dates 2027-01-01 and 2030-01-01."""
    federation = build_federation(tmp_path_factory.mktemp("once"))
    federation.ready()
    assert federation.driver().run() is StudyState.CANDIDATE
    federation.appliance.engine.dispose()
    return federation


@pytest.fixture
def trained(once: Federation, tmp_path: Path) -> Iterator[Federation]:
    """Its coordinator, copied."""
    home = tmp_path / "coordinator"
    shutil.copytree(once.appliance.home, home)
    settings = home / "coordinator.toml"
    settings.write_text(settings.read_text().replace(str(once.appliance.home), str(home)))
    clock = SimulatedClock(once.clock.now())
    appliance = open_appliance(home, clock=clock.now)
    yield replace(once, appliance=appliance, clock=clock)
    appliance.engine.dispose()


def on(federation: Federation, day: str) -> None:
    federation.clock.seconds = (
        datetime.fromisoformat(f"{day}T12:00:00+00:00") - federation.clock.begins
    ).total_seconds()


def purge(federation: Federation) -> Run:
    return run(federation.appliance, policy_in_force(federation.appliance))


def judged(federation: Federation) -> dict[tuple[str, str], Judged]:
    with reading(federation.appliance.engine) as session:
        found = plan(session, federation.appliance, active_policy(session, federation.appliance))
    return {(one.holding.record_class.value, one.holding.about): one for one in found}


def standings(federation: Federation) -> dict[str, str]:
    return {kind: one.standing.value for (kind, _), one in judged(federation).items() if kind != "policy-record"}


def weights(federation: Federation) -> bytes:
    candidate = federation.candidate("hearts-1")
    assert candidate is not None
    return candidate.weights


def held_somewhere(federation: Federation, data: bytes) -> list[str]:
    files = [path for path in federation.appliance.home.rglob("*") if path.is_file()]
    return [path.name for path in files if data in path.read_bytes()]


def draft(federation: Federation) -> str:
    with transaction(federation.appliance.engine) as session:
        return review.draft(
            session, federation.appliance, federation.researcher, study="hearts-1", intended_use="cardiology",
            use_mode="research",
        ).id  # fmt: skip


def test_checkpoints_go_after_their_day_and_not_before(trained: Federation) -> None:
    name, secret = draft(trained), weights(trained)
    assert held_somewhere(trained, secret[:48])
    on(trained, "2027-01-01")  # the last day
    assert standings(trained) == {"checkpoint": "kept", "model": "kept", "technical-documentation": "kept"}
    assert purge(trained).purged == ()
    assert weights(trained) == secret
    on(trained, "2027-01-02")
    assert standings(trained)["checkpoint"] == "due"
    done = purge(trained)
    assert [one.holding.record_class.value for one in done.purged] == ["checkpoint"]
    assert done.forgotten
    assert weights(trained) == b""
    with reading(trained.appliance.engine) as session:
        assert session.get(ModelState, "hearts-1") is None
        assert "model.safetensors" in ReleaseRepository(session).files(name)
    raw = [path for path in held_somewhere(trained, secret[:48]) if not path.startswith("coordinator.db")]
    assert raw == []
    events = [event for event in trained.events("hearts-1") if event.event == "records.purged"]
    assert [dict(event.labels) for event in events] == [{"class": "checkpoint"}]
    assert "checkpoint" not in standings(trained)
    assert purge(trained).purged == ()


def test_the_bytes_of_a_candidate_without_a_release_are_gone_from_the_disk(trained: Federation) -> None:
    secret = weights(trained)[:48]
    assert held_somewhere(trained, secret)
    on(trained, "2027-01-02")
    assert purge(trained).forgotten
    assert held_somewhere(trained, secret) == []
    with pytest.raises(ModelPurged, match="last day for checkpoints"):
        draft(trained)


def test_a_model_goes_after_its_day_and_its_documents_stay(trained: Federation) -> None:
    name = draft(trained)
    on(trained, "2030-01-02")
    assert standings(trained) == {"checkpoint": "due", "model": "due", "technical-documentation": "kept"}
    assert {one.holding.record_class.value for one in purge(trained).purged} == {"checkpoint", "model"}
    with reading(trained.appliance.engine) as session:
        assert set(ReleaseRepository(session).files(name)) == {"model_card.md"}
        with pytest.raises(ModelPurged, match="last day for its model"):
            ReleaseRepository(session).whole(name)
        assert ReleaseRepository(session).get(name).subject
    assert standings(trained) == {"technical-documentation": "kept"}
    dossier = judged(trained)["technical-documentation", name]
    assert "ten years" in dossier.decision.findings[0].message
    on(trained, "2040-01-03")
    assert judged(trained)["technical-documentation", name].standing.value == "free"
    # Papers out of effect for six years go by themselves; a dossier is a person's to remove.
    assert {one.holding.record_class.value for one in purge(trained).purged} == {"policy-record"}


def test_an_open_incident_holds_what_may_be_evidence(trained: Federation) -> None:
    on(trained, "2027-01-02")
    now = timestamp(trained.clock.now())
    with transaction(trained.appliance.engine) as session:
        session.add(
            IncidentRecord(
                id="incident-1", kind="breach", scope="study", about="hearts-1", state="open", aware_at=now,
                opened_by="carl", opened_at=now,
            )
        )  # fmt: skip
    assert standings(trained)["checkpoint"] == "kept"
    assert purge(trained).purged == ()
    with transaction(trained.appliance.engine) as session:
        found = session.get(IncidentRecord, "incident-1")
        assert found is not None
        found.state = "closed"
    assert standings(trained)["checkpoint"] == "due"


def test_a_study_that_still_runs_is_told_of_and_not_broken(trained: Federation) -> None:
    federation = trained
    with transaction(federation.appliance.engine) as session:
        StudyRepository(session).get("hearts-1").state = StudyState.RUNNING.value
    on(federation, "2027-01-02")
    assert standings(federation)["checkpoint"] == "stuck"
    assert purge(federation).purged == ()
    told = lines(planned(federation.appliance))
    assert any("still runs: stop it first" in line for line in told)


def test_chunks_of_closed_attempts_and_strays_go_at_once(trained: Federation) -> None:
    """What a crash left of a contribution: masked, and still nobody's to keep."""
    store = chunk_store(trained.appliance)
    closed = Place.of("hearts-1", "train", 1, 1, "alpha")
    for place in (closed, Place("f" * 32, "a" * 32)):
        store.begin(place, b"offer")
        store.put(place, 0, b"masked")
    found = judged(trained)
    assert {about: found["update", about].standing.value for about in ("hearts-1", UNKNOWN)} == {
        "hearts-1": "due", UNKNOWN: "due",
    }  # fmt: skip
    assert [row["about"] for row in would_run(planned(trained.appliance))["purged"]] == ["hearts-1", UNKNOWN]
    assert len(store.attempts()) == 2  # a dry run
    done = purge(trained)
    assert {one.holding.about for one in done.purged} == {"hearts-1", UNKNOWN}
    assert store.attempts() == []
    assert not list((trained.appliance.home / "uploads").iterdir())


def test_a_dry_run_erases_nothing_and_says_so(trained: Federation) -> None:
    on(trained, "2027-01-02")
    document = would_run(planned(trained.appliance))
    assert [row["class"] for row in document["purged"]] == ["checkpoint"]
    assert any("would be erased" in line for line in run_lines(document))
    assert weights(trained)
    with reading(trained.appliance.engine) as session:
        assert session.get(Candidate, "hearts-1") is not None
